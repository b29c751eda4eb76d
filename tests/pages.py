"""HTML pages read as a browser would: tags, what they refer to, and the text."""

from __future__ import annotations

import html.parser


class Page(html.parser.HTMLParser):
    """Tags, what they refer to, and the text; a tag that closes nothing is an error."""

    VOID = frozenset({"meta", "input", "img", "br", "hr", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())

    def state(self) -> str:
        (banner,) = (
            attrs["class"]
            for tag, attrs in self.tags
            if tag == "div" and attrs.get("role") == "status"
        )
        return str(banner).split()[1]

    def all_of(self, key: str) -> list[str]:
        return [str(attrs[key]) for _, attrs in self.tags if key in attrs]

"""Guards of the page: nothing that was recorded is left out, nothing is loaded, and contradictions are said aloud."""

from __future__ import annotations

import base64
import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_figures import CLAIM_OF, synthetic_check, synthetic_rows

from hesstheory.show import figures
from hesstheory.show import pages as report

RUN = "20261121T120000-ab12"
FORMULA = r"\operatorname{Var} q_l = 2\|H_{ll}\|_F^2 + (\kappa-3)\sum_{i\in l} H_{ii}^2 + \sum_{m\neq l}\|H_{lm}\|_F^2"
SUBJECTS = {
    "T1": (
        "One product serves every layer",
        "HOLDS",
        r"\mathbb{E}\, z_l^\top (Hz)_l = \operatorname{tr} H_{ll}",
    ),
    "T2": ("Variance of the layer-wise trace", "HOLDS", FORMULA),
    "T6": (
        "Full-vector against separated probes",
        "CONDITIONAL",
        r"\sum_{m\ne l} \|H_{lm}\|^2 < 2(L-1)(\ldots)",
    ),
    "T7": ("Separate probes for tied weights are biased", "HOLDS", r"H_w = \sum_{r,s} U_{rs}"),
    "T10": (
        "Total variance on one mini-batch",
        "HOLDS",
        r"\frac{S_t^2}{b}\left(1-\frac{b}{n}\right)",
    ),
    "T12": ("Five to ten probes are right everywhere", "REFUTED", ""),
    "T13": ("Best number of probes at a fixed budget", "HOLDS", r"\sqrt{\frac{c_0}{c_1} K^*}"),
    "G8": (
        "Probes on the residual alone",
        "HOLDS",
        r"\operatorname{tr} H_{ll} = \operatorname{tr} G_{ll} + R_{ll}",
    ),
    "suite.power": ("The statistical checks have the power that they state", "HOLDS", ""),
}


def synthetic_claim(identity: str, table: str, rng: np.random.Generator) -> dict[str, Any]:
    subject, verdict, formula = SUBJECTS[identity]
    exact = {
        "name": "all sign vectors",
        "kind": "exact",
        "status": "passed",
        "detail": "",
        "discrepancy": 3.1e-16,
    }
    exact |= {
        "bound": 4.4e-14,
        "alpha": None,
        "power": None,
        "detectable": None,
        "num_draws": None,
        "table": None,
    }
    mutants = [
        {
            "name": "DroppedCrossBlocks",
            "sin": "omits Σ‖H_lm‖²",
            "rejected": True,
            "by": "all sign vectors",
            "detail": "",
        },
        {
            "name": "ReusedProbe",
            "sin": "re-seeds the probe in each layer",
            "rejected": True,
            "by": f"{table} agree",
        },
    ]
    claim = {
        "record": "claim",
        "run": RUN,
        "id": identity,
        "subject": subject,
        "formula": formula,
        "source": "[LHT]",
    }
    claim |= {
        "statement": f"{subject}: for every layer and any probe with E zzᵀ = I.",
        "expected": verdict,
    }
    claim |= {
        "reason": "Proved on paper.",
        "verdict": verdict,
        "kind": "exact",
        "detail": "Both routes agree.",
        "seconds": 1.2,
    }
    claim |= {
        "condition": "the coupling is below the crossover" if verdict == "CONDITIONAL" else ""
    }
    claim |= {"counterexample": "layer head, batch 256: K* = 99.2" if verdict == "REFUTED" else ""}
    claim |= {
        "reproduce": f"hesstheory validate {identity} --profile ci --seed 0",
        "mutants": mutants,
    }
    rows = synthetic_rows(table, rng)
    return {
        **claim,
        "checks": [{**exact, "rows": []}, synthetic_check(table, rows)],
        "time": "2026-11-21T12:00:04Z",
    }


def synthetic_run() -> list[dict[str, Any]]:
    rng = np.random.default_rng(11)
    claims = [synthetic_claim(identity, table, rng) for table, identity in CLAIM_OF.items()]
    header = {"record": "run", "run": RUN, "profile": "ci", "seed": "20261121", "suite_alpha": 1e-6}
    header |= {
        "alpha_per_check": 3.2e-8,
        "num_statistical": 31,
        "fingerprint": "9f2c",
        "time": "2026-11-21T12:00:00Z",
    }
    header |= {
        "provenance": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "command": "hesstheory validate --profile ci",
        }
    }
    end = {
        "record": "end",
        "run": RUN,
        "seconds": 61.5,
        "passed": True,
        "time": "2026-11-21T12:01:01Z",
    }
    counts = {
        verdict: sum(c["verdict"] == verdict for c in claims)
        for verdict in ("HOLDS", "CONDITIONAL", "REFUTED")
    }
    header["claims"] = [claim["id"] for claim in claims]
    return [
        header,
        *claims,
        {**end, "counts": counts, "records_run": sum(len(c["checks"]) for c in claims)},
    ]


def counted_checks(records: list[dict[str, Any]]) -> int:
    return sum(len(record.get("checks", ())) for record in records)


class Page(html.parser.HTMLParser):
    """Tags, what they refer to, and the text, read as a browser would."""

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


def page_of(records: list[dict[str, Any]], drawn: list[figures.Figure] | None = None) -> Page:
    page = Page(report.render(records, drawn or []))
    assert page.open == []
    return page


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[figures.Figure]:
    return figures.draw_all(synthetic_run(), tmp_path_factory.mktemp("figures"))


@pytest.fixture
def records() -> list[dict[str, Any]]:
    return synthetic_run()


def test_every_check_recorded_is_shown(
    records: list[dict[str, Any]], drawn: list[figures.Figure], tmp_path: Path
) -> None:
    path = tmp_path / "reports" / "index.html"
    assert (
        report.write(records, drawn, path) == counted_checks(records) == records[-1]["records_run"]
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert page.state() == "green"
    assert f"{counted_checks(records)} of {counted_checks(records)} checks shown" in page.text
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_every_word_of_the_records_is_on_the_page(
    records: list[dict[str, Any]], drawn: list[figures.Figure]
) -> None:
    page = page_of(records, drawn)
    spoken = (
        "id",
        "subject",
        "statement",
        "source",
        "reason",
        "verdict",
        "detail",
        "condition",
        "counterexample",
    )
    for claim in records[1:-1]:
        assert all(claim[key] in page.text for key in (*spoken, "reproduce"))
        assert all(
            check["name"] in page.text and check["detail"] in page.text for check in claim["checks"]
        )
        assert all(
            m["name"] in page.text and m["sin"] in page.text and m["by"] in page.text
            for m in claim["mutants"]
        )
    assert (
        "at most 1e-06 in a whole run, divided among 31 statistical checks, α = 3.2e-08 each"
        in page.text
    )
    assert all(value in page.text for value in records[0]["provenance"].values())


def test_nothing_is_loaded(records: list[dict[str, Any]], drawn: list[figures.Figure]) -> None:
    page = page_of(records, drawn)
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|url\(|@import", page.source)
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "svg",
    }
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.all_of("src"))
    assert all(target.startswith(("#", "data:text/csv;")) for target in page.all_of("href"))


def test_links_meet_their_targets_and_ids_are_unique(
    records: list[dict[str, Any]], drawn: list[figures.Figure]
) -> None:
    page = page_of([*records[:-1], records[1], records[-1]], drawn)
    ids = page.all_of("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in page.all_of("href") if target.startswith("#")} <= set(ids)


def test_figures_carry_their_picture_and_data(
    records: list[dict[str, Any]], drawn: list[figures.Figure]
) -> None:
    page = page_of(records, drawn)
    pictures = [base64.b64decode(source.split(",")[1]) for source in page.all_of("src")]
    data = [
        base64.b64decode(target.split(",")[1])
        for target in page.all_of("href")
        if target.startswith("data:")
    ]
    assert pictures == [figure.svg.read_bytes() for figure in drawn]
    assert data == [figure.csv.read_bytes() for figure in drawn]
    assert all(len(text) > 20 for text in page.all_of("alt"))
    assert len(drawn) == len(figures.PLOTS)


def test_rows_without_a_figure_stand_with_their_check(records: list[dict[str, Any]]) -> None:
    records[1]["checks"][0] |= {
        "table": "unheard of",
        "rows": [{"layer": "only here", "value": 0.12345}],
    }
    page = page_of(records)
    assert "only here" in page.text
    assert "0.1235" in page.text or "0.1234" in page.text


@pytest.mark.parametrize("place", ["claim", "check", "mutant", "row", "header", "figure"])
def test_records_cannot_write_markup(
    place: str, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    evil = '"\'><script>alert(1)</script><tr class="check passed"><img src=http://a.example/x onerror=alert(1)>&amp;'
    claim = records[1]
    if place == "header":
        records[0] |= {
            "profile": evil,
            "run": evil,
            "provenance": {evil: evil},
            "claims": [evil],
            "num_statistical": evil,
        }
    elif place == "figure":
        claim["checks"][1]["rows"][0]["block"] = evil
    else:
        target = {"claim": claim, "check": claim["checks"][0], "mutant": claim["mutants"][0]}.get(
            place
        )
        if target is None:
            claim["checks"][0] |= {"table": evil, "rows": [{evil: evil}]}
        else:
            target |= {
                key: evil
                for key, value in target.items()
                if isinstance(value, str) and key != "record"
            }
    drawn = figures.draw_all(records, tmp_path) if place == "figure" else []
    page = page_of(records, drawn)
    assert report.write(records, drawn, tmp_path / "index.html") == counted_checks(records)
    assert not {tag for tag, _ in page.tags} & {"script"}
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert all(source.startswith("data:") for source in page.all_of("src"))
    assert evil in "".join(page.words)


@pytest.mark.parametrize(
    "formula",
    [
        r"\text{<script>alert(1)</script>}",
        r"\href{javascript:alert(1)}{x}",
        r"a < b \& c > d",
        r"\frac{a",
        r"\begin{matrix} a",
        "}",
        "\\",
        "<b>x</b>",
        "$x^2$",
    ],
)
def test_a_formula_is_mathematics_or_its_source_never_markup(formula: str) -> None:
    page = Page(str(report.mathml(formula)))
    assert page.open == []
    assert {tag for tag, _ in page.tags} <= {"code", "math"} | {
        t for t, _ in page.tags if t.startswith("m")
    }
    assert page.all_of("href") == []


def test_a_formula_reads_as_mathematics() -> None:
    page = Page(str(report.mathml(FORMULA)))
    assert page.tags[0][0] == "math"
    assert "∑" in page.text
    assert report.mathml("") == report.mathml(" $ $ ") == ""


def change(records: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    header, claim, end = records[0], records[1], records[-1]
    match what:
        case "verdict":
            claim["verdict"] = "REFUTED"
        case "stale":
            claim["verdict"] = "STALE"
        case "inconclusive":
            claim["verdict"] = "INCONCLUSIVE"
        case "unknown verdict":
            claim["verdict"] = "PROBABLY"
        case "survivor":
            claim["mutants"][0]["rejected"] = False
        case "failed check":
            claim["checks"][0]["status"] = "failed"
        case "lost check":
            end["records_run"] += 1
        case "announced":
            header["claims"].append("T99")
        case "not passed":
            end["passed"] = False
        case "other end":
            end["run"] = "another"
        case "other claim":
            claim["run"] = "another"
        case "no claims":
            return [header, {**end, "records_run": 0}]
        case "no header":
            return records[1:]
        case "no end":
            return records[:-1]
    return records


@pytest.mark.parametrize(
    ("what", "state", "said"),
    [
        ("nothing", "green", "Green: 9 of 9 verdicts are as expected"),
        ("verdict", "red", "T1: REFUTED where HOLDS was expected."),
        ("stale", "red", "T1: STALE where HOLDS was expected."),
        ("inconclusive", "red", "T1: INCONCLUSIVE where HOLDS was expected."),
        ("unknown verdict", "red", "T1: PROBABLY where HOLDS was expected."),
        ("survivor", "red", "Said to hold although a mutant survived: T1."),
        ("failed check", "red", "Said to hold although a check failed: T1."),
        ("lost check", "red", "The run counted 19 checks, but 18 are recorded."),
        ("announced", "red", "Announced but without a verdict: T99."),
        ("not passed", "red", "The end record says that the run did not pass."),
        ("other end", "red", "The end record belongs to another run, another."),
        ("other claim", "red", f"Recorded by another run than {RUN}: T1."),
        ("no claims", "red", "No claim was decided."),
        ("no header", "red", "its budget and provenance are unknown"),
        ("no end", "unfinished", "it was interrupted or has not finished"),
    ],
)
def test_the_banner_says_what_is_wrong(
    what: str, state: str, said: str, records: list[dict[str, Any]]
) -> None:
    page = page_of(change(records, what))
    assert page.state() == state
    assert said in page.text


def test_a_survivor_of_a_claim_known_to_be_inconclusive_is_flagged_but_not_red(
    records: list[dict[str, Any]],
) -> None:
    records[1] |= {"verdict": "INCONCLUSIVE", "expected": "INCONCLUSIVE"}
    records[1]["mutants"][0]["rejected"] = False
    page = page_of(records)
    assert page.state() == "green"
    assert page.text.count("SURVIVED") == 1
    assert "mutant DroppedCrossBlocks survived: omits Σ‖H_lm‖²" in page.text


@pytest.mark.parametrize(
    "bare", [{}, {"checks": None, "mutants": None}, {"checks": [{}], "mutants": [{}]}]
)
def test_missing_keys_cost_nothing(bare: dict[str, Any], tmp_path: Path) -> None:
    records = [
        {"record": "run"},
        {"record": "claim", **bare},
        {"record": "end"},
        {"record": "note"},
        {},
    ]
    assert report.write(records, [], tmp_path / "index.html") == len(bare.get("checks") or ())
    assert report.write([], [], tmp_path / "index.html") == 0


def test_long_words_and_numbers_beyond_range(records: list[dict[str, Any]], tmp_path: Path) -> None:
    records[1] |= {"statement": "x" * 20_000, "detail": "word " * 4_000}
    records[1]["checks"][0] |= {
        "discrepancy": float("inf"),
        "bound": float("nan"),
        "num_draws": 10**30,
    }
    assert report.write(records, [], tmp_path / "index.html") == counted_checks(records)


def test_rerun_gives_the_same_bytes(
    records: list[dict[str, Any]], drawn: list[figures.Figure]
) -> None:
    assert report.render(records, drawn) == report.render(synthetic_run(), drawn)

"""A kind of figure, and one drawn figure: its pictures and its data as bytes and text."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas

from hesstheory.show.axes import GREY, STYLE
from hesstheory.show.rows import Drawable, typed

PNG_DPI = 170  # a figure of 10 inches is sharp on a screen of 1700 points

Draw = Callable[[Canvas, pd.DataFrame], None]
"""Draws the rows onto an empty canvas, and chooses its size."""

SUFFIXES = ("svg", "png", "csv")


@dataclass(frozen=True)
class Figure:
    """One drawn figure: what it shows, and the claims whose checks supplied the rows.

    `svg` and `png` are the pictures; `csv` holds all rows, those that cannot be drawn too.
    """

    name: str
    title: str
    caption: str
    svg: bytes
    png: bytes
    csv: str
    claims: tuple[str, ...] = ()

    @property
    def files(self) -> dict[str, bytes | str]:
        """What is to be written, by file name."""
        contents = (self.svg, self.png, self.csv)
        return dict(zip(file_names(self.name), contents, strict=True))


@dataclass(frozen=True)
class Plot:
    """A kind of figure: which table it shows, which columns it needs, and how it is drawn.

    `keys` are columns of text, `numbers` columns of floats.
    """

    name: str
    table: str
    title: str
    caption: str
    keys: tuple[str, ...]
    numbers: tuple[str, ...]
    drawable: Drawable
    draw: Draw


def file_names(name: str) -> tuple[str, ...]:
    """The files of a figure: two pictures and the data."""
    return tuple(f"{name}.{suffix}" for suffix in SUFFIXES)


def drawn(plot: Plot, rows: pd.DataFrame) -> Figure:
    """Draws the rows of one table.

    Rows that cannot stand on the axes stay in the data, and the caption counts them.
    """
    frame = plot.drawable(typed(rows, plot.keys, plot.numbers))
    shown = frame[frame["drawn"]]

    def draw(canvas: Canvas) -> None:
        if shown.empty:
            _say_empty(canvas, len(frame))
        else:
            plot.draw(canvas, shown)

    svg, png = pictures(draw)
    return Figure(
        plot.name,
        plot.title,
        plot.caption + _rows_note(frame),
        svg,
        png,
        frame.to_csv(index=False, lineterminator="\n"),
        tuple(name for name in dict.fromkeys(frame["claim"]) if name),
    )


def pictures(draw: Callable[[Canvas], None]) -> tuple[bytes, bytes]:
    """SVG and PNG of what `draw` puts onto a canvas; the same bytes in every run."""
    svg = io.BytesIO()
    png = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        canvas = Canvas(layout="constrained")
        draw(canvas)
        if canvas.axes:
            _lay_out(canvas)
        # Date, Creator and Software would differ from run to run and between versions.
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        canvas.savefig(png, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def _lay_out(canvas: Canvas) -> None:
    """Places everything, once for both pictures.

    Left to itself matplotlib lays out again for each picture, and draws each twice.
    """
    engine = canvas.get_layout_engine()
    assert engine is not None
    engine.execute(canvas)
    canvas.set_layout_engine(None)


def _rows_note(frame: pd.DataFrame) -> str:
    """How many rows there are, and how many of them are not drawn."""
    hidden = int((~frame["drawn"]).sum())
    note = f" {len(frame)} rows."
    if hidden:
        note += (
            f" {hidden} of them cannot stand on these axes (missing, zero, infinite or repeated);"
            " they are in the data."
        )
    return note


def _say_empty(canvas: Canvas, rows: int) -> None:
    """Says in words that nothing can be drawn."""
    canvas.set_size_inches(6.0, 1.2)
    text = f"none of the {rows} rows can be drawn; see the data file"
    canvas.text(0.5, 0.5, text, ha="center", va="center", color=GREY)

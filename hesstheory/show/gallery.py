"""Which table becomes which figure, and all figures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

from hesstheory.show.budget import BUDGET
from hesstheory.show.critical_probes import CRITICAL_PROBES
from hesstheory.show.crossover import CROSSOVER
from hesstheory.show.estimates import ESTIMATES
from hesstheory.show.figures import Figure, Plot, drawn, file_names
from hesstheory.show.frontier import FRONTIER
from hesstheory.show.kills import KILL_MATRIX
from hesstheory.show.power import POWER
from hesstheory.show.rows import Record, rows_of
from hesstheory.show.tied_bias import TIED_BIAS
from hesstheory.show.tradeoff import TRADEOFF
from hesstheory.show.variance import GAIN, VARIANCE

# In the order of the page: are estimates right, how far are they off, how many probes are needed.
PLOTS: tuple[Plot, ...] = (
    ESTIMATES,
    VARIANCE,
    TIED_BIAS,
    TRADEOFF,
    BUDGET,
    CRITICAL_PROBES,
    POWER,
    CROSSOVER,
    GAIN,
)

FIGURE_OF_TABLE: Mapping[str, str] = {plot.table: plot.name for plot in PLOTS}


def draw_all(records: Iterable[Record]) -> list[Figure]:
    """Draws every figure whose table occurs in the records of a run.

    Parameters
    ----------
    records
        Records of a ledger; the claims among them hold checks, and these hold tables.

    Returns
    -------
    list of Figure
        In the order of the page; a table without rows has no figure.
    """
    return [drawn(plot, rows) for plot, rows in tables_of(records)]


def tables_of(records: Iterable[Record]) -> list[tuple[Plot, pd.DataFrame]]:
    """Every kind of figure for which the records of a run hold rows, with these rows."""
    records = list(records)
    tables = [(plot, rows_of(records, plot.table)) for plot in PLOTS]
    return [(plot, rows) for plot, rows in tables if not rows.empty]


def draw_kill_matrix(rows: Iterable[Record]) -> Figure:
    """Draws which check notices which wrong estimator.

    Parameters
    ----------
    rows
        One for each mutant and check, with `mutant`, `check` and `killed` (0 or 1).
    """
    frame = pd.DataFrame(list(rows)).rename(columns={"check": "noticed_by"})
    return drawn(KILL_MATRIX, frame.assign(claim="", check=""))


def draw_frontier(rows: Iterable[Record]) -> Figure:
    """Draws the error of the worst layer over the work.

    Parameters
    ----------
    rows
        One for each point, with `problem`, `way`, `kind`, `work` and `error`.
    """
    frame = pd.DataFrame(list(rows), columns=["problem", "way", "kind", "work", "error"])
    return drawn(FRONTIER, frame.assign(claim="", check=""))


def all_file_names() -> frozenset[str]:
    """Every file that a run of claims may leave in its folder of figures."""
    return frozenset(name for plot in PLOTS for name in file_names(plot.name))

"""Traces by block, with their standard errors."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from hesstheory.evidence.intervals import check_level
from hesstheory.results.archive import packed, unpacked
from hesstheory.run.files import write_atomically
from hesstheory.run.names import no_such

if TYPE_CHECKING:
    import os

    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Mapping[str, float]):
    """Traces by block, with what is needed to judge them.

    A mapping {block: trace}: `estimate["fc"]`, `dict(estimate)` and `estimate.items()` work. Two
    estimates are equal where their samples, costs and names are, hence their standard errors too;
    an estimate equals a plain mapping of its traces. An estimate cannot be changed.

    Parameters
    ----------
    samples
        One row per probe, one column per block. The trace of a block is the mean of its column.
    num_matvecs
        What it cost: products with the P×P matrix, or backward passes through all batches where
        the outputs are enough.
    is_exact
        The one row of `samples` holds exact traces, up to rounding.
    name
        Which trace it is, such as `"tr H"`. It names the Series `value`.

    Raises
    ------
    TypeError
        `samples` is no DataFrame.
    ValueError
        `samples` is empty, names a block twice, or has several rows of exact traces.

    Examples
    --------
    >>> import pandas as pd
    >>> from hesstheory import Estimate
    >>> estimate = Estimate(pd.DataFrame({"0": [1.0, 3.0], "2": [5.0, 5.0]}), num_matvecs=2)
    >>> dict(estimate)
    {'0': 2.0, '2': 5.0}
    >>> float(estimate.stderr["0"])
    1.0
    """

    samples: pd.DataFrame
    num_matvecs: int
    is_exact: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        _check_samples(self.samples, self.is_exact)

    @classmethod
    def exact(
        cls, values: Mapping[str, float] | pd.Series[float], num_matvecs: int = 0, name: str = ""
    ) -> Estimate:
        """Known traces {block: trace}: standard errors of zero, intervals of width zero.

        Examples
        --------
        >>> known = Estimate.exact({"0": 2.0, "2": 5.0}, num_matvecs=9, name="tr H")
        >>> known["2"], float(known.stderr["2"])
        (5.0, 0.0)
        """
        import pandas as pd

        traces = dict(values)
        row = pd.DataFrame([list(map(float, traces.values()))])
        row.columns = pd.Index(list(traces), dtype=object)
        return cls(row, num_matvecs, is_exact=True, name=name or None)

    @cached_property
    def value(self) -> pd.Series[float]:
        """Mean over the probes, by block."""
        # A NaN among the samples must show: pandas would leave it out.
        return self.samples.mean(skipna=False).rename(self.name)

    @cached_property
    def stderr(self) -> pd.Series[float]:
        """Standard error s/√K of the mean over K independent probes; NaN for one, 0 if exact."""
        if self.is_exact:
            return 0.0 * self.value
        return self.samples.std(ddof=1, skipna=False) / math.sqrt(len(self.samples))

    def __getitem__(self, block: str) -> float:
        if block not in self:
            raise KeyError(no_such("block", block, self))
        return float(self.value[block])

    def __iter__(self) -> Iterator[str]:
        return iter(self.samples.columns)

    def __eq__(self, other: object) -> bool:
        return _same(self, other) if isinstance(other, Estimate) else super().__eq__(other)

    def __len__(self) -> int:
        return self.samples.shape[1]

    def __contains__(self, block: object) -> bool:
        return block in self.samples.columns

    def confidence_interval(self, level: float = 0.95) -> pd.DataFrame:
        """Student's interval of each block's trace by itself, columns `low` and `high`.

        `level` is the coverage, in (0, 1). It is close to the true one where K is not tiny. Raises
        ValueError for a level that is none, and for one probe, which has no standard error.
        """
        import pandas as pd
        from scipy.stats import t

        check_level(level)
        if self.is_exact:
            return pd.DataFrame({"low": self.value, "high": self.value})
        if len(self.samples) < 2:
            raise ValueError("one probe has no standard error: use at least two probes")
        half = t.ppf((1 + level) / 2, len(self.samples) - 1) * self.stderr
        return pd.DataFrame({"low": self.value - half, "high": self.value + half})

    def __sub__(self, other: Estimate) -> Estimate:
        """The change of the traces, probe by probe.

        With the same probes in both (generators in the same state), what they have in common
        cancels, and the standard error is that of the change. The one row of an exact estimate is
        taken from every row.
        """
        import pandas as pd

        _check_difference(self, other)
        rows = self.samples.to_numpy() - other.samples.to_numpy()
        cost = self.num_matvecs + other.num_matvecs
        difference = pd.DataFrame(rows, columns=self.samples.columns)
        return Estimate(difference, cost, self.is_exact and other.is_exact)

    def to_frame(self) -> pd.DataFrame:
        """A row per block, columns `value` and `stderr`."""
        import pandas as pd

        return pd.DataFrame({"value": self.value, "stderr": self.stderr})

    def __repr__(self) -> str:
        return f"{_summary(self)}\n{self.to_frame()}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(_summary(self))}</p>{self.to_frame().to_html()}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes samples and all else to one npz file. A kill leaves the old file."""
        meta = {"num_matvecs": int(self.num_matvecs), "is_exact": self.is_exact, "name": self.name}
        write_atomically(_file(path, "in it"), packed(self.samples, meta))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Estimate:
        """What `save` wrote; pickled objects are refused, ValueError for any other file."""
        samples, meta = unpacked(_file(path, "that Estimate.save wrote").read_bytes(), path)
        name = cast("str | None", meta["name"])
        return cls(samples, cast(int, meta["num_matvecs"]), bool(meta["is_exact"]), name)


def _file(path: str | os.PathLike[str], which: str) -> Path:
    """The path of a file; ValueError, which says which file to name, for a folder."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a file {which}")
    return Path(path)


def _same(one: Estimate, other: Estimate) -> bool:
    """Whether all that is known of two estimates is equal; blocks may stand in another order."""
    facts = [(e.name, e.num_matvecs, e.is_exact, set(e)) for e in (one, other)]
    if facts[0] != facts[1]:
        return False
    a = one.samples.to_numpy(dtype=float)
    b = other.samples[list(one)].to_numpy(dtype=float)
    # A NaN equals itself here: the same estimate saved and loaded is equal.
    return bool(np.array_equal(a, b, equal_nan=True))


def _check_samples(samples: object, is_exact: bool) -> None:
    """Raises TypeError or ValueError for samples that are none."""
    import pandas as pd

    if not isinstance(samples, pd.DataFrame):
        raise TypeError(
            f"samples is a {type(samples).__name__}: pass a DataFrame with a row per probe and a "
            "column per block"
        )
    if samples.empty:
        raise ValueError("samples is empty: pass a row per probe and a column per block")
    if not samples.columns.is_unique:
        raise ValueError(f"blocks {list(samples)} repeat: give every column its own name")
    if is_exact and len(samples) > 1:
        raise ValueError(f"{len(samples)} rows of exact traces: pass one row, see Estimate.exact")


def _check_difference(one: Estimate, other: object) -> None:
    """Raises TypeError or ValueError where two estimates have no difference, probe by probe."""
    if not isinstance(other, Estimate):
        raise TypeError(
            f"an Estimate minus a {type(other).__name__}: subtract an Estimate, or use .value"
        )
    match = len(one.samples) == len(other.samples) or one.is_exact or other.is_exact
    if not match or list(one) != list(other):
        raise ValueError(
            f"{len(one.samples)} probes of {len(one)} blocks minus {len(other.samples)} probes of "
            f"{len(other)} blocks: subtract estimates of one network by one estimator"
        )


def _summary(estimate: Estimate) -> str:
    """Which trace it is, and what it cost."""
    kind = "exact" if estimate.is_exact else ""
    parts = [estimate.name, kind, f"{estimate.num_matvecs} products"]
    return f"Estimate({', '.join(part for part in parts if part)})"


def as_mapping(estimate: Estimate) -> Mapping[str, tuple[float, float]]:
    """{block: (trace, stderr)}: the plainest form of an estimate, which the contract accepts."""
    return {block: (estimate[block], float(estimate.stderr[block])) for block in estimate}

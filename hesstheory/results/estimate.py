"""Traces by block, with their standard errors."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hesstheory.run.files import write_atomically

if TYPE_CHECKING:
    import os

    import pandas as pd

# Stands in every saved file: `load` refuses a file of another kind, or of a later layout.
_FORMAT = "hesstheory.Estimate/1"


@dataclass(frozen=True, eq=False, repr=False)
class Estimate(Mapping[str, float]):
    """Traces by block, with what is needed to judge them.

    A mapping {block: trace}: `estimate["fc"]`, `dict(estimate)` and `estimate.items()` work, and
    two estimates are equal where their traces are. It cannot be changed.

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
        import pandas as pd

        if not isinstance(self.samples, pd.DataFrame):
            raise TypeError(
                f"samples is a {type(self.samples).__name__}: pass a DataFrame with a row per "
                "probe and a column per block"
            )
        if self.samples.empty:
            raise ValueError("samples is empty: pass a row per probe and a column per block")
        if not self.samples.columns.is_unique:
            raise ValueError(f"blocks {list(self.samples)} repeat: give every column its own name")
        if self.is_exact and len(self.samples) > 1:
            raise ValueError(
                f"{len(self.samples)} rows of exact traces: pass one row, see Estimate.exact"
            )

    @classmethod
    def exact(
        cls, values: Mapping[str, float] | pd.Series[float], num_matvecs: int = 0, name: str = ""
    ) -> Estimate:
        """Traces that are known up to rounding: standard errors of zero, intervals of width zero.

        Parameters
        ----------
        values
            {block: trace}.
        num_matvecs
            What they cost, in backward passes.
        name
            Which trace it is, such as `"tr H"`.

        Examples
        --------
        >>> from hesstheory import Estimate
        >>> known = Estimate.exact({"0": 2.0, "2": 5.0})
        >>> known["2"], float(known.stderr["2"])
        (5.0, 0.0)
        """
        import pandas as pd

        row = pd.DataFrame([list(map(float, dict(values).values()))])
        row.columns = pd.Index(list(dict(values)), dtype=object)
        return cls(row, num_matvecs, is_exact=True, name=name or None)

    @cached_property
    def value(self) -> pd.Series[float]:
        """Mean over the probes, by block."""
        # A NaN among the samples must show: pandas would leave it out.
        return self.samples.mean(skipna=False).rename(self.name)

    @cached_property
    def stderr(self) -> pd.Series[float]:
        """Standard error s/√K of the mean over independent probes; NaN for one, 0 if exact."""
        if self.is_exact:
            return 0.0 * self.value
        return self.samples.std(ddof=1, skipna=False) / math.sqrt(len(self.samples))

    def __getitem__(self, block: str) -> float:
        if block not in self.value.index:
            raise KeyError(f"no block {block!r}: choose from {', '.join(map(str, self))}")
        return float(self.value[block])

    def __iter__(self) -> Iterator[str]:
        return iter(self.samples.columns)

    def __len__(self) -> int:
        return self.samples.shape[1]

    def __contains__(self, block: object) -> bool:
        return block in self.samples.columns

    def confidence_interval(self, level: float = 0.95) -> pd.DataFrame:
        """Student's interval of each block's trace; it holds for each block by itself.

        Parameters
        ----------
        level
            Coverage, in (0, 1). It is close to the true one where K is not tiny.

        Returns
        -------
        DataFrame
            A row per block, columns `low` and `high`. Both are the trace where it is exact.

        Raises
        ------
        ValueError
            The level is no probability, or there is one probe, which has no standard error.
        """
        import pandas as pd
        from scipy.stats import t

        if not 0 < level < 1:
            raise ValueError(f"level is {level}: pass the coverage, such as 0.95")
        if self.is_exact:
            return pd.DataFrame({"low": self.value, "high": self.value})
        if len(self.samples) < 2:
            raise ValueError("one probe has no standard error: use at least two probes")
        half = t.ppf((1 + level) / 2, len(self.samples) - 1) * self.stderr
        return pd.DataFrame({"low": self.value - half, "high": self.value + half})

    def __sub__(self, other: Estimate) -> Estimate:
        """The change of the traces, probe by probe.

        With the same probes in both (generators in the same state), what they have in common
        cancels, and the standard error is that of the change. An exact one has no probes: it is
        subtracted from every row.
        """
        if not isinstance(other, Estimate):
            raise TypeError(
                f"an Estimate minus a {type(other).__name__}: subtract an Estimate, or use .value"
            )
        match = len(self.samples) == len(other.samples) or self.is_exact or other.is_exact
        if not match or list(self) != list(other):
            raise ValueError(
                f"{len(self.samples)} probes of {len(self)} blocks minus {len(other.samples)} "
                f"probes of {len(other)} blocks: subtract estimates of one network by one estimator"
            )
        import pandas as pd

        # The one row of an exact estimate is taken from every row.
        rows = self.samples.to_numpy() - other.samples.to_numpy()
        difference = pd.DataFrame(rows, columns=self.samples.columns)
        cost = self.num_matvecs + other.num_matvecs
        return Estimate(difference, cost, self.is_exact and other.is_exact)

    def to_frame(self) -> pd.DataFrame:
        """A row per block, columns `value` and `stderr`."""
        import pandas as pd

        return pd.DataFrame({"value": self.value, "stderr": self.stderr})

    def __repr__(self) -> str:
        return f"{self._summary()}\n{self.to_frame()}"

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return f"<p>{html.escape(self._summary())}</p>{self.to_frame().to_html()}"

    def _summary(self) -> str:
        """Which trace it is, and what it cost."""
        parts = [self.name, "exact" if self.is_exact else "", f"{self.num_matvecs} products"]
        return f"Estimate({', '.join(part for part in parts if part)})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one npz file: the samples, and beside them JSON. A kill leaves the old file."""
        meta = {
            "format": _FORMAT,
            "blocks": list(self),
            "num_matvecs": int(self.num_matvecs),
            "is_exact": self.is_exact,
            "name": self.name,
        }
        content = io.BytesIO()
        samples = self.samples.to_numpy(dtype=np.float64)
        np.savez_compressed(content, samples=samples, meta=np.array(json.dumps(meta)))
        write_atomically(Path(path), content.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Estimate:
        """What `save` wrote. Nothing in the file is executed: pickled objects are refused.

        Raises
        ------
        ValueError
            The file is damaged, or `Estimate.save` did not write it.
        OSError
            The file cannot be read.
        """
        content = Path(path).read_bytes()
        try:
            return cls._parsed(content)
        # numpy, zipfile, zlib and json each have exceptions of their own for a damaged file.
        except Exception as error:
            raise ValueError(
                f"{path} holds no Estimate ({error}): pass a file that Estimate.save wrote, or "
                "save it again"
            ) from error

    @classmethod
    def _parsed(cls, content: bytes) -> Estimate:
        """The estimate in the bytes of a file."""
        import pandas as pd

        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            meta = json.loads(str(file["meta"]))
            samples = file["samples"]
        if meta["format"] != _FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, not {_FORMAT!r}")
        table = pd.DataFrame(samples, columns=pd.Index(meta["blocks"], dtype=object))
        return cls(table, meta["num_matvecs"], meta["is_exact"], meta["name"])


def as_mapping(estimate: Estimate) -> Mapping[str, tuple[float, float]]:
    """{block: (trace, stderr)}: the plainest form of an estimate, which the contract accepts."""
    return {block: (estimate[block], float(estimate.stderr[block])) for block in estimate}

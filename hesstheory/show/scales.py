"""Logarithmic axes with few labels, and symmetric ones for traces of either sign."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = npt.NDArray[np.float64]

_MOST_DECADES = 6  # more decades of small traces would squeeze the large ones into a corner

_LINEAR_RANGE = 30  # below this ratio of largest to smallest, a linear axis shows every point


def log_axes(ax: Axes, x: bool = True, y: bool = True) -> None:
    """Makes axes logarithmic and labels few values.

    Labels are 1-2-5 as plain numbers up to two decades, and whole decades beyond.
    """
    for name in [name for name, wanted in (("x", x), ("y", y)) if wanted]:
        axis = ax.xaxis if name == "x" else ax.yaxis
        ax.set(**{f"{name}scale": "log"})
        low, high = _widened(*(ax.get_xlim() if name == "x" else ax.get_ylim()))
        ax.set(**{f"{name}lim": (low, high)})
        is_narrow = high / low < 100
        axis.set_major_locator(
            LogLocator(subs=(1.0, 2.0, 5.0)) if is_narrow else LogLocator(numticks=6)
        )
        if is_narrow:
            axis.set_major_formatter(FuncFormatter(plain_number))
        axis.set_minor_locator(NullLocator())


def _widened(low: float, high: float) -> tuple[float, float]:
    """Limits with room around a single value, for which matplotlib would leave none."""
    return (low / 2, high * 2) if high / low < 1.01 else (low, high)


def plain_number(value: float, _: object = None) -> str:
    """A tick label without an exponent where five digits suffice."""
    if 1e-4 <= value < 1e5:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)  # log10 of 10^-5 may be −5.000000000000001
    return rf"${value / 10**exponent:.0f}\cdot 10^{{{exponent}}}$"


def padded_log(values: Values) -> tuple[float, float]:
    """Limits of a logarithmic axis: the range of values and a twentieth of it on either side."""
    low = float(values.min())
    high = float(values.max())
    pad = max((high / low) ** 0.05, 1.15)  # 1.15: room for a marker where all values are alike
    return low / pad, high * pad


def signed_scale(ax: Axes, values: Values) -> None:
    """The same scale on both axes; traces may be negative.

    It is linear over a decade or so, else symmetric-logarithmic.
    """
    sizes = np.abs(values[values != 0])
    low = float(values.min())
    high = float(values.max())
    if sizes.size == 0 or sizes.max() / sizes.min() < _LINEAR_RANGE:
        _linear(ax, low, high)
        return
    top = math.ceil(math.log10(sizes.max()))
    bottom = max(math.floor(math.log10(sizes.min())), top - _MOST_DECADES)
    limits = (-(10.0**top) if low < 0 else 0.0, 10.0**top if high > 0 else 0.0)
    _symmetric(ax, limits, bottom, top)


def _linear(ax: Axes, low: float, high: float) -> None:
    """Linear axes over the same range."""
    pad = 0.08 * (high - low) or 1.0
    limits = (low - pad, high + pad)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
    ax.set(xlim=limits, ylim=limits)


def _symmetric(ax: Axes, limits: tuple[float, float], bottom: int, top: int) -> None:
    """Logarithmic axes on either side of a linear piece that ends at 10^`bottom`."""
    low, high = limits
    ticks = _signed_ticks(limits, bottom, top)
    for axis, set_scale in ((ax.xaxis, ax.set_xscale), (ax.yaxis, ax.set_yscale)):
        # linscale: the linear piece is drawn 0.6 as long as a decade, as few points lie in it
        set_scale("symlog", linthresh=10.0**bottom, linscale=0.6)
        axis.set_major_locator(FixedLocator(ticks))
        axis.set_major_formatter(FuncFormatter(_power_of_ten))
        axis.set_minor_locator(NullLocator())
    ax.set(xlim=(1.3 * low, 1.3 * high), ylim=(1.3 * low, 1.3 * high))


def _signed_ticks(limits: tuple[float, float], bottom: int, top: int) -> list[float]:
    """Zero and powers of ten within the limits, fewer on each side where there are two."""
    low, high = limits
    exponents = _decades(bottom + 1, top, most=2 if low and high else 4)
    powers = [sign * 10.0**e for sign in (-1, 1) for e in exponents]
    return sorted([0.0, *(power for power in powers if low <= power <= high)])


def _decades(low: int, high: int, most: int) -> list[int]:
    """At most `most` exponents, evenly spaced, with the highest among them."""
    step = max(1, math.ceil((high - low + 1) / most))
    return list(range(high, low - 1, -step))[::-1]


def _power_of_ten(value: float, _: object = None) -> str:
    """A tick label: a signed power of ten."""
    if value == 0:
        return "0"
    exponent = round(math.log10(abs(value)))
    return rf"${'-' if value < 0 else ''}10^{{{exponent}}}$"

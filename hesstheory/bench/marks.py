"""What was aimed at, what was measured, and whether it is met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hesstheory.bench.ways import CONTROL

# Numbers of one problem or of one mark, as they stand in the JSON file.
Record = dict[str, Any]

# Gradients that exact traces may cost: C − 1 backward passes and the norms of per-sample gradients.
_EXACT_AT_MOST = {"mlp": 4.0, "cnn": 12.0, "resnet18": 10.0, "resnet18-as-built": 10.0}
_TIMES_LESS_WORK = 100.0  # than the best of the others, by exact traces of small networks
_TIMES_LESS_AT_FULL_SCALE = 1e5
_TIMES_LESS_WHERE_SMOOTH = 3.0  # by control variates
_PEAK_OF_EXACT = 2.0  # training steps
_GRADIENTS_PER_PROBE = 2.4  # a product is a backward pass of a backward pass: two gradients
_TIMES_FASTER_DENSE = 4.0
_DENSE_RIVALS = ("torch.func.hessian", "curvlinops")


def peers_work(found: Record) -> dict[str, float]:
    """Work to 1 % of every layer in the ways of others, plain torch included; best first.

    Parameters
    ----------
    found
        What was measured of one problem: an element of `problems` of the report.
    """
    work = {
        name: way["work_to_1_percent"]
        for name, way in found["ways"].items()
        if way["kind"] != "ours" and way["judged_on"] == "every layer"
    }
    return dict(sorted(work.items(), key=lambda item: item[1]))


def marks(problems: Mapping[str, Record]) -> list[Record]:
    """The marks of all problems that were measured; limits are those of the full problems.

    Parameters
    ----------
    problems
        `problems` of the report.

    Returns
    -------
    list of dict
        `mark` in words, `limit`, `measured`, `met`; where peers are compared, their `ratios`.
    """
    return [
        mark
        for name, found in problems.items()
        for mark in _marks_of(name, found)
        if mark["measured"] is not None
    ]


def _marks_of(name: str, found: Record) -> Iterator[Record]:
    """The marks of one problem."""
    ways = found["ways"]
    if name == "dense":
        for other in _DENSE_RIVALS:
            if other in ways:
                mark = f"dense Hessian: times faster than {other}"
                yield _at_least(mark, _TIMES_FASTER_DENSE, ways[other]["times_ours"])
    elif "exact_traces" in ways:
        yield from _marks_of_exact(name, found)
    else:
        ours = {key: ways[key]["work_to_1_percent"] for key in CONTROL}
        best = min(ours, key=lambda key: ours[key])
        yield _less_work(name, _TIMES_LESS_WHERE_SMOOTH, best, ours[best], peers_work(found))


def _marks_of_exact(name: str, found: Record) -> Iterator[Record]:
    """Where the outputs are piecewise linear."""
    exact = found["ways"]["exact_traces"]
    full_scale = name.startswith("resnet18")
    yield _at_most(f"{name}: gradients of exact_traces", _EXACT_AT_MOST[name], exact["once"])
    times = _TIMES_LESS_AT_FULL_SCALE if full_scale else _TIMES_LESS_WORK
    yield _less_work(name, times, "exact_traces", exact["once"], peers_work(found))
    if full_scale:
        peak = exact["peak_in_training_steps"]
        mark = f"{name}: peak of exact_traces in training steps"
        yield _at_most(mark, _PEAK_OF_EXACT, peak)
        per_probe = found["ways"]["LayerwiseTrace"]["gradients_at_num_probes"]["10"] / 10
        mark = f"{name}: gradients per probe of LayerwiseTrace(10)"
        yield _at_most(mark, _GRADIENTS_PER_PROBE, per_probe)


def _at_most(mark: str, limit: float, measured: float | None) -> Record:
    met = measured is not None and measured <= limit
    return {"mark": mark, "limit": limit, "measured": measured, "met": met}


def _at_least(mark: str, limit: float, measured: float | None) -> Record:
    met = measured is not None and measured >= limit
    return {"mark": mark, "limit": limit, "measured": measured, "met": met}


def _less_work(name: str, limit: float, way: str, ours: float, work: Mapping[str, float]) -> Record:
    """How many times less work than the best of the others, and than each of them."""
    ratios = {peer: value / ours for peer, value in work.items()}
    best = next(iter(ratios))
    mark = f"{name}: times less work to 1 % by {way} than by {best}, the best of the others"
    return {**_at_least(mark, limit, ratios[best]), "ratios": ratios}

"""Every call on a case, each held against the right value."""

from __future__ import annotations

import math
import re
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from kinds.case import Case

import hesstheory as ht

# Standard errors within which an estimate must be: no right estimator of the table comes near.
_STDERRS = 6

# Relative to the right value, for what rounds.
_ROUNDING = 1e-4
_EXACT = 1e-8

# Relative to the largest block: what is left of a block whose terms cancel.
_CANCELLED = 1e-10

_SECONDS = 20
_PROBES = 16


def _estimated(estimator: Callable[..., Any], **options: Any) -> Callable[[Any], Any]:
    """A call of an estimator with a stream of its own."""
    return lambda problem: estimator(**options)(problem, torch.Generator().manual_seed(0))


def _recommended(problem: ht.Problem) -> Any:
    """Traces by the best plan where it is exact; {} where it draws."""
    plans = ht.recommend(problem, 0.2, 0.9, torch.Generator().manual_seed(0))
    best = plans.best
    return best(problem, torch.Generator().manual_seed(0)) if best.is_exact else {}


def _ranked(problem: ht.Problem) -> Any:
    """Traces by rank, with the half-widths of their intervals."""
    ranking = ht.rank_layers(problem, by="trace", generator=torch.Generator().manual_seed(0))
    table = ranking.table
    return {b: (float(r["value"]), float(r["high"] - r["low"])) for b, r in table.iterrows()}


# By name the group of a call, which matrix it is of, and the call.
CALLS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "hessian": ("H", "H", lambda problem: ht.hessian(problem).trace_by_block()),
    "LayerwiseTrace": ("H", "H", _estimated(ht.LayerwiseTrace, num_probes=_PROBES)),
    "BlockSeparatedTrace": ("H", "H", _estimated(ht.BlockSeparatedTrace, num_probes=_PROBES)),
    "HutchPP": ("H", "H", _estimated(ht.HutchPP, num_probes=_PROBES, rank=8)),
    "recommend": ("H", "H", _recommended),
    "rank_layers": ("H", "H", _ranked),
    "exact_traces": ("exact H", "H", ht.exact_traces),
    "sample_traces": ("exact H", "H", lambda problem: ht.sample_traces(problem).mean()),
    "ggn": ("G", "G", lambda problem: ht.ggn(problem).trace_by_block()),
    "LayerwiseTrace of G": (
        "G",
        "G",
        _estimated(ht.LayerwiseTrace, num_probes=_PROBES, matrix=ht.ggn),
    ),
    "LogitProbeTrace": ("G", "G", _estimated(ht.LogitProbeTrace, num_probes=_PROBES)),
    "LogitProbeTrace of the sum": (
        "G",
        "G",
        _estimated(ht.LogitProbeTrace, num_probes=_PROBES, per_sample=False),
    ),
    "exact_traces of G": ("G", "G", partial(ht.exact_traces, matrix=ht.ggn)),
    "sample_traces of G": ("G", "G", lambda problem: ht.sample_traces(problem, ht.ggn).mean()),
    "ControlVariateTrace": ("R", "H", _estimated(ht.ControlVariateTrace, num_probes=_PROBES)),
    "ControlVariateTrace, drawn": (
        "R",
        "H",
        _estimated(ht.ControlVariateTrace, num_probes=_PROBES, exact=False),
    ),
}


class TooSlow(Exception):
    """A call took longer than a person waits for a tiny network."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raises TooSlow after so many seconds."""

    def alarm(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def faults(case: Case) -> dict[str, str]:
    """What is wrong, by call; empty where every number is right and every refusal expected."""
    with warnings.catch_warnings(record=True) as seen, case.inside():
        warnings.simplefilter("always")
        found = _faults(case)
    said = [str(warning.message) for warning in seen]
    unexpected = [text for text in said if not (case.says and re.search(case.says, text, re.S))]
    if unexpected:
        found["warnings"] = f"said {unexpected[0]}"
    if case.says and len(unexpected) == len(said):
        found["warnings"] = f"nothing said {case.says!r}, but {said}"
    return found


def _faults(case: Case) -> dict[str, str]:
    """What is wrong with the Problem, or with its calls."""
    build = partial(ht.Problem, case.model, case.loss_fn, case.batches, **case.options)
    problem, refusal = _outcome(build)
    if why := _why_wrong_refusal(refusal, case.refused):
        return {"Problem": why}
    if case.refused:
        return {}

    @cache
    def right(matrix: str) -> Mapping[str, float]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return case.traces() if matrix == "H" else case.ggn_traces()

    found = {}
    for label, (group, matrix, call) in CALLS.items():
        expected = case.refuses.get(label, case.refuses.get(group, ""))
        result, refusal = _outcome(partial(call, problem))
        why = _why_wrong_refusal(refusal, expected)
        if not why and not expected:
            why = _why_wrong(case, result, right(matrix))
        if why:
            found[label] = why
    return found


def _outcome(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What a call returns, or what it raises; the global stream stays as it is."""
    before = torch.get_rng_state()
    try:
        with _at_most(_SECONDS):
            return work(), None
    except Exception as error:
        return None, error
    finally:
        assert torch.equal(torch.get_rng_state(), before), "the global stream was used"


def _why_wrong_refusal(error: Exception | None, expected: str) -> str:
    """Why an outcome is not the refusal that is expected, if any; empty where it is."""
    if error is None:
        return f"was not refused with {expected!r}" if expected else ""
    last = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}"
    if "/hesstheory/" not in last.filename or "raise" not in (last.line or ""):
        return f"raw, from {last.filename}:{last.lineno}: {said}"
    if not expected:
        return f"refused: {said}"
    return "" if re.search(expected, str(error), re.S) else f"refused otherwise: {said}"


def _why_wrong(case: Case, result: Any, right: Mapping[str, float]) -> str:
    """Which blocks are wrong, with what was found, what is right, and the error that is allowed."""
    exact = case.tolerance
    if exact is None:
        exact = _EXACT if case.dtype == torch.float64 else _ROUNDING
    numbers = _numbers(result)
    if numbers and numbers.keys() != right.keys():
        return f"blocks {list(numbers)} for {list(right)}"
    largest = max(map(abs, right.values())) or 1.0
    wrong = {}
    for block, (value, stderr) in numbers.items():
        relative = exact if stderr == 0 else max(exact, _ROUNDING)
        allowed = _STDERRS * stderr + relative * abs(right[block]) + _CANCELLED * largest
        if not abs(value - right[block]) <= allowed:
            wrong[block] = (value, right[block], allowed)
    return f"wrong (found, right, allowed): {wrong}" if wrong else ""


def _numbers(result: Any) -> dict[str, tuple[float, float]]:
    """By block the value and its standard error."""
    if isinstance(result, ht.Estimate):
        errors = {b: float(result.stderr[b]) for b in result}
        # One sample has none, and its value promises nothing.
        return {
            b: (float(v), errors[b] if math.isfinite(errors[b]) else math.inf)
            for b, v in result.items()
        }
    pairs = dict(result).items()
    return {b: v if isinstance(v, tuple) else (float(v), 0.0) for b, v in pairs}

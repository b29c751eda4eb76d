"""Checks of the mean: is the estimate unbiased?"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hesstheory.conformance.contract import TOTAL
from hesstheory.conformance.measures import percent, sign_of
from hesstheory.conformance.problems import Reference
from hesstheory.conformance.registry import CHECKS, ConformanceCheck, Decide, check
from hesstheory.conformance.runs import FIRST_LOOK, LAST_LOOK, Runs, looks
from hesstheory.conformance.session import FAILED, INCONCLUSIVE, PASSED, Finding, Session
from hesstheory.evidence.intervals import Interval, mean_interval


def _unbiased(
    session: Session, reference: Reference, num_probes: int | None = None, widened: float = 1
) -> Finding:
    """Mean of the runs against the certified traces, block by block and in total, within the margin."""
    runs, traces, margin = (
        session.runs(reference, num_probes),
        reference.traces,
        widened * session.margin(reference),
    )
    targets = {**traces, TOTAL: sum(traces.values())}
    size = sum(map(abs, traces.values())) or 1.0
    slack = size * (1e-9 if reference.problem.dtype == torch.float64 else 1e-5)
    counts = [FIRST_LOOK // 2, *looks()] if session.profile == "smoke" else looks()
    for count in counts:
        intervals = {
            block: (
                mean_interval(values - targets[block], session.alpha / len(counts)),
                abs(targets[block]),
            )
            for block, values in runs.values(count).items()
        }
        bad = {b: f for b, (f, _) in intervals.items() if f.low > slack or f.high < -slack}
        if bad:
            block = max(bad, key=lambda b: abs(bad[b].effect) / (bad[b].high - bad[b].low + slack))
            return Finding(reference.name, FAILED, _bias_text(block, bad[block], targets[block], runs, count),
                           sign_of(bad[block].effect))  # fmt: skip
        if all(
            max(abs(f.low), abs(f.high)) <= margin * trace + slack
            for f, trace in intervals.values()
        ):
            return Finding(reference.name, PASSED, f"within {margin:.1%} at {count} runs")
        widths = {
            b: (f.high - f.low) / 2 * (count / LAST_LOOK) ** 0.5 for b, (f, _) in intervals.items()
        }
        if count >= 512 and any(
            widths[b] > 2 * (margin * trace + slack) for b, (_, trace) in intervals.items()
        ):
            break  # out of reach, and by far
    return Finding(
        reference.name, INCONCLUSIVE,
        f"a bias of {margin:.1%} could hide in the noise of {LAST_LOOK} runs: raise num_probes",
    )  # fmt: skip


def _bias_text(block: str, found: Interval, target: float, runs: Runs, count: int) -> str:
    how = f"{count} runs of {runs.num_probes} probes"
    if target == 0:
        return f"{block} has trace 0, the mean is {found} ({how})"
    low, high = sorted((found.low / target, found.high / target))
    relative = Interval(found.effect / target, low, high)
    return f"{block} is off by {percent(relative)} of its trace {target:.6g} ({how})"


def _mean_check(*names: str) -> Decide:
    def decide(session: Session) -> Iterator[Finding]:
        yield from (_unbiased(session, reference) for reference in session.legal(*names))

    return decide


def _register_mean(name: str, question: str, *problems: str) -> None:
    decide = _mean_check(*problems)
    CHECKS[name] = ConformanceCheck(
        name, question, decide, problems, ("check_answers_are_legal",), "smoke"
    )


_register_mean(
    "check_unbiased",
    "Is the mean the trace of every block, and of all?",
    "flat",
    "coupled",
    "smooth_mlp",
    "skewed",
)

_register_mean("check_signs", "Are negative traces negative?", "negative")

_register_mean(
    "check_block_mapping",
    "Does every block get its own trace, small or large?",
    "unequal",
    "regrouped",
)

_register_mean("check_batch_weighting", "Do batches count by their samples?", "ragged")

_register_mean("check_tied_weights", "Are tied weights one parameter?", "tied", "autoencoder")

_register_mean("check_eval_mode", "Is batch norm in eval mode taken as it is?", "batch_norm")

_register_mean("check_zero_curvature", "Do tensors without curvature have trace zero?", "unreached")

_register_mean("check_frozen_parameters", "Are frozen parameters left out?", "frozen")

_register_mean("check_float32", "Is a float32 model measured right?", "float32")


@check("layouts", needs=["check_answers_are_legal"])
def check_layouts(session: Session) -> Iterator[Finding]:
    """Are scalars, tensors of any layout, blocks that interleave and four batches of seven probes right?"""
    yield from (_unbiased(session, reference, 7) for reference in session.legal("layouts"))


FEW_PROBES = 4


@check("coupled", "skewed", needs=["check_answers_are_legal"], profile="ci")
def check_few_probes(session: Session) -> Iterator[Finding]:
    """Is the mean of four probes right, where one odd probe, a median or a discarded one weighs most?"""
    for reference in session.legal("coupled", "skewed"):
        yield _unbiased(session, reference, FEW_PROBES, widened=2)

"""Checks of the mean: is the estimate unbiased?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from hesstheory.conformance.contract import TOTAL
from hesstheory.conformance.measures import SAME, SAME_IN_FLOAT32, percent, sign_of
from hesstheory.conformance.problems.reference import Reference
from hesstheory.conformance.registry import (
    CHECKS,
    ConformanceCheck,
    Decide,
    check,
    tests_of_quantities,
)
from hesstheory.conformance.runs import FIRST_LOOK, LAST_LOOK, Runs, looks
from hesstheory.conformance.session import Finding, Session
from hesstheory.evidence.checks import Status
from hesstheory.evidence.intervals import Interval, mean_interval

# At this many runs the width that the last look will have is known well enough to give up.
_GIVES_UP_FROM = 512
# Only where that width is this many times too large: chance must not end what could be decided.
_FAR_TOO_WIDE = 2


def _unbiased(
    session: Session, reference: Reference, num_probes: int | None = None, widened: float = 1
) -> Finding:
    """Mean of the runs against the certified traces, block by block and in total."""
    runs = session.runs(reference, num_probes)
    margin = widened * session.margin(reference)
    targets = {**reference.traces, TOTAL: reference.total}
    is_double = reference.problem.dtype == torch.float64
    slack = reference.size * (SAME if is_double else SAME_IN_FLOAT32)
    # The smoke profile has wide margins, and looks once more before.
    counts = looks(FIRST_LOOK // 2 if session.profile == "smoke" else FIRST_LOOK)
    for count in counts:
        found = {
            block: mean_interval(
                values - targets[block], session.level(reference, block, len(counts))
            )
            for block, values in runs.values(count).items()
        }
        rooms = {block: margin * abs(targets[block]) + slack for block in found}
        if block := _worst(found, slack):
            text = _bias_text(block, found[block], targets[block], runs, count)
            return Finding(reference.name, Status.FAILED, text, sign_of(found[block].effect))
        if all(max(abs(f.low), abs(f.high)) <= rooms[block] for block, f in found.items()):
            return Finding(reference.name, Status.PASSED, f"within {margin:.1%} at {count} runs")
        if count >= _GIVES_UP_FROM and _is_out_of_reach(found, rooms, count):
            break
    text = f"a bias of {margin:.1%} could hide in the noise of {LAST_LOOK} runs: raise num_probes"
    return Finding(reference.name, Status.INCONCLUSIVE, text)


def _worst(found: Mapping[str, Interval], slack: float) -> str:
    """The block whose interval excludes zero by most of its widths, or nothing."""
    bad = {b: f for b, f in found.items() if f.low > slack or f.high < -slack}
    return max(bad, key=lambda b: abs(bad[b].effect) / (bad[b].width + slack), default="")


def _is_out_of_reach(found: Mapping[str, Interval], rooms: Mapping[str, float], count: int) -> bool:
    """Whether a block will be far too uncertain at the last look, where widths fall by 1/√runs."""
    shrinks = (count / LAST_LOOK) ** 0.5
    return any(f.width / 2 * shrinks > _FAR_TOO_WIDE * rooms[b] for b, f in found.items())


def _bias_text(block: str, found: Interval, target: float, runs: Runs, count: int) -> str:
    """What is off, by how much, and how it was measured."""
    how = f"{count} runs of {runs.num_probes} probes"
    if target == 0:
        return f"{block} has trace 0, the mean is {found} ({how})"
    low, high = sorted((found.low / target, found.high / target))
    relative = Interval(found.effect / target, low, high)
    return f"{block} is off by {percent(relative)} of its trace {target:.6g} ({how})"


def _mean_check(*names: str) -> Decide:
    """Decides whether the mean is right on these problems."""

    def decide(session: Session) -> Iterator[Finding]:
        yield from (_unbiased(session, reference) for reference in session.legal(*names))

    return decide


# The same question of problems that show different mistakes, so that a failure names its cause.
_QUESTIONS = (
    (
        "check_unbiased",
        "Is the mean the trace of every block, and of all?",
        ("flat", "coupled", "smooth_mlp", "skewed"),
    ),
    ("check_signs", "Are negative traces negative?", ("negative",)),
    (
        "check_block_mapping",
        "Does every block get its own trace, small or large?",
        ("unequal", "regrouped"),
    ),
    ("check_batch_weighting", "Do batches count by their samples?", ("ragged",)),
    ("check_tied_weights", "Are tied weights one parameter?", ("tied", "autoencoder")),
    ("check_eval_mode", "Is batch norm in eval mode taken as it is?", ("batch_norm",)),
    ("check_zero_curvature", "Do tensors without curvature have trace zero?", ("unreached",)),
    ("check_frozen_parameters", "Are frozen parameters left out?", ("frozen",)),
    ("check_float32", "Is a float32 model measured right?", ("float32",)),
)
for _name, _question, _problems in _QUESTIONS:
    CHECKS[_name] = ConformanceCheck(
        _name,
        _question,
        _mean_check(*_problems),
        _problems,
        ("check_answers_are_legal",),
        "smoke",
        tests_of_quantities,
    )


# No multiple of a batch size, so that probes and batches cannot be taken for each other.
_ODD_PROBES = 7


@check("layouts", needs=["check_answers_are_legal"], tests=tests_of_quantities)
def check_layouts(session: Session) -> Iterator[Finding]:
    """Are scalars, tensors of any layout, blocks that interleave and four batches of seven probes right?"""  # noqa: E501
    for reference in session.legal("layouts"):
        yield _unbiased(session, reference, _ODD_PROBES)


FEW_PROBES = 4


@check(
    "coupled",
    "skewed",
    needs=["check_answers_are_legal"],
    profile="ci",
    tests=tests_of_quantities,
)
def check_few_probes(session: Session) -> Iterator[Finding]:
    """Is the mean of four probes right, where one odd probe, a median or a discarded one weighs most?"""  # noqa: E501
    for reference in session.legal("coupled", "skewed"):
        # They are √8 times as noisy as 32 probes: twice the margin takes twice the runs, not eight.
        yield _unbiased(session, reference, FEW_PROBES, widened=2)

"""The checks: each asks one question of an estimator on reference problems and names what it finds.

Deterministic checks compare answers of equal generator states. Statistical ones look at doubling numbers of runs, pay
for every look, and end when the effect is shown (failed), excluded beyond the margin (passed) or out of reach.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import stats

from hesstheory.conformance.answers import (
    TOTAL,
    Answer,
    Estimator,
    IllegalAnswer,
    accepts,
    ask,
    differences,
    global_state,
    raised,
    state_of,
)
from hesstheory.conformance.problems import Reference, references
from hesstheory.conformance.runs import (
    FIRST_LOOK,
    LAST_LOOK,
    Interval,
    Runs,
    degrees_of_freedom,
    looks,
    mean_interval,
    satterthwaite,
    variance_ratio,
)
from hesstheory.evidence import clopper_pearson
from hesstheory.execution import stream
from hesstheory.problem import Partition, Problem

PASSED, FAILED, SKIPPED, BLOCKED, INCONCLUSIVE = "passed", "failed", "skipped", "blocked", "inconclusive"
SUITE_ALPHA = 1e-6
NUM_TESTS = 256  # more than the suite makes: blocks, problems and checks all counted
MARGIN_FACTOR = {"smoke": 5.0, "ci": 1.0, "full": 0.5}
SAME = 1e-9  # relative: answers of equal generator states differ by rounding only, and float32 inside shows


@dataclass(frozen=True)
class Finding:
    """What a check found on one problem; `sign` is that of the effect, for comparison with known mistakes."""

    problem: str
    status: str
    detail: str
    sign: str = ""


class OutOfTime(Exception):
    """The time of a check is over between two runs."""


@dataclass
class Session:
    """One estimator under check: its runs are shared by all checks."""

    estimator: Estimator
    profile: str = "ci"
    num_probes: int = 32
    seed: int = 0
    probe: Any = None
    deadline: float = float("inf")
    hung: bool = False
    illegal: dict[str, str] = field(default_factory=dict)
    _runs: dict[tuple[str, int], Runs] = field(default_factory=dict)
    _references: dict[str, Reference] = field(default_factory=dict)

    def reference(self, name: str) -> Reference:
        """A reference problem of this check's own: what an estimator does to it harms no other check."""
        return self._references.setdefault(name, replace(references()[name]))

    def refresh(self) -> None:
        """Problems anew."""
        self._references.clear()

    @property
    def alpha(self) -> float:
        """Level of one test."""
        return SUITE_ALPHA / NUM_TESTS

    @cached_property
    def takes_probes(self) -> bool:
        return accepts(self.estimator, "num_probes", "generator", "probes")

    @property
    def is_thorough(self) -> bool:
        return self.profile == "full"

    def margin(self, reference: Reference) -> float:
        return reference.margin * MARGIN_FACTOR[self.profile]

    def runs(self, reference: Reference, num_probes: int | None = None) -> Runs:
        K = num_probes or self.num_probes
        key = (reference.name, K)
        if key not in self._runs:
            self._runs[key] = Runs(self.estimator, reference.problem, K, self.seed, reference.name, self.interrupt)
        self._runs[key].problem = reference.problem
        return self._runs[key]

    def spread(self, reference: Reference) -> Runs:
        """The runs whose spread is looked at."""
        return self.runs(reference, min(self.num_probes, SPREAD_PROBES[reference.name]))

    def interrupt(self) -> None:
        if time.monotonic() > self.deadline:
            raise OutOfTime

    def generator(self, *names: str) -> torch.Generator:
        return stream(self.seed, "check", *names)

    def ask(self, problem: Problem, generator: torch.Generator, probes: Any = None, num_probes: int = 0) -> Answer:
        self.interrupt()
        return ask(self.estimator, problem, num_probes or self.num_probes, generator, probes)

    def legal(self, *names: str) -> list[Reference]:
        """The named reference problems that the estimator answers at all."""
        return [self.reference(name) for name in names if name not in self.illegal]


Decide = Callable[[Session], Iterable[Finding]]


@dataclass(frozen=True)
class ConformanceCheck:
    """A question with its prerequisites; `problems` are those it needs, one of which must be answered legally."""

    name: str
    question: str
    decide: Decide
    problems: tuple[str, ...]
    needs: tuple[str, ...]
    profile: str


CHECKS: dict[str, ConformanceCheck] = {}


def check(*problems: str, needs: Iterable[str] = (), profile: str = "smoke") -> Callable[[Decide], Decide]:
    """Registers a check under its name; the first line of its docstring is the question."""

    def register(decide: Decide) -> Decide:
        question = (decide.__doc__ or "").splitlines()[0]
        name = decide.__name__
        CHECKS[name] = ConformanceCheck(name, question, decide, problems, tuple(needs), profile)
        return decide

    return register


# --- what an answer is ----------------------------------------------------------------------------------------------


@check()
def check_answers_are_legal(session: Session) -> Iterator[Finding]:
    """Is there a finite, real trace of every block, for every problem?"""
    for name in references():
        reference = session.reference(name)
        if illegal := _illegal(session, reference, session.num_probes):
            session.illegal[name] = illegal
            yield Finding(name, FAILED, illegal)
        else:
            yield Finding(name, PASSED, "")


@check("flat", "smooth_mlp", needs=["check_answers_are_legal"])
def check_one_probe(session: Session) -> Iterator[Finding]:
    """Does one probe suffice for an answer, and does it depend on the generator?"""
    for reference in session.legal("flat", "smooth_mlp"):
        text = _illegal(session, reference, 1)
        if not text and reference.name == "smooth_mlp":
            one, other = (session.ask(reference.problem, session.generator(name), num_probes=1) for name in "ab")
            if _apart(one.values, other.values) == 0 and not _is_exact(one, reference):
                text = "two generators give the same answer of one probe, and it is not the trace"
            if one.stderr is not None and not all(one.stderr.values()) and not _is_exact(one, reference):
                text = "one probe claims the standard error 0: nothing is known of its spread, return NaN"
        yield Finding(reference.name, FAILED if text else PASSED, text)


def _illegal(session: Session, reference: Reference, num_probes: int) -> str:
    """Why there is no legal answer, or nothing."""
    try:
        session.ask(reference.problem, session.generator(reference.name), num_probes=num_probes)
    except IllegalAnswer as error:
        return str(error)
    except OutOfTime:
        raise
    except (Exception, SystemExit) as error:
        return f"{raised(error)} on {reference.problem}"
    return ""


# --- randomness and side effects ------------------------------------------------------------------------------------

_RANDOM = ("coupled", "smooth_mlp")


@check(*_RANDOM, needs=["check_answers_are_legal"])
def check_same_state_same_answer(session: Session) -> Iterator[Finding]:
    """Does an equal generator state give an equal answer?"""
    for reference in session.legal(*_RANDOM):
        one, two = (session.ask(reference.problem, session.generator("same")) for _ in range(2))
        apart = _apart(one.values, two.values)
        text = f"two calls from one generator state differ by {apart:.3g} of the trace: draw from `generator` alone"
        yield Finding(reference.name, FAILED if apart else PASSED, text if apart else "")


@check(*_RANDOM, needs=["check_answers_are_legal"])
def check_other_state_other_answer(session: Session) -> Iterator[Finding]:
    """Does another generator state give another answer, and a generator that was used a new one?"""
    for reference in session.legal(*_RANDOM):
        going_on = session.generator("used")
        first, second = (session.ask(reference.problem, going_on) for _ in range(2))
        other = session.ask(reference.problem, session.generator("other"))
        if _is_exact(first, reference) and _is_exact(second, reference):
            yield Finding(reference.name, PASSED, "no randomness: the answer is exact")
            continue
        repeats = [what for what, x in (("another seed", other), ("a generator that was used", second))
                   if _apart(first.values, x.values) == 0]  # fmt: skip
        yield Finding(
            reference.name, FAILED if repeats else PASSED,
            f"{' and '.join(repeats)} gives the same numbers: averaging such calls averages nothing" if repeats else "",
        )  # fmt: skip
    if session.profile != "smoke":
        yield from (_many_states(session, reference) for reference in session.legal("smooth_mlp"))


NUM_STATES = 256


def _many_states(session: Session, reference: Reference) -> Finding:
    """Equal answers from different generator states; of 2^b streams, 256 states show b up to 12 almost surely."""
    totals = session.runs(reference, 12).values(NUM_STATES)[TOTAL]
    if totals.std() <= 1e-12 * np.abs(totals).max():
        return Finding(reference.name, PASSED, "no randomness")
    same = NUM_STATES - len(_distinct(totals[:, None]))
    text = f"{same} of {NUM_STATES} generator states give an answer that another one gave: few random streams are used"
    return Finding(reference.name, FAILED if same else PASSED, text if same else "")


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Rows that differ by more than rounding.

    On a network, twelve probes give the same sum again by chance with probability < 1e-7 even if each is a coordinate.
    """
    distinct: np.ndarray = np.unique((rows / np.abs(rows).max()).round(12), axis=0)
    return distinct


def _is_exact(answer: Answer, reference: Reference) -> bool:
    return _apart(answer.values, _targets(answer, reference)) < 1e-6


def _targets(answer: Answer, reference: Reference) -> dict[str, float]:
    return {TOTAL: sum(reference.traces.values())} if answer.is_total else reference.traces


def _apart(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    """Largest difference, relative to the sum of the sizes."""
    size = sum(abs(x) for x in a.values()) or 1.0
    return max(abs(a[block] - b[block]) for block in a) / size


@check("smooth_mlp", "batch_norm", "tied", "frozen", needs=["check_answers_are_legal"])
def check_leaves_model_untouched(session: Session) -> Iterator[Finding]:
    """Are parameters, gradients, buffers, modes, hooks and data as before?"""
    for reference in session.legal("smooth_mlp", "batch_norm", "tied", "frozen"):
        problem = reference.build()
        for parameter in list(problem.model.parameters())[:1]:
            parameter.grad = torch.ones_like(parameter)  # a gradient that training will want
        before = state_of(problem)
        session.ask(problem, session.generator("state"))
        changed = differences(before, state_of(problem))
        yield Finding(
            reference.name, FAILED if changed else PASSED,
            f"changes {', '.join(changed)} of the model: work on copies, or put everything back" if changed else "",
        )  # fmt: skip


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal"])
def check_leaves_globals_untouched(session: Session) -> Iterator[Finding]:
    """Are the global random streams, the default dtype, grad mode and threads as before?"""
    for reference in session.legal("smooth_mlp", "coupled"):
        before = global_state()
        session.ask(reference.problem, session.generator("globals"))
        changed = differences(before, global_state())
        yield Finding(
            reference.name, FAILED if changed else PASSED,
            f"changes {', '.join(changed)}: draw from `generator`, and set nothing for the process" if changed else "",
        )  # fmt: skip


Change = Callable[[Problem], Problem]


def _in_place(problem: Problem) -> Problem:
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.mul_(0.75)
    return problem


def _through_data(problem: Problem) -> Problem:
    for parameter in problem.model.parameters():
        parameter.data.mul_(0.75)  # autograd counts no version of this
    return problem


def _of_buffers(problem: Problem) -> Problem:
    for buffer in problem.model.buffers():
        if buffer.is_floating_point():
            buffer.mul_(0.75)
    return problem


def _of_partition(problem: Problem) -> Problem:
    return problem.with_partition(Partition(dict(reversed(list(problem.partition.blocks.items())))))


_CHANGES: dict[str, tuple[tuple[str, Change], ...]] = {
    "smooth_mlp": (
        ("the parameters", _in_place),
        ("the data of the parameters", _through_data),
        ("the batches", lambda problem: problem.with_batches(problem.batches[:1])),
        ("the order of the blocks", _of_partition),
    ),
    "coupled": (("the parameters", _in_place),),
    "batch_norm": (("the running statistics", _of_buffers),),
}


@check(*_CHANGES, needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_follows_parameters(session: Session) -> Iterator[Finding]:
    """Does the answer follow when parameters, buffers, data or blocks of a problem change?"""
    for reference in session.legal(*_CHANGES):
        for what, change in _CHANGES[reference.name]:
            problem = reference.build()
            session.ask(problem, session.generator("follow"))
            moved, fresh = (
                session.ask(changed, session.generator("follow")).values
                for changed in (change(problem), change(reference.build()))
            )
            stale = _apart(fresh, moved)
            text = (
                f"after a change of {what} the answer is {stale:.3g} off that of a fresh problem: something is cached"
            )
            yield Finding(reference.name, FAILED if stale > SAME else PASSED, text if stale > SAME else "")


# --- the same curvature, written otherwise --------------------------------------------------------------------------


def _agrees(
    session: Session, reference: Reference, what: str, left: Callable[[torch.Generator], Mapping[str, float]],
    right: Callable[[torch.Generator], Mapping[str, float]],
) -> Finding:  # fmt: skip
    """left = right at equal generator states; where draws depend on the way of writing, in the mean over runs."""
    a, b = left(session.generator(what)), right(session.generator(what))
    apart = _apart(a, b)
    if apart <= SAME:
        return Finding(reference.name, PASSED, "")
    if apart < 1e-4 and what == "loss × 3":  # else the answer need not be linear in the matrix: deflation is not
        return Finding(
            reference.name, FAILED, f"{what}: the answer moves by {apart:.3g}, more than rounding in float64 explains"
        )
    gaps: list[dict[str, float]] = []
    margin = max(session.margin(reference), 0.2)
    size = sum(abs(trace) for trace in reference.traces.values()) or 1.0
    for count in (n for n in looks() if n <= LAST_LOOK // 4):
        while len(gaps) < count:
            states = [stream(session.seed, what, reference.name, str(len(gaps))) for _ in range(2)]
            x, y = left(states[0]), right(states[1])
            gaps.append({block: (x[block] - y[block]) / size for block in x})
        intervals = [
            (block, mean_interval(np.array([gap[block] for gap in gaps]), session.alpha / len(looks())))
            for block in gaps[0]
        ]
        for block, found in intervals:
            if found.low > 0 or found.high < 0:
                text = f"{what}: {block} moves by {_percent(found)} of Σ|tr H_ll|"
                return Finding(reference.name, FAILED, text, _sign(found.effect))
        if all(max(abs(found.low), abs(found.high)) <= margin for _, found in intervals):
            return Finding(reference.name, PASSED, "in the mean")
    return Finding(reference.name, INCONCLUSIVE, f"{what}: too noisy to tell at {LAST_LOOK // 4} runs")


def _with_loss(problem: Problem, factor: float) -> Problem:
    other, loss_fn = copy.copy(problem), problem.loss_fn
    other.loss_fn = lambda outputs, targets: factor * loss_fn(outputs, targets)
    return other


def _values(session: Session, problem: Problem, factor: float = 1.0) -> Callable[[torch.Generator], dict[str, float]]:
    def of(generator: torch.Generator) -> dict[str, float]:
        return {block: factor * value for block, value in session.ask(problem, generator).values.items()}

    return of


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_scales_with_loss(session: Session) -> Iterator[Finding]:
    """Does three times the loss give three times the trace, to the rounding of float64?"""
    for reference in session.legal("smooth_mlp", "coupled"):
        tripled = _with_loss(reference.problem, 3.0)
        yield _agrees(
            session, reference, "loss × 3", _values(session, tripled), _values(session, reference.problem, 3.0)
        )


@check("smooth_mlp", "ragged", needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_batch_order(session: Session) -> Iterator[Finding]:
    """Is the order of the batches without influence?"""
    for reference in session.legal("smooth_mlp", "ragged"):
        turned = reference.problem.with_batches(reference.problem.batches[::-1])
        yield _agrees(
            session, reference, "batches reversed", _values(session, turned), _values(session, reference.problem)
        )


@check("smooth_mlp", "ragged", needs=["check_answers_are_legal", "check_same_state_same_answer"])
def check_additivity(session: Session) -> Iterator[Finding]:
    """Is the trace over two batches the mean of theirs, weighted by samples?"""
    for reference in session.legal("smooth_mlp", "ragged"):
        problem = reference.problem
        parts = [problem.with_batches([batch]) for batch in problem.batches]

        def weighted(
            generator: torch.Generator, parts: list[Problem] = parts, problem: Problem = problem
        ) -> dict[str, float]:
            state = generator.get_state()
            answers = [session.ask(part, _restored(state)).values for part in parts]
            return {
                block: sum(w * values[block] for w, values in zip(problem.weights, answers, strict=True))
                for block in answers[0]
            }

        yield _agrees(session, reference, "batches joined", _values(session, problem), weighted)


def _restored(state: torch.Tensor) -> torch.Generator:
    generator = torch.Generator()
    generator.set_state(state)
    return generator


# --- probes that enumerate ------------------------------------------------------------------------------------------

_ENUMERATED = ("ragged", "negative", "unequal", "coupled", "smooth_mlp", "tied", "autoencoder", "batch_norm",
               "unreached", "layouts", "frozen")  # fmt: skip


@check(*_ENUMERATED, needs=["check_answers_are_legal"])
def check_given_probes(session: Session) -> Iterator[Finding]:
    """Do all Hadamard columns, or orthogonal ones, handed over as probes=, give the exact traces?"""
    from hesstheory.estimators import hadamard_columns

    if not session.takes_probes:
        yield Finding("", SKIPPED, "no keyword probes=: with it, unbiasedness is decided without sampling")
        return
    for reference in session.legal(*_ENUMERATED):
        yield _enumerated(session, reference, hadamard_columns(reference.problem.num_params))
    for reference in session.legal("layouts"):  # entries that are no signs
        P = reference.problem.num_params
        Q = torch.linalg.qr(torch.randn(P, P, generator=session.generator("orthogonal"), dtype=torch.float64)).Q
        yield _enumerated(session, reference, P**0.5 * Q)


def _enumerated(session: Session, reference: Reference, Z: torch.Tensor) -> Finding:
    """Σ_k z_k z_kᵀ/K = I, so that the mean of the forms is the trace."""
    answer = session.ask(reference.problem, session.generator("given"), Z, Z.shape[1])
    size = sum(map(abs, reference.traces.values())) or 1.0
    target = _targets(answer, reference)
    gaps = {block: (answer.values[block] - target[block]) / size for block in target}
    worst = max(gaps, key=lambda block: abs(gaps[block]))
    off = abs(gaps[worst]) > 1e-10 * reference.problem.num_params**0.5
    return Finding(
        reference.name, FAILED if off else PASSED,
        f"{worst}: {answer.values[worst]:.10g}, exactly {target[worst]:.10g}; {reference.hunts}" if off else "",
        _sign(gaps[worst]) if off else "",
    )  # fmt: skip


# --- the mean -------------------------------------------------------------------------------------------------------


def _unbiased(session: Session, reference: Reference, num_probes: int | None = None, widened: float = 1) -> Finding:
    """Mean of the runs against the certified traces, block by block and in total, within the margin."""
    runs, traces, margin = session.runs(reference, num_probes), reference.traces, widened * session.margin(reference)
    targets = {**traces, TOTAL: sum(traces.values())}
    size = sum(map(abs, traces.values())) or 1.0
    slack = size * (1e-9 if reference.problem.dtype == torch.float64 else 1e-5)
    counts = [FIRST_LOOK // 2, *looks()] if session.profile == "smoke" else looks()
    for count in counts:
        intervals = {
            block: (mean_interval(values - targets[block], session.alpha / len(counts)), abs(targets[block]))
            for block, values in runs.values(count).items()
        }
        bad = {b: f for b, (f, _) in intervals.items() if f.low > slack or f.high < -slack}
        if bad:
            block = max(bad, key=lambda b: abs(bad[b].effect) / (bad[b].high - bad[b].low + slack))
            return Finding(reference.name, FAILED, _bias_text(block, bad[block], targets[block], runs, count),
                           _sign(bad[block].effect))  # fmt: skip
        if all(max(abs(f.low), abs(f.high)) <= margin * trace + slack for f, trace in intervals.values()):
            return Finding(reference.name, PASSED, f"within {margin:.1%} at {count} runs")
        widths = {b: (f.high - f.low) / 2 * (count / LAST_LOOK) ** 0.5 for b, (f, _) in intervals.items()}
        if count >= 512 and any(widths[b] > 2 * (margin * trace + slack) for b, (_, trace) in intervals.items()):
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
    return f"{block} is off by {_percent(relative)} of its trace {target:.6g} ({how})"


def _percent(found: Interval) -> str:
    return f"{100 * found.effect:+.3g} % [{100 * found.low:+.3g}, {100 * found.high:+.3g}]"


def _sign(effect: float) -> str:
    return "+" if effect > 0 else "−"


def _mean_check(*names: str) -> Decide:
    def decide(session: Session) -> Iterator[Finding]:
        yield from (_unbiased(session, reference) for reference in session.legal(*names))

    return decide


def _register_mean(name: str, question: str, *problems: str) -> None:
    decide = _mean_check(*problems)
    CHECKS[name] = ConformanceCheck(name, question, decide, problems, ("check_answers_are_legal",), "smoke")


_register_mean(
    "check_unbiased", "Is the mean the trace of every block, and of all?", "flat", "coupled", "smooth_mlp", "skewed"
)
_register_mean("check_signs", "Are negative traces negative?", "negative")
_register_mean("check_block_mapping", "Does every block get its own trace, small or large?", "unequal", "regrouped")
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


# --- the spread -----------------------------------------------------------------------------------------------------

# Few probes, since many runs are needed: two, where K − 1 is half of K, and seventeen where blocks are small and draws
# far from normal; the last of two chunks of sixteen is then a single probe.
SPREAD_PROBES = {"coupled": 2, "unequal": 17}
_SPREAD = tuple(SPREAD_PROBES)
STDERR_MARGIN = 1.4
VARIANCE_MARGIN = 1.7


def _spread_looks() -> list[int]:
    return [n for n in looks() if n >= 256]


@check(*_SPREAD, needs=["check_answers_are_legal"], profile="ci")
def check_stderr_size(session: Session) -> Iterator[Finding]:
    """Is the claimed standard error neither too small nor too wide?"""
    for reference in session.legal(*_SPREAD):
        runs = session.spread(reference)
        try:
            runs.first(2)
        except IllegalAnswer as illegal:  # a method may need more than two probes for an error
            yield Finding(reference.name, SKIPPED, f"of {runs.num_probes} probes: {illegal}")
        else:
            yield _stderr_size(reference, runs, session.alpha)


def _stderr_size(reference: Reference, runs: Runs, alpha: float) -> Finding:
    if runs.errors(2) is None:
        return Finding(reference.name, SKIPPED, "no standard error is claimed")
    for count in _spread_looks():
        claimed, values = runs.errors(count) or {}, runs.values(count)
        ratios = {}
        for block, errors in claimed.items():
            tiny = 1e-9 * max(abs(reference.traces.get(block, 0.0)), 1e-3)
            if values[block].std() < tiny and errors.mean() < 1e3 * tiny:
                continue
            actual = (float(values[block].var(ddof=1)), degrees_of_freedom(values[block]))
            ratios[block] = variance_ratio(satterthwaite(errors**2), actual, alpha / len(_spread_looks()))
        for block, found in ratios.items():
            if found.low > 1 or found.high < 1:
                by = Interval(*(x**0.5 for x in (found.effect, found.low, found.high)))
                text = (
                    f"{block}: the claimed error is {by.effect:.3g} [{by.low:.3g}, {by.high:.3g}] times the true one "
                    f"({count} runs of {runs.num_probes} probes)"
                )
                return Finding(reference.name, FAILED, text, _sign(by.effect - 1))
        limit = STDERR_MARGIN**2
        if all(1 / limit <= found.low and found.high <= limit for found in ratios.values()):
            return Finding(reference.name, PASSED, f"within a factor {STDERR_MARGIN} at {count} runs")
    return Finding(reference.name, INCONCLUSIVE, f"not decided within a factor {STDERR_MARGIN} at {LAST_LOOK} runs")


@check("unequal", needs=["check_answers_are_legal", "check_unbiased", "check_block_mapping"], profile="ci")
def check_stderr_coverage(session: Session) -> Iterator[Finding]:
    """Does value ± 2 standard errors cover the trace nearly as often as promised?"""
    for reference in session.legal("unequal"):
        if session.spread(reference).errors(2) is None:
            yield Finding(reference.name, SKIPPED, "no standard error is claimed")
        else:
            yield _coverage(session, reference, 512)


def _coverage(session: Session, reference: Reference, count: int) -> Finding:
    runs, traces = session.spread(reference), {**reference.traces, TOTAL: sum(reference.traces.values())}
    claimed, values = runs.errors(count) or {}, runs.values(count)
    for block, errors in claimed.items():
        slack = 1e-9 * max(abs(traces[block]), 1.0)
        hits = int((np.abs(values[block] - traces[block]) <= 2 * errors + slack).sum())
        low, high = clopper_pearson(hits, count, 1 - session.alpha)
        if high < 0.85:
            text = f"{block}: ±2 errors cover in {hits} of {count} runs, {low:.1%} to {high:.1%} instead of about 95 %"
            return Finding(reference.name, FAILED, text, "−")
    return Finding(reference.name, PASSED, f"at {count} runs")


@check(*_SPREAD, needs=["check_answers_are_legal"], profile="ci")
def check_variance_of_declared_probes(session: Session) -> Iterator[Finding]:
    """Is the variance that of the probe distribution which the estimator declares?"""
    probe = session.probe if session.probe is not None else getattr(session.estimator, "probe", None)
    if probe is None or not hasattr(probe, "kurtosis"):
        yield Finding("", SKIPPED, "no distribution is declared: give the estimator an attribute `probe`")
        return
    for reference in session.legal(*_SPREAD):
        yield _declared(session, reference, probe)


def _declared(session: Session, reference: Reference, probe: Any) -> Finding:
    runs = session.spread(reference)
    for count in _spread_looks():
        values = runs.values(count)
        blocks = [block for block in values if block != TOTAL]
        if not blocks:
            return Finding(reference.name, SKIPPED, "the prediction is for blocks; one total is returned")
        found: dict[str, list[Interval]] = {}
        for design in ("one product", "one block at a time"):
            measured = [(float(values[b].var(ddof=1)) * runs.num_probes, degrees_of_freedom(values[b])) for b in blocks]
            predicted = [(reference.variance(b, probe, separated=design != "one product"), np.inf) for b in blocks]
            found[design] = [
                variance_ratio(top, bottom, session.alpha / len(_spread_looks()))
                for top, bottom in zip(measured, predicted, strict=True)
            ]
        possible = [design for design, ratios in found.items() if all(r.low <= 1 <= r.high for r in ratios)]
        if not possible:
            ratios = ", ".join(f"{b} {r.effect:.3g}" for b, r in zip(blocks, found["one product"], strict=True))
            text = (
                f"variance over that of {probe} with one product for all blocks: {ratios}; nor is it that of one block "
                "at a time"
            )
            return Finding(reference.name, FAILED, text, _sign(found["one product"][0].effect - 1))
        for design in possible:
            if all(r.low >= 1 / VARIANCE_MARGIN and r.high <= VARIANCE_MARGIN for r in found[design]):
                return Finding(reference.name, PASSED, f"as predicted for {design} at {count} runs")
    return Finding(reference.name, INCONCLUSIVE, f"not decided within a factor {VARIANCE_MARGIN} at {LAST_LOOK} runs")


_FEW, _MANY = 4, {"ci": 65, "full": 1025}  # the last of many chunks of 2ⁿ probes is then a single one
# Of 16 and of 256 by 1/K: deflation spends probes on its sketch and leaves noise that falls more slowly.
LEAST_FALL = {"ci": 3.0, "full": 32.0}


@check("coupled", needs=["check_answers_are_legal"], profile="ci")
def check_variance_falls(session: Session) -> Iterator[Finding]:
    """Does the variance fall by a factor of three at least when there are sixteen times the probes?"""
    many, least = _MANY[session.profile], LEAST_FALL[session.profile]
    yield from (_falls(session, reference, many, least) for reference in session.legal("coupled"))


def _falls(session: Session, reference: Reference, num_probes: int, least: float) -> Finding:
    steps = [64, 128, 256, 512, 1024]
    for count in steps:
        few, many = (session.runs(reference, K).values(count) for K in (_FEW, num_probes))
        ratios = {}
        for block in few:
            tiny = 1e-9 * max(abs(sum(reference.traces.values())), 1.0)
            if min(few[block].std(), many[block].std()) < tiny:
                continue  # exact: nothing is left that could fall
            parts = [(float(v[block].var(ddof=1)), degrees_of_freedom(v[block])) for v in (few, many)]
            ratios[block] = variance_ratio(parts[0], parts[1], session.alpha / len(steps))
        for block, found in ratios.items():
            if found.high < least:
                text = (
                    f"{block}: {num_probes} probes have {1 / found.effect:.3g} of the variance of {_FEW}, "
                    f"not {1 / least:.3g} or less; 1/K would be {_FEW / num_probes:.3g} ({count} runs)"
                )
                return Finding(reference.name, FAILED, text, "+")
        if all(found.low > least for found in ratios.values()):
            return Finding(reference.name, PASSED, f"at {count} runs")
    return Finding(reference.name, INCONCLUSIVE, f"a fall by {least:g} not decided at {steps[-1]} runs")


@check("smooth_mlp", "coupled", needs=["check_answers_are_legal"])
def check_draws_differ(session: Session) -> Iterator[Finding]:
    """Are the draws of one answer independent of each other, and successive answers of one generator too?"""
    for reference in session.legal("smooth_mlp"):
        yield _repeated_rows(session, reference)
        yield _more_probes(session, reference)
    names = ("smooth_mlp", "coupled") if session.is_thorough else ("coupled",)
    yield from (_successive(session, reference) for reference in session.legal(*names))


MANY_PROBES = (256, 512, 500, 1000)  # multiples of the sizes of chunks and of the limits that people choose


def _repeated_rows(session: Session, reference: Reference) -> Finding:
    """Rows of samples that are equal, of more probes than fit into the chunks that estimators work in.

    Draws from few values, such as coordinates, repeat by chance, but then in two answers as in one.
    """
    first, second = (
        session.ask(reference.problem, session.generator(name), num_probes=MANY_PROBES[-1]).samples
        for name in ("rows", "more")
    )
    if first is None or second is None or first.ndim != 2 or (first.std(axis=0) <= 1e-12 * np.abs(first).max()).all():
        return Finding(reference.name, PASSED, "no samples, or exact ones")
    count, of_first, of_second = len(first), len(_distinct(first)), len(_distinct(second))
    if len(_distinct(np.concatenate([first, second]))) < of_first + of_second:
        return Finding(reference.name, PASSED, "draws from few values")
    text = f"{count - of_first} of {count} rows of samples repeat another: a probe is used again"
    return Finding(reference.name, FAILED if of_first < count else PASSED, text if of_first < count else "")


def _more_probes(session: Session, reference: Reference) -> Finding:
    """Answers of equal generator states to ever more probes: equal ones used no more, or the same ones again."""
    answers = {K: session.ask(reference.problem, session.generator("rows"), num_probes=K) for K in MANY_PROBES}
    same = [
        f"{few} and {many}"
        for few, many in pairwise(MANY_PROBES)
        if _apart(answers[few].values, answers[many].values) < 1e-12 and not _is_exact(answers[many], reference)
    ]
    text = f"{' probes, '.join(same)} probes give the same answer: the further ones are not drawn, or drawn again"
    return Finding(reference.name, FAILED if same else PASSED, text if same else "")


def _successive(session: Session, reference: Reference) -> Finding:
    """Correlation of successive answers drawn from one generator."""
    generator, count = session.generator("successive"), 64 if session.profile == "smoke" else 128
    totals = np.array([session.ask(reference.problem, generator, num_probes=8).total for _ in range(count)])
    if totals.std() < 1e-9 * max(abs(float(totals.mean())), 1.0):
        return Finding(reference.name, PASSED, "no randomness")
    correlation = float(np.corrcoef(totals[:-1], totals[1:])[0, 1])
    # Ranks are safe against heavy tails: Spearman's coefficient of independent draws is normal with variance 1/(n − 1).
    ranks = float(stats.spearmanr(totals[:-1], totals[1:]).statistic)
    bound = float(stats.norm.isf(session.alpha / 2)) / (count - 2) ** 0.5
    if abs(ranks) > bound:
        text = f"successive answers from one generator have correlation {correlation:+.2f} ({count} calls)"
        return Finding(reference.name, FAILED, text, _sign(correlation))
    return Finding(reference.name, PASSED, "")

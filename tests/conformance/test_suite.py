"""Verdicts on right and wrong estimators, and how to see them again."""

from __future__ import annotations

import shlex
import sys
from collections import Counter

import pandas as pd
import pytest
import torch

from hesstheory import (
    ControlVariateTrace,
    Estimate,
    HutchPP,
    LayerwiseTrace,
    Rademacher,
    XTrace,
    check_estimator,
    hessian,
)
from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.results import exit_code
from hesstheory.conformance.settings import Settings
from hesstheory.conformance.subjects.peers import PEERS
from hesstheory.conformance.subjects.right import RIGHT
from hesstheory.conformance.suite import Course

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


@pytest.mark.parametrize(
    "name", ["signs_all_at_once", "total_only", "exact", "layerwise", "library_block_separated"]
)
def test_right_estimators_pass_the_smoke_profile(name):
    results = check_estimator(RIGHT[name], "smoke", seed=3)
    assert exit_code(results) == 0, [
        (r.check, r.detail) for r in results if r.status not in ("passed", "skipped")
    ]


@pytest.mark.slow
def test_a_right_estimator_passes_all_checks_with_the_tests_that_were_paid_for():
    course = Course(LayerwiseTrace(), Settings("ci", seed=11))
    assert {course.result(name).status for name in CHECKS} == {"passed"}
    made = Counter(check for check, _, _ in course.session.tests_made)
    assert made
    assert {name: n for name, n in made.items() if n > CHECKS[name].num_tests} == {}


def _biased(problem, *, num_probes, generator):
    """One per cent too large."""
    return 1.01 * LayerwiseTrace(num_probes)(problem, generator).value


def test_draws_from_few_values_may_repeat():
    """√P times random unit vectors (Avron and Toledo 2011) repeat by chance, which is not wrong."""

    def coordinates(problem, *, num_probes, generator):
        diagonal = hessian(problem).to_dense().diagonal()
        drawn = torch.randint(problem.num_params, (num_probes, 1), generator=generator)
        forms = {
            b: len(diagonal) * (drawn == i).double() @ diagonal[i] for b, i in problem.index.items()
        }
        return Estimate(pd.DataFrame(forms), num_matvecs=num_probes)

    results = check_estimator(
        coordinates, checks=["check_draws_differ", "check_other_state_other_answer"]
    )
    assert {result.check: result.status for result in results}["check_draws_differ"] == "passed"
    assert {result.check: result.status for result in results}[
        "check_other_state_other_answer"
    ] == "passed"


def test_one_per_cent_is_found_with_its_interval_and_a_command():
    (*_, result) = check_estimator(_biased, checks=["check_unbiased"], seed=5)
    assert result.status == "failed"
    assert "flat: " in result.detail
    assert "+1.0" in result.detail or "+1 %" in result.detail or "+0.9" in result.detail
    assert "--seed 5" in result.reproduce
    assert "--check check_unbiased" in result.reproduce


@pytest.fixture(scope="module")
def estimates():
    """Estimates by the state of their random stream, which names seed, problem and run."""
    return {}


def _wrong_error(factor, estimates):
    def estimator(problem, *, num_probes, generator):
        asked = problem.num_params, num_probes, generator.get_state().numpy().tobytes()
        if asked not in estimates:
            estimates[asked] = LayerwiseTrace(num_probes)(problem, generator)
        found = estimates[asked]
        return {
            block: (found.value[block], factor * found.stderr[block]) for block in found.value.index
        }

    return estimator


@pytest.mark.parametrize("factor", [0.0, 0.5**0.5, 2**0.5, 4.0])
def test_wrong_standard_errors_are_found(factor, estimates):
    wrong = _wrong_error(factor, estimates)
    (*_, result) = check_estimator(wrong, checks=["check_stderr_size"], seed=1)
    assert result.status == "failed"


@pytest.mark.parametrize(
    "estimator", [ControlVariateTrace(), HutchPP(rank=3), XTrace()], ids=lambda e: type(e).__name__
)
def test_estimators_that_do_more_than_average_forms_are_right(estimator):
    results = check_estimator(
        estimator, "smoke", checks=["check_answers_are_legal", "check_unbiased", "check_layouts"]
    )
    assert {result.status for result in results} <= {"passed", "skipped"}, results


def test_what_cannot_be_asked_is_blocked():
    def broken(problem, *, num_probes, generator):
        raise RuntimeError("broken")

    results = {r.check: r for r in check_estimator(broken, "smoke")}
    assert results["check_answers_are_legal"].status == "failed"
    assert "broken" in results["check_answers_are_legal"].detail
    assert {r.status for r in results.values()} == {"failed", "blocked"}
    assert exit_code(list(results.values())) == 1


def _exits(problem, *, num_probes, generator):
    sys.exit(0)


def _cuts_the_data(problem, *, num_probes, generator):
    problem.batches = problem.batches[:1]
    return dict.fromkeys(problem.partition.blocks, 0.0)


def _sets_the_default_dtype(problem, *, num_probes, generator):
    torch.set_default_dtype(torch.float32)
    return LayerwiseTrace(num_probes)(problem, generator)


def test_an_estimator_that_exits_fails():
    (result,) = check_estimator(_exits, checks=["check_answers_are_legal"])
    assert result.status == "failed"
    assert "SystemExit" in result.detail


def test_one_estimator_does_not_harm_the_next():
    check_estimator(_cuts_the_data, checks=["check_same_state_same_answer"])
    results = check_estimator(LayerwiseTrace(), checks=["check_additivity"])
    assert {r.status for r in results} == {"passed"}


def test_a_changed_default_dtype_is_noticed_and_put_back():
    before = torch.get_default_dtype()
    (*_, result) = check_estimator(
        _sets_the_default_dtype, checks=["check_leaves_globals_untouched"]
    )
    assert result.status == "failed"
    assert "the default dtype" in result.detail
    assert torch.get_default_dtype() == before


def test_commands_can_be_pasted():
    course = Course(_biased, Settings(probe=Rademacher(), time_limit=7.0, isolate=True))
    assert course.command.endswith("--seed 0 --probe Rademacher --time-limit 7 --isolate")


def test_a_time_limit_may_be_infinite():
    results = check_estimator(_biased, "smoke", checks=["check_one_probe"], time_limit=float("inf"))
    assert results[-1].status == "passed"


def _local(kind):
    def local(problem, *, num_probes, generator):
        return LayerwiseTrace(num_probes)(problem, generator).value

    return {
        "local": local,
        "lambda": lambda problem, *, num_probes, generator: 0.0,
        "instance": LayerwiseTrace(),
    }[kind]


def _module_level(problem, *, num_probes, generator):
    return LayerwiseTrace(num_probes)(problem, generator).value


@pytest.mark.parametrize("kind", ["local", "lambda", "instance"])
def test_what_the_command_line_cannot_name_is_not_offered_to_it(kind):
    result = Course(_local(kind), Settings(seed=3)).result("check_answers_are_legal")
    assert "in Python" in result.reproduce
    assert "seed=3, checks=['check_answers_are_legal']" in result.reproduce


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (_module_level, [f"{__name__}:_module_level"]),
        (PEERS["skerch.xhutchpp.gaussian"], ["peers", "--peer", "skerch.xhutchpp.gaussian"]),
        ("hesstheory:LayerwiseTrace", ["hesstheory:LayerwiseTrace"]),
    ],
    ids=["function", "peer", "name"],
)
def test_what_the_command_line_can_name_is_named_so(estimator, words):
    assert shlex.split(Course(estimator).command)[: 2 + len(words)] == [
        "hesstheory",
        "check",
        *words,
    ]

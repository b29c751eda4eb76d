"""The conformance suite: certified problems, the contract's edge, verdicts on right and wrong estimators, the doors."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from hesstheory import (
    ControlVariateTrace,
    Estimate,
    HutchPP,
    LayerwiseTrace,
    Rademacher,
    Sphere,
    XTrace,
    check_estimator,
    hessian,
)
from hesstheory.cli import app
from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.contract import IllegalAnswer, Misuse, as_estimator, read
from hesstheory.conformance.kill_matrix import kill_matrix, smallest_set
from hesstheory.conformance.named import load
from hesstheory.conformance.problems import certified, certify, grid, references, second_route
from hesstheory.conformance.subjects.peers import PEERS, distribution_of
from hesstheory.conformance.subjects.right import RIGHT
from hesstheory.conformance.subjects.wrong import WRONG
from hesstheory.conformance.suite import (
    Course,
    exit_code,
    read_xfails,
    scoreboard,
    signatures,
    suspects,
)
from hesstheory.evidence.intervals import mean_interval, satterthwaite, variance_ratio

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

# --- reference problems ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", references())
def test_certified_values_agree_with_two_routes(name):
    reference = references()[name]
    problem = reference.build().double()
    first, second = hessian(problem).to_dense(), second_route(problem)
    assert torch.allclose(
        first, second, rtol=0, atol=1e-14 * float(second.abs().max()) * problem.num_params**0.5
    )
    for H in (first, second):
        for block, values in certify(H, problem).items():
            stored = certified()[name][block]
            scale = max(1.0, sum(abs(t) for t in reference.traces.values()))
            assert values["trace"] == pytest.approx(stored["trace"], rel=1e-14, abs=1e-14 * scale)
            for norm in ("own", "diagonal", "cross"):
                assert values[norm] == pytest.approx(stored[norm], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("probe", [Rademacher(), Sphere()], ids=str)
@pytest.mark.parametrize("name", references())
def test_the_variance_that_is_certified_is_measured(name, probe):
    reference = references()[name]
    problem = reference.build().double()
    q = LayerwiseTrace(4000, probe)(problem, torch.Generator().manual_seed(1)).samples
    for block in problem.index:
        predicted = reference.variance(block, probe)
        assert q[block].var() == pytest.approx(
            predicted, rel=0.35, abs=1e-20
        )  # 4000 draws: 2.2 % for normal ones


def test_what_the_problems_are_meant_to_have():
    traces = {name: reference.traces for name, reference in references().items()}
    assert references()["ragged"].problem.batch_sizes == (32, 1)
    assert traces["negative"]["hill"] < 0 < traces["negative"]["valley"]
    assert sum(traces["negative"].values()) < 0
    assert list(map(len, references()["unequal"].problem.index.values())) == [1, 3, 40, 160]
    assert "first+second" in traces["tied"]
    assert traces["unreached"]["idle"] == traces["unreached"]["linear"] == 0
    assert references()["float32"].problem.dtype == torch.float32
    assert list(traces["frozen"]) == ["layer2"]
    layouts = references()["layouts"].problem
    assert {p.ndim for p in layouts.params.values()} == {0, 1, 2, 3}
    assert not all(p.is_contiguous() for p in layouts.params.values())
    assert any(len(index) <= int(index.max() - index.min()) for index in layouts.index.values()), (
        "interleaved"
    )


def test_the_grid_is_the_same_everywhere():
    assert (8 * grid([6], 7)).tolist() == [8 * x for x in grid([6], 7).tolist()]
    assert set((8 * grid([4000], 3)).tolist()) == set(range(-8, 9))
    assert not torch.equal(grid([16], 1), grid([16], 2))


# --- statistics -----------------------------------------------------------------------------------------------------


def test_intervals_cover_at_their_level():
    draws = np.random.default_rng(0).normal(size=(4000, 64))
    misses = sum(
        not interval.low <= 0 <= interval.high
        for interval in (mean_interval(x, 0.05) for x in draws)
    )
    assert 140 <= misses <= 260  # 200 expected, standard deviation 14
    other = np.random.default_rng(1).normal(size=(4000, 64))
    ratios = (
        variance_ratio((x.var(ddof=1), 63), (y.var(ddof=1), 63), 0.05)
        for x, y in zip(draws, other, strict=True)
    )
    misses = sum(not ratio.low <= 1 <= ratio.high for ratio in ratios)
    assert 140 <= misses <= 260


def test_constant_squares_are_known_exactly():
    assert satterthwaite(np.full(9, 4.0)) == (4.0, np.inf)
    assert variance_ratio((0.0, 9), (0.0, 9), 0.05).effect == 1
    assert variance_ratio((0.0, 9), (1.0, 9), 0.05).high == 0


# --- the contract ---------------------------------------------------------------------------------------------------

PROBLEM = references()["negative"].problem
LEGAL = [
    ({"hill": 1.0, "valley": 2.0}, None),
    ({"hill": torch.tensor(1.0), "valley": np.float64(2)}, None),
    ({"hill": (1.0, 0.5), "valley": (2.0, 0.25)}, {"hill": 0.5, "valley": 0.25}),
    (3.0, None),
    (torch.tensor(3.0), None),
]


@pytest.mark.parametrize(("answer", "stderr"), LEGAL, ids=repr)
def test_legal_answers(answer, stderr):
    found = read(answer, PROBLEM, 8)
    assert found.total == 3.0
    assert found.stderr == stderr


ILLEGAL = [
    ({"hill": 1.0}, "lacks"),
    ({"hill": 1.0, "valley": 1.0, "sea": 0.0}, "adds"),
    ({"hill": "1.0", "valley": 1.0}, "return a float"),
    ("3.0", "return a float"),
    (None, "is `return` missing"),
    (True, "return a float"),
    (float("nan"), "finite"),
    (float("inf"), "finite"),
    (1 + 2j, "complex"),
    (torch.tensor([1.0, 2.0]), "array"),
    ({"hill": (1.0, -0.5), "valley": (1.0, 0.5)}, "negative"),
    ({"hill": (1.0, float("nan")), "valley": (1.0, 0.5)}, "finite"),
    ({"hill": (1.0, 0.5), "valley": 1.0}, "all or none"),
    ({"hill": (1.0, 0.5, 2), "valley": (1.0, 0.5, 2)}, "pair"),
]


@pytest.mark.parametrize(("answer", "message"), ILLEGAL, ids=repr)
def test_illegal_answers_name_the_cure(answer, message):
    with pytest.raises(IllegalAnswer, match=message):
        read(answer, PROBLEM, 8)


def _yields(problem, *, num_probes, generator):
    yield 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "package.module:name"),
        ("no.such.module:f", "does not import"),
        ("no/such/file.py:f", "no file"),
        ("hesstheory.theory:nothing", "has no"),
        ("hesstheory.theory:__name__", "cannot be called"),
        ("hesstheory.theory:probe_variance", "num_probes"),
        ("tests.test_conformance:_yields", "generator or a coroutine"),
    ],
)
def test_names_that_are_no_estimator(name, message):
    with pytest.raises(Misuse, match=message):
        load(name)


@pytest.mark.parametrize(
    "name", ["hesstheory:LayerwiseTrace", "hesstheory.estimators:BlockSeparatedTrace"]
)
def test_the_estimators_of_the_library_are_wrapped(name):
    answer = load(name)(PROBLEM, num_probes=3, generator=torch.Generator().manual_seed(0))
    assert len(answer.samples) == 3


# --- right and wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["signs_all_at_once", "total_only", "exact", "layerwise", "library_block_separated"]
)
def test_right_estimators_pass_the_smoke_profile(name):
    results = check_estimator(RIGHT[name], "smoke", seed=3)
    assert exit_code(results) == 0, [
        (r.check, r.detail) for r in results if r.status not in ("passed", "skipped")
    ]


def test_a_right_estimator_passes_all_checks():
    results = check_estimator(LayerwiseTrace(), "ci", seed=11)
    assert {r.status for r in results} == {"passed"}
    assert len(results) == len(CHECKS)


def _biased(problem, *, num_probes, generator):
    """One per cent too large."""
    return 1.01 * LayerwiseTrace(num_probes)(problem, generator).value


def test_draws_from_few_values_may_repeat():
    """√P times random unit vectors (Avron and Toledo 2011): probes repeat by chance, and nothing is wrong with that."""

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


def _wrong_error(factor):
    def estimator(problem, *, num_probes, generator):
        found = LayerwiseTrace(num_probes)(problem, generator)
        return {
            block: (found.value[block], factor * found.stderr[block]) for block in found.value.index
        }

    return estimator


@pytest.mark.parametrize("factor", [0.0, 0.5**0.5, 2**0.5, 4.0])
def test_wrong_standard_errors_are_found(factor):
    (*_, result) = check_estimator(_wrong_error(factor), checks=["check_stderr_size"], seed=1)
    assert result.status == "failed"


def test_every_mutant_says_what_is_wrong_with_it():
    assert len(WRONG) >= 40
    assert all((mutant.__doc__ or "").strip() for mutant in WRONG.values())


def test_signatures_are_those_of_known_mutants_and_checks():
    assert set(signatures()) <= set(WRONG)
    lines = {line for pattern in signatures().values() for line in pattern}
    assert {line.partition("@")[0] for line in lines} <= set(CHECKS)


def test_suspects_are_ranked_by_likeness():
    for name, pattern in list(signatures().items())[:10]:
        alike = [other for other, lines in signatures().items() if lines == pattern]
        assert suspects(set(pattern), most=len(alike))[0] in alike, name


@pytest.mark.parametrize(
    ("killed_by", "expected"),
    [
        ({"m": ["a"], "n": ["b"]}, ["a", "b"]),
        ({"m": ["a", "c"], "n": ["b", "c"]}, ["c"]),
        ({"m": []}, []),
    ],
)
def test_smallest_set_of_checks(killed_by, expected):
    assert smallest_set(killed_by) == expected


def test_an_unknown_mutant_is_refused():
    with pytest.raises(KeyError, match="no mutant"):
        kill_matrix(["nobody"])


# --- prerequisites, time and processes ------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_blocked():
    def broken(problem, *, num_probes, generator):
        raise RuntimeError("broken")

    results = {r.check: r for r in check_estimator(broken, "smoke")}
    assert results["check_answers_are_legal"].status == "failed"
    assert "broken" in results["check_answers_are_legal"].detail
    assert {r.status for r in results.values()} == {"failed", "blocked"}
    assert exit_code(list(results.values())) == 1


def test_a_hanging_estimator_fails_in_bounded_time():
    def hangs(problem, *, num_probes, generator):
        while True:
            pass

    (result,) = check_estimator(hangs, checks=["check_answers_are_legal"], time_limit=0.3)
    assert result.status == "failed"
    assert "hangs" in result.detail


def test_an_estimator_that_kills_its_process_fails_when_isolated():
    def kills(problem, *, num_probes, generator):
        import os

        os._exit(9)

    (result,) = check_estimator(
        kills, checks=["check_answers_are_legal"], isolate=True, time_limit=20
    )
    assert result.status == "failed"
    assert "exit code 9" in result.detail


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


# --- expected failures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('check_nothing = "why"', "no check is named"),
        ('check_unbiased = ""', "no reason"),
        ("[check_unbiased]\nexpires = 2030-01-01", "no reason"),
        ('[check_unbiased]\nreason = "x"\nexpires = 2020-01-01', "expired"),
        ('[check_unbiased]\nreason = "x"\nexpires = "soon"', "no date"),
        ("check_unbiased = [", "no TOML"),
    ],
)
def test_bad_expectations_are_refused(text, message, tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text(text)
    with pytest.raises(Misuse, match=message):
        read_xfails(path, datetime.date(2026, 1, 1))


def test_expectations_are_read_in_all_forms(tmp_path):
    path = tmp_path / "xfails.toml"
    path.write_text('check_signs = "a"\n[check_unbiased]\nreason = "b"\nexpires = 2030-01-01\n')
    assert read_xfails(path, datetime.date(2026, 1, 1)) == {
        "check_signs": "a",
        "check_unbiased": "b",
    }
    path.write_text('[expected_failed_checks]\ncheck_signs = "a"\n')
    assert read_xfails(path) == {"check_signs": "a"}


def test_expected_failures_must_fail():
    wrong = {"check_one_probe": "wrong guess", "check_given_probes": "never asked"}
    course = Course(_biased, expected={"check_unbiased": "known", **wrong})
    assert course.result("check_given_probes").status == "failed"
    assert course.result("check_unbiased").status == "xfailed"
    assert course.result("check_one_probe").status == "failed"
    assert "remove the entry" in course.result("check_one_probe").detail


# --- the doors ------------------------------------------------------------------------------------------------------

ESTIMATORS = """
from hesstheory import LayerwiseTrace

def right(problem, *, num_probes, generator):
    return LayerwiseTrace(num_probes)(problem, generator).value.to_dict()

def twice(problem, *, num_probes, generator):
    return (2 * LayerwiseTrace(num_probes)(problem, generator).value).to_dict()

def old_style(problem, samples=10):
    return 0.0

def late_exit(problem, *, num_probes, generator):
    if num_probes == 1:
        import os
        os._exit(0)
    return right(problem, num_probes=num_probes, generator=generator)
"""


@pytest.fixture
def estimators(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ESTIMATORS)
    return path


def _check(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_exit_codes_and_json(estimators, tmp_path):
    for name, code in (("right", 0), ("twice", 1)):
        run = _check(f"{estimators}:{name}", "--profile", "smoke", "--json", tmp_path / "found.json", "--junit",
                     tmp_path / "found.xml")  # fmt: skip
        assert run.exit_code == code, run.output
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["passed"] is (code == 0)
        assert {"check", "status", "detail", "suspects"} <= set(found["checks"][0])
        suite = ET.parse(tmp_path / "found.xml").getroot()[0]
        assert int(suite.get("tests")) == len(found["checks"])
        assert (int(suite.get("failures")) > 0) is (code == 1)


@pytest.mark.parametrize(
    "arguments",
    [["nothing"], ["no/file.py:x"], ["{path}:old_style"], ["{path}:right", "--profile", "huge"],
     ["{path}:right", "--check", "check_nothing"], ["{path}:right", "--xfails", "absent.toml"],
     ["{path}:right", "--json", "absent/x.json"], ["{path}:right", "--num-probes", "0"],
     ["{path}:right", "--probe", "Cauchy"]],
    ids=" ".join,
)  # fmt: skip
def test_misuse_has_exit_code_two_and_one_sentence(arguments, estimators):
    run = _check(*(a.format(path=estimators) for a in arguments))
    assert run.exit_code == 2, run.output
    assert "Traceback" not in run.output


def test_an_estimator_that_ends_its_process_late_does_not_pass(estimators):
    result = _check(f"{estimators}:late_exit", "--profile", "smoke", "--check", "one_probe")
    assert result.exit_code == 1
    assert "kills its process" in result.output


def test_a_module_that_exits_is_misuse(tmp_path):
    (tmp_path / "exits.py").write_text("import sys; sys.exit(0)")
    result = _check(f"{tmp_path / 'exits.py'}:x")
    assert (result.exit_code, "does not import" in result.output) == (2, True)


def test_a_chosen_check_that_is_skipped_decides_nothing(estimators):
    result = _check(f"{estimators}:right", "--profile", "smoke", "--check", "check_stderr_size")
    assert (result.exit_code, "belongs to the ci profile" in " ".join(result.output.split())) == (
        3,
        True,
    )


def test_commands_can_be_pasted():
    course = Course(_biased, probe=Rademacher(), time_limit=7.0, isolate=True)
    assert course.command.endswith("--seed 0 --probe Rademacher --time-limit 7 --isolate")


def test_a_time_limit_may_be_infinite():
    results = check_estimator(_biased, "smoke", checks=["check_one_probe"], time_limit=float("inf"))
    assert results[-1].status == "passed"


def test_too_noisy_to_tell_has_exit_code_three(estimators):
    run = _check(
        f"{estimators}:right",
        "--profile",
        "ci",
        "--check",
        "check_stderr_size",
        "--time-limit",
        "0.1",
    )
    assert run.exit_code in (
        0,
        3,
    )  # no standard error is claimed: skipped beside passed prerequisites
    noisy = Course(RIGHT["normals"], profile="full", num_probes=2, time_limit=0.2)
    assert noisy.result("check_answers_are_legal").status in ("passed", "inconclusive")
    assert exit_code([noisy.result("check_unbiased")]) == 3


def test_four_lines_of_pytest(estimators, tmp_path):
    (tmp_path / "test_mine.py").write_text(
        textwrap.dedent(
            """
            from hesstheory import parametrize_with_checks
            from mine import right, twice

            @parametrize_with_checks([right, twice], expected_failed_checks={"check_signs": "not yet"})
            def test_estimator(estimator, check):
                check(estimator)
            """
        )
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "--hesstheory-profile=smoke", "-k", "signs or one_probe or stderr_size", "test_mine.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "1 failed" in run.stdout, (
        run.stdout + run.stderr
    )  # right passes a check that is expected to fail
    assert "1 xfailed" in run.stdout
    assert "2 passed" in run.stdout
    assert "remove the entry" in run.stdout


def test_parametrize_refuses_what_is_no_estimator():
    from hesstheory import parametrize_with_checks

    with pytest.raises(Misuse, match="num_probes"):
        parametrize_with_checks([lambda problem: 0.0])
    with pytest.raises(Misuse, match="no check is named"):
        parametrize_with_checks([RIGHT["normals"]], expected_failed_checks={"check_x": "y"})


def test_the_configured_estimator_hands_probes_on():
    estimator = as_estimator(LayerwiseTrace())
    probes = torch.ones(PROBLEM.num_params, 1, dtype=torch.float64)
    answer = estimator(PROBLEM, num_probes=1, generator=torch.Generator(), probes=probes)
    direct = LayerwiseTrace()(PROBLEM, probes=probes)
    assert answer.value.to_dict() == direct.value.to_dict()


def test_every_peer_belongs_to_a_distribution():
    found = {name: distribution_of(name) for name in PEERS}
    assert found["curvlinops.xtrace"] == "curvlinops-for-pytorch"
    assert set(found.values()) == {
        "pyhessian",
        "curvlinops-for-pytorch",
        "hessian-eigenthings",
        "skerch",
    }


def test_a_peer_that_is_not_known_is_refused():
    result = _check("peers", "--peer", "nobody")
    assert result.exit_code == 2
    assert "pip install" in result.output or "the peers are pyhessian" in result.output


@pytest.mark.parametrize(
    "text", ['[nobody]\ncheck_unbiased = "why"', '[pyhessian]\ncheck_nothing = "why"']
)
def test_expectations_of_unknown_peers_are_refused(text, tmp_path):
    path = tmp_path / "peers.toml"
    path.write_text(text)
    with pytest.raises(Misuse, match=r"no peer|no check"):
        scoreboard(names=[], xfails=path)


@pytest.mark.parametrize(
    "estimator", [ControlVariateTrace(), HutchPP(rank=3), XTrace()], ids=lambda e: type(e).__name__
)
def test_estimators_that_do_more_than_average_forms_are_right(estimator):
    results = check_estimator(
        estimator, "smoke", checks=["check_answers_are_legal", "check_unbiased", "check_layouts"]
    )
    assert {result.status for result in results} <= {"passed", "skipped"}, results

"""The edge of the contract: what is an estimator, and which answers are legal."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from user_estimators import checked

from hesstheory import Estimate, LayerwiseTrace, XTrace
from hesstheory.conformance.contract import IllegalAnswer, Misuse, as_estimator, read
from hesstheory.conformance.named import load
from hesstheory.conformance.problems import references

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


def _estimate(rows, is_exact=False):
    samples = pd.DataFrame([[1.0, 2.0]] * rows, columns=["hill", "valley"])
    return Estimate(samples, num_matvecs=rows, is_exact=is_exact)


def test_an_estimate_is_read_with_its_errors():
    found = read(_estimate(4), PROBLEM, 4)
    assert (dict(found.values), dict(found.stderr)) == (
        {"hill": 1.0, "valley": 2.0},
        {"hill": 0.0, "valley": 0.0},
    )
    assert found.samples.shape == (4, 2)


def test_one_sample_of_many_probes_claims_no_error():
    """So says `XTrace` that it knows none; an exact estimate knows it, and it is zero."""
    assert read(_estimate(1), PROBLEM, 32).stderr is None
    assert set(read(_estimate(1, is_exact=True), PROBLEM, 32).stderr.values()) == {0.0}
    answer = XTrace()(PROBLEM, torch.Generator().manual_seed(0), num_probes=4)
    assert read(answer, PROBLEM, 4).stderr is None


def yields(problem, *, num_probes, generator):
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
        (f"{__file__}:yields", "generator or a coroutine"),
    ],
)
def test_names_that_are_no_estimator(name, message):
    with pytest.raises(Misuse, match=message):
        load(name)


@pytest.mark.parametrize(
    "name", ["hesstheory:LayerwiseTrace", "hesstheory.estimators:BlockSeparatedTrace"]
)
def test_the_estimators_of_the_library_are_asked_like_any_other(name):
    estimator = load(name)
    assert type(estimator).__module__.startswith("hesstheory.estimators"), "no wrapper"
    answer = load(name)(PROBLEM, num_probes=3, generator=torch.Generator().manual_seed(0))
    assert len(answer.samples) == 3


def test_an_estimator_of_ours_is_itself_and_takes_probes():
    ours = LayerwiseTrace()
    estimator = as_estimator(ours)
    assert estimator is ours
    probes = torch.ones(PROBLEM.num_params, 1, dtype=torch.float64)
    answer = estimator(PROBLEM, num_probes=1, generator=torch.Generator(), probes=probes)
    direct = LayerwiseTrace()(PROBLEM, probes=probes)
    assert answer.value.to_dict() == direct.value.to_dict()


class _Built:
    """A stranger's class, built without arguments first."""

    def __init__(self, factor=2.0):
        self.factor = factor

    def __call__(self, problem, *, num_probes, generator):
        return dict.fromkeys(problem.partition.blocks, self.factor * num_probes)


class _Table(dict):
    """A class that is its own answer: it cannot be built without the contract's arguments."""

    def __init__(self, problem, *, num_probes, generator):
        super().__init__(dict.fromkeys(problem.partition.blocks, float(num_probes)))


@pytest.mark.parametrize(("cls", "expected"), [(_Built, 6.0), (_Table, 3.0)])
def test_a_class_is_built_first(cls, expected):
    answer = as_estimator(cls)(PROBLEM, num_probes=3, generator=torch.Generator())
    assert read(answer, PROBLEM, 3).values["hill"] == expected


def test_a_class_that_cannot_be_built_names_its_error():
    class Needs:
        def __init__(self, rank):
            self.rank = rank

    with pytest.raises(Misuse, match=r"Needs\(\) raises TypeError.*name an instance"):
        as_estimator(Needs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Method.estimate", "method without its instance"),
        ("surplus", "needs temperature, which nobody passes"),
    ],
)
def test_a_signature_that_does_not_fit_hears_what_is_surplus(name, message, mine):
    code, output = checked(f"{mine}:{name}")
    assert (code, message in output) == (2, True), output
    assert "estimator(problem, *, num_probes, generator)" in output


def test_an_exception_has_its_place_in_the_users_code(mine):
    code, output = checked(f"{mine}:raises", "--check", "answers_are_legal")
    assert (code, "raises KeyError" in output) == (1, True), output
    assert "mine.py:10" in "".join(output.split())
    mine.write_text("import no_such_module_of_mine")
    assert "mine.py:1" in "".join(checked(f"{mine}:right")[1].split())

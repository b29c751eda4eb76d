"""A text where a list of names is asked is refused, wherever names are taken."""

from __future__ import annotations

import pytest
import torch

from hesstheory import Estimate, bench, claims, zoo
from hesstheory.claims.registry import select
from hesstheory.conformance import check_estimator
from hesstheory.conformance.kill_matrix import kill_matrix
from hesstheory.conformance.registry import check
from hesstheory.conformance.scoreboard import scoreboard
from hesstheory.conformance.suite import check_apart
from hesstheory.estimators import LayerwiseTrace
from hesstheory.run.names import no_such
from hesstheory.studies.registry import study

ASKED = {
    "validate": lambda names: claims.validate(names, profile="smoke", ledger="/dev/null/ledger"),
    "standings": lambda names: claims.standings(None, names),
    "select": lambda names: select(names, claims.catalogue()),
    "check_estimator": lambda names: check_estimator(LayerwiseTrace(), "smoke", checks=names),
    "check_apart": lambda names: check_apart("hesstheory:LayerwiseTrace", "smoke", checks=names),
    "a check of one's own": lambda names: check("smooth_mlp", needs=names),
    "kill_matrix": kill_matrix,
    "scoreboard": lambda names: scoreboard("smoke", names=names),
    "bench": lambda names: next(bench.run(names)),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_text_is_no_list_of_names(ask):
    with pytest.raises(ValueError, match=r"is the text 'T1': pass a list of names, \['T1'\]"):
        ask("T1")
    with pytest.raises(ValueError, match=r"holds 3: pass a list of names"):
        ask([3])


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_one_number_is_no_list_of_names(ask):
    with pytest.raises(ValueError, match=r"is 3: pass a list of names"):
        ask(3)


CLOSEST = {
    "a letter short": ("fc", ["conv1", "fc1"], "choose one of conv1, fc1; the closest is 'fc1'"),
    "a letter wrong": ("lauer1", ["layer1", "head"], "the closest is 'layer1'"),
    "nothing alike": ("zzz", ["conv1", "fc1"], "no block 'zzz': choose one of conv1, fc1"),
    "a number": (1, ["conv1", "fc1"], "no block 1: choose one of conv1, fc1"),
}


@pytest.mark.parametrize(("name", "known", "message"), CLOSEST.values(), ids=CLOSEST)
def test_an_unknown_name_has_the_closest_one_beside_it(name, known, message):
    assert no_such("block", name, known).endswith(message)


UNKNOWN = {
    "block": (lambda: Estimate.exact({"conv1": 1.0, "fc1": 2.0})["fc"], "fc1"),
    "claim": (lambda: select(["T14.x"], dict.fromkeys(["A1", "T14.b"])), "T14.b"),
    "mutant": (lambda: kill_matrix(["summed_probe"]), "summed_probes"),
    "peer": (lambda: scoreboard("smoke", names=["pyhesian"]), "pyhessian"),
    "study": (lambda: study("engin"), "engine"),
    "network": (lambda: zoo.network("tanh_mpl"), "tanh_mlp"),
    "full-scale network": (
        lambda: zoo.full_scale_problem("resnet8", None, generator=torch.Generator().manual_seed(0)),
        "resnet18",
    ),
    "problem": (lambda: next(bench.run(["mlp-tan"])), "mlp-tanh"),
    "check": (
        lambda: check_estimator(LayerwiseTrace(), "smoke", checks=["check_same_state_same_anser"]),
        "check_same_state_same_answer",
    ),
}


@pytest.mark.parametrize(("kind", "case"), UNKNOWN.items(), ids=UNKNOWN)
def test_every_kind_of_name_has_its_cure(kind, case):
    ask, closest = case
    with pytest.raises(
        (KeyError, ValueError), match=f"no {kind} .*choose one of .*; the closest is '{closest}'"
    ):
        ask()

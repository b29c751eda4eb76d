"""A text where a list of names is asked is refused, wherever names are taken."""

from __future__ import annotations

import pytest

from hesstheory import bench, claims
from hesstheory.claims.registry import select
from hesstheory.conformance import check_estimator
from hesstheory.conformance.kill_matrix import kill_matrix
from hesstheory.conformance.registry import check
from hesstheory.conformance.scoreboard import scoreboard
from hesstheory.conformance.suite import check_apart
from hesstheory.estimators import LayerwiseTrace

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

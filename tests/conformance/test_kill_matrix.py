"""Wrong estimators, the patterns of their failures, and which checks suffice."""

from __future__ import annotations

import pytest
import torch

from hesstheory.conformance.checks import CHECKS
from hesstheory.conformance.kill_matrix import kill_matrix, records, smallest_set, to_json
from hesstheory.conformance.problems import references
from hesstheory.conformance.snapshots import global_state, restore
from hesstheory.conformance.subjects import wrong
from hesstheory.conformance.subjects.wrong import WRONG
from hesstheory.conformance.suspects import signatures, suspects

# Importing torch.func compiles something the old way.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


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


def test_every_mutant_is_named_in_the_package():
    assert wrong.summed_probes is WRONG["summed_probes"]
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        wrong.nobody  # noqa: B018


def test_a_matrix_names_sins_and_killers():
    (killed,) = kill_matrix(["missing_block"], profile="smoke")
    assert killed.killed_by == ("check_answers_are_legal",)
    summary = to_json([killed])
    assert summary["mutants"]["missing_block"]["sin"] == "Leaves out the last block."
    assert summary["smallest_set"] == ["check_answers_are_legal"]
    assert records([killed]) == [
        {"mutant": "missing_block", "check": "check_answers_are_legal", "killed": 1.0}
    ]


# What a slip of ours would raise, and no mutant is meant to.
SLIPS = (AttributeError, NameError, ImportError)


@pytest.mark.parametrize("name", WRONG)
def test_no_mutant_fails_by_a_slip(name):
    """A mutant that cannot run at all is noticed by any check, and shows nothing."""
    problem = references()["smooth_mlp"].build()
    before = global_state()
    try:
        WRONG[name](problem, num_probes=4, generator=torch.Generator().manual_seed(0))
    except Exception as error:
        if isinstance(error, SLIPS) or not (WRONG[name].__doc__ or "").startswith("Fails"):
            raise
    finally:
        restore(before)

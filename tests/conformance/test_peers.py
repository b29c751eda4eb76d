"""Adapters to peer libraries, and their scoreboard."""

from __future__ import annotations

from user_estimators import checked

from hesstheory.conformance.subjects.peers import PEERS, distribution_of


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
    code, output = checked("peers", "--peer", "nobody")
    assert code == 2
    assert "pip install" in output or "choose one of pyhessian" in output

"""An empty registry that a claim package in a temporary folder fills."""

from __future__ import annotations

import sys
from functools import partial
from importlib import metadata

import claim_package
import pytest

from hesstheory.claims import registry as registered
from hesstheory.claims.course import validate


@pytest.fixture
def package(tmp_path):
    """The claim package of these tests, installed in a folder of its own."""
    return claim_package.install(tmp_path / "site")


def _forget():
    for name in [name for name in sys.modules if name.split(".")[0] == claim_package.NAME]:
        del sys.modules[name]


@pytest.fixture
def registry(package, monkeypatch):
    """An empty registry that this package alone will fill; those of the library come back
    afterwards."""

    def ours(group):
        return [
            entry
            for entry in metadata.entry_points(group=group)
            if entry.value == claim_package.NAME
        ]

    before = dict(registered.REGISTRY)
    registered.REGISTRY.clear()
    monkeypatch.setattr(registered, "_BLOCKED", {})
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(registered, "entry_points", ours)
    yield registered.REGISTRY
    _forget()
    registered.REGISTRY.clear()
    registered.REGISTRY.update(before)


@pytest.fixture
def run(registry, tmp_path):
    """validate() with the claims of these tests and a ledger beside them."""
    return partial(validate, ledger=tmp_path / "ledger.jsonl")

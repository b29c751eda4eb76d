"""Figures of made-up records, drawn once."""

from __future__ import annotations

import pytest
from records import synthetic_run

from hesstheory.show import gallery


@pytest.fixture(scope="session")
def drawn() -> list[gallery.Figure]:
    """Every figure of a made-up run."""
    return gallery.draw_all(synthetic_run())


@pytest.fixture
def records() -> list[dict[str, object]]:
    """The records of that run, to be changed."""
    return synthetic_run()

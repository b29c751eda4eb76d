"""What every test lives under: float64, checked shapes, and no global random numbers."""

from __future__ import annotations

import functools
import inspect
import sys
import typing

import jaxtyping
import numpy as np
import pytest
import torch

# The wings whose shapes live in types. `int` passes for `float`, as in mypy. The test files are
# imported after this.
_CHECKED = ("problem", "curvature", "estimators")
assert not any(f"hesstheory.{room}" in sys.modules for room in _CHECKED), (
    "imported before the hook that checks types"
)
_jaxtyped = jaxtyping.jaxtyped


def _checked(function, typechecker):
    """Checked by jaxtyping where a type has a shape, elsewhere by beartype alone.

    jaxtyping opens a scope of shapes in every call: 40 µs, of beartype's 1. A small network is
    measured in a few hundred calls, of which one in six has a shape.
    """
    try:
        types = list(typing.get_type_hints(function, include_extras=True).values())
    except NameError:  # of a class that follows, or that only type checkers import
        types = None
    if inspect.isclass(function) or types is None or any(map(_has_shape, types)):
        return _jaxtyped(function, typechecker=typechecker)
    strict = typechecker(function)

    @functools.wraps(function)
    def either(*args, **kwargs):
        called = function if jaxtyping.config.jaxtyping_disable else strict
        return called(*args, **kwargs)

    return either


def _has_shape(kind):
    """Whether a type, or one inside it, is that of an array."""
    if inspect.isclass(kind) and issubclass(kind, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shape, typing.get_args(kind)))


def _decorator(typechecker):
    """What the hook below puts over every function."""
    return functools.partial(_checked, typechecker=typechecker)


jaxtyping.jaxtyped = _decorator
jaxtyping.install_import_hook(
    [f"hesstheory.{room}" for room in _CHECKED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


@pytest.fixture(autouse=True)
def _float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _global_random_states():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (kind, keys.tobytes(), *rest),
    }


@pytest.fixture(autouse=True)
def _no_global_random_numbers():
    """Fails a test that uses a global random stream; beartype itself reads that of `random`."""
    before = _global_random_states()
    yield
    after = _global_random_states()
    moved = [stream for stream in before if before[stream] != after[stream]]
    assert not moved, f"the global random stream of {', '.join(moved)} was used: pass a generator"


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def build():
    """Calls a factory of modules and gives the global stream back, which they draw from."""

    def seeded(factory, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return factory()

    return seeded


@pytest.fixture
def unchecked():
    """Lets wrong types through to the library's own messages, as a user sees them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def mine(tmp_path):
    """A file of estimators as a user would bring them, right and wrong."""
    from user_estimators import written

    return written(tmp_path)

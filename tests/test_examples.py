"""The examples in docstrings run as a user would run them, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect

import pytest
import torch
from sources import DOOR, LIBRARY, PATHS

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_EXAMPLES = [m for m in LIBRARY if ">>> " in PATHS[m].read_text(encoding="utf-8")]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples_run(module):
    torch.set_default_dtype(torch.float32)  # PyTorch's own, as a user finds it
    found = doctest.testmod(importlib.import_module(module), optionflags=OPTIONS)
    assert found.attempted
    assert found.failed == 0


PUBLIC = sorted(name for name, wing in DOOR.items() if wing != f"hesstheory.{name}")


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name):
    found = getattr(importlib.import_module("hesstheory"), name)
    methods = [m for _, m in inspect.getmembers(found, inspect.isfunction)]
    texts = [inspect.getdoc(each) or "" for each in (found, *methods)]
    assert any(">>> " in text for text in texts)


FUNCTIONS = [
    name
    for name in PUBLIC
    if inspect.isfunction(getattr(importlib.import_module("hesstheory"), name))
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes_and_gives(name):
    text = inspect.getdoc(getattr(importlib.import_module("hesstheory"), name)) or ""
    assert "Parameters\n----------" in text
    assert "Returns\n-------" in text

"""Form: sizes, names and docstrings, read off the sources."""

from __future__ import annotations

import ast
import io
import re
import tokenize

import pytest
from sources import LIBRARY, PATHS, TREES, public

MOST_LINES = 500  # of a module
MOST_CLASS_LINES = 150
MOST_BODY_LINES = 40  # of code in a function: without docstring, comments and blank lines

SPACE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> set[int]:
    """Numbers of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        row
        for token in tokens
        if token.type not in SPACE
        for row in range(token.start[0], token.end[0] + 1)
    }


def body_lines(node: ast.FunctionDef, filled: set[int]) -> int:
    """Lines of code in the body of a function, its docstring left out."""
    first = node.body[0]
    start = first.lineno
    if ast.get_docstring(node) is not None:
        start = first.end_lineno + 1
    return len([row for row in range(start, node.end_lineno + 1) if row in filled])


TWO_LINES_OF_CODE = '''
def f():
    """Two
    lines."""

    # why
    a = 1
    return a
'''


def test_bodies_are_measured():
    function = ast.parse(TWO_LINES_OF_CODE).body[0]
    assert body_lines(function, code_lines(TWO_LINES_OF_CODE)) == 2


@pytest.mark.parametrize("module", PATHS)
def test_a_module_is_short(module):
    assert len(PATHS[module].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("module", PATHS)
def test_classes_and_functions_are_short(module):
    filled = code_lines(PATHS[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(TREES[module]))
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = [c.name for c in classes if c.end_lineno - c.lineno + 1 > MOST_CLASS_LINES]
    too_long += [f.name for f in functions if body_lines(f, filled) > MOST_BODY_LINES]
    assert too_long == []


VAGUE_WORDS = {"utils", "util", "helpers", "helper", "misc", "manager", "common"}
VAGUE_VERBS = ("compute_", "get_", "do_")


def is_vague(name):
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_")
    return bool(VAGUE_WORDS & set(words.split("_"))) or words.startswith(VAGUE_VERBS)


@pytest.mark.parametrize(
    "name", ["get_trace", "_compute_trace", "do_it", "TraceManager", "trace_utils"]
)
def test_vague_names_are_seen(name):
    assert is_vague(name)


@pytest.mark.parametrize(
    "name", ["target", "budget_variance", "computed", "__getattr__", "dominant"]
)
def test_other_names_are_not_vague(name):
    assert not is_vague(name)


@pytest.mark.parametrize("module", PATHS)
def test_names_say_something(module):
    nodes = list(ast.walk(TREES[module]))
    defined = [
        n.name
        for n in nodes
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    arguments = [node.arg for node in nodes if isinstance(node, ast.arg)]
    assigned = [
        node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    ]
    assert [
        name for name in {*module.split("."), *defined, *arguments, *assigned} if is_vague(name)
    ] == []


@pytest.mark.parametrize("module", PATHS)
def test_a_module_says_what_it_answers(module):
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("module", LIBRARY)
def test_public_names_have_a_docstring(module):
    assert [node.name for node in public(TREES[module]) if not ast.get_docstring(node)] == []

"""Where random numbers come from: never from a global stream, read off the sources."""

from __future__ import annotations

import ast

import pytest
from sources import PATHS, ROOT, TREES, public

SAMPLERS = [
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
    "binomial",
    "rand_like",
    "randn_like",
    "randint_like",
]
SEEDS = [
    "manual_seed",
    "seed",
    "set_rng_state",
    "random.manual_seed",
    "random.seed",
    "random.set_rng_state",
    "cuda.manual_seed",
    "cuda.manual_seed_all",
    "cuda.seed",
    "cuda.seed_all",
    "cuda.set_rng_state",
]
INITIAL = [
    "uniform_",
    "normal_",
    "trunc_normal_",
    "xavier_uniform_",
    "xavier_normal_",
    "kaiming_uniform_",
    "kaiming_normal_",
    "orthogonal_",
]
IN_PLACE = [
    "uniform_",
    "normal_",
    "bernoulli_",
    "random_",
    "exponential_",
    "geometric_",
    "cauchy_",
    "log_normal_",
]
NEED_GENERATOR = {f"torch.{name}" for name in SAMPLERS} | {
    f"torch.nn.init.{name}" for name in INITIAL
}
NEVER = {f"torch.{name}" for name in SEEDS} | {
    "torch.nn.functional.dropout",
    "torch.dropout",
}
READS = {
    "random.getstate",
    "numpy.random.get_state",
    "torch.get_rng_state",
    "torch.random.get_rng_state",
}
NUMPY_STREAMS = {
    "Generator",
    "SeedSequence",
    "BitGenerator",
    "PCG64",
    "PCG64DXSM",
    "Philox",
    "SFC64",
    "MT19937",
}


def aliases(tree):
    """What the names of a module stand for: np is numpy."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {
                alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names
            }
    return found


def dotted(node, known):
    """Full name of a chain of attributes, or None."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    parent = dotted(node.value, known) if isinstance(node, ast.Attribute) else None
    return parent and f"{parent}.{node.attr}"


def has(call, keyword):
    given = {k.arg: k.value for k in call.keywords}
    return keyword in given and not (
        isinstance(given[keyword], ast.Constant) and given[keyword].value is None
    )


def global_randomness(tree):
    """Where a module uses a stream that is no argument: (innermost def, line, what)."""
    known, calls = (
        aliases(tree),
        {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)},
    )

    def uses_global_stream(node):
        name, call = dotted(node, known), calls.get(id(node))
        if name in READS:
            return False
        if name in NEVER:
            return True
        if name in NEED_GENERATOR:
            return call is None or not has(call, "generator")
        if name and name.startswith("numpy.random."):
            kind = name.split(".")[2]
            seeded = call is not None and (call.args or call.keywords)
            return kind not in NUMPY_STREAMS if kind != "default_rng" else not seeded
        if name and name.startswith("random."):
            return not name.startswith("random.Random")
        method = node.attr if call is not None and isinstance(node, ast.Attribute) else ""
        return (method in IN_PLACE and not has(call, "generator")) or (
            method == "rvs" and not has(call, "random_state")
        )

    def visit(node, place):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            place = f"{place}.{node.name}".lstrip(".")
        if isinstance(node, ast.Name | ast.Attribute) and uses_global_stream(node):
            yield place, node.lineno, ast.unparse(node)
        else:
            for child in ast.iter_child_nodes(node):
                yield from visit(child, place)

    return list(visit(tree, ""))


IMPORTS = """import random
import numpy as np
import torch
from torch import nn, randn
from scipy import stats
"""
GUILTY = [
    "torch.manual_seed(0)",
    "torch.random.manual_seed(0)",
    "torch.randn(3)",
    "torch.rand(3, generator=None)",
    "randn(3)",
    "partial(torch.randn, 3)",
    "torch.randint(3, (2,)).float()",
    "torch.empty(3).normal_()",
    "nn.init.kaiming_uniform_(w)",
    "nn.functional.dropout(x)",
    "np.random.seed(0)",
    "np.random.normal(size=3)",
    "np.random.RandomState(0)",
    "np.random.default_rng()",
    "random.random()",
    "random.setstate(state)",
    "stats.norm.rvs(3)",
    "stats.norm(0, 1).rvs(3)",
]
INNOCENT = [
    "torch.randn(3, generator=g)",
    "randn(3, generator=g)",
    "torch.Generator().manual_seed(0)",
    "g.manual_seed(torch.initial_seed())",
    "torch.empty(3).normal_(generator=g)",
    "nn.init.kaiming_uniform_(w, generator=g)",
    "np.random.default_rng(0)",
    "np.random.default_rng(0).normal(size=3)",
    "np.random.Generator(np.random.PCG64(1))",
    "stats.norm(0, 1).rvs(3, random_state=g)",
    "torch.random.fork_rng()",
    "random.Random(0).random()",
    "self.random()",
    "(random.getstate(), np.random.get_state(), torch.random.get_rng_state())",
]


@pytest.mark.parametrize("line", GUILTY)
def test_global_randomness_is_seen(line):
    found = global_randomness(
        ast.parse(f"{IMPORTS}class A:\n    def f(self):\n        return {line}")
    )
    assert [(place, number) for place, number, _ in found] == [("A.f", 8)]


@pytest.mark.parametrize("line", INNOCENT)
def test_randomness_as_an_argument_is_fine(line):
    assert global_randomness(ast.parse(f"{IMPORTS}def f(g):\n    return {line}")) == []


# Where the global stream is the subject: the package, the def, and why it may. A mutant may too, if
# that is its sin.
DELIBERATE = {
    (
        "hesstheory_validation.train_mode.wrong",
        "FreshMaskPerProbe.__call__",
    ): "its sin; inside fork_rng, which gives the stream back",
    (
        "hesstheory.conformance.snapshots",
        "restore",
    ): "gives the streams back that a stranger's estimator moved",
    (
        "hesstheory_validation.train_mode",
        "seeded",
    ): "dropout has no generator; inside fork_rng, which gives the stream back",
}


def is_a_sin(module, place):
    """A mutant whose docstring says that it is about the global random stream."""
    if not (".wrong" in module or module == "hesstheory.mutants"):
        return False
    tops = {node.name: node for node in public(TREES[module])}
    node = tops.get(place.partition(".")[0])
    return node is not None and "global random stream" in (ast.get_docstring(node) or "")


def test_randomness_is_an_argument():
    """Every use of a global stream is a sin or listed above; every line of the list is used."""
    found = {
        (module, place): f"{PATHS[module].relative_to(ROOT)}:{line}: {what}"
        for module, tree in TREES.items()
        for place, line, what in global_randomness(tree)
    }

    def allowed(used):
        return [
            key
            for key in DELIBERATE
            if f"{used[0]}.".startswith(f"{key[0]}.") and used[1] == key[1]
        ]

    assert any(is_a_sin(*used) for used in found), "MovesGlobalStream is one"
    assert [
        where for used, where in found.items() if not allowed(used) and not is_a_sin(*used)
    ] == []
    assert set(DELIBERATE) == {key for used in found for key in allowed(used)}

"""The two walls, the import graph, names, sizes and where random numbers come from, read off the sources."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import hesstheory

ROOT = Path(hesstheory.__file__).parents[1]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {
    name_of(path): path
    for package in ("hesstheory", "validation")
    for path in (ROOT / package).rglob("*.py")
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in PATHS.items()}
PACKAGES = {module for module, path in PATHS.items() if path.name == "__init__.py"}
LIBRARY = sorted(module for module in PATHS if module.split(".")[0] == "hesstheory")


def test_the_sources_were_found():
    assert {"hesstheory", "hesstheory.theory", "hesstheory.mutants", "validation.variance"} <= set(
        PATHS
    )
    assert "hesstheory" in PACKAGES


# --- imports --------------------------------------------------------------------------------------------------------


def running(tree, in_functions) -> Iterator[ast.AST]:
    """The nodes that run, at import or whenever; what stands under TYPE_CHECKING never does."""
    for node in ast.iter_child_nodes(tree):
        if (
            isinstance(node, ast.If)
            and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"
        ):
            for other in node.orelse:
                yield other
                yield from running(other, in_functions)
        elif in_functions or not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield node
            yield from running(node, in_functions)


def imports(module, tree, *, in_functions=True, is_package=False):
    """Dotted names that the module imports, also by import_module("…"); a name may be one of the module's contents."""
    package = module if is_package else module.rpartition(".")[0]
    for node in running(tree, in_functions):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])] if node.level else [node.module])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            yield from (
                argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)
            )


def home(name):
    """The module of ours that a dotted name leads to, through the lazy names of the package too; or None."""
    if name in PATHS:
        return name
    parent, _, last = name.rpartition(".")
    if parent == "hesstheory" and last in hesstheory._HOME:
        return f"hesstheory.{hesstheory._HOME[last]}"
    return home(parent) if parent else None


def edges(module, **options):
    """Modules of ours that a module imports."""
    found = imports(module, TREES[module], is_package=module in PACKAGES, **options)
    return {home(name) for name in found} - {None, module}


def reach(module):
    """All that it imports in the end, in functions or not, with the packages that stand above."""
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(edges(name))
            todo.extend(parent for parent in [name.rpartition(".")[0]] if parent)
    return seen


SNIPPETS = {
    "import hesstheory.curvature": {"hesstheory.curvature"},
    "import hesstheory.curvature as c, math": {"hesstheory.curvature"},
    "from hesstheory import curvature as c, zoo": {"hesstheory.curvature", "hesstheory.zoo"},
    "from hesstheory import Estimate": {"hesstheory.estimators"},
    "from hesstheory.estimators import Gaussian": {"hesstheory.estimators"},
    "from .estimators import Gaussian": {"hesstheory.estimators"},
    "from . import problem": {"hesstheory.problem"},
    "def f():\n    from hesstheory import zoo": {"hesstheory.zoo"},
    "class A:\n    def f(self):\n        import hesstheory.zoo": {"hesstheory.zoo"},
    "import importlib\nimportlib.import_module('hesstheory.zoo')": {"hesstheory.zoo"},
    "if TYPE_CHECKING:\n    from hesstheory import zoo": set(),
    "if typing.TYPE_CHECKING:\n    import torch\nelse:\n    from hesstheory import zoo": {
        "hesstheory.zoo"
    },
    "if torch:\n    from hesstheory import zoo": {"hesstheory.zoo"},
    "try:\n    from hesstheory import zoo\nexcept ImportError:\n    pass": {"hesstheory.zoo"},
    "import torch, os.path": set(),
}


@pytest.mark.parametrize(("source", "expected"), SNIPPETS.items(), ids=SNIPPETS)
def test_imports_are_read(source, expected):
    assert {home(name) for name in imports("hesstheory.theory", ast.parse(source))} - {
        None
    } == expected
    at_import = {
        home(name) for name in imports("hesstheory.theory", ast.parse(source), in_functions=False)
    } - {None}
    assert at_import == (set() if "def " in source else expected)


def test_a_prediction_is_never_computed_from_what_it_predicts():
    assert (
        reach("hesstheory.theory") & {f"hesstheory.{room}" for room in ("estimators", "curvature")}
        == set()
    )
    assert reach("hesstheory.estimators") >= {"hesstheory.curvature", "hesstheory.problem"}, (
        "this test sees nothing"
    )


@pytest.mark.parametrize("room", ["figures", "report"])
def test_pictures_and_pages_need_no_torch(room):
    found = {
        name.split(".")[0]
        for module in reach(f"hesstheory.{room}")
        for name in imports(module, TREES[module])
    }
    assert "torch" not in found
    assert "numpy" in found, "this test sees nothing"


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_names_what_it_imports(module):
    """Not the package as a whole, through whose lazy names a wall would leak, and not the claims, which import it."""
    found = set(imports(module, TREES[module], is_package=module in PACKAGES))
    assert "hesstheory" not in found
    assert (
        not [name for name in found if name.split(".")[0] == "validation"]
        or module == "hesstheory.claims"
    )


def test_imports_have_no_cycle():
    graph = {module: edges(module, in_functions=False) for module in PATHS}
    assert graph["validation.variance"] >= {"hesstheory.theory", "hesstheory.claims"}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(PATHS)


IMPORT_NAMES = {"scikit-learn": "sklearn"}
NOT_YET_USED = {"statsmodels"}


def test_core_dependencies_are_imported():
    """What is installed for everyone is used; a dependency that is used at last leaves the list above."""
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "dependencies"
    ]
    names = {re.match(r"[\w-]+", line)[0] for line in core}
    found = {name.split(".")[0] for module, tree in TREES.items() for name in imports(module, tree)}
    assert {IMPORT_NAMES.get(name, name) for name in names} - found == NOT_YET_USED


LOADED = """
import json, sys
{before}
before = set(sys.modules)
{statement}
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""


def loaded(statement, before=""):
    """Modules that a statement loads in a fresh process, after those that were loaded before it."""
    script = LOADED.format(statement=statement, before=before)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout)]


HEAVY = {
    "torch",
    "sympy",
    "scipy",
    "pandas",
    "matplotlib",
    "seaborn",
    "sklearn",
    "statsmodels",
    "joblib",
    "jinja2",
}
DOORS = {
    "import hesstheory": (HEAVY | {"numpy"}, set()),
    "import hesstheory.theory": (HEAVY, {"hesstheory.theory", "numpy"}),
    "import hesstheory.evidence": (HEAVY, {"hesstheory.evidence"}),
    "import hesstheory.figures, hesstheory.report": (
        {"torch", "sympy", "sklearn", "statsmodels"},
        {"matplotlib"},
    ),
    "import hesstheory.cli": (HEAVY | {"numpy"}, {"typer"}),
}


@pytest.mark.parametrize(("statement", "case"), DOORS.items(), ids=DOORS)
def test_what_an_import_loads(statement, case):
    forbidden, needed = case
    _, found = loaded(statement)
    assert found >= needed
    assert found & forbidden == set()
    assert {name for name in found if name.startswith("hesstheory.")} <= reach_of(statement)


def reach_of(statement):
    return set().union(*(reach(name) for name in imports("", ast.parse(statement))))


CORE = (
    "problem",
    "curvature",
    "estimators",
    "evidence",
    "claims",
    "execution",
    "mutants",
    "theory",
    "zoo",
)


def test_the_core_costs_little_more_than_torch():
    """Of others' code only jaxtyping, and it is small: modules are counted, since seconds depend on who else runs."""
    statement = "import " + ", ".join(f"hesstheory.{room}" for room in CORE)
    torch, ours = loaded(statement, before="import torch")
    ready_made = {name.split(".")[0] for name in torch} | set(sys.stdlib_module_names)
    added = {name.split(".")[0] for name in ours} - ready_made
    assert {"hesstheory"} <= added <= {"hesstheory", "jaxtyping", "wadler_lindig"}
    assert len(ours) <= 0.3 * len(torch)


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
sys.argv = ["hesstheory", *{arguments}]
from hesstheory.cli import main
main()
"""
RARE = {"latex2mathml", "statsmodels"}


@pytest.mark.parametrize(
    "arguments", [["harness", "--model=vgg11", "--width=1", "--batch=2", "--probes=2"], ["doctor"]]
)
def test_full_scale_runs_need_few_packages(arguments, tmp_path):
    """A machine with an accelerator has PyTorch and common packages, the checkout on its path, and often no more."""
    if arguments[0] == "harness":
        arguments = [*arguments, f"--out={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = WITHOUT.format(missing=RARE, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert arguments[0] == "doctor" or (tmp_path / "run" / "index.html").exists()


# --- random numbers -------------------------------------------------------------------------------------------------

SAMPLERS = "rand randn randint randperm normal bernoulli multinomial poisson binomial rand_like randn_like randint_like"
SEEDS = "manual_seed seed set_rng_state random.manual_seed random.seed random.set_rng_state cuda.manual_seed "
SEEDS += "cuda.manual_seed_all cuda.seed cuda.seed_all cuda.set_rng_state"
INITIAL = "uniform_ normal_ trunc_normal_ xavier_uniform_ xavier_normal_ kaiming_uniform_ kaiming_normal_ orthogonal_"
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
NEED_GENERATOR = {f"torch.{name}" for name in SAMPLERS.split()} | {
    f"torch.nn.init.{name}" for name in INITIAL.split()
}
NEVER = {f"torch.{name}" for name in SEEDS.split()} | {
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
    """Where a module draws from, or seeds, a stream that is not an argument: (innermost def, line, what)."""
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


IMPORTS = "import random\nimport numpy as np\nimport torch\nfrom torch import nn, randn\nfrom scipy import stats\n"
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


# Where the global stream is the subject: the package, the def, and why it may. A mutant may too if that is its sin.
DELIBERATE = {
    (
        "hesstheory.mutants",
        "FreshMaskPerProbe.__call__",
    ): "its sin; inside fork_rng, which gives the stream back",
    (
        "hesstheory.conformance.answers",
        "restore",
    ): "gives the streams back that a stranger's estimator moved",
    (
        "validation.train_mode",
        "seeded",
    ): "dropout has no generator; inside fork_rng, which gives the stream back",
}


def is_a_sin(module, place):
    """A mutant whose docstring says that it is about the global random stream."""
    if not module.startswith("hesstheory.mutants"):
        return False
    tops = {node.name: node for node in public(TREES[module])}
    node = tops.get(place.partition(".")[0])
    return node is not None and "global random stream" in (ast.get_docstring(node) or "")


def test_randomness_is_an_argument():
    """Every use of a global stream is a sin or listed above with its reason, and every line of the list is used."""
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


# --- sizes, names, docstrings ---------------------------------------------------------------------------------------

MOST_LINES = 800


@pytest.mark.parametrize("module", PATHS)
def test_a_module_stays_readable(module):
    assert len(PATHS[module].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


VAGUE_WORDS = {"utils", "util", "helpers", "helper", "misc", "manager", "common"}
VAGUE_VERBS = ("compute_", "get_", "do_")


def is_vague(name):
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_")
    return bool(VAGUE_WORDS & set(words.split("_"))) or words.startswith(VAGUE_VERBS)


@pytest.mark.parametrize(
    ("name", "vague"),
    [("get_trace", True), ("_compute_trace", True), ("do_it", True), ("TraceManager", True), ("trace_utils", True),
     ("target", False), ("budget_variance", False), ("computed", False), ("__getattr__", False), ("dominant", False)],
)  # fmt: skip
def test_vague_names_are_seen(name, vague):
    assert is_vague(name) is vague


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


def public(tree):
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [
        node
        for node in tree.body
        if isinstance(node, definitions) and not node.name.startswith("_")
    ]


@pytest.mark.parametrize("module", [module for module in PATHS if ".notebooks." not in module])
def test_a_module_says_what_it_answers(module):
    assert ast.get_docstring(TREES[module])


@pytest.mark.parametrize("module", LIBRARY)
def test_public_names_have_a_docstring(module):
    assert [node.name for node in public(TREES[module]) if not ast.get_docstring(node)] == []


# --- the front door -------------------------------------------------------------------------------------------------


OTHER_DOORS = {"__main__", "cli", "pytest_plugin"}


def test_every_room_and_every_name_is_at_the_front_door():
    """What type checkers see there, what is there on first use and what lies in the folder are the same."""
    (checked,) = (node for node in TREES["hesstheory"].body if isinstance(node, ast.If))
    seen = [alias.name for node in checked.body for alias in node.names]
    assert sorted(seen) == hesstheory.__all__ == dir(hesstheory)
    rooms = {module.split(".")[1] for module in LIBRARY if "." in module} - OTHER_DOORS
    assert rooms == set(hesstheory._MODULES) - OTHER_DOORS


@pytest.mark.parametrize("name", hesstheory.__all__)
def test_a_name_is_loaded_on_first_use(name):
    found = getattr(hesstheory, name)
    room = f"hesstheory.{hesstheory._HOME.get(name, name)}"
    assert found is (
        sys.modules[room] if name in hesstheory._MODULES else getattr(sys.modules[room], name)
    )
    assert f"{getattr(found, '__module__', room)}.".startswith(f"{room}."), (
        "a room may be a package"
    )
    assert found.__doc__
    assert not found.__doc__.startswith(f"{name}("), "a signature that dataclass made up"


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(
        AttributeError,
        match=r"'hesstheory' has no attribute 'traces'; it has BlockSeparatedTrace, .*zoo",
    ):
        _ = hesstheory.traces

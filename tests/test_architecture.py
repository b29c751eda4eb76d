"""The house: which wing may import which, and that no import runs upward or in a circle."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
import warm
from sources import DOOR, LIBRARY, PATHS, ROOT, TREES, edges, home, imported, reach

FLOORS = [
    {"theory", "evidence", "autograd", "run", "show"},
    {"results", "problem"},
    {"zoo", "curvature"},
    {"outputs", "claims"},
    {"estimators", "spectrum"},
    {"conformance", "mutants", "monitor", "blocks"},
    {"harness", "bench"},
    {"studies"},
    {"cli", "pytest_plugin"},
]
FLOOR = {wing: number for number, wings in enumerate(FLOORS, 1) for wing in wings}
DOORS = {"hesstheory", "hesstheory.__main__"}  # the package's lazy names and `python -m`


def wing_of(module: str) -> str:
    """The wing of a module of the library; the claims live on top of the house."""
    parts = module.split(".")
    return "validation" if parts[0] == "hesstheory_validation" else parts[1]


def test_the_sources_were_found():
    assert {"hesstheory", "hesstheory.theory.probes", "hesstheory.mutants"} <= set(PATHS)
    assert "hesstheory_validation.variance.claims" in PATHS


def test_every_wing_has_a_floor():
    assert {wing_of(module) for module in LIBRARY if module not in DOORS} <= set(FLOOR)


@pytest.mark.parametrize("module", [module for module in LIBRARY if module not in DOORS])
def test_imports_run_downwards(module):
    """To a lower floor or within the wing; what type checkers see counts as well."""
    own = wing_of(module)
    upward = [
        other
        for other in edges(module, typing=True)
        if other in DOORS or (wing_of(other) != own and FLOOR[wing_of(other)] >= FLOOR[own])
    ]
    assert upward == []


def test_imports_have_no_circle():
    """Between files, imports inside functions included; a package is the file of its `__init__`."""
    graph = {module: edges(module) for module in PATHS}
    assert "hesstheory.theory" in graph["hesstheory_validation.variance.claims"], "sees nothing"
    assert set(graphlib.TopologicalSorter(graph).static_order()) == set(PATHS)


@pytest.mark.parametrize("module", LIBRARY)
def test_the_library_names_what_it_imports(module):
    """Not the package as a whole, through whose lazy names a wall would leak, and no claims."""
    found = set(imported(module, TREES[module]))
    assert "hesstheory" not in found
    assert [name for name in found if name.split(".")[0] == "hesstheory_validation"] == []


@pytest.mark.parametrize("module", PATHS)
def test_no_star_imports(module):
    found = imported(module, TREES[module], typing=True)
    assert [name for name in found if name.endswith(".*")] == []


def test_a_prediction_is_never_computed_from_what_it_predicts():
    wings = {wing_of(module) for module in reach("hesstheory.theory") if module not in DOORS}
    assert wings == {"theory"}


def test_drawing_needs_no_torch_and_nothing_of_ours():
    rooms = [module for module in LIBRARY if wing_of(f"{module}.") == "show"]
    found = {name.split(".")[0] for room in rooms for name in imported(room, TREES[room])}
    assert "torch" not in found
    assert "matplotlib" in found, "this test sees nothing"
    ours = {other for room in rooms for other in edges(room)}
    assert {wing_of(other) for other in ours} == {"show"}


SNIPPETS = {
    "import hesstheory.curvature": {"hesstheory.curvature"},
    "import hesstheory.curvature as c, math": {"hesstheory.curvature"},
    "from hesstheory import curvature as c, zoo": {"hesstheory.curvature", "hesstheory.zoo"},
    "from hesstheory import Estimate": {"hesstheory.results"},
    "from hesstheory.estimators.probes import Gaussian": {"hesstheory.estimators.probes"},
    "from .probes import probe_variance": {"hesstheory.theory.probes"},
    "from . import ties": {"hesstheory.theory.ties"},
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
    """As if the snippet stood in hesstheory/theory/__init__.py."""

    def found(**options):
        names = imported("hesstheory.theory", ast.parse(source), **options)
        return {home(name) for name in names} - {None}

    assert found() == expected
    assert found(late=False) == (set() if "def " in source else expected)
    if source.startswith("if TYPE_CHECKING"):
        assert found(typing=True) == {"hesstheory.zoo"}


# --- what an import costs -------------------------------------------------------------------------

LOADED = """
import json, sys
{before}
before = set(sys.modules)
{statement}
print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))
"""
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "validation")]),
    "OMP_NUM_THREADS": "1",
}


def loaded(statement, before=""):
    """Modules that a statement loads in a fresh process, after those loaded before it."""
    script = LOADED.format(statement=statement, before=before)
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [set(names) for names in json.loads(done.stdout)]


HEAVY = set("torch sympy scipy pandas matplotlib seaborn sklearn statsmodels joblib jinja2".split())  # noqa: SIM905
COSTS = {
    "import hesstheory": (HEAVY | {"numpy"}, {"lazy_loader"}),
    "import hesstheory.theory": (HEAVY, {"hesstheory.theory", "numpy"}),
    "import hesstheory.evidence": (HEAVY, {"hesstheory.evidence"}),
    "import hesstheory.show": ({"torch", "sympy", "sklearn", "statsmodels"}, {"hesstheory.show"}),
    "import hesstheory.cli": (HEAVY | {"numpy"}, {"typer"}),
}


@pytest.mark.parametrize(("statement", "case"), COSTS.items(), ids=COSTS)
def test_what_an_import_loads(statement, case):
    forbidden, needed = case
    _, found = loaded(statement)
    assert found >= needed
    assert found & forbidden == set()


CORE = ("problem", "curvature", "estimators", "evidence", "claims", "mutants", "theory", "zoo")


def test_the_core_costs_little_more_than_torch():
    """Modules are counted, since seconds depend on who else runs on the machine."""
    statement = "import " + ", ".join(f"hesstheory.{wing}" for wing in CORE)
    torch, ours = loaded(statement, before="import torch")
    ready_made = {name.split(".")[0] for name in torch} | set(sys.stdlib_module_names)
    added = {name.split(".")[0] for name in ours} - ready_made
    allowed = {"hesstheory", "jaxtyping", "wadler_lindig", "lazy_loader", "psutil"}
    assert {"hesstheory"} <= added <= allowed
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
RARE = {"latex2mathml", "seaborn"}


@pytest.mark.parametrize(
    "arguments", [["harness", "--model=vgg11", "--width=1", "--batch=2", "--probes=2"], ["doctor"]]
)
def test_full_scale_runs_need_few_packages(arguments, tmp_path):
    """A machine with an accelerator has PyTorch, common packages and the checkout, and no more."""
    if arguments[0] == "harness":
        arguments = [*arguments, f"--out={tmp_path / 'run'}"]
    script = WITHOUT.format(missing=RARE, arguments=arguments)
    done = warm.run("-c", script, environment=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert arguments[0] == "doctor" or (tmp_path / "run" / "index.html").exists()


IMPORT_NAMES = {"scikit-learn": "sklearn"}


def test_dependencies_are_imported():
    """What is installed for everyone is used somewhere."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    found = {
        name.split(".")[0] for module, tree in TREES.items() for name in imported(module, tree)
    }
    assert {IMPORT_NAMES.get(name, name) for name in names} - found == set()


# --- the front door -------------------------------------------------------------------------------


def test_the_front_door_is_what_the_stub_says():
    import hesstheory

    assert sorted(DOOR) == sorted(hesstheory.__all__) == sorted(dir(hesstheory))


@pytest.mark.parametrize("name", sorted(DOOR))
def test_a_name_is_loaded_on_first_use(name):
    import hesstheory

    found = getattr(hesstheory, name)
    assert found.__doc__
    assert not found.__doc__.startswith(f"{name}("), "a signature that dataclass made up"
    if DOOR[name] == f"hesstheory.{name}" and DOOR[name] in PATHS:
        assert found is sys.modules[DOOR[name]]
    else:
        assert found is getattr(sys.modules[DOOR[name]], name)


def test_an_unknown_name_is_refused():
    import hesstheory

    with pytest.raises(AttributeError, match=r"hesstheory.*traces"):
        _ = hesstheory.traces

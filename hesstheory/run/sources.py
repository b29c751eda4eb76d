"""Sources of modules: where they lie, what they do and what they import."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path

# A package with claims names itself by an entry point of this group in its `pyproject.toml`.
CLAIM_PACKAGES = "hesstheory.claims"


@dataclass(frozen=True)
class Import:
    """One imported name; `name` is empty where a whole module is imported."""

    module: str
    name: str
    bound: str


@dataclass(frozen=True)
class Source:
    """A module without comments, docstrings and what only type checkers read.

    `code` is all of it. `own` leaves out imports and names with two underscores: what a package
    does by itself when one of its modules is imported.
    """

    code: str
    own: str
    imports: tuple[Import, ...]


def path_of(module: str) -> Path | None:
    """File of a module, without importing anything, or None where it has none."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    top, *rest = module.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    places = [Path(spec.origin)] if spec.origin and not rest else []
    for folder in map(Path, spec.submodule_search_locations or ()):
        inside = folder.joinpath(*rest)
        places += [inside / "__init__.py", inside.with_suffix(".py")]
    return next((path for path in places if path.is_file()), None)


def read(path: Path) -> Source:
    """The source in a file, parsed once as long as the file stays as it is."""
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


def sources_reached(module: str) -> dict[str, str]:
    """Code of a module and of all that it imports, transitively, from its own package, hesstheory
    and claim packages.

    Imports inside functions count, those under `if TYPE_CHECKING` do not. A name imported from a
    package leads to the file that defines it; of the packages around a module only their own
    statements count. Modules that are loaded by a computed name are not seen.
    """
    tops = {module.partition(".")[0], "hesstheory", *tops_of_claim_packages()}
    found: dict[str, str] = {}
    around: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found else path_of(name)
        if path is None:
            continue
        source = read(path)
        found[name] = source.own if path.stem == "__init__" else source.code
        around |= _packages_around(name)
        for wanted in _all_imports(name, path):
            if wanted.module.partition(".")[0] in tops:
                waiting.extend(_defining(wanted))
    return around | found


def tops_of_claim_packages() -> set[str]:
    """Import names of the installed claim packages."""
    return {entry.module.partition(".")[0] for entry in entry_points(group=CLAIM_PACKAGES)}


def _spec(top: str) -> ModuleSpec | None:
    """Where a package at the top level lies; looking one up there imports nothing."""
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return None


def _packages_around(module: str) -> dict[str, str]:
    """Own statements of the packages that a module lies in."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(1, len(parts)))
    paths = ((name, path_of(name)) for name in names)
    return {name: read(path).own for name, path in paths if path is not None}


def _all_imports(module: str, path: Path) -> Iterator[Import]:
    """Imports of a module as absolute names; those of a package that loads lazily stand in its
    stub."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    stub = path.with_suffix(".pyi")
    for file in (path, stub) if stub.is_file() else (path,):
        for found in read(file).imports:
            yield Import(_absolute(found.module, package), found.name, found.bound)


def _absolute(module: str, package: str) -> str:
    """`..name` as seen from a package."""
    level = len(module) - len(module.lstrip("."))
    if level == 0:
        return module
    base = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*base, *filter(None, [module.lstrip(".")])])


def _defining(wanted: Import) -> list[str]:
    """Modules that an import leads to: a submodule, where a package takes the name from, or the
    module itself."""
    seen = set()
    while wanted.name and wanted not in seen:
        seen.add(wanted)
        submodule = f"{wanted.module}.{wanted.name}"
        if path_of(submodule) is not None:
            return [submodule]
        path = path_of(wanted.module)
        if path is None or path.stem != "__init__":
            break
        passed_on = [i for i in _all_imports(wanted.module, path) if i.bound == wanted.name]
        if not passed_on:
            break
        wanted = passed_on[-1]
    return [wanted.module]


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, size: int) -> Source:
    """The file as parsed; time and size of the file are part of the key, so that an edit is
    seen."""
    tree = _Bare().visit(ast.parse(path.read_text(encoding="utf-8")))
    own = [statement for statement in tree.body if not _only_names(statement)]
    return Source(
        ast.unparse(tree),
        ast.unparse(ast.Module(own, [])),
        tuple(_imports(tree)),
    )


class _Bare(ast.NodeTransformer):
    """Takes out docstrings and what only type checkers read."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Bodies of modules, classes and functions lose their docstrings."""
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
        return node

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        """`if TYPE_CHECKING` keeps its `else` only."""
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test).endswith("TYPE_CHECKING") else node


def _only_names(statement: ast.stmt) -> bool:
    """Imports, and assignments to names such as `__all__` and `__version__`."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return True
    if not isinstance(statement, ast.Assign):
        return False
    names = [
        node.id
        for target in statement.targets
        for node in ast.walk(target)
        if isinstance(node, ast.Name)
    ]
    return bool(names) and all(name.startswith("__") for name in names)


def _imports(tree: ast.AST) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", alias.asname or alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                name = "" if alias.name == "*" else alias.name
                yield Import(module, name, alias.asname or alias.name)

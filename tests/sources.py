"""The sources of the library and of its claims, read as syntax trees: who imports whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "hesstheory": ROOT / "hesstheory",
    "hesstheory_validation": ROOT / "validation" / "hesstheory_validation",
}


def name_of(path: Path, package: str) -> str:
    parts = path.relative_to(PACKAGES[package].parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {
    name_of(path, package): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in PATHS.items()}
LIBRARY = sorted(module for module in PATHS if module.split(".")[0] == "hesstheory")
# name at the front door → the wing that it comes from, as the stub says.
DOOR = {
    alias.asname or alias.name: f"hesstheory.{node.module}"
    if node.module
    else f"hesstheory.{alias.name}"
    for node in ast.parse((ROOT / "hesstheory" / "__init__.pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def public(tree: ast.Module) -> list[ast.stmt]:
    """Classes and functions of a module without a leading underscore."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return [n for n in tree.body if isinstance(n, definitions) and not n.name.startswith("_")]


def is_typing_block(node: ast.AST) -> bool:
    """Whether type checkers alone read what stands there."""
    return (
        isinstance(node, ast.If)
        and ast.unparse(node.test).removeprefix("typing.") == "TYPE_CHECKING"
    )


def nodes(tree: ast.AST, *, late: bool, typing: bool) -> Iterator[ast.AST]:
    """All nodes; `late` with those in functions, `typing` with those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if is_typing_block(node):
            kept = [*node.orelse, *(node.body if typing else [])]
            for other in kept:
                yield other
                yield from nodes(other, late=late, typing=typing)
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from nodes(node, late=late, typing=typing)


def imported(
    module: str, tree: ast.AST, *, late: bool = True, typing: bool = False
) -> Iterator[str]:
    """Dotted names that a module imports, also by import_module("…")."""
    is_package = module in PATHS and PATHS[module].name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in nodes(tree, late=late, typing=typing):
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
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def home(name: str) -> str | None:
    """The module of ours that a dotted name leads to, through the front door too; or None."""
    if name in PATHS:
        return name
    parent, _, last = name.rpartition(".")
    if parent == "hesstheory" and last in DOOR:
        return DOOR[last]
    return home(parent) if parent else None


def edges(module: str, **options: bool) -> set[str]:
    """Modules of ours that a module imports."""
    found = {home(name) for name in imported(module, TREES[module], **options)}
    return {name for name in found if name is not None} - {module}


def reach(module: str) -> set[str]:
    """All modules of ours that it imports in the end, with the packages above them."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name and name not in seen:
            seen.add(name)
            todo.extend(edges(name) if name in TREES else [])
            todo.append(name.rpartition(".")[0])
    return seen

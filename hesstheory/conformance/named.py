"""Estimators named on the command line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from hesstheory.conformance.contract import Estimator, Misuse, as_estimator
from hesstheory.conformance.places import raised


def load(name: str) -> Estimator:
    """The estimator named `package.module:name` or `path/file.py:name`.

    Raises
    ------
    Misuse
        There is none: the message names the cure.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        raise Misuse(f"{name!r} names no estimator: write package.module:name or path/file.py:name")
    module = _module_from_file(Path(where)) if where.endswith(".py") else _module(where)
    try:
        found: object = module
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        public = ", ".join(_callables(module)) or "nothing that can be called"
        raise Misuse(f"{where} has no {attribute!r}; it defines {public}") from None
    return as_estimator(found)


def _callables(module: ModuleType) -> list[str]:
    """Names of what a module itself defines and offers to be called."""
    return [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
        and not name.startswith("_")
        and callable(value)
    ]


def _module(name: str) -> ModuleType:
    """The module of this name, found as `python -m` finds it."""
    sys.path.insert(0, "")  # as `python -m` does: the folder where the command was given
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise Misuse(f"{name} does not import: {raised(error)}") from error
    finally:
        sys.path.remove("")


def _module_from_file(path: Path) -> ModuleType:
    """The module in this file, which may import its neighbours."""
    if not path.is_file():
        raise Misuse(f"there is no file {path}; the path is taken from {Path.cwd()}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise Misuse(f"{path} cannot be imported: give a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up there
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise Misuse(f"{path} does not import: {raised(error)}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module

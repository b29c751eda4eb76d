"""Versions, machine, commit and code of a run."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hesstheory.run.sources import sources_reached

# Libraries whose numbers go into results.
LIBRARIES = ("torch", "numpy", "scipy", "sympy", "scikit-learn")


def provenance(command: str) -> dict[str, str]:
    """Versions, machine, commit and command of this process."""
    return {
        "command": command,
        "hesstheory": _version("hesstheory"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{package: _version(package) for package in LIBRARIES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def fingerprint_of(module: str, data: Sequence[str | os.PathLike[str]] = ()) -> str:
    """Hash of what a module computes with: code, data files and versions of the libraries.

    Comments and docstrings do not count, imports inside functions do.

    Parameters
    ----------
    module
        Dotted name of a module, such as `hesstheory_validation.variance.claims`. It need not be
        imported.
    data
        Files that the module reads. Their bytes count, the folder that they lie in does not.

    Returns
    -------
    str
        Sixteen hexadecimal digits.

    Raises
    ------
    ValueError
        If there is no such module, or no file of that name.

    See Also
    --------
    hesstheory.run.sources.sources_reached : what is followed, and what is not.
    """
    sources = sources_reached(module)
    if module not in sources:
        raise ValueError(f"no source of {module!r}: name a module that can be imported")
    digest = hashlib.sha256()
    for name, code in sorted(sources.items()):
        digest.update(f"{name}\0{code}\0".encode())
    for path in map(Path, data):
        if not path.is_file():
            raise ValueError(f"no data file {path}: fetch it first, or leave it out")
        digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(_versions())
    return _short(digest)


def fingerprint(*packages: str) -> str:
    """Hash of all source files of the named packages, comments too, and of library versions.

    A run of many stages uses it, which must not go on with other code in the middle.
    """
    digest = hashlib.sha256()
    for package in packages:
        root = Path(str(sys.modules[package].__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(
                f"{package}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes()
            )
    digest.update(_versions())
    return _short(digest)


def _versions() -> bytes:
    """Versions of the libraries, for a hash."""
    return "".join(map(_version, LIBRARIES)).encode()


def _short(digest: hashlib._Hash) -> str:
    """64 bits: no two of a million states of the code are alike."""
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout, and whether sources differ from it; `unknown` outside of one."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", "*.py"], capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + (" with local changes" if status.stdout.strip() else "")


def _cpu() -> str:
    """Name of the processor: Linux has it in a file, other systems where Python looks."""
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

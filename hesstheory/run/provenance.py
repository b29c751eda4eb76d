"""Versions, machine, commit and code of a run."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def provenance(command: str) -> dict[str, str]:
    """Versions, machine, commit and command of this process."""
    return {
        "command": command,
        "hesstheory": _version("hesstheory"),
        "commit": _commit(),
        "python": platform.python_version(),
        **{
            package: _version(package)
            for package in ("torch", "numpy", "scipy", "sympy", "scikit-learn")
        },
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def fingerprint(*packages: str) -> str:
    """Hash of the sources of the named packages and of the versions that they compute with."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(str(sys.modules[package].__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(
                f"{package}/{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes()
            )
    for library in ("torch", "numpy", "sympy", "scikit-learn"):
        digest.update(_version(library).encode())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
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
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.partition(":")[2].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

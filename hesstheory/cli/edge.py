"""What every command refuses at its edge, and how it ends."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NoReturn

import typer


def check_writable(option: str, path: Path | None, *, makes_folders: bool = False) -> None:
    """Refuses, before any work is done for it, a file that could not be written in the end."""
    if path is None:
        return
    try:
        if path.is_dir():
            misuse(f"{option} {path}: that is a folder; name a file, or move the folder away")
        folder = path.absolute().parent
        if makes_folders:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
        elif not folder.is_dir():
            misuse(f"{option} {path}: the folder does not exist; create it first")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        misuse(f"{option} {path}: {error.strerror}; name another folder, in which you may write")


def write(path: Path, content: str | bytes) -> None:
    """Writes a file, or ends with the cure."""
    from hesstheory.run.files import write_atomically

    try:
        write_atomically(path, content)
    except OSError as error:
        misuse(f"{path}: {error.strerror or error}")


def misuse(message: str) -> NoReturn:
    """Ends the command with exit code 2 and what a user can mend."""
    typer.echo(f"hesstheory: {message}", err=True)
    raise typer.Exit(2)


def interrupted() -> NoReturn:
    """Ends an interrupted command with the exit code of a shell: 128 + SIGINT."""
    typer.echo("hesstheory: interrupted, nothing was written", err=True)
    raise typer.Exit(130)

"""The doors: the `hesstheory` command."""

from hesstheory.cli.app import app, main

__all__ = ["app", "main"]

"""`python -m hesstheory` is the `hesstheory` command."""

from hesstheory.cli import main

main()

"""`python -m hesstheory` is the `hesstheory` command."""

from hesstheory.cli.app import main

main()

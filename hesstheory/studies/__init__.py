"""What do many runs say? Studies that take minutes to hours, each a command: `hesstheory study NAME`."""

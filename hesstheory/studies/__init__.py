"""What do many runs say? Each study is a file; `hesstheory study` lists them."""

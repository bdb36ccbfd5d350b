"""The command line: commands that parse, call one function, and print."""

"""The configuration of a run: the schema of every option, and loading from TOML."""

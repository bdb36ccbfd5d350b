"""The configuration of a run: sections, the schema of every option, loading from TOML."""

"""The version of the package: pyproject.toml and `--version` read it here."""

VERSION = "0.2.0"

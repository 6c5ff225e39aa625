"""The version of the package; what artefacts say that they were made by."""

VERSION = "0.2.0"

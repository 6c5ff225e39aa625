"""Finds the package, which lies beside this folder, and says what is missing: the first cell of every notebook."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from pipeline.notebook import prepare

    prepare()

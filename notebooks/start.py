"""Makes the package importable and reports missing requirements. The first code cell of every notebook runs it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":
    from pipeline.notebook import prepare

    prepare()

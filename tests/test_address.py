"""The repository's public address is written wherever it is needed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def test_the_address_is_written_and_replaced(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("address", REPOSITORY / "docs" / "address.py")
    assert spec and spec.loader
    address = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(address)
    shutil.copytree(REPOSITORY / "notebooks", tmp_path / "notebooks")
    for name in ("README.md", "CITATION.cff"):
        shutil.copy(REPOSITORY / name, tmp_path)
    with pytest.raises(SystemExit, match="expected https://github.com/OWNER/NAME"):
        address.main("github.com/me", tmp_path)
    for owner in ("first", "second"):
        address.main(f"https://github.com/{owner}/segmentation", tmp_path)
    for path in sorted((tmp_path / "notebooks").glob("*.ipynb")):
        before = json.loads((REPOSITORY / "notebooks" / path.name).read_text())["cells"]
        cells = json.loads(path.read_text())["cells"]
        opened = f"https://colab.research.google.com/github/second/segmentation/blob/main/notebooks/{path.name}"
        assert opened in "".join(cells[0]["source"]) and "first/" not in path.read_text()
        code = "".join(cells[1]["source"])
        assert "clone -q --depth 1 https://github.com/second/segmentation " in code and code.endswith("%run start.py")
        assert cells[2:] == before[2:]
    assert (tmp_path / "README.md").read_text().count("second/segmentation/blob") == 2
    assert (tmp_path / "CITATION.cff").read_text().count(
        "repository-code: https://github.com/second/segmentation\n"
    ) == 1

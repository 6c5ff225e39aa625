"""The seven labs: how they are written, and that they run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest
from conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "teach" / "labs"
LABS = sorted(FOLDER.glob("*.ipynb"))
SMALLEST = {"SEEDS = [0, 1, 2]": "SEEDS = [0]", "EPOCHS, STEPS = 25, 6": "EPOCHS, STEPS = 2, 1",
            "POOL, DRAWS = 300, 300": "POOL, DRAWS = 32, 2"}  # fmt: skip
"""What is changed in the lab that runs in the suite."""

by_name = pytest.mark.parametrize("path", LABS, ids=lambda path: path.stem)


def sources(path: Path, kind: str) -> list[str]:
    """The cells of a notebook that are code or markdown."""
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_seven_and_the_page_lists_them() -> None:
    assert [path.stem[:2] for path in LABS] == [f"{number}_" for number in range(1, 8)]
    listed = re.findall(r"\]\((\d_\w+\.ipynb)\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in LABS]


@by_name
def test_a_lab_is_a_question_a_prediction_a_measurement_and_two_questions(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    text, code = "\n".join(sources(path, "markdown")), sources(path, "code")
    first = cells[0].source.splitlines()
    assert first[0].startswith("# ") and first[0].endswith("?")
    assert re.match(r"Twenty minutes, .*\d+ s .*\(.*20\d\d-\d\d-\d\d\)", first[2]), "how long it takes, where and when"
    assert "\n## Write down your prediction" in f"\n{text}" and "## The reveal" in text
    assert "## How this project guards against it" in text
    assert text.count("<details>") == text.count("</details>") == text.count("<summary>Answer</summary>") == 2
    assert code[0].splitlines()[1] == "%run ../../../notebooks/start.py" and code[-1] == "lab.spent()"
    predicted = [cell for cell in code if re.search(r"^\w*prediction = None", cell, re.M)]
    assert len(predicted) == 1 and "lab.predict(" in predicted[0]
    assert any("lab.compare(" in cell for cell in code)
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
    assert not re.search(r"^(def|class) ", "\n".join(code), re.M), "logic belongs into lab.py or the package"


@by_name
def test_every_cell_compiles_and_every_link_leads_somewhere(path: Path) -> None:
    for cell in sources(path, "code"):
        compile(re.sub(r"^%run .*", "pass", cell, flags=re.M), path.name, "exec")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", "\n".join(sources(path, "markdown"))):
        name, _, anchor = target.partition("#")
        assert (FOLDER / name).exists(), target
        assert not anchor or anchor in anchors(FOLDER / name), target


def test_a_lab_runs_in_miniature_without_a_prediction(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    matplotlib.use("Agg")
    text = "\n".join(sources(FOLDER / "4_a_lucky_epoch.ipynb", "code")[1:])
    for before, after in SMALLEST.items():
        assert text.count(before) == 1
        text = text.replace(before, after)
    exec(compile(text, "lab", "exec"), {})
    said = capsys.readouterr().out
    assert "No prediction yet." in said and "predicted nothing, measured" in said and "s of CPU time" in said


@pytest.mark.slow
def test_all_labs_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PIPELINE_ROOT": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    command = [sys.executable, "-m", "pytest", "--nbmake", "--nbmake-timeout=900", "-n0", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, *(path.name for path in LABS)], cwd=FOLDER, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
    assert not [path for path in LABS if json.loads(path.read_text())["cells"][-1].get("outputs")]

"""What people look at: the notebooks run from top to bottom, and a real browser opens the page that they end with."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from pipeline.new.sample import write_sample

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SECTIONS = {
    "data", "cleaning", "folds", "training", "tuning", "scores", "images", "predictions", "submission", "settings",
}  # fmt: skip
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROBE = """<script>
addEventListener("load", async () => {
  const images = [...document.images]
  const dark = matchMedia("(prefers-color-scheme: dark)").matches
  const charts = [...document.querySelectorAll(".charts svg")].map(one => one.getBoundingClientRect())
  const rows = () => [...document.querySelectorAll("#explorer tbody tr")]
  const column = place => rows().map(row => row.children[place].textContent)
  const found = {
    images: images.length, loaded: images.filter(one => one.naturalWidth > 0).length, dark: dark,
    titles: [...document.querySelectorAll("main > h2[id], main > h3[id]")].map(one => one.id),
    links: [...document.querySelectorAll("nav a")].map(one => one.hash.slice(1)),
    missing: document.querySelectorAll(".missing").length, named: images.filter(one => one.alt).length,
    charts: charts.filter(one => one.width > 100 && one.height > 50).length,
    letters: getComputedStyle(document.querySelector(".charts svg text")).fill,
    small: [...document.querySelectorAll("body *")].filter(
      one => one.textContent && parseFloat(getComputedStyle(one).fontSize) < 12).length,
    width: document.documentElement.scrollWidth, window: innerWidth,
  }
  if (rows().length) {
    found.rows = rows().length
    document.querySelector("th[data-sort=id] button").click()
    found.ascending = column(1)
    document.querySelector("th[data-sort=id] button").click()
    found.descending = column(1)
    const form = document.getElementById("filters")
    form.fold.value = form.fold.options[1].value
    form.dispatchEvent(new Event("input"))
    found.folds = [...new Set(column(2))]
    for (const _ of [1, 2]) document.querySelector("th[data-sort=size] button").click()
    rows()[0].click()  // the largest mask
    const viewer = document.getElementById("viewer"), canvas = viewer.querySelector("canvas")
    const press = key => viewer.dispatchEvent(new KeyboardEvent("keydown", { key }))
    let pictures = []
    for (let tries = 0; tries < 50 && new Set(pictures).size < 3; tries++) {  // until its pictures are decoded
      await new Promise(done => setTimeout(done, 200))
      pictures = ["i", "t", "p", "b", "r"].map(key => { press(key); return canvas.toDataURL() })
    }
    Object.assign(found, { open: viewer.open, pictures: new Set(pictures).size })
    press("]")
    found.threshold = viewer.querySelector("output").textContent
    const before = document.getElementById("viewer-title").textContent
    press("ArrowRight")
    found.moved = before !== document.getElementById("viewer-title").textContent
  }
  document.body.dataset.found = JSON.stringify(found)
})
</script>"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all notebooks have run, one after the other, with a recipe of a tenth of the steps."""
    folder = tmp_path_factory.mktemp("notebooks")
    write_sample(folder / "input" / "sample", train=48, test=12)
    recipe = yaml.safe_load((REPOSITORY / "pipeline" / "recipes" / "sample.yaml").read_text())
    recipe["quick"]["train"]["steps"] = 30
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "sample.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "pipeline").symlink_to(REPOSITORY / "pipeline")
    (folder / "notebooks" / "start.py").symlink_to(REPOSITORY / "notebooks" / "start.py")
    small = {"train.epochs": 1, "train.steps": 1, "image.size": [32, 48], "model.architecture": "ConfigurableUnet",
             "model.encoder": "plain", "model.options": None, "model.options.channels": [4, 8]}  # fmt: skip
    changes = {
        'RECIPE = \\"sample\\"': 'RECIPE = \\"sample.yaml\\"',
        '\\"train.steps\\": 100': '\\"train.steps\\": 30',
        "SETTINGS = {}": f"SETTINGS = {json.dumps(repr(small))[1:-1]}",
    }
    for path in NOTEBOOKS:
        text = path.read_text()
        assert sum(text.count(before) for before in changes) == (2 if path.stem[:2] in ("05", "06") else 1)
        for before, after in changes.items():
            text = text.replace(before, after)
        (folder / "notebooks" / path.name).write_text(text)
    environment = {**os.environ, "PIPELINE_ROOT": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "--nbmake", "-n0", "-p", "no:cacheprovider"]
    names = [path.name for path in NOTEBOOKS]
    ran = subprocess.run(
        [*command, *names], cwd=folder / "notebooks", env=environment, capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout[-5000:]
    return folder


def test_notebooks_run_and_leave_a_page_and_a_submission(root: Path) -> None:
    assert (root / "work" / "sample" / "notebooks" / "report.html").exists()
    assert (root / "submissions" / "notebooks.csv").exists()
    assert (root / "submissions" / "my-data-quick.csv").exists()
    assert (root / "work" / "sample" / "one-fold" / "fold_0" / "fold.json").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_short_and_has_no_outputs(path: Path) -> None:
    cells = nbformat.read(path, 4).cells
    assert 5 <= len(cells) < 25
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    assert cells[0].source.splitlines()[0].endswith("?") or path.stem.startswith("06")
    assert len(cells[1].source.splitlines()) == 2
    for cell in cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert not re.search(r"^(def|class) ", cell.source, re.M), "logic belongs into the package"


def test_there_are_seven() -> None:
    assert len(NOTEBOOKS) == 7


def test_the_first_cell_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import notebook

    wanted = ["torch>=2.8  # 2.1 is installed", "lightning>=2.6.4"]
    monkeypatch.setattr(notebook.requirements_check, "unsatisfied", lambda requirements: wanted)
    with pytest.raises(ImportError, match=re.escape('%pip install -q "torch>=2.8" "lightning>=2.6.4"')):
        notebook.prepare()


def test_results_go_where_they_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import notebook

    monkeypatch.delenv("PIPELINE_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    notebook.prepare()
    assert "PIPELINE_ROOT" not in os.environ
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a repository that is attached as a dataset
    monkeypatch.setenv("PIPELINE_ROOT", "")  # so that it is set back afterwards
    monkeypatch.delenv("PIPELINE_ROOT")
    notebook.prepare()
    assert os.environ["PIPELINE_ROOT"] == str(tmp_path)


def browse(page: Path, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """What the probe found on a page, in a window of this width; an error in the console fails."""
    assert CHROMIUM
    probed = folder / f"{page.stem}-{width}-{dark}.html"
    text = page.read_text(encoding="utf-8").replace('loading="lazy"', "")  # all of them, not only those in sight
    probed.write_text(text + PROBE, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    options += [f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    ran = subprocess.run([CHROMIUM, *options, probed.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in ran.stderr, ran.stderr
    found = re.search(r'data-found="([^"]*)"', ran.stdout)
    assert found, ran.stderr[-2000:]
    return json.loads(found[1].replace("&quot;", '"'))


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (500, False)])
def test_a_browser_shows_the_whole_report(root: Path, tmp_path: Path, width: int, dark: bool) -> None:
    page = root / "work" / "sample" / "notebooks" / "report.html"
    assert page.stat().st_size < 15e6
    assert not re.search(r"""(src|href)=["']?http|url\(["']?http|@import|<link rel="stylesheet""", page.read_text())
    found = browse(page, tmp_path, width, dark)
    assert set(found["titles"]) == SECTIONS and set(found["links"]) == SECTIONS
    assert found["missing"] == 0
    assert found["images"] == found["loaded"] == found["named"] >= 40
    assert found["charts"] >= 6 and found["small"] == 0
    assert found["dark"] == dark
    assert found["letters"] == ("rgb(230, 232, 234)" if dark else "rgb(27, 29, 32)")
    assert found["width"] <= found["window"], "the page scrolls sideways"
    assert found["rows"] >= 20 and found["descending"] == found["ascending"][::-1] and len(found["folds"]) == 1
    assert found["open"] and found["moved"] and found["pictures"] >= 3
    assert re.match(r"\d+ of 255, without other rules: dice of this image [01]\.\d{4}", found["threshold"])


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_runs_side_by_side(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.report import compare_page

    monkeypatch.setenv("PIPELINE_ROOT", str(root))
    page = compare_page.write(["notebooks", "one-fold"])
    text = page.read_text()
    assert "<th>train.folds</th>" not in text  # which folds are trained is not how one is trained
    assert 'href="sample/notebooks/report.html"' in text and "one-fold/report.html" not in text  # it has none
    found = browse(page, tmp_path, 1200, False)
    assert found["charts"] == 7 and found["images"] == 0

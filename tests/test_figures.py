"""The pictures of the documentation are small, shown on a page, and drawn by the scripts beside them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
FIGURES = sorted((DOCS / "figures").glob("*.png"))


def test_every_figure_is_drawn_by_a_function_of_its_name() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "figures").glob("[!m]*.py"))
    drawn = {name.replace("_", "-") for name in re.findall(r"^def ([a-z]\w*)\(\) -> None:", code, re.M)}
    assert drawn == {path.stem for path in FIGURES}


def test_every_figure_is_shown_and_small() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    for path in FIGURES:
        assert f"figures/{path.name})" in pages, path.name
        assert path.stat().st_size < 150_000, path.name
    assert sum(path.stat().st_size for path in FIGURES) < 2_000_000


def test_every_entry_of_the_glossary_has_a_picture_and_stands_in_order() -> None:
    entries = re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", (DOCS / "glossary.md").read_text(encoding="utf-8"), re.M | re.S)
    assert [title for title, text in entries if "](figures/" not in text] == []
    titles = [title.lower() for title, _ in entries]
    assert titles == sorted(titles)

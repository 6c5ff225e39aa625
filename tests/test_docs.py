"""The documentation: links, the generated pages, the example of every setting, the list of messages."""

import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.core.config.raw_layouts import LAYOUTS
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import merge, validate

DOCS = REPOSITORY / "docs"
TABLES = {
    "reader": "rle_csv",
    "classes": ["cell"],
    "train": {"images": "train/{id}.png", "masks": "train.csv"},
    "test": {"images": "test/{id}.png"},
}
ARRAYS = {"train": {"images": "X.npy", "masks": "y.npy"}, "test": {"images": "T.npy"}, "classes": ["cell"]}
LABELS = {"file": "data.npz", "classes": ["background", "cell"], "metric": "mean_iou"}
BASES: dict[str, dict[str, Any]] = {
    "recipe": {"name": "example", "competition": "sample"},
    "rle_csv": TABLES,
    "arrays": ARRAYS,
    "npz_labels": LABELS,
    "oxford_pet": {"border": "background"},
}
"""The least that a recipe, or a competition with each reader, must say."""


@pytest.fixture(scope="module", autouse=True)
def builder() -> Any:
    """Lets tests import the builder of the site, which is no part of the package."""
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def settings(builder: None) -> ModuleType:
    import settings

    return settings


def test_every_link_leads_somewhere_and_every_page_is_in_the_navigation() -> None:
    from builder import links, staging

    assert links.faults(REPOSITORY) == []
    assert staging.outside_navigation(REPOSITORY, DOCS / "builder" / "zensical.toml") == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    from builder import links

    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("# Title\n\n## Twice\n\n## Twice\n\n```\n[code](none.md)\n```\n")
    page = "[a](../README.md#title) [b](none.md) [c](../README.md#none) [d](../README.md#twice) ![e](none.png)\n"
    (tmp_path / "docs" / "page.md").write_text(page)
    found = [fault.removeprefix("docs/page.md links to ").split(",")[0] for fault in links.faults(tmp_path)]
    assert found == ["none.md", "../README.md#none", "../README.md#twice", "none.png"]


@pytest.mark.parametrize("name", ["settings.md", "cli.md"])
def test_the_generated_pages_are_up_to_date(name: str) -> None:
    import build

    assert build.PAGES[name]() == (DOCS / name).read_text(encoding="utf-8"), "run `python docs/build.py --pages`"


def test_every_setting_has_a_text_an_anchor_of_its_own_and_a_valid_example(settings: ModuleType) -> None:
    from builder.anchors import headings

    assert max(Counter(headings(settings.page())).values()) == 1
    for title, (_, _, of) in settings.PARTS.items():
        base = {"name": "example", "title": "Example", "metric": "dice", **BASES[of]} if of in LAYOUTS else BASES[of]
        for key, field in settings.keys(title):
            holds_others = settings.inner(field.annotation) is not None
            assert field.description or holds_others or settings.choices(field), f"{key}: say what it is"
            example = settings.example(key, field, of)
            assert (example is None) == holds_others, f"{key}: give an example in docs/settings_examples.yaml"
            if example:
                validate(LAYOUTS.get(of, Recipe), merge(base, settings.nested(example)), f"the example of {key}")


def test_no_example_is_of_a_setting_that_is_gone(settings: ModuleType) -> None:
    known: dict[str, set[str]] = {}
    for title, (_, _, of) in settings.PARTS.items():
        known.setdefault(of, set()).update(key for key, _ in settings.keys(title))
    examples = settings.examples()
    for of, values in examples.items():
        if of != "needs":
            assert values.keys() <= known[of], of
    for of, values in examples["needs"].items():
        assert values.keys() <= known[of], of


def test_every_message_is_listed() -> None:
    from builder import messages

    listed = {one.text for one in messages.collect(REPOSITORY)}
    calls = messages.every_call(REPOSITORY)
    places = {(one.module, one.line) for one in calls}
    for path in sorted((REPOSITORY / "pipeline").rglob("*.py")):
        module = path.relative_to(REPOSITORY / "pipeline").with_suffix("").as_posix()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"\bPipelineError\((?!Exception)", line) and "class " not in line:
                assert (module, number) in places, f"{path}:{number}"
    without_words = [one for one in calls if one.text not in listed]  # they pass on what another message says
    assert all(not re.search(r"[a-z]{3}", re.sub("‹[^›]*›", "", one.text)) for one in without_words)
    assert len(without_words) < 40
    text = messages.listing(REPOSITORY)
    assert text.count("####") == len(listed)


def test_every_remedy_is_of_a_message() -> None:
    from builder import messages

    known = messages.collect(REPOSITORY)
    remedies = messages.remedies()
    assert len(remedies) >= 20
    for remedy in remedies:
        assert any(remedy.fits(one) for one in known), f"docs/troubleshooting.md: no message says `{remedy.pattern}`"


def test_a_message_is_read_with_its_placeholders(tmp_path: Path) -> None:
    from builder import messages

    code = """
def check(path, count):
    said = f"{shown(path)} is empty"
    if count > 1:
        said += f"; {count} others are too"
    raise PipelineError(f"{said}: {'put it back' if count else 'go on'}{_more(count)}.")

def _more(count):
    return f", or remove all {count}"
"""
    (tmp_path / "pipeline" / "decode").mkdir(parents=True)
    (tmp_path / "pipeline" / "decode" / "some.py").write_text(code)
    (one,) = messages.collect(tmp_path)
    assert one.text == "‹path› is empty; ‹count› others are too: ‹put it back or go on›, or remove all ‹count›."
    assert (one.kind, one.group) == ("error", "Raw files (decode)")


def test_a_link_to_code_leads_to_a_page_that_shows_it(tmp_path: Path) -> None:
    from builder import staging

    (tmp_path / "pipeline").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "pipeline" / "some.py").write_text("x = 1\n")
    text = "[code](../pipeline/some.py), [folder](../pipeline/), [page](page.md)\n"
    (tmp_path / "docs" / "page.md").write_text(text)
    for name in ("zensical.toml", "style.css", "offline.js"):
        (tmp_path / name).write_text("")
    staging.stage(tmp_path, tmp_path / "zensical.toml", tmp_path / "staged")
    pages = tmp_path / "staged" / "pages"
    expected = "[code](../pipeline/some.py.md), [folder](../pipeline/files.md), [page](page.md)\n"
    assert (pages / "docs" / "page.md").read_text() == expected
    assert "x = 1" in (pages / "pipeline" / "some.py.md").read_text()
    assert "[some.py](some.py.md)" in (pages / "pipeline" / "files.md").read_text()


def test_a_built_site_is_checked(tmp_path: Path) -> None:
    from builder import links, offline

    script = '<script src="https://example.org/a.js" type="text/javascript"></script>'
    (tmp_path / "a.html").write_text(
        f'{script}<a href="b.html#there"></a><a href="b.html#not"></a><a href="c.html"></a>'
    )
    (tmp_path / "b.html").write_text('<h2 id="there"></h2><a href="https://example.org"></a>')
    said = [fault.split(",")[0] for fault in links.site_faults(tmp_path)]
    expected = ["a.html links to b.html#not", "a.html links to c.html"]
    assert said == ["a.html loads something from a server; the site must work without a network.", *expected]
    offline.finish(tmp_path)
    assert [fault.split(",")[0] for fault in links.site_faults(tmp_path)] == expected


@pytest.mark.slow
def test_the_site_builds() -> None:
    pytest.importorskip("zensical")
    import build

    assert build.build() == []

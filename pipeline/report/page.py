"""Pages to look at: one HTML file each, which needs nothing else."""

import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from pipeline.core.files import write_text
from pipeline.report import charts

TEMPLATES = Path(__file__).with_name("pages")
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""What a page may load: nothing but what is in it."""


def write(path: Path, template: str, **values: Any) -> None:
    """Writes a page atomically; see `render`.

    Args:
        path: the page.
        template: a file of pages/.
        values: what the template names.
    """
    write_text(path, render(template, **values))


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """Returns the text of a page.

    Args:
        template: a file of `folder`.
        folder: where it lies; it may extend the templates of pages/.
        values: what the template names, among them `title`; a chart is drawn by the filter `svg`, and the filter `data`
            makes JSON of what the page's script reads.
    """
    loader = jinja2.FileSystemLoader([folder, TEMPLATES])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"svg": charts.to_svg, "data": script_data}
    environment.globals["asset"] = lambda name: asset(name, folder)
    return environment.get_template(template).render({"policy": markupsafe.Markup(POLICY), **values})


def asset(name: str, folder: Path = TEMPLATES) -> str:
    """Returns the text of a style sheet or script of a folder, or else of pages/."""
    path = folder / name
    return (path if path.exists() else TEMPLATES / name).read_text(encoding="utf-8")


def script_data(value: Any) -> str:
    """Returns JSON that may stand inside a <script> element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

"""Renders self-contained HTML pages from the templates in pages/."""

import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from pipeline.core.files import write_text
from pipeline.report import charts

TEMPLATES = Path(__file__).with_name("pages")
POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy: a page may load nothing from outside itself."""


def write(path: Path, template: str, **values: Any) -> None:
    """Writes a page atomically; see `render`.

    Args:
        path: file to write.
        template: name of a template in pages/.
        values: the template's variables.
    """
    write_text(path, render(template, **values))


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """Returns the HTML of a page.

    Templates can use the filter `svg`, which draws a chart, and the filter `data`, which writes JSON for the page's
    script.

    Args:
        template: name of a template in `folder`.
        folder: folder of the template, which may extend templates in pages/.
        values: the template's variables; `title` is required.
    """
    loader = jinja2.FileSystemLoader([folder, TEMPLATES])
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"svg": charts.to_svg, "data": script_data}
    environment.globals["asset"] = lambda name: asset(name, folder)
    return environment.get_template(template).render({"policy": markupsafe.Markup(POLICY), **values})


def asset(name: str, folder: Path = TEMPLATES) -> str:
    """Returns the text of a style sheet or script in a folder, or in pages/ if the folder does not have it."""
    path = folder / name
    return (path if path.exists() else TEMPLATES / name).read_text(encoding="utf-8")


def script_data(value: Any) -> str:
    """Returns JSON that is safe inside a <script> element: it cannot close the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

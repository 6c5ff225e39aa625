"""Pages to look at: one HTML file each, which needs nothing else."""

import json
from pathlib import Path
from typing import Any

import jinja2

from pipeline.core.files import write_text
from pipeline.report import charts

TEMPLATES = Path(__file__).with_name("pages")


def write(path: Path, template: str, **values: Any) -> None:
    """Writes a page atomically.

    Args:
        path: the page.
        template: a file of pages/.
        values: what the template names, among them `title`; a chart is drawn by the filter `svg`, and the filter `data`
            makes JSON of what the page's script reads.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"svg": charts.to_svg, "data": script_data}
    environment.globals["asset"] = asset
    write_text(path, environment.get_template(template).render(**values))


def asset(name: str) -> str:
    """Returns the text of a style sheet or script of pages/."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def script_data(value: Any) -> str:
    """Returns JSON that may stand inside a <script> element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")

"""Pages to look at: one HTML file each, which needs nothing else."""

from pathlib import Path
from typing import Any

import jinja2

from pipeline.core.files import write_text
from pipeline.report import charts

TEMPLATES = Path(__file__).with_name("pages")


def write(path: Path, template: str, **values: Any) -> None:
    """Writes a page whole or not at all.

    Args:
        path: the page.
        template: a file of pages/.
        values: what the template names, among them `title`; a chart is drawn by the filter `svg`.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = charts.to_svg
    write_text(path, environment.get_template(template).render(**values))

"""Finds broken links: in the pages as they are written, and in the site as it was built."""

import html
import os
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from builder import staging
from builder.anchors import headings, without_code

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
LOADED = re.compile(r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect)'
                    r'"[^>]*href="(?:https?:)?//')  # fmt: skip
"""What a browser would fetch from a server as soon as it opens a page."""


def faults(repository: Path) -> list[str]:
    """Returns a sentence for each link of a page to a file or a heading that does not exist."""
    return [fault for page in staging.pages(repository) for fault in _faults_of(repository, page)]


def site_faults(site: Path) -> list[str]:
    """Returns a sentence for each link of a built page that leads nowhere, and for what a page loads from a server."""
    found = []
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(site)
        if LOADED.search(text):
            found.append(f"{name} loads something from a server; the site must work without a network.")
        if name.name == "404.html":  # its links are absolute
            continue
        for target in sorted(set(re.findall(r'\s(?:href|src)="([^"]*)"', text))):
            path, _, anchor = unquote(html.unescape(target)).partition("#")
            if re.match(r"[a-z]+:|//", path) or (not path and not anchor):
                continue
            to = (page.parent / path if path else page).resolve()
            to = to / "index.html" if to.is_dir() else to
            if not to.is_file():
                found.append(f"{name} links to {target}, and there is no such file.")
            elif anchor and not anchor.startswith("__") and to.suffix == ".html" and anchor not in _ids(to):
                found.append(f"{name} links to {target}, and there is no such place on that page.")
    return found


def _faults_of(repository: Path, page: str) -> list[str]:
    text = (repository / page).read_text(encoding="utf-8")
    found = []
    for target in LINK.findall(without_code(text)):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        to = repository / (os.path.normpath(Path(page).parent / path) if path else page)
        if not to.exists():
            found.append(f"{page} links to {target}, and there is no such file.")
        elif anchor and to.suffix == ".md":
            count = headings(to.read_text(encoding="utf-8"))[anchor]
            if not count and f'id="{anchor}"' not in to.read_text(encoding="utf-8"):
                found.append(f"{page} links to {target}, and that page has no such heading.")
            if count > 1:
                found.append(f"{page} links to {target}, and that page has {count} such headings.")
    return found


@cache
def _ids(page: Path) -> frozenset[str]:
    return frozenset(html.unescape(one) for one in re.findall(r'\s(?:id|name)="([^"]+)"', page.read_text("utf-8")))

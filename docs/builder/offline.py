"""Makes a built site independent of the network."""

import re
from pathlib import Path

REMOTE = re.compile(r'<script[^>]*src="https?://[^>]*>\s*</script>')


def finish(site: Path) -> None:
    """Removes the one script that the generator takes from a server, which lets the search run where a page is opened
    as a file; offline.js does it instead."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(REMOTE.sub("", text), encoding="utf-8")

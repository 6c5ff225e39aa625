"""Builds the documentation site in site/ from docs/, README and the package: `pip install -e ".[docs]"`, then

python docs/build.py             writes the generated pages, checks every link and builds site/index.html
python docs/build.py --pages     only writes the generated pages that are committed: docs/settings.md and docs/cli.md

A broken link, a page that the navigation leaves out and a warning of the generator are errors (exit code 1).
"""

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import settings
from builder import commands, links, offline, staging

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {"settings.md": settings.page, "cli.md": commands.page}
"""The generated pages that are committed, so that they can be read on GitHub, and what returns their text."""
CONFIGURATION = Path(__file__).parent / "builder" / "zensical.toml"
SITE = REPOSITORY / "site"


def write_pages() -> None:
    """Writes the generated pages that are committed, where their text has changed."""
    for name, page in PAGES.items():
        path = REPOSITORY / "docs" / name
        if not path.exists() or path.read_text(encoding="utf-8") != page():
            path.write_text(page(), encoding="utf-8")
            print(f"written: docs/{name}")


def build() -> list[str]:
    """Builds the site and returns its faults, one sentence each."""
    faults = links.faults(REPOSITORY) + staging.outside_navigation(REPOSITORY, CONFIGURATION)
    if faults:
        return faults
    if shutil.which("zensical", path=str(Path(sys.executable).parent)) is None:
        return ['Zensical, which builds the site, is not installed: pip install -e ".[docs]"']
    staged = REPOSITORY / "build" / "docs"
    staging.stage(REPOSITORY, CONFIGURATION, staged)
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=staged, capture_output=True, text=True)
    if done.returncode:
        return [f"Zensical refuses the pages in {staged}:\n{done.stdout or done.stderr}"]
    offline.finish(staged / "site")
    if faults := links.site_faults(staged / "site"):
        return faults
    shutil.rmtree(SITE, ignore_errors=True)
    (staged / "site").rename(SITE)
    return []


def main() -> None:
    """Builds the site, or writes the generated pages alone."""
    write_pages()
    if "--pages" in sys.argv[1:]:
        return
    faults = build()
    print(*faults or [f"The site: {SITE / 'index.html'} (open it in a browser; it needs no network)"], sep="\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()

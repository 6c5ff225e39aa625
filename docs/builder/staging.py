"""Copies the pages into a folder from which the site is built.

The folder mirrors the repository, so that a link between two pages is the same on GitHub and in the site. What a page
links to that is no page (a module, a YAML, a notebook, a folder) becomes a page that shows it.
"""

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

from builder import messages

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "docs/**/*.md", "input/README.md")
"""The pages of the site, as patterns relative to the repository; one that does not exist is left out."""
ASSETS = ("docs/**/*.jpg", "docs/**/*.png", "docs/**/*.svg", "docs/**/*.gif")
UNLISTED = ("docs/teach/", "input/", "CONTRIBUTING.md")
"""Pages that others link to and that the navigation need not name, by the beginnings of their paths."""
LINK = re.compile(r"(?<!!)(\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^)\s]+)(\))")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash", ".ipynb": "json"}
HIDDEN = "---\nsearch:\n  exclude: true\n---\n\n"
API = "docs/api.md"
TROUBLESHOOTING = "docs/troubleshooting.md"
LONG = ("docs/settings.md", TROUBLESHOOTING, "docs/cli.md")
"""Pages with hundreds of headings: beside them stand those of the second level, and of the section in view."""


def pages(repository: Path) -> list[str]:
    """Returns the paths of all pages, relative to the repository."""
    found = {path for pattern in PAGES for path in repository.glob(pattern) if path.is_file()}
    return sorted(path.relative_to(repository).as_posix() for path in found)


def outside_navigation(repository: Path, configuration: Path) -> list[str]:
    """Returns a sentence for each page that the navigation leaves out, or names though there is none."""
    navigation = set(_named(tomllib.loads(configuration.read_text(encoding="utf-8"))["project"]["nav"]))
    known = {page for page in pages(repository) if not page.startswith(UNLISTED)}
    missing = [f"{page} is not in `nav` of docs/builder/zensical.toml." for page in sorted(known - navigation)]
    absent = sorted(page for page in navigation if not (repository / page).is_file())
    return missing + [f"`nav` of docs/builder/zensical.toml names {page}, which does not exist." for page in absent]


def stage(repository: Path, configuration: Path, folder: Path) -> None:
    """Writes into a folder, which is emptied first, what the generator reads.

    Args:
        repository: the root of the repository.
        configuration: the generator's, whose paths are filled in.
        folder: where to; the generator writes the site into its folder `site`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "pages"
    shown: set[str] = set()
    for page in pages(repository):
        text = (repository / page).read_text(encoding="utf-8")
        _write(target / page, _rewrite(_completed(page, text, repository), page, repository, shown))
    for asset in (path for pattern in ASSETS for path in repository.glob(pattern)):
        (target / asset.relative_to(repository)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(asset, target / asset.relative_to(repository))
    for name in ("style.css", "offline.js"):
        shutil.copy(configuration.parent / name, target / name)
    while shown:  # a page of a folder may name files that no page has linked to
        path = shown.pop()
        page = target / _page_of(path, repository)
        if not page.exists():
            _write(page, _rewrite(_view(repository / path, repository), f"{path}/_", repository, shown))
    text = configuration.read_text(encoding="utf-8").replace("REPOSITORY", repository.as_posix())
    _write(folder / "zensical.toml", text)


def _named(entries: list[object]) -> list[str]:
    """The pages that an entry of the navigation, and those in it, name."""
    found: list[str] = []
    for entry in entries:
        values = entry.values() if isinstance(entry, dict) else [entry]
        for value in values:
            found += [value] if isinstance(value, str) else _named(value)
    return found


def _completed(page: str, text: str, repository: Path) -> str:
    """A page with what the site adds to it."""
    if page == API:  # a heading that names a module is followed by what its docstrings say
        text = re.sub(r"^(## `(pipeline[\w.]*)`\n(?:(?!## ).*\n?)*)", r"\1\n::: \2\n\n", text, flags=re.M)
    if page == TROUBLESHOOTING:
        text = text[: text.index(messages.PLACE)] + messages.listing(repository)
    return f"{text}\n<div class='long-page'></div>\n" if page in LONG else text


def _rewrite(text: str, page: str, repository: Path, shown: set[str]) -> str:
    """The text of a page whose links to files and folders lead to the pages that show them, which are added to
    `shown`."""
    folder = Path(page).parent

    def target(match: re.Match[str]) -> str:
        path, _, anchor = match[2].partition("#")
        if re.match(r"[a-z]+:", path) or not path:
            return match[0]
        place = Path(os.path.normpath(folder / path)).as_posix()
        if (repository / place).suffix in (".md", ".png", ".jpg", ".svg") or not (repository / place).exists():
            return match[0]
        shown.add(place)
        to = os.path.relpath(_page_of(place, repository), folder)
        return f"{match[1]}{to}{match[3]}"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if part.startswith("```") else LINK.sub(target, part) for part in parts)


def _page_of(path: str, repository: Path) -> str:
    """The page that shows a file or a folder."""
    if not (repository / path).is_dir():
        return f"{path}.md"
    return f"{path}/README.md" if (repository / path / "README.md").is_file() else f"{path}/files.md"


def _view(path: Path, repository: Path) -> str:
    """The text of the page that shows a file or a folder."""
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        entries = sorted(one for one in path.iterdir() if not one.name.startswith((".", "__")) and _kept(one))
        return f"{HIDDEN}# {name}/\n\n" + "".join(f"- [{one.name}]({one.name})\n" for one in entries)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return f"{HIDDEN}{_notebook(text, name)}"
    fence = "`" * 4
    return f"{HIDDEN}# {path.name}\n\n`{name}`\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text}\n{fence}\n"


def _kept(path: Path) -> bool:
    return path.is_file() and (path.suffix in LANGUAGES or path.name == "README.md")


def _notebook(text: str, name: str) -> str:
    """The cells of a notebook, without outputs."""
    parts = [f"`{name}`"]
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"````python\n{source}\n````")
    return "\n\n".join(parts) + "\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")

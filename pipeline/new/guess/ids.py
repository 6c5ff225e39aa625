"""Finds ids that are built from parts of a path, by comparing the ids in a table with the paths of images."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.tables import normal_form
from pipeline.decode.readers.files import evenly
from pipeline.decode.readers.names import pattern_expression
from pipeline.new.guess.base import Files
from pipeline.new.guess.paths import part_name

SAMPLED = 12
"""Number of ids of a table that are compared with paths."""
_TOKENS = re.compile(r"[^/_\- :]+|[/_\- :]")
Token = tuple[int, str]
"""A token of a path: its position and its text."""


def fit_ids(files: Files, ids: Sequence[str], folder: Path) -> Files | None:
    """Returns image files with ids built from parts of their paths as a table writes them; None if that is impossible.

    For example, `train/case123/case123_day20/scans/slice_0001_266_266.png` gets the id case123_day20_slice_0001.

    Args:
        files: the images, with any ids.
        ids: ids in the table.
        folder: folder of the raw files.
    """
    names = {path: normal_form(path.relative_to(folder).with_suffix("").as_posix()) for path in files.paths.values()}
    tokens = {path: _TOKENS.findall(name) for path, name in names.items()}
    by_token: dict[str, set[Path]] = defaultdict(set)
    for path, path_tokens in tokens.items():
        for token in path_tokens[::2]:
            by_token[token].add(path)
    for text in evenly(dict.fromkeys(ids), SAMPLED):
        wanted = _TOKENS.findall(text)
        sets = [by_token.get(token, set()) for token in wanted[::2]]
        paths = set.intersection(*sets) if sets else set()
        if not paths or len(wanted) < 3:
            continue
        path = min(paths)
        alike = [path_tokens for path_tokens in tokens.values() if len(path_tokens) == len(tokens[path])]
        pair = _template(tokens[path], wanted, alike)
        if pair is None:
            continue
        pattern, template = pair
        fitted = _renamed(files, pattern, template, names, path.suffix)
        if len(fitted.paths) == len(files.paths) and len(set(ids) & fitted.paths.keys()) > 0.5 * len(set(ids)):
            return fitted
    return None


def _template(tokens: list[str], wanted: list[str], alike: list[list[str]]) -> tuple[str, str] | None:
    """The pattern of a path and the template of an id, from the tokens of both; None if they do not match."""
    changing = {place for place in range(0, len(tokens), 2) if len({path_tokens[place] for path_tokens in alike}) > 1}
    places: list[int | None] = []
    last = -2
    for token in wanted[::2]:
        fitting = [place for place in range(0, len(tokens), 2) if tokens[place] == token]
        varied = [place for place in fitting if place in changing] or fitting
        if not varied:
            return None
        last = last + 2 if last + 2 in varied else varied[-1]
        places.append(last)
    named: dict[int, str] = {}
    used: set[str] = set()
    for place in dict.fromkeys(candidate for candidate in places if candidate in changing):
        values = [path_tokens[place] for path_tokens in alike]
        before = tokens[place - 2] if place > 1 and place - 2 not in changing and tokens[place - 1] != "/" else ""
        usual = before.lower() if re.fullmatch(r"[A-Za-z]+", before) else "part"
        named[place] = part_name(values, used | {"id", "stem", "class", "group", "label"}, usual)
        used.add(named[place])
    for place in sorted(changing - named.keys()):  # the same text elsewhere in the path
        for other, name in list(named.items()):
            if all(path_tokens[place] == path_tokens[other] for path_tokens in alike):
                named[place] = name
    pieces = []
    for place, token in enumerate(tokens):
        if place % 2 or place not in changing:
            pieces.append(token)
        else:
            pieces.append(f"{{{named[place]}}}" if place in named else "*")
    template = "".join(
        token if number % 2 else f"{{{named[places[number // 2]]}}}" if places[number // 2] in named else token  # type: ignore[index]
        for number, token in enumerate(wanted)
    )
    pattern, last = "".join(pieces), max(place for place in named)
    head = "".join(pieces[: last + 1])
    if "*" in pattern[len(head) :] and "/" not in pattern[len(head) :]:  # the rest may differ in other files
        pattern = f"{head}{tokens[last + 1]}*"
    return re.sub(r"\*([_\- :]\*)+", "*", pattern), template


def _renamed(files: Files, pattern: str, template: str, names: dict[Path, str], suffix: str) -> Files:
    """The files that match a pattern, with ids built by the template."""
    expression = pattern_expression(pattern)
    paths: dict[str, Path] = {}
    parts: dict[str, dict[str, str]] = {}
    for path, name in names.items():
        match = expression.fullmatch(name)
        if match:
            image_id = template.format(**match.groupdict())
            paths[image_id] = path
            parts[image_id] = match.groupdict()
    return Files(f"{pattern}{suffix}", paths, files.exclude, template, parts)

"""Groups image files by path pattern: finds the parts of paths that vary per image, and those that name the content."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.core.tables import normal_form
from pipeline.decode.readers.files import SUFFIXES
from pipeline.decode.readers.names import ending_of, same_format, split_ending
from pipeline.new.guess.bands import BAND, with_bands
from pipeline.new.guess.base import Files

MOST_KINDS = 40
"""Maximum number of different file names in folders that each belong to one image; more names are images."""
_RESERVED = {"id", "stem", "class", "group", "label"}
_WITH_ENDING = re.compile(r"(.+)([_-][A-Za-z]+)")
_KIND = re.compile(r"(.+?)((?:[_.-][A-Za-z]+\d*[A-Za-z]*)+)")
_OF_MASKS = re.compile(r"mask|label|gt|ground.?truth|annot|seg|target", re.IGNORECASE)
_ROLE = re.compile(
    r"(^|[^a-z])(train(ing)?|test(ing)?|val|valid|validation|dev|trainval|images?|imgs?|pictures?|photos?|masks?|labels?|"
    r"annotations?|gt|gtfine|gtcoarse|ground.?truth|seg(mentation)?s?(class|object)?|jpegimages|leftimg8bit|targets?|"
    r"inputs?|outputs?|data|dataset|rgb|depth|raw|public|private|extra|images?(tr|ts)|labels?(tr|ts)|x|y)(?=$|[^a-z])",
    re.IGNORECASE,
)
"""Names of folders that describe their content, and not the image that it belongs to."""


@dataclass
class _Folder:
    """A folder, with its image files by suffix and its subfolders by name."""

    name: str = ""
    files: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    folders: "dict[str, _Folder]" = field(default_factory=dict)

    def stems(self) -> set[str]:
        """The names, without suffixes, of all images under this folder."""
        stems = {stem_of(path) for paths in self.files.values() for path in paths}
        return stems.union(*(folder.stems() for folder in self.folders.values()))


Node = tuple[_Folder, dict[str, str]]
"""A folder, with the values of the named parts of its path."""


def image_groups(folder: Path, paths: Iterable[Path]) -> list[Files]:
    """Returns image files by pattern, such as `train/{id}.png`, `{id}/images/{id}.png` or `train/{city}/{id}.png`.

    Args:
        folder: folder of the raw files.
        paths: all files in it.
    """
    images = [path for path in paths if ending_of(path.name).lower() in SUFFIXES]
    start = len(folder.parts)
    folder_ids = {part for path in images for part in path.parts[start:-1] if part == stem_of(path)}
    folder_ids = (
        folder_ids if len(folder_ids) > 1 else set()
    )  # a single folder with the name of an image is a coincidence
    by_pattern: dict[str, dict[str, Path]] = {}
    tree = _Folder()
    for path in images:
        folders = path.parts[start:-1]
        image_id = next((part for part in folders if part in folder_ids), None)
        if image_id is None:
            place = tree
            for name in folders:
                place = place.folders.setdefault(name, _Folder(name))
            place.files[ending_of(path.name)].append(path)
            continue
        shown = ["{id}" if part == image_id else part for part in folders]
        pattern = "/".join([*shown, ("{id}" if stem_of(path) == image_id else "*") + ending_of(path.name)])
        by_pattern.setdefault(pattern, {}).setdefault(normal_form(image_id), path)
    groups = [Files(pattern, by_pattern[pattern]) for pattern in sorted(by_pattern)]
    groups += [kind for files in _expand([(tree, {})], []) for kind in _kinds(files)]
    return with_bands(_across_endings(groups))


def stem_of(path: Path) -> str:
    """Returns the name of a file without its suffix; `.nii.gz` is one suffix."""
    return path.name.removesuffix(ending_of(path.name))


# --- folders ---------------------------------------------------------------------------------------------------------


def _expand(nodes: list[Node], place: list[str]) -> Iterator[Files]:
    """Yields the files of folders with the same structure, and of their subfolders."""
    suffixes = dict.fromkeys(suffix for folder, _ in nodes for suffix in folder.files)
    for suffix in suffixes:
        yield from _files_of(nodes, place, suffix)
    children: dict[str, list[Node]] = defaultdict(list)
    for folder, parts in nodes:
        for name, child in folder.folders.items():
            children[name].append((child, parts))
    if len(nodes) == 1:
        changing = _changing(list(nodes[0][0].folders.values()), nodes[0][0].name)
    else:
        changing = {name for name, children_of in children.items() if len(children_of) < len(nodes) / 2}
    for name in sorted(children.keys() - changing):
        yield from _expand(children[name], [*place, name])
    if changing:
        of_all = [node for name in sorted(changing) for node in children[name]]
        yield from _expand(*_named(of_all, place))


def _changing(folders: list[_Folder], parent: str) -> set[str]:
    """Names of folders that vary with the images, such as those of patients or cities."""
    folders_without_role = [folder for folder in folders if not _ROLE.search(folder.name)]
    if len(folders_without_role) < 2:
        return set()
    numbered = all(re.search(r"\d", folder.name) for folder in folders_without_role)
    shapes = {re.sub(r"\d+", "#", folder.name) for folder in folders_without_role}
    if numbered and (len(shapes) == 1 or len(folders_without_role) > 2) and not _OF_MASKS.search(parent):
        return {folder.name for folder in folders_without_role}
    first = folders_without_role[0].folders.keys()
    if first and all(folder.folders.keys() == first for folder in folders_without_role):
        return {folder.name for folder in folders_without_role}  # each with the same folders and files beside them
    stems = [folder.stems() for folder in folders_without_role]
    apart = len(set().union(*stems)) > 0.9 * sum(map(len, stems))
    return {folder.name for folder in folders_without_role} if apart and len(folders_without_role) > 2 else set()


def _named(nodes: list[Node], place: list[str]) -> tuple[list[Node], list[str]]:
    """Folders with varying names, and the path with a name for this part: `case1_day2` in `case1` becomes
    `{case}_{day}`."""
    before = next((name for name in reversed(nodes[0][1])), None)
    inside = before is not None and all(
        folder.name.startswith(parts[before]) and len(folder.name) > len(parts[before]) for folder, parts in nodes
    )
    rest = [folder.name[len(parts[before]) if inside and before else 0 :] for folder, parts in nodes]
    separator = ""
    if inside and len({text[0] for text in rest}) == 1 and not rest[0][0].isalnum():
        separator, rest = rest[0][0], [text[1:] for text in rest]
    if not all(rest):
        inside, rest, separator = False, [folder.name for folder, _ in nodes], ""
    name = part_name(rest, set(nodes[0][1]))
    text = f"{{{before}}}{separator}{{{name}}}" if inside else f"{{{name}}}"
    pairs = zip(nodes, rest, strict=True)
    return [(folder, {**parts, name: normal_form(value)}) for (folder, parts), value in pairs], [*place, text]


def part_name(values: list[str], used: set[str], usual: str = "folder") -> str:
    """Returns a name for a part of paths: the letters before its numbers, such as `case` for case123."""
    heads = {match[1] if (match := re.match(r"([A-Za-z]+)[_-]?\d", value)) else "" for value in values}
    head = heads.pop().lower() if len(heads) == 1 else ""
    name = head if head and head not in _RESERVED else usual
    return next(
        candidate for candidate in (name, *(f"{name}_{number}" for number in range(2, 99))) if candidate not in used
    )


def _files_of(nodes: list[Node], place: list[str], suffix: str) -> Iterator[Files]:
    """Yields the files with one suffix in folders of the same structure."""
    files = [(path, parts) for folder, parts in nodes for path in folder.files.get(suffix, [])]
    head, names = "".join(f"{part}/" for part in place), list(nodes[0][1])
    if not names:
        yield Files(f"{head}{{id}}{suffix}", {normal_form(stem_of(path)): path for path, _ in files})
        return
    stems = Counter(stem_of(path) for path, _ in files)
    with_files = sum(bool(folder.files.get(suffix)) for folder, _ in nodes)
    everywhere = with_files > 1 and min(stems.values()) >= 0.8 * with_files and len(stems) <= MOST_KINDS
    numbered = [stem for stem in stems if re.search(r"\d", stem) and not BAND.fullmatch(stem)]
    if everywhere and (not numbered or with_files > 3 * len(stems)):
        for stem in sorted(stems):
            yield _by_parts(f"{head}{stem}{suffix}", [entry for entry in files if stem_of(entry[0]) == stem], names)
    elif max(stems.values()) == 1:
        by_id = {normal_form(stem_of(path)): (path, parts) for path, parts in files}
        parts_of = {image_id: parts for image_id, (_, parts) in by_id.items()}
        yield Files(f"{head}{{id}}{suffix}", {image_id: path for image_id, (path, _) in by_id.items()}, parts=parts_of)
    else:
        name = part_name(list(stems), set(names), "name")
        named = [(path, {**parts, name: normal_form(stem_of(path))}) for path, parts in files]
        yield _by_parts(f"{head}{{{name}}}{suffix}", named, [*names, name])


def _by_parts(pattern: str, files: list[tuple[Path, dict[str, str]]], names: list[str]) -> Files:
    """Files with ids built from the fewest parts that distinguish them, preferring the last parts of the path."""
    for first in reversed(range(len(names))):
        if len({tuple(parts[name] for name in names[first:]) for _, parts in files}) == len(files):
            break
    template = "_".join(f"{{{name}}}" for name in names[first:])
    if len(names) - first == 1:  # one part is the id itself
        only = names[first]
        pattern = pattern.replace(f"{{{only}}}", "{id}")
        others = {parts[only]: {key: value for key, value in parts.items() if key != only} for _, parts in files}
        return Files(pattern, {parts[only]: path for path, parts in files}, parts=others if len(names) > 1 else {})
    by_id = {template.format(**parts): (path, parts) for path, parts in files}
    parts_of = {image_id: parts for image_id, (_, parts) in by_id.items()}
    return Files(pattern, {image_id: path for image_id, (path, _) in by_id.items()}, id=template, parts=parts_of)


# --- names of files --------------------------------------------------------------------------------------------------


def _kinds(files: Files) -> list[Files]:
    """The files grouped by the end of their names, if there are several files per image: `{id}_color` and
    `{id}_labelIds`."""
    if files.id or not files.pattern.rsplit("/", 1)[-1].startswith("{id}"):
        return [files]
    matches = {name: match for name in files.paths if (match := _KIND.fullmatch(name))}
    by_end: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, match in matches.items():
        by_end[match[2]][match[1]] = files.paths[name]
    heads = set().union(*by_end.values()) if by_end else set()
    if len(matches) < len(files.paths) or not 2 <= len(by_end) <= MOST_KINDS or len(heads) > 0.6 * len(files.paths):
        return [files]
    place, suffix = files.pattern.rsplit("{id}", 1)
    kinds = []
    for end, paths in sorted(by_end.items()):
        parts = {head: files.parts.get(head + end, {}) for head in paths} if files.parts else {}
        kinds.append(replace(files, pattern=f"{place}{{id}}{end}{suffix}", paths=paths, parts=parts))
    return kinds


def without_ending(files: Files) -> Iterator[Files]:
    """Yields the files with shorter ids, without a common ending such as `_leftImg8bit` or `_0000`; the shortest ending
    comes first."""
    if files.id or not files.pattern.rsplit("/", 1)[-1].startswith("{id}") or len(files.paths) < 2:
        return
    names = list(files.paths)
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]
    head, suffix = files.pattern.rsplit("{id}", 1)
    for place in reversed(range(len(end))):
        ending = end[place:]
        if end[place] in "_-." and all(len(name) > len(ending) for name in names):
            paths = {name.removesuffix(ending): path for name, path in files.paths.items()}
            parts = {name.removesuffix(ending): values for name, values in files.parts.items()}
            yield replace(files, pattern=f"{head}{{id}}{ending}{suffix}", paths=paths, parts=parts)


def _across_endings(groups: list[Files]) -> list[Files]:
    """The groups, with files of one folder that differ only in their suffix merged, as decode reads them."""
    merged: list[Files] = []
    for files in sorted(groups, key=lambda group: (-len(group.paths), split_ending(group.pattern)[1].isupper())):
        head, ending = split_ending(files.pattern)
        beside = [group for group in merged if split_ending(group.pattern)[0] == head and group.id == files.id]
        same = [group for group in beside if same_format(ending, split_ending(group.pattern)[1])]
        if fitting := same or [group for group in beside if not _belong_to(files, group)]:
            place, first = merged.index(fitting[0]), fitting[0]
            merged[place] = replace(first, paths=files.paths | first.paths, parts=files.parts | first.parts)
        else:
            merged.append(files)
    return sorted(merged, key=lambda group: group.pattern)


def _belong_to(files: Files, others: Files) -> bool:
    """Whether files have the same names as others or longer ones, as masks and depth maps next to images do."""
    names = [match[1] for name in files.paths if (match := _WITH_ENDING.fullmatch(name))]
    if any(name in others.paths for name in [*files.paths, *names]):
        return True
    heads = {match[1] for name in others.paths if (match := _WITH_ENDING.fullmatch(name))}
    return bool(heads.intersection(names))  # 7_sat.jpg and 7_mask.png


def masks_beside(files: Files) -> tuple[Files, Files | None]:
    """Returns the images without the masks in the same folder, and these masks (None if there are none).

    `X_mask.tif` and `X_mask_1.tif` are masks if `X.tif` exists.
    """
    matches = {name: match for name in files.paths if (match := _WITH_ENDING.fullmatch(name))}
    endings = Counter(match[2] for match in matches.values() if match[1] in files.paths)
    if files.id or not endings or endings.most_common(1)[0][1] < 2 or "*" in files.pattern:
        return files, None
    ending = endings.most_common(1)[0][0]
    further = re.compile(rf"(.+){re.escape(ending)}[_-]?\d+")
    numbered = {name for name in files.paths if (match := further.fullmatch(name)) and match[1] in files.paths}
    images = {name: path for name, path in files.paths.items() if not name.endswith(ending) and name not in numbered}
    masks = {name.removesuffix(ending): path for name, path in files.paths.items() if name.endswith(ending)}
    ending += "*" * bool(numbered)
    head, suffix = files.pattern.rsplit("{id}", 1)
    parts = {name: files.parts[name] for name in images if name in files.parts}
    beside = Files(f"{head}{{id}}{ending}{suffix}", masks, parts={name: parts[name] for name in masks if name in parts})
    return replace(files, paths=images, parts=parts, exclude=(f"*{ending}{suffix}",)), beside


def by_name(groups: list[Files]) -> list[Files]:
    """Returns the files of plain folders with their complete names, such as `x.png`, as ids (`train/{id}`)."""
    by_pattern: dict[str, Files] = {}
    for files in groups:
        head, suffix = files.pattern.rsplit("/", 1)[0] if "/" in files.pattern else "", Path(files.pattern).suffix
        if "{" in head or files.pattern.removeprefix(f"{head}/") != f"{{id}}{suffix}":
            continue
        pattern = f"{head}/{{id}}" if head else "{id}"
        known = by_pattern.get(pattern, Files(pattern, {}))
        names = {name + suffix: path for name, path in files.paths.items()}
        by_pattern[pattern] = Files(pattern, known.paths | names, (*known.exclude, *files.exclude))
    return list(by_pattern.values())

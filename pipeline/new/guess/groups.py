"""Guesses which images belong to one group, such as a patient: by a column of a table, or by a part of their ids."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.core.config.preparing import SplitSettings
from pipeline.decode.readers.columns import group_in
from pipeline.new.guess.base import Files, Guess
from pipeline.new.guess.tables import Named

_COLUMNS = (
    re.compile(r"patient|subject|person|participant|donor|case", re.IGNORECASE),
    re.compile(r"study|exam|video|volume|specimen|slide|wsi|group", re.IGNORECASE),
    re.compile(r"site|hospital|cent(er|re)|location", re.IGNORECASE),
)
"""Names of columns that are groups, the most likely first."""
_SIDE = re.compile(r"(image_?)?(height|width)", re.IGNORECASE)
_LIKELY = (
    re.compile("patient|pat|pt|p|case|subject|subj|sub|person|participant|donor|individual|animal|mouse"),
    re.compile("study|exam|volume|vol|scan|series|video|vid|slide|wsi|specimen|sequence|seq"),
    re.compile("site|hospital|center|centre|clinic|city|region|farm|field|scene|location|group"),
)
"""Names of parts of ids that are groups, the most likely first."""
_UNLIKELY = re.compile(
    "frame|slice|tile|patch|crop|x|y|z|t|row|col|column|view|aug|time|day|date|week|month|year|page|layer|channel|band|"
    "class|label|mask|rot|flip|scale"
)
"""Names of parts that distinguish the images of one group."""
_SEPARATORS = ("[-_ /:]+", "_+", "-+", "/+", " +", ":+")
_LETTERS_DIGITS = re.compile(r"[^\W\d_]+\d+")
_HEAD = re.compile(r"[A-Za-z]+(?=[-_ ]?\d)|[a-z]+(?=[-_ ]?[A-Z]\b)", re.ASCII)
"""The word at the beginning of a name such as site3 or siteA."""
_YEAR = re.compile(r"(19|20)\d\d")
_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}(\.\w+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """A value of the setting `group`, with the number of groups and the evidence."""

    value: str
    count: int
    evidence: str
    table: str | None = None
    """The table that has this column, if it is not the table of masks."""


def guess_group(
    masks: Named | None, further: Named | None, images: list[str], files: Files | None = None
) -> list[Guess]:
    """Returns the guess for `group`, for `train.table` if there is a further table, and for `split.folds` if there are
    few groups.

    Args:
        masks: the table of masks, if there is one.
        further: a further table with one row per image, if there is one.
        images: ids of the training images.
        files: the training images, whose paths may have named parts.
    """
    in_ids = sorted(parts_of_ids(images), key=lambda part: part.order)
    group = _by_template(masks, images) or _by_column(masks, images) or _by_column(further, images)
    group = (
        group
        or (_by_part(files) if files else None)
        or next((part.group() for part in in_ids if _clearly_fewer(part.count, len(images))), None)
    )
    guesses = []
    if further:
        others = ", ".join(f"`{name}`" for name in further.table.frame.columns if name not in further.key.columns)
        name = further.table.name if group and group.table else None
        text = f"{further.table.name} has {others}, to group or stratify by"
        guesses.append(Guess("train.table", name, "guess", text))
    if group:
        text = f"{group.evidence}; {group.count} for {len(images)} images"
        guesses.append(Guess("group", group.value, "guess", text))
        if group.count < SplitSettings().folds:
            guesses.append(Guess("split.folds", group.count, "guess", "as many as there are groups"))
        return guesses
    repeated = [f"`{column}` ({count} values)" for column, count in _repeated(masks).items()]
    shown = f"{', '.join(repeated)} could be one" if repeated else "no column and no part of the ids looks like one"
    return [*guesses, Guess("group", None, "guess", f"{shown}{_offer(in_ids, images)}")]


def _clearly_fewer(groups: int, images: int) -> bool:
    return 3 <= groups <= images / 2


def _by_part(files: Files) -> Group | None:
    """The part of the paths that is a group, according to its name, the word its values begin with, or because it names
    folders."""
    parts: list[tuple[int, Group]] = []
    for name in files.parts_named:
        values = {of_image.get(name, "") for of_image in files.parts.values()}
        heads = {match[0].lower() if (match := _HEAD.match(value)) else "" for value in values}
        words = {name, *(heads if len(heads) == 1 else ())}
        rank = next((rank for rank, names in enumerate(_LIKELY) if any(map(names.fullmatch, words))), len(_LIKELY))
        by_name = rank < len(_LIKELY)
        if any(map(_UNLIKELY.fullmatch, words)) or not (
            _clearly_fewer(len(values), len(files.paths)) or (by_name and 2 <= len(values) <= len(files.paths) / 2)
        ):
            continue
        if not by_name and f"{{{name}}}" not in files.pattern.rpartition("/")[0]:
            continue  # a number of files
        text = f"a part of the path, {min(values)} for instance"
        parts.append((rank, Group(name, len(values), text)))
    return min(parts, key=lambda pair: pair[0], default=(0, None))[1]


# --- columns ---------------------------------------------------------------------------------------------------------


def _by_template(masks: Named | None, images: list[str]) -> Group | None:
    if masks is None or len(masks.key.columns) < 2 or not set(images) <= set(masks.key.ids):
        return None
    first = masks.key.columns[0]
    count = masks.table.frame[first].nunique()
    return Group(first, count, f"ids are {masks.key.id}") if _clearly_fewer(count, len(images)) else None


def _by_column(named: Named | None, images: list[str]) -> Group | None:
    """A column that is a group according to its name. In a table without run lengths, some images may have no row."""
    absent = len(set(images) - set(named.key.ids)) if named else 0
    if named is None or (absent and named.table.rle):
        return None
    counts = _repeated(named)
    named_columns = [column for names in _COLUMNS for column in counts if names.search(column)]
    table = None if named.table.rle else named.table.name
    more = f"; images without a row: {absent}, add them, or set `group_missing: own`" if absent else ""
    return Group(named_columns[0], counts[named_columns[0]], f"by its name{more}", table) if named_columns else None


def _repeated(named: Named | None) -> dict[str, int]:
    """Columns with repeated values, with the number of different values."""
    if named is None:
        return {}
    used = (*named.key.columns, named.table.rle, named.rows.label)
    others = [str(column) for column in named.table.frame.columns if column not in used and not _SIDE.fullmatch(column)]
    counts = {column: named.table.frame[column].nunique() for column in others}
    return {column: count for column, count in counts.items() if 2 <= count <= len(set(named.key.ids)) / 2}


# --- parts of ids ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdPart:
    """A part of the ids that may be a group."""

    pattern: str
    """The value of the setting `group`."""
    count: int
    """Number of groups."""
    order: tuple[int, int]
    """Sort key: smaller is more likely."""
    example: tuple[str, str]
    """An id and its group."""

    def group(self) -> Group:
        """Returns this part as a guess."""
        image_id, group = self.example
        return Group(self.pattern, self.count, f"a part of the ids; for instance, {image_id} is in group {group}")


def parts_of_ids(images: list[str]) -> Iterator[IdPart]:
    """Yields the parts of ids that several images share, such as case123 in case123_day20_slice_0001.

    All ids must have the same separators, at least at their beginning. Parts with the name of a group (case, patient)
    come first, then numbered parts that determine the beginning of the id. Parts that number slices, tiles or days are
    not groups. Every pattern is checked with `group_in`.
    """
    if len(images) < 2 or any(_UUID.fullmatch(image_id) for image_id in images):
        return
    for ids, between in _taken_apart(images):
        parts = [part for place in range(len(between) + 1) if (part := _part(images, ids, between, place))]
        yield from parts
        if parts:
            return


def _taken_apart(images: list[str]) -> Iterator[tuple[list[list[str]], list[str]]]:
    """Yields the ids split into equally many parts, and the separators between the parts."""
    for separator in _SEPARATORS:
        expression = re.compile(f"({separator})")
        pieces = [expression.split(image_id) for image_id in images]
        least = min(map(len, pieces))
        pieces = [[*split[: least - 1], "".join(split[least - 1 :])] for split in pieces]
        if (
            least > 1
            and len({tuple(split[1::2]) for split in pieces}) == 1
            and all(all(split[::2]) for split in pieces)
        ):
            yield [split[::2] for split in pieces], pieces[0][1::2]
    letters = [_LETTERS_DIGITS.findall(image_id) for image_id in images]
    if len({len(split) for split in letters}) == 1 and ["".join(split) for split in letters] == images:
        yield letters, [""] * (len(letters[0]) - 1)


def _part(images: list[str], ids: list[list[str]], between: list[str], place: int) -> IdPart | None:
    values = [parts[place] for parts in ids]
    count, last = len(set(values)), place == len(between)
    rank = _rank(ids, place)
    if not 2 <= count < len(images) or rank is None:
        return None
    if rank == len(_LIKELY):  # by no name
        if last or all(map(_YEAR.fullmatch, values)) or len({tuple(parts[: place + 1]) for parts in ids}) != count:
            return None
        rank += not all(re.search(r"\d", value) for value in values)
    pattern = _pattern(ids, between, place)
    if pattern is None or [group_in(pattern, image_id) for image_id in images] != values:
        return None
    return IdPart(pattern, count, (rank, place), (images[0], values[0]))


def _rank(ids: list[list[str]], place: int) -> int | None:
    """The rank of a part's name among names of groups, the last rank for other names; None if it cannot be a group."""
    name = _name(ids, place)
    if _UNLIKELY.fullmatch(name):
        return None
    return next((rank for rank, names in enumerate(_LIKELY) if names.fullmatch(name)), len(_LIKELY))


def _name(ids: list[list[str]], place: int) -> str:
    """The name of a part in lower case: the letters before its number, or the constant part before it; "" otherwise."""
    heads = {match[0].casefold() for parts in ids if (match := re.match(r"[^\W\d_]+(?=\d|[A-Z]$)", parts[place]))}
    if len(heads) == 1:
        return heads.pop()
    before = {parts[place - 1].casefold() for parts in ids} if place else set()
    return before.pop() if len(before) == 1 else ""


def _pattern(ids: list[list[str]], between: list[str], group: int) -> str | None:
    """The pattern of the ids with `{group}` in place of a part; None if ids contain braces."""
    if any(set("{}") & set("".join(parts)) for parts in ids):
        return None
    texts, used = [], {"group"}
    for place in range(len(between) + 1):
        values = {parts[place] for parts in ids}
        heads = {re.match(r"[^\W\d_]*(?=\d|$)|", value)[0] for value in values}  # type: ignore[index]
        head = heads.pop() if len(heads) == 1 and place != group else ""
        if place == group:
            texts.append("{group}")
        elif len(values) == 1:
            texts.append(values.pop())
        else:
            name = head.lower() if re.fullmatch(r"[A-Za-z]+", head) else "number" if place == len(between) else ""
            name = name if name and name not in used else f"part_{place + 1}"
            used.add(name)
            texts.append(f"{head}{{{name}}}")
    return "".join(text + separator for text, separator in zip(texts, [*between, ""], strict=True))


def _offer(in_ids: list[IdPart], images: list[str]) -> str:
    """The end of a sentence: how to set `group` to a part of the ids; "" if they have no parts."""
    if in_ids:
        best = in_ids[0]
        image_id, group = best.example
        return f"; if `{group}` of `{image_id}` is a group, set `group: {best.pattern!r}` ({best.count} groups)"
    for ids, between in _taken_apart(images):
        place = next((place for place in range(len(between)) if len({parts[place] for parts in ids}) > 1), None)
        pattern = None if place is None or _UUID.fullmatch(images[0]) else _pattern(ids, between, place)
        if pattern and place is not None:
            return f"; if `{ids[0][place]}` of `{images[0]}` is a group, set `group: {pattern!r}`"
    return ""

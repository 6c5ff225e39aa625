"""Guesses the settings for the columns of a table of masks and of a sample submission."""

from collections.abc import Iterable
from dataclasses import replace

from pipeline.new.guess.base import Guess
from pipeline.new.guess.find import Found
from pipeline.new.guess.tables import Named


def under(parent: str, guesses: Iterable[Guess]) -> list[Guess]:
    """Returns guesses with their keys moved into a section."""
    return [replace(guess, key=f"{parent}.{guess.key}") for guess in guesses]


def columns_of(named: Named, usual: str | None = None) -> dict[str, Guess]:
    """Returns the settings for a table's columns, by name.

    Args:
        named: the table.
        usual: the column of run lengths to expect, if no column contains run lengths; otherwise the last free column.
    """
    table, key, rows = named.table, named.key, named.rows
    rest = [str(column) for column in table.frame.columns if column not in (*key.columns, rows.label)]
    lengths = table.rle or (usual if usual in rest else rest[-1] if rest else "")
    guesses = [Guess("id", key.id, named.certainty, f"{named.hits} among the images")]
    if key.pattern:
        guesses.append(Guess("pattern", key.pattern, named.certainty, rows.evidence))
    if rows.label:
        guesses.append(Guess("label", rows.label, "sure" if rows.kind == "class" else "guess", rows.evidence))
    if rows.until:
        text = f"labels such as {table.frame[rows.label].max()!r} have more than a class"
        guesses.append(Guess("label_until", rows.until, "guess", text))
    text = "pairs of numbers" if table.rle else "the column that is left"
    guesses.append(Guess("rle", lengths, "sure" if table.rle else "guess", text))
    if rows.kind == "instance":
        guesses.append(Guess("rows", "instance", "guess", rows.evidence))
    return {guess.key: guess for guess in guesses}


def differing(columns: dict[str, Guess], sample: Named, usual: str | None) -> list[Guess]:
    """Returns the settings in which the sample submission differs from the table of masks."""
    of_sample = columns_of(sample, usual)
    if sample.table.pixels:
        text = f"{sample.table.name} has {sample.table.pixels} columns 0, 1, 2, …"
        return under("submission", [Guess("format", "labels", "sure", text), of_sample["id"]])
    guesses = []
    for name in ("id", "pattern", "label", "rle"):
        here, of_masks = of_sample.get(name), columns.get(name)
        if here and (of_masks is None or here.value != of_masks.value):
            guesses.append(here)
    if "rows" in columns and "rows" not in of_sample:
        text = f"as in training; {sample.table.name} has one row per image and may be a placeholder"
        guesses.append(Guess("rows", "instance", "guess", text))
    return under("submission", guesses)


def placeholder_of(sample: Named | None, usual: str | None) -> str:
    """Returns the text that the sample submission has for the mask in all of its rows; "" if the texts differ."""
    column = "" if sample is None else columns_of(sample, usual)["rle"].value
    written = set(sample.table.frame[column].str.strip()) if sample and column else set()
    return written.pop() if len(written) == 1 else ""


def unsampled(found: Found) -> list[Guess]:
    """Returns the settings of a submission if the masks are image files or annotations."""
    several = found.annotations and len(found.annotations.labels) > 1
    if not found.sample:
        text = "no sample submission shows this column"
        return [Guess("submission.label", "class", "guess", text)] if several and found.test else []
    guesses = differing({}, found.sample, None)
    if not found.sample.table.pixels:
        guesses.append(Guess("rle.order", "column", "guess", "no file shows how run lengths are written"))
        guesses.append(Guess("rle.base", 1, "guess", "no file shows it"))
    return guesses

"""Lists what is wrong with the training images and their masks. Raw files are never touched.

    python -m pipeline clean RECIPE

reads   work/<competition>/images.parquet, histograms.npy, thumbnails.npy; input/<competition>/ for the pictures
        and, for the images that training and test set share, test_images.parquet, test_histograms.npy and
        test_thumbnails.npy
writes  work/<competition>/outliers.csv: image_id, reason, score, partner_id, note, and
        action (drop | relabel | soft | keep)
        work/<competition>/test_duplicates.csv: the same columns, one row per training image that a test image looks
        like. No fold, model or score depends on it, so that a new test set changes none of them
        work/<competition>/outliers/<reason>.png: the first and the last findings by score, each beside its partner; of
        duplicates also the nearest pairs beyond the bound, which are not taken for any; these are listed in apart.csv

Detectors and what their scores count: outliers.py. Their settings, and what follows from a finding: `clean` in the
competition's YAML (core/config/cleaning.py). outliers.csv may be edited: everything after it goes by what it then says.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text

from pipeline.clean import outliers
from pipeline.clean.duplicates import Pairs, connected_groups, cross_pairs, near_pairs
from pipeline.core import freshness
from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.core.console import console, counting, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_png, writing
from pipeline.core.freshness import Reason, Step
from pipeline.core.intact import read_array
from pipeline.core.run import Run
from pipeline.core.tables import write_for_people
from pipeline.decode import table
from pipeline.decode.descriptors import block_grid
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import overlay

LESS_MEMORY = "close other programs, or set clean.duplicates.search to false in the competition's YAML"
SHARED = True
TEST_PICTURE = "test_duplicate.png"
REASONS = ("broken", "duplicate", "identical_mask", "contradiction", "pixel_outlier")
"""Of findings about training images, as their pictures are called."""
FOR_TEST: Any = {"broken": True, "duplicates": True}
"""Settings of `clean` that decide about images that the test set has too."""
PICTURES = 8
"""Findings of each end of a reason's scores that a picture shows."""
BEYOND = 2.0
"""Up to how many times the largest distance of near-duplicates pairs are searched for, to be shown."""


def steps(run: Run) -> list[Step]:
    """Returns the steps of this stage: the findings about the training images, and where there is a test set those that
    it has too."""
    rules = run.competition.clean
    manifest = run.competition_folder / "outliers.manifest.json"
    settings: dict[str, Any] = {"clean": rules.model_dump(exclude={"duplicates": {"test"}})}
    settings |= {"group": run.competition.group, "foreground": run.competition.foreground}
    inputs = (run.table, run.histograms, run.thumbnails)
    pictures = tuple(run.outlier_pictures / f"{reason}.png" for reason in REASONS)
    also = (*pictures, run.pairs_apart)
    found = Step("clean", "clean", manifest, inputs, (run.outliers,), settings, also=also, editable=(run.outliers,))
    if not run.competition.has_test:
        return [found]
    manifest, settings = run.test_duplicates.with_suffix(".manifest.json"), rules.model_dump(include=FOR_TEST)
    both = (*inputs, run.test_table, run.test_histograms, run.test_thumbnails)
    outputs = (run.test_duplicates,)
    also = (run.outlier_pictures / TEST_PICTURE,)
    return [found, Step("clean", "test duplicates", manifest, both, outputs, settings, also=also, subset="test")]


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Whether outliers.csv stays: it does when somebody edited it."""
    return freshness.is_user_edited(step, run.outliers)


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the lists and the pictures, and prints the counts by reason."""
    images, pictures = table.read_table(run.table), shown(run.outlier_pictures)
    for step in waiting:
        if run.outliers in step.outputs:
            found, beyond = find(run, images)
            _remove_pictures(run, of_test=False)
            _draw(run, images, images, found, beyond)
            write_for_people(run.pairs_apart, beyond)
            said = "1 finding" if len(found) == 1 else f"{len(found) or 'no'} findings"
        else:
            tests = table.read_table(run.test_table)
            found, said = find_test_duplicates(run, images, tests), "no training image looks like a test image"
            if len(found):
                said = f"{len(found)} training image{' looks' if len(found) == 1 else 's look'} like a test image"
            _remove_pictures(run, of_test=True)
            _draw(run, images, tests, found, outliers.findings([]))
        (path,) = step.outputs
        write_for_people(path, found, freshness.writing_editable if path in step.editable else writing)
        _print(found)
        say(f"  {said} → {shown(path)}{f', pictures → {pictures}/' if len(found) else ''}")
        yield step


@dataclass(frozen=True)
class Described:
    """Rows of the table, numbered from 0, and what they are compared by."""

    images: pd.DataFrame
    histograms: np.ndarray  # (N, D) uint8
    thumbnails: np.ndarray  # (N, 256) float16


def find(run: Run, everything: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the findings of all detectors that are switched on about the images of the training table, the broken
    ones left out of all others; and, in the same columns, the nearest pairs that are not taken for near-duplicates."""
    settings = run.competition.clean
    found = [outliers.find_faulty(everything)]
    images = everything[(everything["subset"] == "train") & (everything["fault"] == "")]
    if settings.broken.action != "off":
        found.append(outliers.find_broken(images, settings.broken))
        images = images[~images["image_id"].isin(found[-1]["image_id"])]
    if not len(images):  # all are broken: there is nothing to compare
        return pd.concat(found, ignore_index=True), outliers.findings([])
    train, classes = _described(images, run.histograms, run.thumbnails), run.competition.foreground
    pairs, beyond = _pairs(run, train)
    found.append(outliers.find_duplicates(train.images, pairs))
    if settings.identical_masks.action != "off":
        clusters = connected_groups(len(images), pairs.left, pairs.right)
        found.append(outliers.find_identical_masks(train.images, clusters, classes, settings.identical_masks))
    if settings.contradictions.policy != "off":
        found.append(outliers.find_contradictions(
            train.images, train.histograms, pairs, classes, settings.contradictions, block_grid(run.competition.shape)
        ))  # fmt: skip
    if settings.pixel_outliers.action != "off":
        found.append(outliers.find_pixel_outliers(train.images, settings.pixel_outliers))
    return pd.concat([one for one in found if len(one)] or found[:1], ignore_index=True), beyond


def _described(images: pd.DataFrame, *descriptors: Path) -> Described:
    rows = images.index.to_numpy()
    arrays = (read_array(path)[rows] for path in descriptors)
    return Described(images.reset_index(drop=True), *arrays)


def _pairs(run: Run, train: Described) -> tuple[Pairs, pd.DataFrame]:
    """Near-duplicates and images of the same pixels, none where the search is switched off; and, as findings, the
    nearest pairs beyond the bound, for a person who wants to know whether it is right."""
    settings, exact = run.competition.clean.duplicates, outliers.exact_pairs(train.images)
    if not settings.search:
        return exact.only(np.zeros(len(exact), bool)), outliers.findings([])
    try:
        found = _search(run, train, settings.model_copy(update={"distance": min(2.0, BEYOND * settings.distance)}))
    except PipelineError:  # too many pairs for a picture may still be few enough within the bound
        found = _search(run, train, settings)
    near, beyond = (
        found.only(which) for which in (found.distance < settings.distance, found.distance >= settings.distance)
    )
    beyond = beyond.only(np.argsort(beyond.distance, kind="stable")[:PICTURES])
    ids = train.images["image_id"].to_numpy()
    apart = [
        (ids[left], "duplicate", round(float(distance), 5), ids[right], "apart", "")
        for left, right, distance in zip(beyond.left, beyond.right, beyond.distance, strict=True)
    ]
    both = Pairs(*(np.concatenate([vars(exact)[name], vars(near)[name]]) for name in vars(near)))
    return both, outliers.findings(apart)


def _search(run: Run, train: Described, settings: DuplicateSettings) -> Pairs:
    groups = train.images["group"].to_numpy() if run.competition.group and settings.within_groups else None
    with counting("near-duplicates") as show:
        return near_pairs(train.histograms, train.thumbnails, settings, groups, show)


def find_test_duplicates(run: Run, images: pd.DataFrame, tests: pd.DataFrame) -> pd.DataFrame:
    """Returns a finding for every training image, the broken ones left out, that a test image looks like; none where
    the search is switched off. `images` and `tests` are the two tables of decode."""
    settings = run.competition.clean
    if not (settings.duplicates.search and settings.duplicates.test):
        return outliers.findings([])
    images = images[(images["subset"] == "train") & (images["fault"] == "")]
    if settings.broken.action != "off":
        images = images[~images["image_id"].isin(outliers.find_broken(images, settings.broken)["image_id"])]
    train = _described(images, run.histograms, run.thumbnails)
    test = _described(tests, run.test_histograms, run.test_thumbnails)
    pairs = cross_pairs(train.histograms, train.thumbnails, test.histograms, test.thumbnails, settings.duplicates)
    return outliers.find_test_duplicates(train.images, test.images, pairs)


# --- what a person sees ----------------------------------------------------------------------------------------------


def _print(found: pd.DataFrame) -> None:
    shown_table = Table("reason", "action", "images", "for instance", box=None, padding=(0, 2))
    for row in outliers.count_findings(found):
        shown_table.add_row(*(Text(str(value)) for value in row.values()))
    if len(found):
        console.print(shown_table)


def _remove_pictures(run: Run, of_test: bool) -> None:
    """Removes the pictures of earlier findings: of the test images, or all others."""
    for path in run.outlier_pictures.glob("*.png"):
        if (path.name == TEST_PICTURE) == of_test:
            path.unlink()


def _draw(run: Run, images: pd.DataFrame, partners: pd.DataFrame, found: pd.DataFrame, beyond: pd.DataFrame) -> None:
    """Draws the ends of every reason's list; an image that cannot be read has no picture. `partners`: the table that
    partners are in, of which an id may be in `images` too, for another image."""
    listed = [rows.drop_duplicates("image_id").set_index("image_id", drop=False) for rows in (images, partners)]
    of_test = partners is not images
    read = reader_of(run.competition).opener(run.competition, run.input)

    def picture(image_id: str, place: int) -> np.ndarray:
        row = listed[place].loc[image_id]
        if row["fault"]:
            return overlay.to_rgb8(read(row))
        masks = table.true_mask(row, run.competition.classes)
        return overlay.drawn(read(row), masks, np.zeros_like(masks), run.competition)

    for reason, rows in pd.concat([found, beyond], ignore_index=True).groupby("reason", sort=False):
        apart = rows["action"] == "apart"
        ordered = rows[~apart].sort_values("score", kind="stable")
        ordered = ordered if of_test else ordered[~_seen(ordered)]
        ends = pd.concat([ordered.head(PICTURES), ordered.tail(PICTURES)])
        ends = pd.concat([ends[~ends.index.duplicated()], rows[apart]])
        tiles = [tile for row in ends.itertuples() if (tile := _tile(row, picture)) is not None]
        if tiles:
            name = f"{str(reason).replace(' ', '_')}.png"
            write_png(run.outlier_pictures / name, overlay.contact_sheet(tiles))


def _seen(findings: pd.DataFrame) -> pd.Series:
    """Whether an earlier row has the same two images, the other way round."""
    pairs = zip(findings["image_id"], findings["partner_id"], strict=True)
    return pd.Series(list(map(frozenset, pairs)), findings.index, dtype=object).duplicated()


def _tile(finding: tuple, picture: Callable[[str, int], np.ndarray]) -> tuple[list[np.ndarray], str] | None:
    ids = [one for one in (finding.image_id, finding.partner_id) if one]  # type: ignore[attr-defined]
    try:
        caption = f"{' | '.join(ids)}  {finding.score:g}  {finding.action}"  # type: ignore[attr-defined]
        return [picture(one, place) for place, one in enumerate(ids)], caption
    except (ValueError, OSError, KeyError):
        return None

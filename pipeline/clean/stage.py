"""Lists problems of the training images and their masks. Raw files are never changed.

    python -m pipeline clean RECIPE

reads   work/<competition>/images.parquet, histograms.npy, thumbnails.npy; input/<competition>/ for the pictures
        and, for near-duplicates in the test set, test_images.parquet, test_histograms.npy and test_thumbnails.npy
writes  work/<competition>/outliers.csv: image_id, reason, score, partner_id, note, and
        action (drop | relabel | soft | keep)
        work/<competition>/test_duplicates.csv: the same columns, one row per training image with a near-duplicate in
        the test set. No fold, model or score depends on this file, so that a new test set does not change them
        work/<competition>/outliers/<reason>.png: the findings with the lowest and the highest scores, each beside its
        partner; for duplicates also the most similar pairs that do not count as near-duplicates, which are listed in
        outliers/apart.csv

outliers.py has the detectors and the meaning of their scores. Their settings, and what training does with a finding,
are under `clean` in the competition's YAML (core/config/cleaning.py). You may edit outliers.csv: all later stages use
the edited file.
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
from pipeline.core import editable
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
"""The reasons of findings about training images, as file names of their pictures."""
FOR_TEST: Any = {"broken": True, "duplicates": True}
"""The settings of `clean` for near-duplicates in the test set."""
PICTURES = 8
"""Number of findings with the lowest scores, and with the highest scores, that the picture of a reason shows."""
BEYOND = 2.0
"""Pairs that are too far apart for near-duplicates are shown up to this multiple of the maximum distance."""


def steps(run: Run) -> list[Step]:
    """Returns the steps of this stage: the findings about training images and, if there is a test set, the training
    images with a near-duplicate in it."""
    rules = run.competition.clean
    manifest = run.competition_folder / "outliers.manifest.json"
    settings: dict[str, Any] = {"clean": rules.model_dump(exclude={"duplicates": {"test"}})}
    settings |= {"group": run.competition.group, "foreground": run.competition.foreground}
    inputs = (run.table, run.histograms, run.thumbnails)
    pictures = tuple(run.outlier_pictures / f"{reason}.png" for reason in REASONS)
    also = (*pictures, run.pairs_apart)
    training_step = Step(
        "clean", "clean", manifest, inputs, (run.outliers,), settings, also=also, editable=(run.outliers,)
    )
    if not run.competition.has_test:
        return [training_step]
    manifest, settings = run.test_duplicates.with_suffix(".manifest.json"), rules.model_dump(include=FOR_TEST)
    both = (*inputs, run.test_table, run.test_histograms, run.test_thumbnails)
    outputs = (run.test_duplicates,)
    also = (run.outlier_pictures / TEST_PICTURE,)
    return [
        training_step,
        Step("clean", "test duplicates", manifest, both, outputs, settings, also=also, subset="test"),
    ]


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Returns whether the outputs are kept: outliers.csv is kept if the user edited it."""
    return editable.is_user_edited(step, run.outliers)


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes the lists and the pictures, and prints the number of findings per reason."""
    images, pictures = table.read_table(run.table), shown(run.outlier_pictures)
    for step in waiting:
        if run.outliers in step.outputs:
            listed, beyond = find(run, images)
            _remove_pictures(run, of_test=False)
            _draw(run, images, images, listed, beyond)
            write_for_people(run.pairs_apart, beyond)
            summary = "1 finding" if len(listed) == 1 else f"{len(listed) or 'no'} findings"
        else:
            tests = table.read_table(run.test_table)
            listed, summary = find_test_duplicates(run, images, tests), "no training image looks like a test image"
            if len(listed):
                summary = f"{len(listed)} training image{' looks' if len(listed) == 1 else 's look'} like a test image"
            _remove_pictures(run, of_test=True)
            _draw(run, images, tests, listed, outliers.findings([]))
        (path,) = step.outputs
        write_for_people(path, listed, editable.writing_editable if path in step.editable else writing)
        _print(listed)
        say(f"  {summary} → {shown(path)}{f', pictures → {pictures}/' if len(listed) else ''}")
        yield step


@dataclass(frozen=True)
class Described:
    """Rows of the table, numbered from 0, with the descriptors by which they are compared."""

    images: pd.DataFrame
    histograms: np.ndarray  # (N, D) uint8
    thumbnails: np.ndarray  # (N, 256) float16


def find(run: Run, everything: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the findings of all enabled detectors, and the most similar pairs that do not count as near-duplicates.

    Both tables have the same columns. Broken images are left out by all other detectors. `everything` is the table of
    training images.
    """
    settings = run.competition.clean
    findings = [outliers.find_faulty(everything)]
    images = everything[(everything["subset"] == "train") & (everything["fault"] == "")]
    if settings.broken.action != "off":
        findings.append(outliers.find_broken(images, settings.broken))
        images = images[~images["image_id"].isin(findings[-1]["image_id"])]
    if not len(images):  # all images are broken, so there is nothing to compare
        return pd.concat(findings, ignore_index=True), outliers.findings([])
    train, classes = _described(images, run.histograms, run.thumbnails), run.competition.foreground
    pairs, beyond = _pairs(run, train)
    findings.append(outliers.find_duplicates(train.images, pairs))
    if settings.identical_masks.action != "off":
        clusters = connected_groups(len(images), pairs.left, pairs.right)
        findings.append(outliers.find_identical_masks(train.images, clusters, classes, settings.identical_masks))
    if settings.contradictions.policy != "off":
        findings.append(outliers.find_contradictions(
            train.images, train.histograms, pairs, classes, settings.contradictions, block_grid(run.competition.shape)
        ))  # fmt: skip
    if settings.pixel_outliers.action != "off":
        findings.append(outliers.find_pixel_outliers(train.images, settings.pixel_outliers))
    return pd.concat([table for table in findings if len(table)] or findings[:1], ignore_index=True), beyond


def _described(images: pd.DataFrame, *descriptors: Path) -> Described:
    rows = images.index.to_numpy()
    arrays = (read_array(path)[rows] for path in descriptors)
    return Described(images.reset_index(drop=True), *arrays)


def _pairs(run: Run, train: Described) -> tuple[Pairs, pd.DataFrame]:
    """Returns the pairs of near-duplicates and of images with the same pixels (none if the search is switched off) and,
    as findings, the most similar pairs beyond the maximum distance, by which the user can judge whether it is right."""
    settings, exact = run.competition.clean.duplicates, outliers.exact_pairs(train.images)
    if not settings.search:
        return exact.only(np.zeros(len(exact), bool)), outliers.findings([])
    try:
        pairs = _search(run, train, settings.model_copy(update={"distance": min(2.0, BEYOND * settings.distance)}))
    except PipelineError:
        # too many pairs within the larger distance; within the maximum distance there may be few enough
        pairs = _search(run, train, settings)
    near, beyond = (
        pairs.only(which) for which in (pairs.distance < settings.distance, pairs.distance >= settings.distance)
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
    """Returns a finding for each training image that is not broken and has a near-duplicate in the test set; none if
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


# --- output for the user ---------------------------------------------------------------------------------------------


def _print(findings: pd.DataFrame) -> None:
    shown_table = Table("reason", "action", "images", "example", box=None, padding=(0, 2))
    for row in outliers.count_findings(findings):
        shown_table.add_row(*(Text(str(value)) for value in row.values()))
    if len(findings):
        console.print(shown_table)


def _remove_pictures(run: Run, of_test: bool) -> None:
    """Removes the pictures of earlier findings: those about the test set, or all others."""
    for path in run.outlier_pictures.glob("*.png"):
        if (path.name == TEST_PICTURE) == of_test:
            path.unlink()


def _draw(run: Run, images: pd.DataFrame, partners: pd.DataFrame, findings: pd.DataFrame, beyond: pd.DataFrame) -> None:
    """Draws the findings with the lowest and the highest scores of each reason. Images that cannot be read are left
    out. `partners` is the table of the partner images; its ids may occur in `images` too, for other images."""
    listed = [rows.drop_duplicates("image_id").set_index("image_id", drop=False) for rows in (images, partners)]
    of_test = partners is not images
    read = reader_of(run.competition).opener(run.competition, run.input)

    def picture(image_id: str, place: int) -> np.ndarray:
        row = listed[place].loc[image_id]
        if row["fault"]:
            return overlay.to_rgb8(read(row))
        masks = table.true_mask(row, run.competition.classes)
        return overlay.drawn(read(row), masks, np.zeros_like(masks), run.competition)

    for reason, rows in pd.concat([findings, beyond], ignore_index=True).groupby("reason", sort=False):
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
    """Returns whether an earlier row has the same two images in the opposite order."""
    pairs = zip(findings["image_id"], findings["partner_id"], strict=True)
    return pd.Series(list(map(frozenset, pairs)), findings.index, dtype=object).duplicated()


def _tile(finding: tuple, picture: Callable[[str, int], np.ndarray]) -> tuple[list[np.ndarray], str] | None:
    ids = [image_id for image_id in (finding.image_id, finding.partner_id) if image_id]  # type: ignore[attr-defined]
    try:
        caption = f"{' | '.join(ids)}  {finding.score:g}  {finding.action}"  # type: ignore[attr-defined]
        return [picture(image_id, place) for place, image_id in enumerate(ids)], caption
    except (ValueError, OSError, KeyError):
        return None

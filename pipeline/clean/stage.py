"""Lists what is wrong with the training images and their masks. Raw files are never touched.

    python -m pipeline clean RECIPE

reads   work/<competition>/images.parquet, histograms.npy, thumbnails.npy; input/<competition>/ for the pictures
writes  work/<competition>/outliers.csv: image_id, reason, score, partner_id, note, and
        action (drop | relabel | soft | keep)
        work/<competition>/outliers/<reason>.png: the first and the last findings by score, each beside its partner; of
        duplicates also the nearest pairs beyond the bound, which are not taken for any

Detectors and what their scores count: outliers.py. Their settings, and what follows from a finding: `clean` in the
competition's YAML (core/config/cleaning.py). outliers.csv may be edited: everything after it goes by what it then says.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from pipeline.clean import outliers
from pipeline.clean.duplicates import Pairs, connected_groups, cross_pairs, near_pairs
from pipeline.core import freshness
from pipeline.core.config.cleaning import DuplicateSettings
from pipeline.core.console import console, counting
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown, write_png, writing
from pipeline.core.freshness import Reason, Step
from pipeline.core.run import Run
from pipeline.decode import table
from pipeline.decode.descriptors import block_grid
from pipeline.decode.readers.registry import reader_of
from pipeline.masks import overlay

SHARED = True
PICTURES = 8
"""Findings of each end of a reason's scores that a picture shows."""
BEYOND = 2.0
"""Up to how many times the largest distance of near-duplicates pairs are searched for, to be shown."""


def steps(run: Run) -> list[Step]:
    """Returns the one step of this stage."""
    manifest = run.competition_folder / "outliers.manifest.json"
    settings: dict[str, Any] = {"clean": run.competition.clean.model_dump(), "group": run.competition.group}
    settings |= {"foreground": run.competition.foreground}
    inputs = (run.table, run.histograms, run.thumbnails)
    return [Step("clean", "clean", manifest, inputs, (run.outliers,), settings, editable=(run.outliers,))]


def keeps(run: Run, step: Step, reasons: list[Reason]) -> bool:
    """Whether outliers.csv stays: it does when somebody edited it."""
    return freshness.is_user_edited(step, run.outliers)


def execute(run: Run, waiting: list[Step]) -> Iterator[Step]:
    """Writes outliers.csv and the pictures, and prints the counts by reason."""
    everything = table.read_table(run.table)
    found, beyond = find(run, everything)
    _draw(run, everything, found, beyond)
    with writing(run.outliers) as temporary:  # last: a list that is there without its manifest is somebody's own
        found.to_csv(temporary, index=False)
    _print(found)
    console.print(f"  {len(found)} findings → {shown(run.outliers)}, pictures → {shown(run.outlier_pictures)}/")
    yield from waiting


@dataclass(frozen=True)
class Described:
    """Rows of the table, numbered from 0, and what they are compared by."""

    images: pd.DataFrame
    histograms: np.ndarray  # (N, D) uint8
    thumbnails: np.ndarray  # (N, 256) float16


def find(run: Run, everything: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the findings of all detectors that are switched on about the images of a table, the broken ones left out
    of all others; and, in the same columns, the nearest pairs that are not taken for near-duplicates."""
    settings = run.competition.clean
    found = [outliers.find_faulty(everything)]
    images = everything[(everything["subset"] == "train") & (everything["fault"] == "")]
    if settings.broken.action != "off":
        found.append(outliers.find_broken(images, settings.broken))
        images = images[~images["image_id"].isin(found[-1]["image_id"])]
    train, classes = _described(run, images), run.competition.foreground
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
    if settings.duplicates.search and settings.duplicates.test:
        found.append(_test_duplicates(run, train, everything))
    return pd.concat([one for one in found if len(one)] or found[:1], ignore_index=True), beyond


def _described(run: Run, images: pd.DataFrame) -> Described:
    rows = images.index.to_numpy()
    arrays = (np.load(path, mmap_mode="r")[rows] for path in (run.histograms, run.thumbnails))
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


def _test_duplicates(run: Run, train: Described, everything: pd.DataFrame) -> pd.DataFrame:
    test = _described(run, everything[(everything["subset"] == "test") & (everything["fault"] == "")])
    settings = run.competition.clean.duplicates
    pairs = cross_pairs(train.histograms, train.thumbnails, test.histograms, test.thumbnails, settings)
    return outliers.find_test_duplicates(train.images, test.images, pairs)


# --- what a person sees ----------------------------------------------------------------------------------------------


def _print(found: pd.DataFrame) -> None:
    shown_table = Table("reason", "action", "images", "for instance", box=None, padding=(0, 2))
    for row in outliers.count_findings(found):
        shown_table.add_row(*map(str, row.values()))
    if len(found):
        console.print(shown_table)


def _draw(run: Run, everything: pd.DataFrame, found: pd.DataFrame, beyond: pd.DataFrame) -> None:
    """Draws the ends of every reason's list; an image that cannot be read has no picture."""
    shutil.rmtree(run.outlier_pictures, ignore_errors=True)
    images = everything.drop_duplicates("image_id").set_index("image_id", drop=False)
    read = reader_of(run.competition).opener(run.competition, run.input)

    def picture(image_id: str) -> np.ndarray:
        row = images.loc[image_id]
        if row["fault"]:
            return overlay.to_rgb8(read(row))
        masks = table.true_mask(row, run.competition.classes)
        return overlay.drawn(read(row), masks, np.zeros_like(masks), run.competition)

    for reason, rows in pd.concat([found, beyond], ignore_index=True).groupby("reason", sort=False):
        apart = rows["action"] == "apart"
        ordered = rows[~apart].sort_values("score", kind="stable")
        ordered = ordered[~_seen(ordered)]
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


def _tile(finding: tuple, picture: Callable[[str], np.ndarray]) -> tuple[list[np.ndarray], str] | None:
    ids = [one for one in (finding.image_id, finding.partner_id) if one]  # type: ignore[attr-defined]
    try:
        caption = f"{' | '.join(ids)}  {finding.score:g}  {finding.action}"  # type: ignore[attr-defined]
        return [picture(one) for one in ids], caption
    except (ValueError, OSError, KeyError):
        return None

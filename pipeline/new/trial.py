"""Tries to decode some of the raw files, to find faults before any stage runs."""

import re
from dataclasses import dataclass

import numpy as np

from pipeline.core.run import Run
from pipeline.decode import checks
from pipeline.decode.images import Decoded, decode_one, first_type
from pipeline.decode.readers import remarks
from pipeline.decode.readers.base import SUBSETS, Fault, Item, Listing, SubsetName
from pipeline.decode.readers.files import evenly
from pipeline.masks.geometry import geometry_of

LOOKED_AT: dict[SubsetName, int] = {"train": 60, "test": 20}
"""Maximum number of images per subset that are read."""
OF_WINDOWS = 4
"""Divides this number for windows of huge images, which take longer to read."""
KINDS_SHOWN = 5


@dataclass(frozen=True)
class Trial:
    """The result of decoding some images."""

    faults: list[str]
    """Faults at which decode would stop, one sentence per kind."""
    remarks: list[str]
    """Further information for the user."""


def try_some(run: Run, listing: Listing) -> Trial:
    """Returns the faults and remarks of a listing, and of some of its images and masks.

    Args:
        run: a run with the competition and the geometry to use.
        listing: all images of the competition.
    """
    chosen = {name: [item for item in listing.items if item.subset == name] for name in SUBSETS}
    shares = {
        name: OF_WINDOWS if any(item.place.get("of_box") for item in items[:1]) else 1 for name, items in chosen.items()
    }
    sample = {name: evenly(items, LOOKED_AT[name] // shares[name]) for name, items in chosen.items()}
    remarks.forget()
    dtype = first_type(item for items in sample.values() for item in items)
    decoded = {name: [_decoded(item, run, dtype) for item in items] for name, items in sample.items()}
    faults = [*listing.faults, *(fault for images in decoded.values() for image in images for fault in image.faults)]
    if len(decoded["train"]) == len(chosen["train"]):
        faults += checks.find_faults(run, decoded["train"])  # faults that show only in all masks together
    partly, folder = sample != chosen, run.input  # run.input searches the disk at every call: keep it
    paths = {folder / item.path for item in listing.items}
    settled = checks.orientation_settled(run, decoded["train"])
    texts = remarks.sentences(paths, run.competition.reads_upright, settled)
    looked_at = f"of {sum(map(len, sample.values()))} images looked at, " * partly
    faults_shown = _by_kind(faults, " among those looked at" * partly)
    return Trial(faults_shown, [*listing.remarks, *(f"{looked_at}{text}" for text in texts)])


def _decoded(item: Item, run: Run, dtype: np.dtype) -> Decoded:
    return decode_one(item, run, geometry_of(run.recipe.image), dtype)


def _by_kind(faults: list[Fault], where: str) -> list[str]:
    """The first fault of each kind, with the number of faults that differ from it only in names and numbers."""
    kinds: dict[str, list[Fault]] = {}
    for fault in faults:
        text = fault.message.replace(str(fault.image_id), "") if fault.image_id else fault.message
        kinds.setdefault(re.sub(r"[\w./-]*\d[\w./-]*", "#", text), []).append(fault)
    shown = [f"{same[0]}" + f" (and {len(same) - 1} like it{where})" * (len(same) > 1) for same in kinds.values()]
    left = len(shown) - KINDS_SHOWN
    return shown[:KINDS_SHOWN] + ([f"{left} other kind{'s' * (left > 1)} of fault"] if left > 0 else [])

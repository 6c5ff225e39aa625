"""Raw files of recent competitions as they are downloaded, drawn small: folders, names, columns, types and oddities are
theirs, the pictures are ours."""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile

from pipeline.masks import rle
from pipeline.masks.rle import Convention

SHAPE = (40, 56)
ROWS = Convention("row")


@dataclass
class Raw:
    """A folder of raw files, and what decode must find in it, by id."""

    folder: Path
    train: dict[str, np.ndarray] = field(default_factory=dict)
    """Masks (classes, h, w) of 0, 1 and 255 (ignored)."""
    test: dict[str, np.ndarray] = field(default_factory=dict)
    """Masks of what a submission speaks of, of 0 and 1; of volumes (classes, n, h, w)."""
    images: dict[str, np.ndarray] = field(default_factory=dict)
    """(h, w, C), of some of the training images."""
    groups: dict[str, str] = field(default_factory=dict)
    instances: dict[str, int] = field(default_factory=dict)
    """How many instances of all classes there are, where the files tell them apart."""
    submitted: Counter[str] = field(default_factory=Counter)
    """How many masks that are not empty a submission holds of each test image."""

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, array: np.ndarray, **options: Any) -> None:
        """Writes an array in the format that the name ends with; RGB images are given as RGB."""
        path = self.path(name)
        if path.suffix == ".npy":
            np.save(path, array)
        elif path.suffix in (".tif", ".tiff"):
            tifffile.imwrite(path, array, **options)
        else:
            colours = array[..., ::-1] if array.ndim == 3 and array.shape[2] == 3 else array
            assert cv2.imwrite(str(path), colours)

    def csv(self, name: str, columns: str, rows: list[Any]) -> None:
        pd.DataFrame(rows, columns=columns.split(",")).to_csv(self.path(name), index=False)

    def json(self, name: str, *values: Any) -> None:
        self.path(name).write_text("\n".join(map(json.dumps, values)))


def drawn(
    number: int, parts: int = 1, shape: tuple[int, int] = SHAPE, colours: int = 1
) -> tuple[Any, list[np.ndarray]]:
    """A smooth picture (h, w) or (h, w, colours) uint8, and masks (h, w) of the ellipses on it, which lie apart."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 150, (5, 7, colours)).astype(np.uint8)
    picture = cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC).reshape(*shape, colours)
    width = shape[1] // parts
    masks = [np.zeros(shape, np.uint8) for _ in range(parts)]
    for part, mask in enumerate(masks):
        centre = (part * width + width // 2, int(rng.integers(shape[0] // 3, shape[0] - shape[0] // 3)))
        axes = (int(rng.integers(3, max(4, width // 2 - 1))), int(rng.integers(4, shape[0] // 3)))
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 1, -1)
        picture = picture + 80 * mask[..., None]
    return picture.astype(np.uint8).squeeze(), masks


def outline(mask: np.ndarray) -> list[list[int]]:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points: list[list[int]] = contours[0][:, 0].tolist()
    return points


def each(count: int, parts: int = 1, first: int = 0, **options: Any) -> Iterator[tuple[int, Any, list[np.ndarray]]]:
    """Yields a number from 0, a picture and its masks."""
    for number in range(count):
        yield number, *drawn(first + number, parts, **options)


def union(masks: list[np.ndarray]) -> np.ndarray:
    """Masks (h, w) as one (1, h, w)."""
    return np.max([np.zeros_like(masks[0]), *masks], axis=0)[None]


# --- the competitions ------------------------------------------------------------------------------------------------


def recodai(raw: Raw) -> None:
    """Authentic and forged images share names; masks are (n, h, w), and here and there (h, w)."""
    for number, picture, masks in each(6, 2, colours=3):
        for kind, image in (("authentic", picture[::-1]), ("forged", picture)):
            raw.write(f"train_images/{kind}/{number}.png", image)
            raw.images[f"{kind}_{number}"], raw.groups[f"{kind}_{number}"] = image, f"{number}"
        planes = masks[: 1 + number % 2]
        raw.write(f"train_masks/{number}.npy", planes[0] if number == 0 else np.stack(planes))
        raw.train[f"forged_{number}"], raw.train[f"authentic_{number}"] = union(planes), union(planes) * 0
        raw.instances |= {f"forged_{number}": len(planes), f"authentic_{number}": 0}
    raw.write("supplemental_images/0.png", drawn(50, colours=3)[0])
    for number, picture, masks in each(3, 2, first=20, colours=3):
        raw.write(f"test_images/{45 + number}.png", picture)
        raw.test[f"{45 + number}"] = union(masks[:number] or [masks[0] * 0])
    raw.csv("sample_submission.csv", "case_id,annotation", [(name, "authentic") for name in raw.test])


def sennet(raw: Raw) -> None:
    """The same numbers of slices in each kidney; one has labels alone, another is a part of the first."""
    for place, kidney in enumerate(("kidney_1_dense", "kidney_1_voi", "kidney_2", "kidney_3_sparse")):
        for number, picture, masks in each(4, first=10 * place):
            name, image = f"{kidney}_{number:04}", picture.astype(np.uint16) * 257
            raw.write(f"train/{kidney}/images/{number:04}.tif", image)
            raw.write(f"train/{kidney}/labels/{number:04}.tif", 255 * masks[0])
            raw.train[name], raw.images[name], raw.groups[name] = union(masks), image[..., None], kidney
            if kidney == "kidney_3_sparse":
                raw.write(f"train/kidney_3_dense/labels/{number:04}.tif", 255 * masks[0])
    rows = [(name, rle.encode(masks[0], ROWS)) for name, masks in raw.train.items()]
    raw.csv("train_rles.csv", "id,rle", [*rows, ("kidney_3_dense_0000", "1 0")])
    for kidney in ("kidney_5", "kidney_6"):
        for number, picture, masks in each(3, first=60):
            raw.write(f"test/{kidney}/images/{number:04}.tif", picture.astype(np.uint16) * 257)
            raw.test[f"{kidney}_{number:04}"] = union(masks) * (number > 0)
    raw.csv("sample_submission.csv", "id,rle", [(name, "1 0") for name in raw.test])


def kelp(raw: Raw) -> None:
    """Seven bands of int16 with gaps, masks of 0 and 1, and no sample submission."""
    for number, picture, masks in each(8):
        name = f"{'AX' if number < 6 else 'BE'}{number * 7919:06}"
        bands = np.stack([picture.astype(np.int16) * (60 + band) for band in range(5)], axis=2)
        bands = np.concatenate(
            [bands, masks[0][..., None], picture[..., None].astype(np.int16) * 3], axis=2, dtype=np.int16
        )
        bands[:3, :3] = -32768
        part = "train" if number < 6 else "test"
        raw.write(f"{part}_satellite/{name}_satellite.tif", bands, photometric="minisblack", planarconfig="contig")
        if part == "test":
            raw.test[name] = union(masks)
            continue
        raw.write(f"train_kelp/{name}_kelp.tif", masks[0])
        shares = (bands / np.array([32767] * 5 + [1, 1000])).clip(0, 1)
        raw.train[name], raw.images[name] = union(masks), np.rint(shares * 65535).astype(np.uint16)
    raw.csv("metadata_fTq0l2T.csv", "tile_id,type,in_train", [(name, "kelp", True) for name in raw.train])


def contrails(raw: Raw) -> None:
    """Nine bands of eight times in float32; masks of each annotator, validation records, and a sample of other ids."""
    for number, part in enumerate(["train"] * 6 + ["validation", "validation", "test", "test"]):
        name, (picture, masks) = f"{10**18 + number * 7919}", drawn(number)
        masks = [masks[0] * (number % 3 > 0 and number != 9)]
        values = np.stack([picture / np.float32(2.5) + 200 + time for time in range(8)], axis=2).astype(np.float32)
        for band in range(8, 17):
            raw.write(f"{part}/{name}/band_{band:02}.npy", values + band / np.float32(10))
        if part == "test":
            raw.test[name] = union(masks)
            continue
        raw.write(f"{part}/{name}/human_pixel_masks.npy", masks[0][..., None].astype(np.int32))
        if part == "train":
            raw.write(f"train/{name}/human_individual_masks.npy", np.repeat(masks[0][..., None, None], 4, axis=3))
            own = [values[..., 4] + band / np.float32(10) for band in (11, 14, 15)]
            raw.images[name] = ((np.stack(own, axis=2) - 200) / np.float32(110)).clip(0, 1).astype(np.float16)
            raw.train[name] = union(masks)
    raw.json("train_metadata.json", [])
    raw.csv(
        "sample_submission.csv",
        "record_id,encoded_pixels",
        [(name, "1 1") for name in (*raw.test, "1002653297254493116")],
    )


def vesuvius_ink(raw: Raw) -> None:
    """Layers of a fragment as files; the papyrus, a photograph and run lengths beside."""
    for number, (name, part) in enumerate({"1": "train", "2": "train", "3": "train", "a": "test", "b": "test"}.items()):
        picture, masks = drawn(number, 2, (64, 96))
        layers = [picture.astype(np.uint16) * 200 + 40 * layer for layer in (0, *range(24, 40), 64)]
        for layer, image in zip((0, *range(24, 40), 64), layers, strict=True):
            raw.write(f"{part}/{name}/surface_volume/{layer:02}.tif", image)
        raw.write(f"{part}/{name}/mask.png", np.full((64, 96), 255, np.uint8))
        if part == "train":
            raw.write(f"train/{name}/ir.png", picture)
            raw.write(f"train/{name}/inklabels.png", 255 * union(masks)[0])
            raw.csv(f"train/{name}/inklabels_rle.csv", "Id,Predicted", [(name, rle.encode(union(masks)[0], ROWS))])
            raw.train[name], raw.images[name] = union(masks), np.stack(layers[1:17], axis=2)
        else:
            raw.test[name] = union(masks)
    raw.csv("sample_submission.csv", "Id,Predicted", [("a", "1 1 5 1"), ("b", "1 1 5 1")])


def vesuvius_surface(raw: Raw) -> None:
    """Volumes, of which parts nobody labelled; a table of scrolls."""
    rows = []
    for number in range(7):
        slices = [drawn(10 * number + place) for place in range(3)]
        name, labels = f"{1004283650 + number}", np.stack([masks[0] for _, masks in slices])
        part = "train" if number < 6 else "test"
        raw.write(f"{part}_images/{name}.tif", np.stack([one for one, _ in slices]), photometric="minisblack",
                  compression="lzw")  # fmt: skip
        if part == "test":
            raw.test[name] = labels[None]
            raw.csv("test.csv", "id,scroll_id", [(name, 26002)])
            continue
        labels[:, :6] = 2
        raw.write(f"train_labels/{name}.tif", labels, photometric="minisblack", compression="lzw")
        rows.append((name, 26000 + number // 2 * 2 if number < 2 else 30000 + number))
        for place, plane in enumerate(labels):
            raw.train[f"{name}_{place:03}"] = np.where(plane == 2, 255, plane)[None].astype(np.uint8)
            raw.groups[f"{name}_{place:03}"] = name
    raw.csv("train.csv", "id,scroll_id", rows)


def hubmap_vasculature(raw: Raw) -> None:
    """Polygons of some of the tiles; labels of three kinds, of which one is scored and one uncertain."""
    lines, tiles = [], []
    for number, picture, masks in each(8, 3, colours=3):
        name = f"{number:04x}f1e4fc32"
        raw.write(f"train/{name}.tif", picture)
        tiles.append((name, number % 4 + 1, 1 if number < 4 else 2, 512 * number, 0))
        kinds = ("blood_vessel", "glomerulus", "unsure")[: 2 + number % 2]
        polygons = [{"type": kind, "coordinates": [outline(mask)]} for kind, mask in zip(kinds, masks, strict=False)]
        lines.append({"id": name, "annotations": polygons})
        unsure = masks[2] * 255 * (number % 2)
        raw.train[name], raw.images[name], raw.groups[name] = (masks[0] | unsure)[None], picture, f"{number % 4 + 1}"
    raw.write("train/00ffunlabelled.tif", drawn(40, colours=3)[0])
    raw.write("test/72e40acccadf.tif", drawn(41, 2, colours=3)[0])
    raw.test["72e40acccadf"] = union(drawn(41, 2)[1])
    tiles += [("00ffunlabelled", 9, 3, 0, 0), ("72e40acccadf", 1, 1, 0, 512)]
    raw.json("polygons.jsonl", *lines)
    raw.csv("tile_meta.csv", "id,source_wsi,dataset,i,j", tiles)
    raw.csv("wsi_meta.csv", "source_wsi,age,sex", [(1, 58, "F")])
    raw.csv("sample_submission.csv", "id,height,width,prediction_string", [("72e40acccadf", *SHAPE, "")])


def hubmap_hpa(raw: Raw) -> None:
    """One table of run lengths and of what is known of each image; polygons that say the same."""
    columns = "id,organ,data_source,img_height,img_width,pixel_size,tissue_thickness,rle,age,sex"
    rows = []
    for number, picture, masks in each(8, 2, colours=3):
        name = f"{10044 + number}"
        raw.write(f"train_images/{name}.tiff", picture)
        raw.json(f"train_annotations/{name}.json", [outline(mask) for mask in masks])
        rows.append(
            (name, ("lung", "kidney")[number % 2], "HPA", *SHAPE, 0.4, 4, rle.encode(union(masks)[0]), 40.0, "Male")
        )
        raw.train[name], raw.images[name] = union(masks), picture
    raw.csv("train.csv", columns, rows)
    raw.write("test_images/10078.tiff", drawn(30, 2, colours=3)[0])
    raw.test["10078"] = union(drawn(30, 2)[1])
    raw.csv("test.csv", columns.replace(",rle,age,sex", ""), [("10078", "spleen", "Hubmap", *SHAPE, 0.4945, 4)])
    raw.csv("sample_submission.csv", "id,rle", [("10078", "12 34")])


def uw_madison(raw: Raw) -> None:
    """Ids of parts of the path, three rows per slice; the hidden test set lies as the training set does."""
    days, organs, rows = (
        ((2, 1), (2, 4), (9, 0), (77, 3), (123, 20), (130, 0), (7, 1)),
        ("large_bowel", "small_bowel", "stomach"),
        [],
    )
    for day in days:
        for number, picture, masks in each(3, 3, first=10 * day[0] + day[1]):
            case, part = f"case{day[0]}", "test" if day[0] == 7 else "train"
            name = f"{case}_day{day[1]}_slice_{number + 1:04}"
            place = f"{part}/{case}/{case}_day{day[1]}/scans/slice_{number + 1:04}_{SHAPE[1]}_{SHAPE[0]}_1.50_1.50.png"
            raw.write(place, picture.astype(np.uint16) * 60)
            masks[1] = masks[1] * (number != 1)
            if part == "test":
                raw.test[name] = np.stack(masks)
                continue
            raw.train[name], raw.groups[name] = np.stack(masks), f"{case}_day{day[1]}"
            rows += [(name, organ, rle.encode(mask, ROWS)) for organ, mask in zip(organs, masks, strict=True)]
    raw.csv("train.csv", "id,class,segmentation", rows)
    raw.csv("sample_submission.csv", "id,class,predicted", [])


def sartorius(raw: Raw) -> None:
    """A row per cell, with what is known of its image; pictures without rows in folders of their own."""
    rows = []
    for number, picture, masks in each(8, 3):
        name, sample = f"{number * 977:012x}", f"shsy5y[diff]_E10-4_Vessel-714_Ph_{number // 2}"
        raw.write(f"train/{name}.png", picture)
        more = (
            SHAPE[1],
            SHAPE[0],
            ("shsy5y", "cort")[number % 2],
            "11h30m00s",
            "2019-06-16",
            sample,
            "0 days 11:30:00",
        )
        rows += [(name, rle.encode(mask, ROWS), *more) for mask in masks]
        raw.train[name], raw.images[name] = union(masks), picture[..., None]
        raw.groups[name], raw.instances[name] = sample, 3
    columns = "id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta"
    raw.csv("train.csv", columns, rows)
    raw.write("train_semi_supervised/astro[hippo]_D1-1_Vessel-1_Ph_1.png", drawn(70)[0])
    for number, picture, masks in each(3, 3, first=30):
        raw.write(f"test/{'abc'[number] * 12}.png", picture)
        raw.test["abc"[number] * 12] = union(masks)
    raw.csv("sample_submission.csv", "id,predicted", [(name, "") for name in raw.test])


def geoai_arctic(raw: Raw) -> None:
    """Eight bands of several ranges in an .npz, COCO's compressed run lengths, a table of test images."""
    images, annotations = [], []
    low, high = np.array([(0, 255)] * 3 + [(-1, 1), (-100, 100), (0, 255), (0, 255), (-1, 1)], np.float32).T
    for number, picture, masks in each(9, 2):
        part, name = ("train", "test")[number > 6], f"rts_{number:04}"
        shares = np.stack([(picture / np.float32(255)) ** (band / 4 + 0.5) for band in range(8)], axis=2)
        np.savez(raw.path(f"{part}/images/{name}.npz"), image=(low + shares * (high - low)).astype(np.float32))
        if part == "test":
            raw.test[name] = union(masks)
            continue
        images.append({"id": number + 1, "file_name": f"{name}.npz", "height": SHAPE[0], "width": SHAPE[1]})
        for mask in masks:
            counts = {"size": list(SHAPE), "counts": rle.encode(mask, Convention(format="coco"))}
            one = {"id": len(annotations) + 1, "image_id": number + 1, "category_id": 1, "iscrowd": 0}
            annotations.append({**one, "segmentation": counts, "area": int(mask.sum()), "bbox": [0, 0, 1, 1]})
        raw.train[name], raw.instances[name] = union(masks), 2
    category = {"id": 1, "name": "rts", "supercategory": "landform"}
    raw.json("train/annotations/instances_train.json",
             {"images": images, "annotations": annotations, "categories": [category]})  # fmt: skip
    raw.csv("metadata/test_manifest.csv", "file_name,image_id,height,width",
            [(f"{name}.npz", 800 + place, *SHAPE) for place, name in enumerate(raw.test)])  # fmt: skip


def packed(mask: np.ndarray) -> str:
    """A mask as Open Images writes it."""
    return base64.b64encode(zlib.compress(rle.encode(mask, Convention(format="coco")).encode())).decode()


Imitation = Callable[[Raw], None]
RECENT: dict[str, tuple[Imitation, dict[str, Any]]] = {
    "recodai-forgery": (recodai, {}),
    "sennet": (sennet, {}),
    "kelp-wanted": (kelp, {}),
    "contrails": (contrails, {}),
    "vesuvius-ink": (vesuvius_ink, {"windows": {"size": [48, 64]}}),
    "vesuvius-surface": (vesuvius_surface, {}),
    "hubmap-vasculature": (hubmap_vasculature, {}),
    "hubmap-hpa": (hubmap_hpa, {}),
    "uw-madison": (uw_madison, {"test": {"images": "test/{case}/{case}_{day}/scans/slice_{slice}_*.png"}}),
    "sartorius": (sartorius, {"split": {"folds": 4}}),
    "geoai-arctic": (geoai_arctic, {}),
}
"""What draws a competition's raw files, and what its YAML says otherwise of small ones."""

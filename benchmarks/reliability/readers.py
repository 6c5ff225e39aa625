"""The readers that are fed, each with the inputs that it gets: image files, texts, YAMLs, tables, commands."""

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
import yaml
from hypothesis import strategies as st

from benchmarks.reliability.inputs import (
    COMPETITION,
    PIECES,
    RECIPE,
    SAMPLE,
    TABLE,
    Group,
    changed,
    damaged,
    keys_of,
    npy,
    pieces,
    values,
    zip_of,
)
from benchmarks.reliability.warm import Place

WORDS = [
    "run", "status", "decode", "split", "check", "score", "compare", "new", "sample", "predict", "submissions",
    "r.yaml", "tiny.yaml", "tiny", "nothing", "--quick", "--name", "--set", "--from", "--to", "--force", "--oof",
    "--competition",
    "--folds", "0,1", "--time", "2h", "--strict", "--json", "--help", "--over", "train.epochs=1,2", "image.size=[1,2]",
    "--", "-v", "model.encoder=x", "split.folds=0", *PIECES,
]  # fmt: skip
"""What command lines are made of."""
NAMES = [
    "train.csv", "a.csv", "b.npz", "c.png", "images/0.png", "images/1.png", "masks/0.png", "masks/1.png", "train/a.tif",
    "train/a_mask.tif", "x y.png", "é.png", "[a].png", "{id}.png", ".hidden.png", "a.json", "sample_submission.csv",
    "test/0.png",
]  # fmt: skip
"""Files that `new` finds in a folder."""


def groups(place: Place) -> list[Group]:
    """Returns every kind of input."""
    folder = place.folder / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    return [*_files(folder), *_texts(folder), *_yamls(folder), *_tables(folder), *_commands(place, folder)]


# --- files of images -------------------------------------------------------------------------------------------------


def _images() -> dict[str, list[bytes]]:
    """Small sound files by their ending."""
    colour = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    grey, found = colour[..., 0], dict[str, list[bytes]]()
    for image in (colour, grey, np.dstack([colour, grey]), grey.astype(np.uint16) * 257):
        found.setdefault("png", []).append(cv2.imencode(".png", image)[1].tobytes())
        for compression in (None, "zlib", "lzw", "packbits"):
            buffer = io.BytesIO()
            tifffile.imwrite(buffer, image, compression=compression)
            found.setdefault("tif", []).append(buffer.getvalue())
        buffer = io.BytesIO()
        np.save(buffer, image)
        found.setdefault("npy", []).append(buffer.getvalue())
        buffer = io.BytesIO()
        np.savez(buffer, image=image)
        found.setdefault("npz", []).append(buffer.getvalue())
    for suffix in ("jpg", "bmp", "webp"):
        found[suffix] = [cv2.imencode(f".{suffix}", one)[1].tobytes() for one in (colour, grey)]
    return found | _medical(grey)


def _medical(grey: np.ndarray) -> dict[str, list[bytes]]:
    try:
        import nibabel
        import pydicom
    except ImportError:
        return {}
    volume = nibabel.Nifti1Image(grey.astype(np.int16), np.eye(4))
    meta = pydicom.dataset.FileMetaDataset()
    uid = pydicom.uid.UID
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = uid("1.2.840.10008.1.2.1"), uid("1.2.840.10008.5.1.4.1.1.2")
    meta.MediaStorageSOPInstanceUID = uid("1.2.3")
    data = pydicom.dataset.Dataset()
    data.file_meta, data.Rows, data.Columns = meta, *grey.shape
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 7, 0, 1
    data.PhotometricInterpretation, data.PixelData = "MONOCHROME2", grey.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return {"nii": [volume.to_bytes()], "dcm": [buffer.getvalue()]}


def _files(folder: Path) -> list[Group]:
    from pipeline.decode.readers.files import read_image

    def reader(suffix: str) -> Callable[[bytes], Any]:
        def read(data: bytes) -> Any:
            path = folder / f"image.{suffix}"
            path.write_bytes(data)
            return read_image(path)

        return read

    everything = _images()
    odd = damaged(*(data for files in everything.values() for data in files))
    found = [
        Group(f".{suffix}", damaged(*files), reader(suffix), documented=(ValueError,))
        for suffix, files in everything.items()
    ]
    found += [Group("another ending", odd, reader("png"), documented=(ValueError,))]
    return found


# --- texts -----------------------------------------------------------------------------------------------------------


def _texts(folder: Path) -> list[Group]:
    from pipeline.core.config.recipe import Recipe
    from pipeline.core.config.settings import flatten
    from pipeline.core.tables import read_csv
    from pipeline.masks import rle
    from pipeline.sweep import space

    conventions = [
        rle.Convention(order, base, empty, form)
        for order in ("column", "row") for base in (0, 1)
        for empty in ("", "1 1", "-1") for form in ("absolute", "relative")
    ]  # fmt: skip

    def decode(value: tuple[str, Any]) -> None:
        rle.decode(value[0], (4, 5), value[1])

    def table(data: bytes) -> None:
        path = folder / "table.csv"
        path.write_bytes(data)
        read_csv(path)

    known = flatten(Recipe(name="", competition="").model_dump(mode="json"))

    def over(text: str) -> None:
        space.parse([text], known)

    def packed(value: tuple[str, bytes]) -> None:
        path = folder / f"table.csv{value[0]}"
        path.write_bytes(value[1])
        read_csv(path)

    texts = st.tuples(pieces(), st.sampled_from(conventions))
    every = [(".gz", gzip.compress(TABLE)), (".bz2", bz2.compress(TABLE)), (".xz", lzma.compress(TABLE)),
             (".zip", zip_of({"table.csv": TABLE})), (".zst", TABLE), (".tar", TABLE)]  # fmt: skip
    compressed = st.one_of([st.tuples(st.just(ending), damaged(data)) for ending, data in every])
    return [
        Group("run lengths", texts, decode, documented=(rle.RleError,), batch=400),
        Group("CSV", damaged(TABLE, TABLE.decode().encode("utf-16"), b"\xef\xbb\xbf" + TABLE), table, batch=200),
        Group("compressed CSV", compressed, packed, batch=200),
        Group("--over", pieces().map(lambda text: f"train.epochs={text}"), over, batch=100),
    ]


# --- YAMLs -----------------------------------------------------------------------------------------------------------


def _yamls(folder: Path) -> list[Group]:
    from pipeline.core.config.raw_layouts import NpzLabels, OxfordPet, RleCsv, load_competition
    from pipeline.core.config.recipe import Recipe, load_recipe

    def written(name: str, load: Callable[[str], Any]) -> Callable[[str | bytes], Any]:
        def read(text: str | bytes) -> Any:
            path = folder / name
            path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
            return load(str(path))

        return read

    recipe, competition = written("recipe.yaml", load_recipe), written("competition.yaml", load_competition)
    npz = {"title": "n", "reader": "npz_labels", "file": "x.npz", "classes": {"b": 0, "s": 1}, "metric": "mean_iou",
           "split": {"folds": 2}}  # fmt: skip
    pet = {"title": "p", "reader": "oxford_pet", "border": "ignore", "classes": ["pet"], "metric": "dice"}
    dumped = [yaml.safe_dump(one).encode() for one in (RECIPE, COMPETITION, npz)]
    return [
        Group("recipe", changed(RECIPE, keys_of(Recipe)), recipe, batch=100),
        Group("competition", changed(COMPETITION, keys_of(RleCsv)), competition, batch=100),
        Group("competition of class maps", changed(npz, keys_of(NpzLabels)), competition),
        Group("competition of trimaps", changed(pet, keys_of(OxfordPet)), competition),
        Group("damaged recipe", damaged(*dumped), recipe, batch=100),
        Group("damaged competition", damaged(*dumped), competition, batch=100),
    ]


# --- a tiny competition ----------------------------------------------------------------------------------------------


def make_tiny(root: Path, table: bytes = TABLE, sample: bytes = SAMPLE, changes: str = "") -> Path:
    """Makes a competition of five training and two test images, and returns its recipe."""
    folder = root / "input" / "tiny"
    if not folder.exists():
        rng = np.random.default_rng(1)
        for name in [*(f"train/a{number}" for number in range(5)), "test/t0", "test/t1"]:
            path = folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (8, 10), np.uint8))
        (root / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "train.csv").write_bytes(table)
    (folder / "sample.csv").write_bytes(sample)
    (root / "tiny.yaml").write_text(changes or yaml.safe_dump(COMPETITION), encoding="utf-8", errors="surrogatepass")
    for made in ("work", "folds", "submissions"):
        shutil.rmtree(root / made, ignore_errors=True)
    return root / "r.yaml"


def call(root: Path, *words: str | Path) -> None:
    """Runs a command in this process."""
    os.environ["PIPELINE_ROOT"] = str(root)
    os.chdir(root)
    sys.argv = ["pipeline", *map(str, words)]
    from pipeline.__main__ import main

    main()
    raise SystemExit(0)


def _tables(folder: Path) -> list[Group]:
    from pipeline.core.config.raw_layouts import RleCsv

    root = folder / "tiny"

    def table(data: bytes) -> None:
        call(root, "run", make_tiny(root, data), "--to", "split")

    def sample(data: bytes) -> None:
        call(root, "decode", make_tiny(root, sample=data))

    def competition(text: str) -> None:
        call(root, "run", make_tiny(root, changes=text), "--to", "split")

    def folds(data: bytes) -> None:
        recipe = make_tiny(root)
        (root / "folds").mkdir()
        (root / "folds" / "tiny.csv").write_bytes(data)
        call(root, "run", recipe, "--to", "split")

    def findings(data: bytes) -> None:
        recipe = make_tiny(root)
        (root / "work" / "tiny").mkdir(parents=True)
        (root / "work" / "tiny" / "outliers.csv").write_bytes(data)
        call(root, "run", recipe, "--to", "split")

    header = b"image_id,fold\n"
    listed = header + b"".join(b"a%d,%d\n" % (number, number % 2) for number in range(5))
    used = b"image_id,fold,group,use\n" + b"".join(b"a%d,%d,p,train\n" % (number, number % 2) for number in range(5))
    found = b"image_id,reason,score,partner_id,action,note\na0,duplicate,0.5,a1,keep,x\na2,broken,1,,drop,y\n"
    listings = found, found.replace(b",", b";"), b"\xef\xbb\xbf" + found, _without(found)
    keys = [key for key in keys_of(RleCsv) if key != "name"]
    return [
        Group("table of masks", damaged(TABLE), table, batch=20),
        Group("sample submission", damaged(SAMPLE), sample, batch=20),
        Group("competition that is read", changed(COMPETITION, keys), competition, batch=20),
        Group("folds file", damaged(listed, used), folds, batch=15),
        Group("outliers.csv", damaged(*listings), findings, batch=15),
        *_labels(folder / "labels"), *_annotations(folder / "annotated"),
    ]  # fmt: skip


def _without(table: bytes) -> bytes:
    """A table without its third column."""
    rows = (line.split(b",") for line in table.splitlines())
    return b"".join(b",".join([*row[:2], *row[3:]]) + b"\n" for row in rows)


def _labels(root: Path) -> list[Group]:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    train, test = rng.integers(0, 256, (6, 2, 16, 16), np.uint8), rng.integers(0, 256, (3, 16, 16), np.uint8)
    train[:, 1] %= 2
    np.savez(buffer, training_set=train, test_set=test)
    headers = [
        zip_of({"training_set.npy": npy(shape, kind), "test_set.npy": npy("(3, 16, 16)", "|u1")})
        for shape in ("(-1, 2, 16, 16)", "(1000000, 2, 1000, 1000)", "(4294967296, 4294967296, 1, 1)", "(6, 2, 16, 16)")
        for kind in ("|u1", "<f8", "|O", "<U9")
    ]

    def read(data: bytes) -> None:
        folder = root / "input" / "labels"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "x.npz").write_bytes(data)
        (root / "labels.yaml").write_text(
            "title: n\nreader: npz_labels\nfile: x.npz\nclasses: {b: 0, s: 1}\nmetric: mean_iou\nsplit: {folds: 2}\n"
        )
        (root / "r.yaml").write_text("competition: labels.yaml\nimage: {size: [32, 32]}\nmodel: {weights: none}\n")
        shutil.rmtree(root / "work", ignore_errors=True)
        call(root, "decode", root / "r.yaml")

    return [Group("npz of class maps", damaged(buffer.getvalue(), *headers), read, batch=20)]


def _annotations(root: Path) -> list[Group]:
    polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 6, 1, 6, 5]], "iscrowd": 0}
    crowd = {
        "id": 2,
        "image_id": 2,
        "category_id": 1,
        "segmentation": {"counts": [3, 5, 72], "size": [8, 10]},
        "iscrowd": 1,
    }
    images = [{"id": number + 1, "file_name": f"a{number}.png", "height": 8, "width": 10} for number in range(5)]
    coco = {"images": images, "annotations": [polygon, crowd], "categories": [{"id": 1, "name": "c"}]}
    train = {"images": "train/{id}.png", "annotations": "coco.json"}
    text = yaml.safe_dump({**COMPETITION, "train": train})

    def read(data: bytes) -> None:
        recipe = make_tiny(root, changes=text)
        (root / "input" / "tiny" / "coco.json").write_bytes(data)
        call(root, "decode", recipe)

    keys = ["images", "annotations", "categories", "annotations.0", "images.0"]
    keys += [f"annotations.{key}" for key in polygon]
    odd = st.builds(_odd_coco, st.just(coco), st.sampled_from(keys), values())
    return [Group("COCO", st.one_of(damaged(json.dumps(coco).encode()), odd), read, batch=20)]


def _odd_coco(coco: dict[str, Any], key: str, value: Any) -> bytes:
    data, (first, _, second) = json.loads(json.dumps(coco)), key.partition(".")
    if not second:
        data[first] = value
    elif second == "0":
        data[first][0] = value
    else:
        data[first][0][second] = value
    return json.dumps(data).encode()


# --- commands --------------------------------------------------------------------------------------------------------


def _commands(place: Place, folder: Path) -> list[Group]:
    submission, truth = folder / "submission.csv", place.base / "input" / "sample" / "truth.csv"
    small = b"img,pixels\n" + b"".join(b"%d,1 5 11 3\n" % number for number in range(1, 13))

    def check(data: bytes) -> None:
        submission.write_bytes(data)
        call(place.base, "check", submission, "--competition", "sample")

    def score(data: bytes) -> None:
        submission.write_bytes(data)
        call(place.base, "score", submission, truth, "--competition", "sample", "--json")

    def arguments(words: list[str]) -> None:
        call(make_tiny(folder / "words").parent, *words)

    def external(value: tuple[bytes, bytes]) -> None:
        root = folder / "external"
        make_tiny(root)
        (root / "oof.npy").write_bytes(value[0])
        (root / "oof.csv").write_bytes(value[1])
        call(root, "validate", "mine", "--competition", "tiny.yaml", "--oof", "oof.npy")

    def new(files: dict[str, bytes]) -> None:
        root = folder / "new"
        shutil.rmtree(root, ignore_errors=True)
        for name, data in files.items():
            path = root / "raw" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (root / "raw").mkdir(parents=True, exist_ok=True)
        call(root, "new", "other", "--from", root / "raw", "--to", root / "out")

    ids = b"image_id,fold\n" + b"".join(b"a%d,%d\n" % (number, number % 2) for number in range(5))
    arrays = [npy(shape, kind) for shape in ("(5, 1, 8, 8)", "(-5, 1, 8, 8)", "(5, 8, 8)", "(99999999, 1, 99, 99)")
              for kind in ("|u1", "<f2", "<f4", "|O")]  # fmt: skip
    words = st.sampled_from(WORDS)
    images, names = _images(), st.sampled_from(NAMES)
    whole = st.sampled_from([*images["png"], TABLE, b""])
    contents = st.one_of(damaged(TABLE, SAMPLE), damaged(*images["png"], *images["npz"]), whole)
    return [
        Group("check", damaged(small), check, batch=20),
        Group("score", damaged(small), score, batch=20),
        Group("command line", st.lists(words, min_size=1, max_size=7).filter(_short), arguments, batch=20),
        Group("external predictions", st.tuples(damaged(*arrays), damaged(ids)), external, batch=20),
        Group("new", st.dictionaries(names, contents, max_size=7), new, batch=20),
    ]


def _short(words: list[str]) -> bool:
    """Whether a command line neither trains, which takes minutes, nor draws the sample, which takes 8 s."""
    return words[0] not in ("run", "sweep", "predict") and words != ["sample"] or "--help" in words

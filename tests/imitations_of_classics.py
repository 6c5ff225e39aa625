"""As imitations.py: raw files of well-known older competitions."""

from typing import Any

import cv2
import numpy as np
from imitations import ROWS, SHAPE, Imitation, Raw, drawn, each, union
from PIL import Image

from pipeline.masks import rle
from pipeline.masks.rle import Convention


def airbus(raw: Raw) -> None:
    """A row per ship, a blank row without, names with their ending, JPEG."""
    rows = []
    for number, picture, masks in each(8, 3, colours=3):
        name, ships = f"{number * 977:09x}.jpg", masks[: number % 4]
        raw.write(f"train_v2/{name}", picture)
        rows += [(name, rle.encode(ship)) for ship in ships] or [(name, "")]
        raw.train[name], raw.instances[name] = union(ships or [masks[0] * 0]), len(ships)
    raw.csv("train_ship_segmentations_v2.csv", "ImageId,EncodedPixels", rows)
    for number, picture, masks in each(3, 3, first=30, colours=3):
        raw.write(f"test_v2/{number:09x}.jpg", picture)
        raw.test[f"{number:09x}.jpg"] = union(masks[:number] or [masks[0] * 0])
    raw.csv("sample_submission_v2.csv", "ImageId,EncodedPixels", [(name, "0 1") for name in raw.test])


def severstal(raw: Raw) -> None:
    """Rows of defects alone; a sample with a class that is none."""
    rows = []
    for number, picture, masks in each(8, 4):
        name = f"{number * 977:09x}.jpg"
        raw.write(f"train_images/{name}", picture)
        kept = [mask * ((number >> place) & 1) for place, mask in enumerate(masks)]
        rows += [(name, place + 1, rle.encode(mask)) for place, mask in enumerate(kept) if mask.any()]
        raw.train[name] = np.stack(kept)
    raw.csv("train.csv", "ImageId,ClassId,EncodedPixels", rows)
    for number, picture, masks in each(2, 4, first=30):
        raw.write(f"test_images/{number:09x}.jpg", picture)
        raw.test[f"{number:09x}.jpg"] = np.stack(masks) * np.array([1, number, 1, 0], np.uint8)[:, None, None]
    raw.csv("sample_submission.csv", "ImageId,EncodedPixels,ClassId", [(name, "1 409600", 0) for name in raw.test])


def carvana(raw: Raw) -> None:
    """Masks as GIF; cars seen from several sides."""
    for number, picture, masks in each(12, colours=3):
        car = f"{number // 2 * 977:012x}"
        raw.write(f"train/{car}_{number % 2 + 1:02}.jpg", picture)
        path = raw.path(f"train_masks/{car}_{number % 2 + 1:02}_mask.gif")
        Image.fromarray(255 * masks[0]).convert("1").save(path)
        name = f"{car}_{number % 2 + 1:02}.jpg"
        raw.train[name], raw.groups[name] = union(masks), car
    rows = [(name, rle.encode(masks[0], ROWS)) for name, masks in raw.train.items()]
    raw.csv("train_masks.csv", "img,rle_mask", rows)
    for number, picture, masks in each(2, first=30, colours=3):
        raw.write(f"test/{number:012x}_01.jpg", picture)
        raw.test[f"{number:012x}_01.jpg"] = union(masks)
    raw.csv("sample_submission.csv", "img,rle_mask", [(name, "1 1") for name in raw.test])


def dsb2018(raw: Raw) -> None:
    """A folder per image, a mask file per nucleus, RGBA."""
    rows = []
    for number, picture, masks in each(8, 3, colours=3):
        name = f"{number * 977:064x}"
        raw.write(f"stage1_train/{name}/images/{name}.png",
                  cv2.cvtColor(picture[..., ::-1].copy(), cv2.COLOR_BGR2BGRA))  # fmt: skip
        for place, mask in enumerate(masks):
            raw.write(f"stage1_train/{name}/masks/{place:064x}.png", 255 * mask)
            rows.append((name, rle.encode(mask)))
        raw.train[name], raw.images[name], raw.instances[name] = union(masks), picture, 3
    raw.csv("stage1_train_labels.csv", "ImageId,EncodedPixels", rows)
    for number, picture, masks in each(2, 3, first=30, colours=3):
        raw.write(f"stage1_test/{number:064x}/images/{number:064x}.png", picture)
        raw.test[f"{number:064x}"] = union(masks)
    raw.csv("stage1_sample_submission.csv", "ImageId,EncodedPixels", [(name, "") for name in raw.test])


def siim(raw: Raw) -> None:
    """DICOM in folders of studies, starts that count from the run before, an image without a row."""
    convention, rows = Convention("column", 0, "-1", "relative"), []
    for number, picture, masks in each(10, 2):
        part, name = "train" if number < 8 else "test", f"1.2.276.0.{number}.517875{number}"
        _dicom(raw, f"dicom-images-{part}/1.2.{number}/1.2.{number}.1/{name}.dcm", picture)
        if number == 7:
            continue
        kept = masks[: number % 3]
        if part == "test":
            raw.test[name] = union(kept or [masks[0] * 0])
            continue
        rows += [(name, f" {rle.encode(mask, convention)}") for mask in kept] or [(name, " -1")]
        raw.train[name], raw.images[name] = union(kept or [masks[0] * 0]), picture[..., None]
    raw.csv("train-rle.csv", "ImageId, EncodedPixels", rows)
    raw.csv("sample_submission.csv", "ImageId,EncodedPixels", [(name, "-1") for name in raw.test])


def _dicom(raw: Raw, name: str, picture: np.ndarray) -> None:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data.Modality, data.PhotometricInterpretation = "CR", "MONOCHROME2"
    data.Rows, data.Columns = picture.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = picture.tobytes()
    data.save_as(raw.path(name), enforce_file_format=True)


def clouds(raw: Raw) -> None:
    """Image and class in one column; masks are submitted at a quarter of the images' sides."""
    names, rows = ("Fish", "Flower", "Gravel", "Sugar"), []
    for number in range(9):
        part, name = "train" if number < 7 else "test", f"{number * 977:07x}.jpg"
        picture, masks = drawn(number, 4, (20, 56), 3)
        size = (4 * 56, 4 * 20)
        masks = [cv2.resize(mask * ((number >> place) & 1), size, interpolation=cv2.INTER_NEAREST)
                 for place, mask in enumerate(masks)]  # fmt: skip
        raw.write(f"{part}_images/{name}", cv2.resize(picture, size))
        if part == "test":
            raw.test[name] = np.stack(masks)
            continue
        raw.train[name] = np.stack(masks)
        rows += [(f"{name}_{label}", rle.encode(mask)) for label, mask in zip(names, masks, strict=True)]
    raw.csv("train.csv", "Image_Label,EncodedPixels", rows)
    sample = [(f"{name}_{label}", "1 1") for name in raw.test for label in names]
    raw.csv("sample_submission.csv", "Image_Label,EncodedPixels", sample)


def cityscapes(raw: Raw) -> None:
    """Cities, label numbers of which some count nowhere, and what else lies beside."""
    values = np.array([3, 7, 11, 26], np.uint8)
    for part, cities in (("train", ("ulm", "bonn", "jena", "bremen", "aachen")), ("val", ("munster",))):
        for place, city in enumerate(cities):
            for number, picture, masks in each(2, 3, first=10 * place, colours=3):
                name = f"{city}_{number:06}_000019"
                labels = values[np.where(union(masks)[0], np.argmax(masks, axis=0) + 1, 0)]
                raw.write(f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png", picture)
                for kind in ("labelIds", "instanceIds"):
                    raw.write(f"gtFine/{part}/{city}/{name}_gtFine_{kind}.png", labels)
                raw.json(f"gtFine/{part}/{city}/{name}_gtFine_polygons.json", {})
                if part == "train":
                    planes = np.zeros((19, *SHAPE), np.uint8)
                    for plane, value in ((0, 7), (2, 11), (13, 26)):
                        planes[plane] = labels == value
                    planes[:, labels == 3] = 255
                    raw.train[name], raw.images[name], raw.groups[name] = planes, picture, city


def imaterialist(raw: Raw) -> None:
    """A row per garment with class and attributes; a sample with one class that says nothing."""
    rows = []
    for number, picture, masks in each(6, 3, colours=3):
        name, planes = f"{number * 977:032x}", np.zeros((46, *SHAPE), np.uint8)
        raw.write(f"train/{name}.jpg", picture)
        for label, mask in zip((31, 31, number), masks, strict=True):
            rows.append((name, rle.encode(mask), *SHAPE, label, "115,136"))
            planes[label] |= mask
        raw.train[name], raw.instances[name] = planes, 3
    raw.csv("train.csv", "ImageId,EncodedPixels,Height,Width,ClassId,AttributesIds", rows)
    for number, picture, masks in each(2, 3, first=30, colours=3):
        raw.write(f"test/{number + 7:032x}.jpg", picture)
        planes = np.zeros((46, *SHAPE), np.uint8)
        planes[[0, 31, 45]] = masks
        raw.test[f"{number + 7:032x}"] = planes
    sample = [(name, "1 1", 0, 0) for name in raw.test]
    raw.csv("sample_submission.csv", "ImageId,EncodedPixels,ClassId,AttributesIds", sample)


def isic(raw: Raw) -> None:
    """JPEG with PNG masks in a folder beside, and files of words among the images."""
    for number, picture, masks in each(8, colours=3):
        name, part = f"ISIC_{number:07}", "Training" if number < 6 else "Test"
        raw.write(f"ISIC2018_Task1-2_{part}_Input/{name}.jpg", picture)
        if part == "Training":
            raw.write(f"ISIC2018_Task1_Training_GroundTruth/{name}_segmentation.png", 255 * masks[0])
            raw.train[name] = union(masks)
        else:
            raw.test[name] = union(masks)
    raw.path("ISIC2018_Task1-2_Training_Input/ATTRIBUTION.txt").write_text("…")


CLASSICS: dict[str, tuple[Imitation, dict[str, Any]]] = {
    "airbus": (airbus, {}),
    "severstal": (severstal, {}),
    "carvana": (carvana, {}),
    "dsb2018": (dsb2018, {}),
    "siim-pneumothorax": (siim, {}),
    "clouds": (clouds, {"submission": {"size": [20, 56]}}),
    "cityscapes": (cityscapes, {}),
    "imaterialist-2020": (imaterialist, {}),
    "isic-2018": (isic, {}),
}

"""Every kind of image file reads back as a viewer shows it, or is refused with the cause."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import SHAPE, Tiny
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from pipeline.decode.readers import remarks
from pipeline.decode.readers.base import MaskFault, read_mask
from pipeline.decode.readers.files import read_image
from pipeline.decode.rle_checks import MaskRow
from pipeline.masks import rle
from pipeline.new.guess.base import image_size
from pipeline.new.guess.rle import guess_rle

HEIGHT, WIDTH = 48, 64
PICTURE = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
)
MODES = ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
DEEP = ("I", "F", "I;16")
"""Modes that Pillow clips when it converts them to grey."""


def picture(mode: str) -> Image.Image:
    rgb = Image.fromarray(PICTURE)
    transparent = rgb.convert("RGBA")
    transparent.putalpha(Image.fromarray(PICTURE[..., 1]))
    made: dict[str, Callable[[], Image.Image]] = {
        "P": lambda: rgb.quantize(64),
        "PA": lambda: transparent.convert("PA"),
        "LA": lambda: transparent.convert("LA"),
        "RGBA": lambda: transparent,
        "RGBa": lambda: transparent.convert("RGBa"),
        "I;16": lambda: Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 200),
        "LAB": lambda: _lab(rgb),
    }
    return made.get(mode, lambda: rgb.convert(mode))()


def _lab(rgb: Image.Image) -> Image.Image:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    assert converted is not None
    return converted


def oracle(path: Path, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(path.read_bytes())) as file:  # of a path Pillow 13 scrambles turned TIFFs
        shown = np.array(ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB"))
    return shown.reshape(*shown.shape[:2], channels)


def assert_shown(path: Path) -> None:
    image = read_image(path)
    expected = oracle(path, image.shape[2])
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).max() <= 2


# --- what Pillow writes ----------------------------------------------------------------------------------------------

REFUSED = {
    "LAB": "a colour space that is not supported: save it as RGB",
    "I": "holds int32 pixels from .*; expected uint8 or uint16",
    "F": "holds float32 pixels from .*; expected uint8 or uint16",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp", "gif", "webp"])
def test_modes_of_pillow(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"a.{suffix}"
    try:
        picture(mode).save(path)
    except (OSError, KeyError, ValueError):
        pytest.skip("Pillow writes no such file")
    if suffix == "tif" and mode in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[mode]):
            read_image(path)
    elif mode in DEEP and suffix in ("png", "tif"):
        np.testing.assert_array_equal(read_image(path)[..., 0], np.array(Image.open(path)))
        assert read_image(path).dtype == np.uint16
    else:
        assert_shown(path)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_compressions_of_tiff(tmp_path: Path, mode: str, compression: str | None) -> None:
    path = tmp_path / "a.tif"
    try:
        picture(mode).save(path, compression=compression)
    except (OSError, ValueError, RuntimeError):
        pytest.skip("Pillow writes no such file")
    assert_shown(path)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_and_grey_of_few_bits(tmp_path: Path, bits: int) -> None:
    Image.fromarray(PICTURE).quantize(2**bits).save(tmp_path / "p.png", bits=bits)
    codes = PICTURE[..., 0] >> (8 - bits)
    codes = codes.astype(bool) if bits == 1 else codes
    tifffile.imwrite(tmp_path / "g.tif", codes, photometric="minisblack", bitspersample=bits)
    tifffile.imwrite(tmp_path / "w.tif", codes, photometric="miniswhite", bitspersample=bits)
    for name in ("p.png", "g.tif", "w.tif"):
        assert_shown(tmp_path / name)


def test_transparent_colours_are_kept(tmp_path: Path) -> None:
    picture("P").save(tmp_path / "a.png", transparency=3)
    picture("P").save(tmp_path / "a.gif", transparency=3)
    for name in ("a.png", "a.gif"):
        assert_shown(tmp_path / name)


# --- what tifffile writes --------------------------------------------------------------------------------------------

SAMPLES = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "palette": 1, "separated": 4, "ycbcr": 3, "cielab": 3}


@pytest.mark.parametrize("pages", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint16", "int16", "uint32", "float32"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("photometric", SAMPLES)
def test_tiffs_of_tifffile(tmp_path: Path, photometric: str, planar: Any, dtype: str, pages: int) -> None:
    samples, path = SAMPLES[photometric], tmp_path / "a.tif"
    values = np.dstack([PICTURE, PICTURE[..., :1] // 2])[..., :samples]
    array = (values > 99 if dtype == "bool" else values // 2 if dtype == "int8" else values).astype(dtype)
    array = array[..., 0] if samples == 1 else np.moveaxis(array, 2, 0) if planar == "separate" else array
    options: dict[str, Any] = {"photometric": photometric}
    options |= {"planarconfig": planar} if samples > 1 else {}
    levels = 2 ** min(16, 8 * np.dtype(dtype).itemsize)
    options |= {"colormap": np.linspace(0, 65535, 3 * levels).reshape(3, levels).astype(np.uint16)[:, ::-1]} if (
        photometric == "palette"
    ) else {}  # fmt: skip
    try:
        tifffile.imwrite(path, array if pages == 1 else np.stack([array] * pages), **options)
    except (ValueError, KeyError, TypeError):
        pytest.skip("tifffile writes no such file")
    if pages > 1:
        with pytest.raises(ValueError, match=f"holds {pages} pages|holds .* pixels|is a TIFF of "):
            read_image(path)
        return
    try:
        image = read_image(path)
    except ValueError as error:
        assert photometric == "cielab" or dtype not in ("uint8", "uint16", "bool") or (
            photometric in ("palette", "ycbcr", "separated") and (dtype != "uint8" or planar == "separate")
            or photometric == "rgb" and dtype == "bool"
        ), error  # fmt: skip
        return
    if dtype == "uint16" and photometric not in ("separated",):
        shown = values[..., :samples].astype(np.uint16)
        np.testing.assert_array_equal(image, 65535 - shown if photometric == "miniswhite" else shown)
    elif dtype == "bool" and photometric not in ("minisblack", "miniswhite"):
        np.testing.assert_array_equal(image > 0, values[..., :3] > 99)
    elif photometric == "separated" and planar == "separate":
        np.testing.assert_allclose(image, np.array(Image.fromarray(values, "CMYK").convert("RGB")), atol=2)
    else:
        assert_shown(path)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_of_tiff(tmp_path: Path, samples: int, dtype: str, planar: Any, alpha: Any) -> None:
    """Colours are those before they were multiplied by alpha; what no tag calls alpha is a channel of its own."""
    path, photometric = tmp_path / "a.tif", "rgb" if samples == 3 else "minisblack"
    scale = np.iinfo(dtype).max // 255
    array = np.dstack([PICTURE[..., :samples], PICTURE[..., 1] | 128]).astype(np.uint32) * scale
    expected = array[..., :samples].copy()
    if alpha == "assocalpha":
        array[..., :samples] = array[..., :samples] * array[..., -1:] // np.iinfo(dtype).max
    stored = (np.moveaxis(array, 2, 0) if planar == "separate" else array).astype(dtype)
    options: dict[str, Any] = {"photometric": photometric, "planarconfig": planar, "metadata": None}
    tifffile.imwrite(path, stored, extrasamples=[alpha], **options)
    if alpha == "unspecified" and samples == 1:
        with pytest.raises(ValueError, match=r"has shape \(48, 64, 2\)"):
            read_image(path)
        return
    assert read_image(path).dtype == dtype
    assert np.abs(read_image(path).astype(int) - expected).max() <= 2 * scale
    if (dtype, planar) == ("uint8", "contig") and (samples, alpha) not in ((1, "assocalpha"), (3, "unspecified")):
        assert_shown(path)


@pytest.mark.parametrize("compression", [None, "lzw", "zstd", "lzma", "jpeg"])
def test_ycbcr_of_every_codec(tmp_path: Path, compression: str | None) -> None:
    path, values = tmp_path / "a.tif", np.array(Image.fromarray(PICTURE).convert("YCbCr"))
    if compression == "jpeg":
        Image.fromarray(PICTURE).convert("YCbCr").save(path, compression="jpeg")
    else:
        tifffile.imwrite(path, values, photometric="ycbcr", compression=compression)
        assert np.abs(read_image(path).astype(int) - PICTURE).max() <= 4
    assert_shown(path)
    if compression != "jpeg":
        tifffile.imwrite(path, values.astype(np.uint16), photometric="ycbcr", compression=compression)
        with pytest.raises(ValueError, match="is a TIFF of 16-bit YCbCr, which is not supported"):
            read_image(path)
    planes: Any = np.moveaxis(values, 2, 0)
    tifffile.imwrite(path, planes, photometric="ycbcr", planarconfig="separate", compression=compression)
    with pytest.raises(ValueError, match="is a TIFF of 8-bit YCbCr in planes, which is not supported"):
        read_image(path)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint32", "float32"])
@pytest.mark.parametrize("value_range", [None, (0.0, 255.0)])
def test_white_is_zero_of_other_numbers(tmp_path: Path, dtype: str, value_range: tuple[float, float] | None) -> None:
    tifffile.imwrite(tmp_path / "a.tif", (PICTURE[..., 0] // 2).astype(dtype), photometric="miniswhite")
    with pytest.raises(ValueError, match=f"is a WhiteIsZero TIFF of {dtype} pixels, for which it is not known which"):
        read_image(tmp_path / "a.tif", value_range=value_range)


# --- names that lie --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_tiffs_of_other_names(tmp_path: Path, suffix: str) -> None:
    path, grey = tmp_path / f"a.{suffix}", PICTURE[..., 0].copy()
    tifffile.imwrite(path, grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(path)[..., 0], 255 - grey)
    assert path in remarks.noted("white_is_zero")
    picture("RGBA").save(path, format="TIFF")
    np.testing.assert_array_equal(read_image(path), PICTURE)
    tifffile.imwrite(path, np.stack([grey] * 3), photometric="minisblack", metadata=None)
    with pytest.raises(ValueError, match=r"holds 3 pages"):
        read_image(path)
    picture("LAB").save(path, format="TIFF")
    with pytest.raises(ValueError, match="is a TIFF of Lab"):
        read_image(path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "webp"])
def test_other_files_named_tif(tmp_path: Path, kind: str) -> None:
    picture("RGB").save(tmp_path / "a.tif", format=kind)
    assert_shown(tmp_path / "a.tif")
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read whole|is not an image"):
        read_image(tmp_path / "a.tif")


# --- axes, pages, series ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "kind", "words"),
    [
        ("ZYX", "imagej", r"holds 3 slices along Z \(axes ZYX, 3×48×64\)"),
        ("TYX", "imagej", r"holds 3 times \(axes TYX, 3×48×64\)"),
        ("ZYX", "ome", r"holds 3 slices along Z \(axes ZYX, 3×48×64\)"),
        ("TYX", "ome", "holds 3 times"),
        ("ZYX", "shaped", "holds 3 slices along Z"),
        (None, "shaped", r"holds 3 pages \(axes QYX, 3×48×64\)"),
        (None, "plain", r"holds 3 pages \(axes IYX, 3×48×64\)"),
    ],
)
def test_slices_are_no_colours(tmp_path: Path, axes: str | None, kind: str, words: str) -> None:
    stack, path = np.moveaxis(PICTURE, 2, 0).copy(), tmp_path / "a.tif"
    options: dict[str, Any] = {"imagej": {"imagej": True}, "ome": {"ome": True}}.get(kind, {})
    metadata = None if kind == "plain" else {"axes": axes} if axes else {}
    tifffile.imwrite(path, stack, metadata=metadata, photometric="minisblack", **options)
    with pytest.raises(ValueError, match=words):
        read_image(path)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_channels_are_colours(tmp_path: Path, kind: str) -> None:
    stack, options = np.moveaxis(PICTURE, 2, 0).copy(), {kind: True}
    tifffile.imwrite(tmp_path / "a.tif", stack, metadata={"axes": "CYX"}, photometric="minisblack", **options)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), PICTURE)


def test_pictures_of_several_series(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PICTURE, photometric="rgb")
        file.write(PICTURE[:20, :30], photometric="rgb")
    with pytest.raises(ValueError, match=r"holds 2 pictures \(48×64×3, 20×30×3\); expected one picture"):
        read_image(tmp_path / "a.tif")


def test_smaller_copies_are_no_further_pictures(tmp_path: Path) -> None:
    for name, options in (("levels.tif", {"subifds": 1}), ("pages.tif", {})):
        with tifffile.TiffWriter(tmp_path / name) as file:
            file.write(PICTURE, photometric="rgb", **options)  # type: ignore[arg-type]
            file.write(PICTURE[::2, ::2], photometric="rgb", subfiletype=1)
        np.testing.assert_array_equal(read_image(tmp_path / name), PICTURE)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "P"])
def test_thumbnail_before_the_picture(tmp_path: Path, mode: str) -> None:
    small, path = Image.fromarray(PICTURE[::2, ::2]), tmp_path / "a.tif"
    picture(mode).save(tmp_path / "b.tif")
    small.save(path, save_all=True, append_images=[picture(mode)], tiffinfo={254: 1})
    with tifffile.TiffFile(path, mode="r+") as file:
        if (kind := file.pages[1].tags.get(254)) is not None:  # type: ignore[union-attr]
            kind.overwrite(0)
    np.testing.assert_array_equal(read_image(path), read_image(tmp_path / "b.tif"))
    assert image_size(path) == (HEIGHT, WIDTH)


def test_thumbnail_around_the_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for mode, photometric in (("RGB", "rgb"), ("CMYK", "separated")):
        with tifffile.TiffWriter(path) as file:
            file.write(PICTURE[::2, ::2], photometric="rgb", subfiletype=1, subifds=1)
            file.write(np.array(picture(mode)), photometric=photometric)
        if mode == "RGB":
            np.testing.assert_array_equal(read_image(path), PICTURE)
    with pytest.raises(ValueError, match="is a CMYK TIFF whose first page is a smaller copy"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_frames_are_remarked(tmp_path: Path, suffix: str) -> None:
    path, frame = tmp_path / f"a.{suffix}", Image.fromarray(PICTURE)
    frame.save(path, save_all=True, append_images=[ImageOps.mirror(frame)])
    assert_shown(path)
    assert path in remarks.noted("frames")
    with pytest.raises(MaskFault, match="mask has several frames; expected one picture"):
        read_mask(tmp_path, path.name, (HEIGHT, WIDTH))


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK"])
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
def test_upright_and_stored(tmp_path: Path, suffix: str, mode: str, orientation: int) -> None:
    if (suffix, mode) in (("png", "CMYK"), ("jpg", "P")):
        pytest.skip("Pillow writes no such file")
    exif, path = Image.Exif(), tmp_path / f"a.{suffix}"
    exif[0x0112] = orientation
    picture(mode).save(path, exif=exif)
    picture(mode).save(tmp_path / f"b.{suffix}")
    assert_shown(path)
    stored = read_image(path, orientation="stored")
    np.testing.assert_array_equal(stored, read_image(tmp_path / f"b.{suffix}"))
    assert (path in remarks.noted("turned")) == (orientation != 1)


def test_orientation_in_the_text_of_a_png(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    Image.fromarray(PICTURE).save(tmp_path / "a.png", pnginfo=text)
    assert_shown(tmp_path / "a.png")


def test_large_pictures_are_turned_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow refuses images above MAX_IMAGE_PIXELS; this must not pass for an image that is not turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for suffix, mode in (("jpg", "RGB"), ("png", "RGB"), ("tif", "RGB")):
        picture(mode).save(tmp_path / f"{mode}.{suffix}", exif=exif)
        assert read_image(tmp_path / f"{mode}.{suffix}").shape == (WIDTH, HEIGHT, 3)
    picture("RGB").save(tmp_path / "a.webp", exif=exif)
    with pytest.raises(ValueError, match="is larger than the maximum image size"):
        read_image(tmp_path / "a.webp")
    picture("CMYK").save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="is too large to be converted to RGB"):
        read_image(tmp_path / "a.tif")


def test_truncated_gif(tmp_path: Path) -> None:
    picture("P").save(tmp_path / "a.gif", transparency=3)
    data = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "a.gif").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read|is not an image"):
        read_image(tmp_path / "a.gif")


# --- a whole competition ---------------------------------------------------------------------------------------------

TURNED = "16 images are stored turned or mirrored (EXIF orientation) and read"


def store_turned(tiny: Tiny) -> None:
    """Stores the images of `tiny` turned by a quarter; their masks stay those of the upright picture."""
    tiny.convert("png", tiny.images)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in tiny.images:
        path = tiny.path(name).with_suffix(".png")
        Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def test_masks_of_upright_pictures(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    store_turned(tiny)
    table = pd.read_parquet(tiny.run("decode").table).set_index("image_id")
    assert table.loc["a02", ["height", "width"]].tolist() == list(SHAPE)
    assert table.loc["a02", "rle_thing"] == rle.encode(tiny.masks["a02"])
    said = capfd.readouterr().err
    assert f"{TURNED} upright" in said
    assert "order" not in said
    tiny.settings["orientation"] = "stored"
    tiny.save()
    message = tiny.refused("decode")
    assert "9 of 9 masks of images that are stored turned (EXIF orientation) look torn" in message
    assert "remove `orientation: stored`" in message
    assert "order" not in message


def test_masks_of_stored_pixels(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    store_turned(tiny)
    for name, mask in tiny.masks.items():
        tiny.row(name)["mask"] = rle.encode(np.rot90(mask))
    tiny.save()
    message = tiny.fails()
    assert "they were drawn on the pixels as stored: set `orientation: stored` in the competition's YAML" in message
    assert "order" not in message
    tiny.settings["orientation"] = "stored"
    tiny.save()
    table = pd.read_parquet(tiny.run("decode").table).set_index("image_id")
    assert table.loc["a02", ["height", "width"]].tolist() == [SHAPE[1], SHAPE[0]]
    assert f"{TURNED} as stored" in capfd.readouterr().err


def test_mask_files_of_stored_pixels(tiny: Tiny) -> None:
    store_turned(tiny)
    (tiny.input / "masks").mkdir()
    for name, mask in tiny.masks.items():
        Image.fromarray(np.rot90(mask) * 255).save(tiny.input / "masks" / f"{name}.png")
    tiny.settings["train"]["masks"] = "masks/{id}.png"
    tiny.save()
    fault = next(line.strip() for line in tiny.fails().splitlines() if "a01" in line)
    assert fault.startswith(
        "masks/a01.png: mask is 60×40, its image 40×60 (rows × columns); the image is stored turned"
    )
    assert "set `orientation: stored`" in fault
    tiny.settings["orientation"] = "stored"
    tiny.save()
    assert tiny.run("decode").table.exists()


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_masks_of_one_bit(tiny: Tiny, photometric: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """As they look: the stored 0 of WhiteIsZero is white, and that this is ambiguous is said."""
    (tiny.input / "masks").mkdir()
    for name, mask in tiny.masks.items():
        stored = mask == (photometric == "minisblack")
        tifffile.imwrite(tiny.input / "masks" / f"{name}.tif", stored, photometric=photometric)
    tiny.settings["train"]["masks"] = "masks/{id}.tif"
    tiny.save()
    table = pd.read_parquet(tiny.run("decode").table).set_index("image_id")
    for name, mask in tiny.masks.items():
        assert table.loc[name, "rle_thing"] == rle.encode(mask)
    assert ("12 mask files are WhiteIsZero" in capfd.readouterr().err) == (photometric == "miniswhite")


def test_mask_files_stored_turned_are_counted(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    (tiny.input / "masks").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, mask in tiny.masks.items():
        Image.fromarray(np.rot90(mask) * 255).save(tiny.input / "masks" / f"{name}.png", exif=exif)
    tiny.settings["train"]["masks"] = "masks/{id}.png"
    tiny.save()
    table = pd.read_parquet(tiny.run("decode").table).set_index("image_id")
    assert all(table.loc[name, "rle_thing"] == rle.encode(mask) for name, mask in tiny.masks.items())
    assert "12 mask files are stored turned or mirrored (EXIF orientation) and read upright" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "int64", "float16", "float32", "float64"])
def test_masks_of_other_numbers(tmp_path: Path, dtype: str) -> None:
    path, codes = tmp_path / "a.tif", PICTURE[..., 0] // 64
    for factor in (1, 700) if np.dtype(dtype).itemsize > 1 else (1,):
        mask = codes.astype(dtype) * np.array(factor, dtype)
        tifffile.imwrite(path, mask)
        np.testing.assert_array_equal(read_mask(tmp_path, path.name, (HEIGHT, WIDTH))[..., 0], mask)
    for low, high in (-1.0, 1.0), (0.0, 65536.0), (0.0, 0.5), (0.0, np.nan):
        bad = np.where(codes > 0, high, low)
        with np.errstate(invalid="ignore", over="ignore"):
            held = np.array_equal(bad.astype(dtype), bad)
        if held or np.dtype(dtype).kind == "f":
            with np.errstate(over="ignore"):
                tifffile.imwrite(path, bad.astype(dtype))
            with pytest.raises(MaskFault, match=f"mask holds {dtype} pixels.*; expected uint8 or uint16, or whole"):
                read_mask(tmp_path, path.name, (HEIGHT, WIDTH))


@pytest.mark.parametrize("drawn", ["upright", "stored"])
def test_new_judges_no_order_by_turned_images(tmp_path: Path, drawn: str) -> None:
    rows, exif = [], Image.Exif()
    exif[0x0112] = 6
    for number in range(12):
        mask = cv2.ellipse(np.zeros((40, 60), np.uint8), (25 + number, 20), (9, 5), 20, 0, 360, 1, -1)
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(90 * mask).transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
        size = image_size(path)
        assert size == (40, 60)
        rows.append(MaskRow(rle.encode(mask if drawn == "upright" else np.rot90(mask)), path, size))
    order = next(guess for guess in guess_rle(rows) if guess.key == "rle.order")
    assert (order.value, order.certainty) == ("column", "guess")

"""What decode says of tables with other separators and encodings, and of characters in them that do not show."""

import pytest
from conftest import Tiny


def said(tiny: Tiny, name: str, content: str, encoding: str = "utf-8") -> str:
    """What decode says of a table of this content."""
    (tiny.input / name).write_bytes(content.encode(encoding))
    return tiny.fails()


@pytest.mark.parametrize("name", ["train.csv", "sample.csv", "patients.csv"])
def test_separators_and_encodings(tiny: Tiny, name: str) -> None:
    tiny.settings["train"]["table"] = "patients.csv"
    tiny.save()
    (tiny.input / "patients.csv").write_text("id,patient\n" + "".join(f"{one},p\n" for one in tiny.masks))
    sound = (tiny.input / name).read_text()
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        message = said(tiny, name, sound.replace(",", separator))
        assert f"{name}: its columns seem to be separated by {word}, because its header is 'id" in message
        assert message.endswith("save it with commas as separators.")
    assert said(tiny, name, sound, "utf-16").endswith("it is UTF-16; save it as UTF-8.")
    assert "save it as UTF-8" in said(tiny, name, sound.replace("id", "\xedd", 1), "latin-1")


def test_what_does_not_show_in_names_of_columns_and_in_ids(tiny: Tiny) -> None:
    sound = (tiny.input / "train.csv").read_text()
    assert "column `mask` is missing; found `id`, ' mask' (with a space at its start), `patient`" in said(
        tiny, "train.csv", sound.replace("id,mask", "id, mask")
    )
    for end, words in ((" ", "a space at its end"), ("\xa0", "a no-break space (U+00A0)"), ("\0", "a NUL character")):
        message = said(tiny, "train.csv", sound.replace("a03,", f"a03{end},"))
        assert f"train.csv row 4: id {'a03' + end!r} has no image: it is written with {words}" in message


def test_what_may_stand_for_an_empty_mask_names_the_setting(tiny: Tiny) -> None:
    for row in tiny.rows:
        row["mask"] = row["mask"] or "NaN"
    tiny.save()
    assert (
        "train.csv row 2: mask of image a01: value 1 is 'NaN', not a whole number; if this text stands for an empty "
        'mask, set `rle: {empty: "NaN"}`'
    ) in tiny.fails()
    tiny.settings["rle"] = {"empty": "NaN"}
    tiny.save()
    tiny.run("decode")

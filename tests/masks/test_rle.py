import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from benchmarks import rle_speed
from pipeline.masks.rle import (
    INTERNAL,
    Convention,
    RleError,
    area,
    check,
    convert,
    decode,
    encode,
    is_placeholder,
    parse,
)

COLUMN_0, ROW_0, ROW_1 = Convention(base=0), Convention("row", 0), Convention("row")
RELATIVE_1, RELATIVE_0 = Convention("row", 1, offsets="relative"), Convention("row", 0, offsets="relative")
SIIM_ACR = Convention("column", 0, "-1", "relative")
CONVENTIONS = [
    Convention(order, base, empty, offsets)  # type: ignore[arg-type]
    for order, base, empty, offsets in itertools.product(
        ("column", "row"), (0, 1), ("", "-1", "-", "1 0", "1 1"), ("absolute", "relative")
    )
]
HAND_WORKED = np.array([[0, 1, 1], [1, 1, 0]], dtype=np.uint8)
ASYMMETRIC = np.array([[1, 0, 1], [1, 0, 0]], dtype=np.uint8)

conventions = st.sampled_from(CONVENTIONS)
# Long runs, full masks and corners, which independent pixels seldom give.
blocks = st.builds(
    lambda shape, part, flipped: box(shape, part) ^ flipped,
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(*[st.integers(0, 12)] * 4),
    st.integers(0, 1),
)
pixels = arrays.arrays(
    dtype=st.sampled_from([np.bool_, np.uint8]),
    shape=arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.integers(0, 1),
)
masks = pixels | blocks


def box(shape: tuple[int, int], part: tuple[int, int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    top, bottom, left, right = part
    mask[top:bottom, left:right] = 1
    return mask


def as_read(mask: np.ndarray, convention: Convention) -> np.ndarray:
    """The mask that its text stands for: itself, but zeros if that text is the convention's word for empty."""
    numbered = mask.ravel(order="F" if convention.order == "column" else "C")
    unlucky = convention.empty == "1 1" and np.flatnonzero(numbered).tolist() == [1 - convention.base]
    return np.zeros_like(mask) if unlucky else mask


def write(runs: list[list[int]], convention: Convention) -> str:
    """The text of runs, 0-based starts and lengths, word by word and without merging any."""
    words, end = [], 0
    for index, (start, length) in enumerate(runs):
        gap = index > 0 and convention.offsets == "relative"
        words += [start - end if gap else start + convention.base, length]
        end = start + length
    return " ".join(map(str, words)) or convention.empty


def edge_cases() -> dict[str, np.ndarray]:
    cases = {
        "empty": np.zeros((4, 7), np.uint8),
        "full": np.ones((4, 7), np.uint8),
        "one row": np.array([[0, 1, 1, 0, 1]], np.uint8),
        "one column": np.array([[1], [0], [1], [1]], np.uint8),
        "chessboard": np.indices((4, 7)).sum(axis=0).astype(np.uint8) % 2,
        "one pixel, set": np.ones((1, 1), np.uint8),
        "one pixel, unset": np.zeros((1, 1), np.uint8),
        "no pixels": np.zeros((0, 3), np.uint8),
        "corners": np.zeros((4, 7), np.uint8),
        "first pixel": np.zeros((4, 7), np.uint8),
        "last pixel": np.zeros((4, 7), np.uint8),
    }
    cases["corners"][[0, 0, -1, -1], [0, -1, 0, -1]] = 1
    cases["first pixel"][0, 0] = 1
    cases["last pixel"][-1, -1] = 1
    return cases


EDGE_CASES = edge_cases()


@settings(max_examples=500)
@given(masks, conventions)
def test_decode_undoes_encode(mask: np.ndarray, convention: Convention) -> None:
    decoded = decode(encode(mask, convention), mask.shape, convention)
    assert decoded.dtype == np.uint8 and decoded.shape == mask.shape
    np.testing.assert_array_equal(decoded, as_read(mask, convention))


@settings(max_examples=500)
@given(masks, conventions, st.data())
def test_encode_undoes_decode_but_merges_touching_runs(
    mask: np.ndarray, convention: Convention, data: st.DataObject
) -> None:
    without_word = replace(convention, empty="")
    runs = []
    for start, length in parse(encode(mask, without_word), without_word).tolist():
        cut = data.draw(st.integers(0, length - 1))
        runs += [[start, cut], [start + cut, length - cut]] if cut else [[start, length]]
    text, expected = write(runs, convention), as_read(mask, convention)
    decoded = decode(text, mask.shape, convention)
    np.testing.assert_array_equal(decoded, expected)
    assert encode(decoded, convention) == encode(mask, convention)
    assert parse(text, convention).tolist() == (runs if expected.any() else [])
    assert area(text, convention) == expected.sum()


@pytest.mark.parametrize("name", EDGE_CASES)
@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_decode_undoes_encode_on_edge_cases(name: str, convention: Convention) -> None:
    mask = EDGE_CASES[name]
    text, expected = encode(mask, convention), as_read(mask, convention)
    np.testing.assert_array_equal(decode(text, mask.shape, convention), expected)
    assert area(text, convention) == expected.sum()
    assert (text == convention.empty) == (not expected.any())


@pytest.mark.parametrize("convention", [each for each in CONVENTIONS if each.empty == "1 1"], ids=str)
def test_one_mask_cannot_be_distinguished_from_the_text_for_empty(convention: Convention) -> None:
    mask = np.zeros((3, 4), np.uint8)
    lines = mask.T if convention.order == "column" else mask
    lines[0, 1 - convention.base] = 1
    assert encode(mask, convention) == encode(np.zeros_like(mask), convention) == "1 1"
    assert not decode("1 1", (3, 4), convention).any()
    lines[0, 2] = 1
    np.testing.assert_array_equal(decode(encode(mask, convention), (3, 4), convention), mask)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.uint16, np.int64])
def test_every_layout_and_dtype_encodes_alike(dtype: type) -> None:
    mask: np.ndarray = np.random.default_rng(1).integers(0, 2, (9, 13)).astype(dtype)
    expected = encode(mask.astype(np.uint8))
    padded: np.ndarray = np.zeros((18, 26), dtype)
    padded[::2, ::2] = mask
    for same in (mask, np.asfortranarray(mask), padded[::2, ::2], np.ascontiguousarray(mask[::-1])[::-1]):
        assert encode(same) == expected


@pytest.mark.parametrize("value, dtype", [(255, np.uint8), (256, np.uint16), (-1, np.int8), (2**40, np.int64)])
def test_any_non_zero_value_is_foreground(value: int, dtype: type) -> None:
    mask: np.ndarray = (HAND_WORKED * np.int64(value)).astype(dtype)
    assert encode(mask) == encode(HAND_WORKED)


def test_neighbouring_labels_make_one_run() -> None:
    assert encode(np.array([[1], [2], [0], [3]])) == "1 2 4 1"


@pytest.mark.parametrize(
    "convention, text",
    # Down the columns of [[1, 0, 1], [1, 0, 0]]: 1 1, 0 0, 1 0. Along its rows: 1 0 1, 1 0 0.
    [(INTERNAL, "1 2 5 1"), (COLUMN_0, "0 2 4 1"), (ROW_1, "1 1 3 2"), (ROW_0, "0 1 2 2")],
)
def test_hand_worked_example(convention: Convention, text: str) -> None:
    assert encode(ASYMMETRIC, convention) == text
    np.testing.assert_array_equal(decode(text, (2, 3), convention), ASYMMETRIC)


@pytest.mark.parametrize(
    "convention, text, mask",
    [
        # Row by row the pixels are 0 to 9. The first run has 3 and 4; pixel 5 is the gap; the second run has 6 to 9.
        (RELATIVE_0, "3 2 1 4", [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]),
        (RELATIVE_1, "4 2 1 4", [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]),
        # Down the columns the first has pixels 0 and 1, the last 8 and 9: 0 is set, 1 to 5 are the gap, 6 to 8 are set.
        (SIIM_ACR, "0 1 5 3", [[1, 0, 0, 1, 1], [0, 0, 0, 1, 0]]),
        (replace(SIIM_ACR, base=1), "1 1 5 3", [[1, 0, 0, 1, 1], [0, 0, 0, 1, 0]]),
        (SIIM_ACR, "0 10", [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        (SIIM_ACR, "9 1", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
        (SIIM_ACR, "0 1 8 1", [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]),
        (SIIM_ACR, "-1", [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]),
    ],
)
def test_hand_worked_relative_example(convention: Convention, text: str, mask: list[list[int]]) -> None:
    np.testing.assert_array_equal(decode(text, (2, 5), convention), mask)
    assert encode(np.array(mask), convention) == text
    assert area(text, convention) == np.sum(mask)


def test_relative_runs_parse_to_absolute_starts() -> None:
    for convention, text in ((RELATIVE_0, "3 2 1 4 0 2 7 1"), (RELATIVE_1, "4 2 1 4 0 2 7 1")):
        runs = parse(text, convention)
        assert runs.dtype == np.int64
        assert runs.tolist() == [[3, 2], [6, 4], [10, 2], [19, 1]]
    assert convert("3 2 1 4 0 2 7 1", (4, 5), RELATIVE_0, ROW_1) == "4 2 7 6 20 1"
    assert convert("4 2 7 6 20 1", (4, 5), ROW_1, RELATIVE_0) == "3 2 1 6 7 1"


def siim_acr_decode(text: str, width: int, height: int) -> np.ndarray:
    """The competition's own mask_functions.py, whose masks are transposed."""
    mask = np.zeros(width * height)
    values = np.asarray([int(x) for x in text.split()])
    current_position = 0
    for start, length in zip(values[0::2], values[1::2], strict=True):
        current_position += start
        mask[current_position : current_position + length] = 255
        current_position += length
    return mask.reshape(width, height)


@given(masks)
def test_agrees_with_the_script_of_siim_acr(mask: np.ndarray) -> None:
    height, width = mask.shape
    text = encode(mask, Convention("column", 0, "", "relative"))
    np.testing.assert_array_equal(siim_acr_decode(text, width, height).T, mask * 255.0)


def test_internal_convention() -> None:
    assert Convention() == INTERNAL == Convention("column", 1, "", "absolute")


def test_a_run_goes_on_from_one_column_to_the_next() -> None:
    assert encode(HAND_WORKED) == "2 4"


@given(masks)
def test_row_order_is_column_order_of_the_transposed_mask(mask: np.ndarray) -> None:
    assert encode(mask, ROW_1) == encode(mask.T, INTERNAL)


def test_transposition_is_not_the_identity() -> None:
    assert encode(ASYMMETRIC, ROW_1) != encode(ASYMMETRIC, INTERNAL)
    square = np.array([[1, 1], [0, 0]], np.uint8)
    assert encode(square) == "1 1 3 1"
    assert not np.array_equal(decode(encode(square), (2, 2), ROW_1), square)


@given(masks)
def test_agrees_with_the_usual_snippet(mask: np.ndarray) -> None:
    text = rle_speed.snippet_encode(mask.astype(np.uint8))
    assert encode(mask) == text
    np.testing.assert_array_equal(decode(text, mask.shape), rle_speed.snippet_decode(text, mask.shape))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(masks)
def test_agrees_with_pycocotools(mask: np.ndarray) -> None:
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = encode(mask)
    np.testing.assert_array_equal(decode(text, mask.shape), coco.decode(packed))
    assert area(text) == coco.area(packed)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@given(masks)
def test_pycocotools_reads_counts_made_from_runs(mask: np.ndarray) -> None:
    height, width = mask.shape
    runs = parse(encode(mask))
    edges = np.concatenate([[0], np.stack([runs[:, 0], runs.sum(axis=1)], axis=1).ravel(), [mask.size]])
    packed = coco.frPyObjects({"size": [height, width], "counts": np.diff(edges).tolist()}, height, width)
    np.testing.assert_array_equal(coco.decode(packed), mask)


@pytest.mark.parametrize("text", ["", "2 3 9 2"])
def test_decoded_layout_follows_the_order(text: str) -> None:
    columns, rows = decode(text, (4, 7)), decode(text, (4, 7), ROW_1)
    assert columns.flags.f_contiguous and columns.flags.writeable
    assert rows.flags.c_contiguous and rows.flags.writeable


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "-1", " -1", "-1\n"])
def test_blank_text_and_the_word_for_empty_decode_to_zeros(text: str) -> None:
    convention = Convention(empty="-1")
    assert not decode(text, (2, 3), convention).any()
    assert area(text, convention) == 0
    assert parse(text, convention).shape == (0, 2)


@pytest.mark.parametrize("text", [" 1 2 5 1", "1 2 5 1 ", "1  2   5 1", "1 2\t5 1", "1 2\n5 1\r\n", "01 2 005 1"])
def test_white_space_and_leading_zeros_do_not_matter(text: str) -> None:
    np.testing.assert_array_equal(decode(text, (2, 3)), ASYMMETRIC)


def test_parse_gives_starts_from_zero_and_lengths() -> None:
    for convention, text in ((INTERNAL, "1 2 5 1"), (COLUMN_0, "0 2 4 1")):
        runs = parse(text, convention)
        assert runs.dtype == np.int64
        assert runs.tolist() == [[0, 2], [4, 1]]


def test_touching_runs_are_allowed() -> None:
    np.testing.assert_array_equal(decode("2 1 3 1 4 2", (2, 3)), HAND_WORKED)
    assert area("2 1 3 1 4 2") == 4


FAULTS = {
    "1.5 2": "value 1 is '1.5', not a whole number",
    "1 2 nan 3": "value 3 is 'nan', not a whole number",
    "1 2,": "value 2 is '2,', not a whole number",
    "1_0 2": "value 1 is '1_0', not a whole number",
    "1 1e3": "value 2 is '1e3', not a whole number",
    "1 +2": "value 2 is '+2', not a whole number",
    "1 ٣": "value 2 is '٣', not a whole number",
    "1 ²": "value 2 is '²', not a whole number",
    "1 -": "value 2 is '-', not a whole number",
    "1 2 5": "the number of values, 3, is odd: the last start, 5, has no length",
    "7": "the number of values, 1, is odd: the last start, 7, has no length",
    "0 3": "run 1 (start 0, length 3) starts below 1, the number of the first pixel",
    "-2 3": "run 1 (start -2, length 3) starts below 1, the number of the first pixel",
    "1 2 0 1": "run 2 (start 0, length 1) starts below 1, the number of the first pixel",
    "1 0": "run 1 (start 1, length 0) has a length below 1; if this text stands for an empty mask, set "
    '`rle: {empty: "1 0"}`',
    "2 0": "run 1 (start 2, length 0) has a length below 1",
    "1 1 3 -2": "run 2 (start 3, length -2) has a length below 1",
    "4 2 1 1": "run 2 (start 1, length 1) comes before run 1 (start 4, length 2): runs must be sorted by their starts",
    "1 3 3 1": "run 2 (start 3, length 1) overlaps run 1 (start 1, length 3), which ends at pixel 3",
    "2 2 2 2": "run 2 (start 2, length 2) overlaps run 1 (start 2, length 2), which ends at pixel 3",
    "1 9223372036854775807": "value 2 is '9223372036854775807', beyond the pixels of any image",
    "-9223372036854775808 1": "value 1 is '-9223372036854775808', beyond the pixels of any image",
    "0" * 5000 + " 1": "value 1 is '000000000000...0000000000000', beyond the pixels of any image",
    "1 " + "9" * 5000: "value 2 is '999999999999...9999999999999', beyond the pixels of any image",
}


@pytest.mark.parametrize("text, message", list(FAULTS.items()), ids=[text[:20] for text in FAULTS])
def test_faulty_text_is_refused_with_its_values(text: str, message: str) -> None:
    for function, arguments in ((parse, ()), (area, ()), (decode, ((4, 5),)), (convert, ((4, 5), INTERNAL, ROW_0))):
        with pytest.raises(RleError) as raised:
            function(text, *arguments)
        assert str(raised.value) == message


@pytest.mark.parametrize("text", ["NaN", "nan", "-1", "[]", "-", "None", "0", "0 0", "-1 -1", "-1.0", "no mask", '""'])
def test_what_may_stand_for_an_empty_mask_names_the_setting(text: str) -> None:
    with pytest.raises(RleError) as raised:
        parse(f" {text} ")
    assert str(raised.value).endswith(
        f"; if this text stands for an empty mask, set `rle: {{empty: {json.dumps(text)}}}`"
    )
    assert is_placeholder(text) and not area(text, Convention(empty=text))


@pytest.mark.parametrize("text", ["x", "José", "3", "1 2 nan", "case 7", "1 1"])
def test_other_texts_do_not(text: str) -> None:
    assert not is_placeholder(text)


RELATIVE_FAULTS = {
    "3 2 -1 4": "run 2 (gap -1, length 4) has a gap below 0",
    "3 2 -6 4": "run 2 (gap -6, length 4) has a gap below 0",
    "3 2 0 1 -1 1": "run 3 (gap -1, length 1) has a gap below 0",
    "-1 2": "run 1 (start -1, length 2) starts below 0, the number of the first pixel",
    "3 0": "run 1 (start 3, length 0) has a length below 1",
    "3 2 1 0": "run 2 (gap 1, length 0) has a length below 1",
    "3 2 5 -4": "run 2 (gap 5, length -4) has a length below 1",
    "3 2 1": "the number of values, 3, is odd: the last gap, 1, has no length",
    "3": "the number of values, 1, is odd: the last start, 3, has no length",
    "3 2 1.0 4": "value 3 is '1.0', not a whole number",
    "3 2 nan 4": "value 3 is 'nan', not a whole number",
    "3 2 1 15": "run 2 (start 6, length 15) ends at pixel 20, past the end of a 4×5 image (20 pixels) by 1",
    "3 2 15 1": "run 2 (start 20, length 1) ends at pixel 20, past the end of a 4×5 image (20 pixels) by 1",
    "0 1 9223372036854775807 1": "value 3 is '9223372036854775807', beyond the pixels of any image",
    "0 1 -9223372036854775808 1": "value 3 is '-9223372036854775808', beyond the pixels of any image",
    "0 1 1 " + "9" * 5000: "value 4 is '999999999999...9999999999999', beyond the pixels of any image",
    # Past 2**63 a sum of int64 is negative, past 2**64 it is positive again.
    " ".join(["999999999999999999"] * 6): "run 3 (gap 999999999999999999, length 999999999999999999) ends at pixel "
    "5999999999999999993, beyond the pixels of any image",
    " ".join(["999999999999999999"] * 40): "run 3 (gap 999999999999999999, length 999999999999999999) ends at pixel "
    "5999999999999999993, beyond the pixels of any image",
}


@pytest.mark.parametrize("text, message", list(RELATIVE_FAULTS.items()), ids=[text[:30] for text in RELATIVE_FAULTS])
def test_faulty_relative_text_is_refused_with_its_values(text: str, message: str) -> None:
    for target in (None, ROW_0, INTERNAL, RELATIVE_1):
        with pytest.raises(RleError) as raised:
            convert(text, (4, 5), RELATIVE_0, target) if target else decode(text, (4, 5), RELATIVE_0)
        assert str(raised.value) == message
    if "past the end" not in message:
        for function in (parse, area):
            with pytest.raises(RleError) as raised:
                function(text, RELATIVE_0)
            assert str(raised.value) == message


huge = st.sampled_from([2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 2**64 + 1, -(2**63), -(2**64)])


@settings(max_examples=500)
@given(
    st.lists(st.tuples(st.integers(-1, 2**61) | huge, st.integers(0, 2**61) | huge), min_size=1, max_size=6),
    st.sampled_from([RELATIVE_0, RELATIVE_1]),
)
def test_no_sum_of_relative_values_wraps_around(pairs: list[tuple[int, int]], convention: Convention) -> None:
    values = list(itertools.chain.from_iterable(pairs))
    text = " ".join(map(str, values))
    ends = [sum(values[: count + 2]) - convention.base for count in range(0, len(values), 2)]
    sound = values[0] >= convention.base and min(values[2::2], default=0) >= 0 and min(values[1::2]) > 0
    if sound and ends[-1] <= 2**62:
        assert parse(text, convention).sum(axis=1).tolist() == ends
    else:
        with pytest.raises(RleError):
            parse(text, convention)


def test_faults_count_from_the_base_of_the_convention() -> None:
    assert parse("0 1", COLUMN_0).tolist() == [[0, 1]]
    with pytest.raises(RleError, match=r"^run 1 \(start -1, length 2\) starts below 0, the number of the first pixel$"):
        parse("-1 2", COLUMN_0)
    with pytest.raises(RleError, match=r"overlaps run 1 \(start 0, length 3\), which ends at pixel 2$"):
        parse("0 3 2 1", COLUMN_0)


@pytest.mark.parametrize("value", [float("nan"), 1.5, 3, None, np.array([1, 2])])
def test_only_strings_are_text(value: Any) -> None:
    with pytest.raises(RleError, match=r"^run-length text must be a string, but this is .+ \(\w+\)$"):
        parse(value)


def test_a_run_past_the_end_is_refused() -> None:
    text = "1 20 243000 5 243590 20"
    run, image = "run 3 (start 243590, length 20)", "a 420×580 image (243600 pixels)"
    message = f"{run} ends at pixel 243609, past the end of {image} by 9"
    for target in (None, COLUMN_0, ROW_1):
        with pytest.raises(RleError) as raised:
            convert(text, (420, 580), INTERNAL, target) if target else decode(text, (420, 580))
        assert str(raised.value) == message


def test_the_first_run_past_the_end_is_named() -> None:
    message = r"^run 2 \(start 5, length 2\) ends at pixel 6, past the end of a 2×3 image \(6 pixels\) by 1$"
    with pytest.raises(RleError, match=message):
        decode("0 1 5 2 8 1", (2, 3), COLUMN_0)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([INTERNAL, COLUMN_0]))
def test_runs_up_to_the_last_pixel_fit(start: int, length: int, convention: Convention) -> None:
    runs = parse(f"{start} {length}", convention)
    last = start - convention.base + length
    check(runs, (1, last), convention)
    with pytest.raises(RleError, match=rf"past the end of a 1×{last - 1} image \({last - 1} pixels\) by 1$"):
        check(runs, (1, last - 1), convention)


@settings(max_examples=300)
@given(st.lists(st.integers(-2, 30), max_size=8), st.sampled_from([INTERNAL, COLUMN_0]))
def test_strictness_agrees_with_a_plain_reading_of_the_rules(values: list[int], convention: Convention) -> None:
    pairs = list(zip(values[::2], values[1::2], strict=False))
    ends = [convention.base] + [start + length for start, length in pairs]
    sound = len(values) % 2 == 0 and all(
        start >= end and length > 0 for (start, length), end in zip(pairs, ends, strict=False)
    )
    text = " ".join(map(str, values))
    if sound and ends[-1] - convention.base <= 30:
        assert decode(text, (5, 6), convention).sum() == sum(values[1::2])
    else:
        with pytest.raises(RleError):
            decode(text, (5, 6), convention)


@settings(max_examples=300)
@given(st.lists(st.integers(-2, 12), max_size=8), st.sampled_from([RELATIVE_1, RELATIVE_0]))
def test_relative_strictness_agrees_with_a_plain_reading_of_the_rules(
    values: list[int], convention: Convention
) -> None:
    lowest = itertools.chain([convention.base], itertools.cycle([1, 0]))
    sound = len(values) % 2 == 0 and all(value >= least for value, least in zip(values, lowest, strict=False))
    text = " ".join(map(str, values))
    if sound and sum(values) - convention.base <= 30:
        assert decode(text, (5, 6), convention).sum() == sum(values[1::2])
    else:
        with pytest.raises(RleError):
            decode(text, (5, 6), convention)


@given(st.text(alphabet="0123456789 -.e\tnaN_", max_size=12), conventions)
def test_any_text_is_decoded_or_refused(text: str, convention: Convention) -> None:
    try:
        assert decode(text, (10, 10), convention).sum() == area(text, convention)
    except RleError as error:
        assert str(error)


@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 3)])
def test_a_mask_has_two_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 dimensions, height and width, but this one has the shape") as raised:
        encode(np.zeros(shape, np.uint8))
    assert str(shape) in str(raised.value)


def test_a_mask_of_probabilities_is_refused() -> None:
    with pytest.raises(ValueError, match="holds float32: threshold it first"):
        encode(np.zeros((2, 3), np.float32))


@settings(max_examples=500)
@given(masks, conventions, conventions)
def test_convert_equals_decode_and_encode(mask: np.ndarray, source: Convention, target: Convention) -> None:
    text = encode(mask, source)
    converted = convert(text, mask.shape, source, target)
    assert converted == encode(decode(text, mask.shape, source), target) == encode(as_read(mask, source), target)


@given(masks, conventions, conventions)
def test_convert_merges_touching_runs(mask: np.ndarray, source: Convention, target: Convention) -> None:
    lines = mask.T if source.order == "column" else mask
    text = write([[int(start), 1] for start in np.flatnonzero(lines.ravel())], source)
    assert convert(text, mask.shape, source, target) == encode(as_read(mask, source), target)


def test_speed_measurement_names_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert rle_speed.main([str(tmp_path / "absent.csv")]) == 2
    assert capsys.readouterr().err.count("absent.csv") == 1


def test_speed_measurement_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "masks.csv"
    path.write_text('pixels\n2 4\n""\n1 2 5 1\n')
    assert rle_speed.main([str(path), "--height", "2", "--width", "3", "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "×" in line and line.startswith("|")]
    assert len(rows) == 4


def test_importing_needs_no_torch() -> None:
    code = "import sys, pipeline.masks.rle; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0

"""Groups in parts of ids: what `new` suggests, read back as decode reads it, and ids that are never split."""

import re
from itertools import product
from pathlib import Path

import pytest

from pipeline.core.config.competition import Competition
from pipeline.decode.readers.columns import group_of
from pipeline.new.guess.base import Files
from pipeline.new.guess.groups import guess_group

TCGA = [
    ("CS_4941", 19960909),
    ("CS_4942", 19970222),
    ("DU_5851", 19950428),
    ("DU_6399", 19830416),
    ("HT_7473", 19970826),
]
FOUND = {
    "{group}_day{day}_slice_{number}": ([f"case{c}_day{d}_slice_{s:04}" for c, d, s in
                                         product((123, 2, 77), (0, 20), range(5))], 3),
    "{group}_{number}": ([f"{c}_{n}.png" for c, n in product(range(3, 9), range(4))], 6),
    "{group}-S{s}-{number}": ([f"P{p:02}-S{s}-{n:03}" for p, s, n in product(range(5), (1, 2), range(3))], 5),
    "TCGA_{part_2}_{group}_{part_4}_{number}": ([f"TCGA_{p}_{d}_{n}" for (p, d), n in product(TCGA, range(1, 13))], 5),
    "{group}_frame{frame}": ([f"patient{p}_frame{n}" for p, n in product(range(7), (3, 12, 20))], 7),
    "patient_{group}_frame_{number}": ([f"patient_{p}_frame_{n}" for p, n in product(range(7), (3, 12, 20))], 7),
    "img_{group}_{number}": ([f"img_{p}_{n}" for p, n in product(range(10, 18), (3, 12, 20))], 8),
    "{group}/{number}": ([f"{p}/{n}" for p, n in product("abcd", range(6))], 4),
    "{group}_{part_2}_000019": ([f"{c}_{n:06}_000019" for c, n in product(("aachen", "bonn", "ulm"), range(9))], 3),
    "day{day}_{group}_slice{slice}": ([f"day{d}_case{c}_slice{n}" for d, c, n in product((1, 2), range(5), "12")], 5),
    "{group}slice{slice}": ([f"case{c}slice{n}" for c, n in product(range(5), range(4))], 5),
    "{part_1}_{group}": ([f"{n:04}_patient{n % 5}" for n in range(20)], 5),
    "{group}_{number} of any": ([f"anna-{c}_{n}{'_b' * (n % 2)}" for c, n in product("xyz", range(4))], 3),
}  # fmt: skip


@pytest.mark.parametrize("pattern", FOUND)
def test_parts_of_ids(pattern: str) -> None:
    images, count = FOUND[pattern]
    group, *folds = guess_group(None, None, images)
    assert (group.key, group.certainty) == ("group", "guess")
    settings = {"name": "c", "title": "c", "reader": "rle_csv", "classes": ["a"], "metric": "dice"}
    competition = Competition.model_validate(settings | {"group": group.value})
    found = {group_of(competition, one, {}) for one in images}
    assert len(found) == count and None not in found
    assert f"; {count} for {len(images)} images" in group.evidence
    assert f"for instance, {images[0]} is in group {group_of(competition, images[0], {})}" in group.evidence
    assert [guess.value for guess in folds] == [count] * (count < 5)
    assert " " in pattern or group.value == pattern


@pytest.mark.parametrize(
    ("images", "offer"),
    [
        ([f"{n:03}" for n in range(200)], None),
        ([f"image_{n:04}" for n in range(200)], None),
        ([f"IMG{n:04}.png" for n in range(200)], None),
        ([f"{n * 79190000003:010x}" for n in range(40)], None),
        ([f"{n * 7919:08x}-{n % 5:04x}-4a1b-9b1c-0123456789ab" for n in range(40)], None),
        ([f"{y}_{n:06}" for y, n in product(range(2007, 2013), range(5))], "`2007` of .* '{group}_{number}'`"),
        ([f"tile_{x}_{y}" for x, y in product(range(6), range(6))], "`0` of `tile_0_0` .* 'tile_{group}_{number}'`"),
        ([f"case{c}_{n}" for c, n in product((1, 2), range(9))], "`case1` of .* '{group}_{number}'` .2 groups."),
        ([f"{n}_training" for n in range(21, 41)], "`21` of `21_training` is a group, set `group: '{group}_training'`"),
        ([f"{{{c}}}_{n}" for c, n in product("abc", range(9))], None),
    ],
)  # fmt: skip
def test_ids_that_are_not_split(images: list[str], offer: str | None) -> None:
    (group,) = guess_group(None, None, images)
    assert (group.value, group.certainty) == (None, "guess")
    text = "no column and no part of the ids looks like one"
    if offer is None:
        assert group.evidence == text
    else:
        assert group.evidence.startswith(f"{text}; if ")
        assert re.search(offer, group.evidence)


@pytest.mark.parametrize("sites", ["ABC", "AB"])
def test_sites_are_groups_and_file_numbers_are_none(sites: str) -> None:
    parts = {f"site{site}_{number}": {"folder": f"site{site}", "name": f"{number}"}
             for site in sites for number in range(8)}  # fmt: skip
    files = Files("{folder}/images/{name}.png", {one: Path(one) for one in parts}, id="{folder}_{name}", parts=parts)
    assert guess_group(None, None, [*parts], files)[0].value == "folder"

"""YAML, names, paths and tables of somebody who means harm."""

import gzip
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import Tiny

from benchmarks.reliability import malicious
from pipeline.core import tables
from pipeline.core.config.settings import override, read_yaml
from pipeline.core.errors import PipelineError
from pipeline.core.run import open_run
from pipeline.core.run_checks import check_name
from pipeline.core.tables import as_written, read_csv, write_for_people


@pytest.mark.parametrize("what", malicious.YAML)
def test_yaml_is_refused_at_once(what: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(malicious.YAML[what])
    began = time.process_time()
    with pytest.raises(PipelineError, match=r"recipe\.yaml is not valid YAML"):
        read_yaml(path)
    assert time.process_time() - began < 1


def test_anchors_that_repeat_little_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("a: &a {k: 1}\nb: *a\nc: {<<: *a, d: 2}\ne: 2020-01-01\nf: null\n")
    assert read_yaml(path)["c"] == {"k": 1, "d": 2}


def test_values_of_the_command_line_are_limited_too() -> None:
    with pytest.raises(PipelineError, match=r"--set a=\[\[.*nested more than"):
        override({}, [f"a={'[' * 100}{']' * 100}"])


@pytest.mark.parametrize("name", malicious.NAMES)
def test_no_name_leads_out(name: str, tiny: Tiny) -> None:
    with pytest.raises(PipelineError, match="expected a plain file name"):
        check_name(name)
    for setting in ({"name": name}, {"splits": {name: {"folds": 4}}}):
        tiny.settings |= setting
        tiny.save()
        with pytest.raises(PipelineError, match="expected a plain file name"):
            open_run(str(tiny.recipe_path))
        del tiny.settings[next(iter(setting))]
    tiny.save()
    tiny.recipe |= {"folds": name}
    tiny.save()
    with pytest.raises(PipelineError, match="`folds` is .* expected a plain file name"):
        open_run(str(tiny.recipe_path))


@pytest.mark.parametrize("path", malicious.PATHS)
@pytest.mark.parametrize("key", ["images", "masks", "table", "listed_in", "sample_submission", "input"])
def test_no_pattern_leads_out(path: str, key: str, tiny: Tiny) -> None:
    whole = key in ("sample_submission", "input")
    tiny.settings |= {key: path} if whole else {"train": tiny.settings["train"] | {key: path}}
    tiny.save()
    with pytest.raises(PipelineError, match=rf"`{key if whole else f'train.{key}'}` is .*expected a path"):
        open_run(str(tiny.recipe_path))


def test_a_link_that_a_person_made_is_followed(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "train"
    (tiny.input / "train").rename(elsewhere)
    (tiny.input / "train").symlink_to(elsewhere)
    assert len(pd.read_parquet(tiny.run("decode").table)) == 12


def test_a_class_has_a_number_that_a_file_can_hold(tiny: Tiny) -> None:
    tiny.settings |= {"classes": {"thing": 10**12}}
    tiny.save()
    with pytest.raises(PipelineError, match="class thing is 1000000000000; numbers in class maps go from"):
        open_run(str(tiny.recipe_path))


def test_tables_for_people_hold_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "outliers.csv"
    texts = [*malicious.FORMULAS, "-1.5", "1e-3", "plain", "", "a=b"]
    table = pd.DataFrame({"image_id": texts, "score": range(len(texts))}).astype({"score": str})
    write_for_people(path, table)
    cells = pd.read_csv(path, dtype=str, keep_default_na=False)["image_id"]
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t")] and "-1.5" in set(cells)
    assert as_written(pd.read_csv(path, dtype=str, keep_default_na=False)).equals(table)


def test_a_packed_table_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LARGEST_UNPACKED", 2**20)
    path = tmp_path / "train.csv.gz"
    path.write_bytes(malicious.packed_table(4))
    with pytest.raises(PipelineError, match="made to fill the memory"):
        read_csv(path)
    path.write_bytes(gzip.compress(b"id,rle\n" + b"a,1 1\n" * 10))
    assert len(read_csv(path)) == 10

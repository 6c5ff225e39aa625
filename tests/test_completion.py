"""What a shell offers after the Tab key."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import completion
from pipeline.__main__ import app
from pipeline.core.errors import PipelineError
from pipeline.stages import STAGES


def offered(words: str) -> list[str]:
    """What bash is told to offer for the last of these words."""
    environment = {"_SEGPIPE_COMPLETE": "complete_bash", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    return CliRunner().invoke(app, [], env=environment, prog_name="segpipe").stdout.split()


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a recipe and a run of its own."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    for name in ("recipes/samovar.yaml", "work/sample/sam-2/postprocess.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("segpipe run sam", ["samovar", "sample"]),
        ("segpipe status sam", ["samovar", "sample"]),
        ("segpipe run sample --from v", ["validate"]),
        ("segpipe check a.csv --competition tgs", ["tgs-salt"]),
        ("segpipe compare sa", ["sam-2"]),
        ("segpipe run sample --set train.learn", ["train.learning_rate="]),
        ("segpipe encod", ["encode"]),
    ],
)
def test_names_are_completed(words: str, names: list[str]) -> None:
    assert sorted(offered(words)) == sorted(names)


def test_the_functions_offer_all_where_nothing_is_typed() -> None:
    assert tuple(completion.stages("")) == STAGES
    assert {"tune.method=", "model.encoder=", "competition="} <= set(completion.settings(""))
    assert completion.runs("nothing") == []


def test_a_shell_cannot_complete_a_module_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["pipeline/__main__.py"])
    with pytest.raises(PipelineError, match="`segpipe`; then run `segpipe --install-completion`"):
        completion.require_command(["--install-completion"])
    completion.require_command(["run", "sample"])
    monkeypatch.setattr("sys.argv", ["/usr/bin/segpipe"])
    completion.require_command(["--install-completion"])

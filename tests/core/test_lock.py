"""Two processes where one must wait for the other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.core.errors import PipelineError
from pipeline.core.lock import exclusive_lock

REPOSITORY = Path(__file__).parents[2]


def test_a_second_process_waits_until_the_first_is_gone(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pipeline.core.lock import exclusive_lock\n"
        "with exclusive_lock(Path(sys.argv[1])):\n"
        "    print('in', flush=True); sys.stdin.read()\n"
    )

    def start() -> subprocess.Popen[str]:
        environment = {**os.environ, "PIPELINE_ROOT": str(tmp_path)}
        command = [sys.executable, "-c", script, str(tmp_path / "work")]
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdin=-1, stdout=-1, stderr=-1, text=True)

    with start() as first:
        assert first.stdout and first.stdout.readline() == "in\n"
        with start() as second:
            assert second.stderr and second.stdout
            assert second.stderr.readline() == "another process is working in work; waiting until it is done\n"
            first.kill()
            assert second.stdout.readline() == "in\n"
            second.kill()


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), PermissionError(13, "Permission denied")])
def test_where_there_are_no_locks_work_goes_on(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(self: FileLock, blocking: bool) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with exclusive_lock(tmp_path / "work"):
        assert (tmp_path / "work").is_dir()


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    message = "work is a file, and a folder is needed there: move it away"
    with pytest.raises(PipelineError, match=message), exclusive_lock(tmp_path / "work" / "sample"):
        raise AssertionError("entered")

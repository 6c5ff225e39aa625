"""Pushes a run's bundle to Kaggle, and offers its kernel for submission: `bundle --push`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.core.files import read_record, shown
from pipeline.core.run import Run
from pipeline.encode import submission
from pipeline.kaggle.push import COMMIT, push
from pipeline.kaggle.submit import Kernel, Request, offer, slug_of


def push_bundle(run: Run, folder: Path, request: Request) -> Iterator[str]:
    """Pushes the dataset and the kernel of a bundle, checks what the commit run wrote, and asks whether to submit it;
    yields what a person should know, line by line.

    Args:
        run: whose bundle it is.
        folder: the bundle.
        request: the message, and what has been agreed to; its `wait` is for the commit run too.

    Raises:
        PipelineError: as `push` and `submit` do.
    """
    slug_of(run)
    about = read_record(folder / "dataset" / "bundle.json") or read_record(folder / "bundle.json")
    file = str(about.get("output", "submission.csv"))
    want = submission.expected(run.competition, run.input, run.competition_folder)
    wait = COMMIT if request.wait is None else request.wait
    pushed = push(
        folder, request.message, run.folder / "kaggle" / "commit-run", file=file, wait=wait,
        faults=(lambda path: submission.faults_of(path, want)) if file.endswith(".csv") else None,
    )  # fmt: skip
    yield f"the commit run of {pushed.kernel}, version {pushed.version}, wrote a valid {file}: {shown(pushed.output)}"
    yield from offer(run, replace(request, kernel=Kernel(pushed.kernel, pushed.version, file)))

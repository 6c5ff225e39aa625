"""Pushes a run's bundle to Kaggle and offers to submit its output: `bundle --push`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.core.files import read_record, shown
from pipeline.core.results import read_tuned
from pipeline.core.run import Run
from pipeline.core.verdict import Reason
from pipeline.encode import sanity, submission
from pipeline.kaggle.push import COMMIT, push
from pipeline.kaggle.submit import Kernel, Request, keep_reasons, offer, slug_of


def push_bundle(run: Run, folder: Path, request: Request) -> Iterator[str]:
    """Pushes the dataset and the kernel of a bundle, checks the output of the commit run, and offers to submit it.

    Args:
        run: the bundled run.
        folder: folder of the bundle.
        request: message and options of the submission; its `wait` also limits the commit run.

    Yields:
        Lines of text for the user.

    Raises:
        PipelineError: as `push` and `submit`.
    """
    slug_of(run)
    about = read_record(folder / "dataset" / "bundle.json") or read_record(folder / "bundle.json")
    file = str(about.get("output", "submission.csv"))
    wait = COMMIT if request.wait is None else request.wait
    reasons: list[Reason] = []

    def faults(path: Path) -> list[str]:
        listed, found = examine(run, path)
        reasons[:] = found
        return listed

    output = run.folder / "kaggle" / "commit-run"
    pushed = push(folder, request.message, output, file=file, wait=wait, faults=faults)
    yield f"the commit run of {pushed.kernel}, version {pushed.version}, wrote a valid {file}: {shown(pushed.output)}"
    kernel = Kernel(pushed.kernel, pushed.version, file)
    keep_reasons(run, kernel, reasons)
    yield from offer(run, replace(request, kernel=kernel))


def examine(run: Run, path: Path) -> tuple[list[str], list[Reason]]:
    """Returns the faults of a submission file and, if it has none, the reasons why it looks wrong, as encode does.

    Raises:
        PipelineError: the file cannot be read.
    """
    want = submission.expected(run.competition, run.input, run.competition_folder)
    result = read_tuned(run)
    never = [run.competition.classes[number] for number in result.get("never", [])]
    training = run.mask_statistics if run.mask_statistics.exists() else None
    return sanity.examine(path, want, run.competition, never, training, result.get("presence_prior"))

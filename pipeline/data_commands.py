"""The commands for raw files and submissions: `sample`, `new`, `check` and `score`; and `doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.options import Assignments, CompetitionName

SubmissionPath = Annotated[
    Path, typer.Argument(metavar="SUBMISSION", help="Submission file of any format, or folder of mask images.")
]


def register(app: typer.Typer) -> None:
    """Adds these commands to the command line."""
    for command in (sample, new, check, score):
        app.command()(command)


def sample(
    train: Annotated[int, typer.Option(help="Number of training images.")] = 240,
    test: Annotated[int, typer.Option(help="Number of test images.")] = 120,
    seed: Annotated[int, typer.Option(min=0, help="Random seed. The same seed writes the same files.")] = 0,
) -> None:
    """Write the synthetic ultrasound competition to input/sample."""
    from pipeline.core.console import counting, say
    from pipeline.core.files import input_root, shown
    from pipeline.new.sample import write_sample

    folder = input_root() / "sample"
    with counting("sample") as show:
        write_sample(folder, train, test, seed, show)
    say(f"sample: {train} training and {test} test images → {shown(folder)}")


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name for the competition, for example my-cells.")],
    folder: Annotated[Path, typer.Option("--from", metavar="FOLDER", help="Folder of the raw files, as downloaded.")],
    target: Annotated[
        Path | None,
        typer.Option("--to", metavar="FOLDER", help="Folder in which competitions/ is written."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing competition of this name.")] = False,
    assignments: Assignments = None,
) -> None:
    """Examine raw files and write a first competition YAML, in which every guess is marked and a recipe is chosen."""
    from pipeline.new.wizard import write_new

    for line in write_new(name, folder, target, force, assignments or ()).lines():
        typer.echo(line)


def check(
    submission_path: SubmissionPath,
    competition: CompetitionName,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Also exit with code 1 if the file is valid but the verdict is `do not submit`."),
    ] = False,
) -> None:
    """Check whether a submission is valid and looks plausible.

    Exit code 0 if it is valid; 1 otherwise, with its faults listed with their rows.
    """
    from pipeline.core.console import warn
    from pipeline.core.verdict import lines, verdict_of
    from pipeline.encode import sanity, submission

    loaded, want = submission.expected_by_name(competition)
    faults, reasons = sanity.examine(submission_path, want, loaded, certainty=True)
    if not faults:
        reasons = [*submission.file_note(submission_path, want), *sanity.format_note(want, loaded), *reasons]
    for fault in faults[:50]:
        typer.echo(f"{submission_path}: {fault}")
    if len(faults) > 50:
        typer.echo(f"… and {len(faults) - 50} more")
    verdict = verdict_of(reasons)
    for line in [*lines(reasons), *([] if verdict == "fine" else [f"  verdict: {verdict}"])]:
        warn(line)
    conclusion = "1 fault" if len(faults) == 1 else f"{len(faults)} faults" if faults else "valid"
    wrong = verdict == "do not submit"
    conclusion += f", but it looks wrong{' (--strict)' if strict else ''}" if wrong else ""
    typer.echo(f"{submission_path}: {conclusion}")
    raise typer.Exit(1 if faults or (strict and wrong) else 0)


def score(
    submission_path: SubmissionPath,
    truth: Annotated[Path, typer.Argument(metavar="TRUTH", help="True masks, in the format of a submission.")],
    competition: CompetitionName,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Score a submission against the true masks with the competition's metric."""
    import json

    from pipeline.encode import scoring, submission

    loaded, want = submission.expected_by_name(competition)
    value, rows = scoring.score(submission_path, truth, loaded, want)
    remark = f" ({loaded.remark})" if loaded.remark else ""
    result = {"score": value, "rows": rows, "metric": loaded.scored_by}
    result |= {"remark": loaded.remark} if remark else {}
    typer.echo(json.dumps(result) if as_json else f"{loaded.scored_by} {value:.4f} over {rows} rows{remark}")


def doctor() -> None:
    """Print versions, device and precision with the reason, missing packages and data, and the next command."""
    from pipeline.status import examine

    for line in examine():
        typer.echo(line)

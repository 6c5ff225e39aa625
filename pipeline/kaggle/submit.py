"""Submits a run's file or a kernel's output to Kaggle: checks it first, asks if it is doubtful, and records its score.

    python -m pipeline submit RECIPE -m "what is new"
    python -m pipeline submit RECIPE -k OWNER/KERNEL -v VERSION     for a code competition

reads   submissions/<run>.csv and .json, work/<competition>/test_images.parquet, the sample submission
writes  submissions/log.csv, and the scores into submissions/<run>.json
"""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.core import freshness
from pipeline.core.console import plain, say
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record, shown, write_json
from pipeline.core.results import read_submission
from pipeline.core.run import Run
from pipeline.core.verdict import Judged, Reason, from_json, gravest_first, judge, lines, to_json
from pipeline.core.version import program
from pipeline.encode import submission
from pipeline.kaggle import sent
from pipeline.kaggle.client import confirm, connect, explained, status_of, wait_for

PATIENCE = 1800.0
"""Seconds to wait for a score in a terminal; without a terminal, only `--wait` makes the command wait."""
FAULTS_SHOWN = 5
CLOCKS = timedelta(minutes=10)
"""How far the clock of this machine may be ahead of Kaggle's."""
PAGES = 50
"""Maximum number of pages of the list of submissions to read."""


@dataclass(frozen=True)
class Kernel:
    """The version of a kernel whose output is submitted."""

    name: str
    """owner/kernel."""
    version: int
    file: str = "submission.csv"

    def __str__(self) -> str:
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Request:
    """The options of a submission."""

    message: str
    kernel: Kernel | None = None
    yes: bool = False
    """Whether to submit a doubtful file without asking."""
    force: bool = False
    """Whether to submit even if the verdict is *do not submit*."""
    wait: float | None = None
    """Seconds to wait for the score; None: PATIENCE in a terminal, otherwise not at all."""


def submit(run: Run, request: Request) -> Iterator[str]:
    """Submits a run's file or a kernel's output.

    Yields:
        Lines of text for the user.

    Raises:
        PipelineError: the file is missing, invalid or older than the run; the verdict is *do not submit*; the user did
            not agree to a doubtful file; or Kaggle rejects it. The log has everything that was sent, even after errors.
    """
    if not run.competition.has_test:
        raise PipelineError(
            f"the competition {run.competition.name} has no test set (`test: null`), so there is no submission: name "
            "a test set in its YAML."
        )
    slug = slug_of(run)
    judged = _judged(run, request.kernel)
    digest = _check_file(run, judged) if request.kernel is None else sent.KERNEL + str(request.kernel)
    if not _agreed(run, judged, request, digest):
        yield "nothing was submitted"
        return
    api = connect()
    if digest in settle(api, run.competition.name, slug):  # sent by a command that was killed
        yield (
            f"an earlier command has already sent it, so nothing was submitted; `{program()} submissions "
            f"{run.competition.name}` shows it"
        )
        return
    _check_limit(api, slug)
    sent.remove(digest)
    when = _send(api, run, judged, request, digest)
    yield f"submitted {request.kernel or shown(run.submission)} to {slug}"
    yield from _await_score(api, run, when, request)


def offer(run: Run, request: Request) -> Iterator[str]:
    """Asks whether to submit the output of a kernel that has run, and submits it.

    Without a terminal, it gives the command that submits it.

    Yields:
        Lines of text for the user.

    Raises:
        PipelineError: as `submit`.
    """
    assert request.kernel is not None
    slug, kernel = slug_of(run), request.kernel
    words = [*program().split(), "submit", *(run.options or (run.recipe.name,)), "-k", kernel.name]
    words += ["-v", str(kernel.version), "-m", request.message]
    words += ["--file", kernel.file] if kernel.file != Kernel.file else []
    judged = _judged(run, kernel)
    yield from map(plain, lines(reasons_of_output(run, kernel)))
    if judged.verdict == "do not submit" and not request.force:
        raise PipelineError(
            f"The verdict on {kernel} is DO NOT SUBMIT: {judged.reasons[0].text} Nothing was submitted; "
            f"`{shlex.join([*words, '--force'])}` submits it anyway."
        )
    if not request.yes and not sys.stdin.isatty():
        yield f"not submitted; `{shlex.join(words)}` submits it"
    elif not confirm(f"Submit {kernel} to {slug}?", request.yes):
        yield "nothing was submitted"
    else:
        yield from submit(run, request)


def slug_of(run: Run) -> str:
    """Returns the name of the run's competition on Kaggle.

    Raises:
        PipelineError: the competition's YAML does not give it.
    """
    if run.competition.kaggle is None:
        raise PipelineError(
            f"competition {run.competition.name}: its YAML does not give its name on Kaggle (`kaggle: …`, the last "
            "part of its address)."
        )
    return run.competition.kaggle


def keep_reasons(run: Run, kernel: Kernel, reasons: list[Reason]) -> None:
    """Stores the reasons found in the output of a kernel's version; `submit` adds them to the run's reasons."""
    write_json(_output_file(run), {"kernel": str(kernel), "reasons": to_json(reasons)})


def reasons_of_output(run: Run, kernel: Kernel) -> list[Reason]:
    """Returns the stored reasons for the output of a kernel's version; none if the output was not examined."""
    content = read_record(_output_file(run))
    return from_json(content) if content.get("kernel") == str(kernel) else []


def _output_file(run: Run) -> Path:
    return run.folder / "kaggle" / "commit-run.json"


# --- before ----------------------------------------------------------------------------------------------------------


def _judged(run: Run, kernel: Kernel | None) -> Judged:
    judged = judge(run)
    if judged is None:
        raise PipelineError(f"{run.name} has no estimate yet: `{run.command()}` makes one, and a submission.")
    if kernel is not None:
        judged = replace(judged, reasons=gravest_first([*judged.reasons, *reasons_of_output(run, kernel)]))
    elif not judged.submitted:
        state = "does not belong to the last result of tune" if run.submission.exists() else "does not exist"
        raise PipelineError(f"{shown(run.submission)} {state}: `{run.command('--from', 'predict')}` writes it.")
    return judged


def _check_file(run: Run, judged: Judged) -> str:
    """The hash of the submission file, after checking that it is valid and unchanged since encode wrote it."""
    digest = freshness.hash_file(run.submission)
    if read_submission(run)["sha256"] != digest:
        raise PipelineError(
            f"{shown(run.submission)} was changed after encode wrote it: `{run.command('--from', 'encode')}` writes it "
            "again."
        )
    want = submission.expected(run.competition, run.input, run.competition_folder)
    if faults := submission.faults_of(run.submission, want):
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise PipelineError(
            f"{shown(run.submission)} is invalid, and nothing was submitted: {'; '.join(faults[:FAULTS_SHOWN])}{more}. "
            f"`{program()} check {shown(run.submission)} --competition {run.competition.name}` lists all faults."
        )
    return digest


def _agreed(run: Run, judged: Judged, request: Request, digest: str) -> bool:
    """Whether the file may be submitted; asks the user if it is doubtful."""
    grave = [reason.text for reason in judged.reasons if reason.level != "note"]
    if judged.verdict == "do not submit" and not request.force:
        raise PipelineError(f"The verdict on {run.name} is DO NOT SUBMIT: {grave[0]} --force submits it anyway.")
    doubts = []
    if judged.verdict == "check first":
        doubts.append(f"The verdict on {run.name} is CHECK FIRST: {' '.join(grave[:2])}")
    before = sent.of_file(sent.read(), [digest])
    before = before[before["status"] != "error"]
    if len(before) and not (before["status"] == "sending").all():
        row = before.iloc[-1]
        score = row["public"] or "not known yet"
        doubts.append(f"The same file was already submitted on {row['sent']} (public score {score}).")
    return not doubts or confirm(f"{' '.join(doubts)} Submit it anyway?", request.yes)


def _check_limit(api: Any, slug: str) -> None:
    """Checks that a submission is left today."""
    import requests

    with explained(f"ask for the limit of {slug}", slug):
        try:
            limits = api.competition_get_submission_limits(slug)
        except requests.HTTPError as error:
            if status_of(error) in (401, 403):
                raise
            return  # Kaggle will say so itself
    if limits.num_allowed_now == 0 and limits.num_today + limits.num_total > 0:
        when = "in total" if limits.limited_by_total else "for today (a new day begins at midnight UTC)"
        raise PipelineError(f"No submissions to {slug} are left {when}; nothing was submitted.")


# --- sending ---------------------------------------------------------------------------------------------------------


def _send(api: Any, run: Run, judged: Judged, request: Request, digest: str) -> str:
    """Sends the submission and returns the time that identifies it in the log.

    The row is added to the log first, so that a kill loses nothing.
    """
    slug, when = slug_of(run), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    what = str(request.kernel) if request.kernel else shown(run.submission)
    sent.add({
        "sent": when, "competition": run.competition.name, "run": run.name, "what": what, "message": request.message,
        "status": "sending", "verdict": judged.verdict, "sha256": digest, **_expected(run, judged),
    })  # fmt: skip
    lost: list[Exception] = []
    try:
        with explained(f"submit {what}", slug), _noticing_lost_answers(lost):
            if request.kernel:
                kernel = request.kernel
                answer = api.competition_submit_code(
                    kernel.file, request.message, slug, kernel.name, kernel.version, quiet=True
                )
            else:
                answer = api.competition_submit(str(run.submission), request.message, slug, quiet=True)
    except PipelineError as error:
        if lost:
            raise PipelineError(
                f"{error} The submission may still have arrived: `{program()} submissions {run.competition.name}` "
                "checks this, and so does the same command before it sends again."
            ) from None
        sent.remove(digest)
        raise PipelineError(f"{error} Nothing was submitted.") from None
    if answer.message == api.COMPETITION_SUBMIT_UPLOAD_FAILED_MESSAGE:
        sent.remove(digest)
        raise PipelineError(f"The upload of {what} was incomplete; nothing was submitted: run the same command again.")
    sent.update(when, run.name, {"ref": answer.ref or None, "status": "pending"})
    sent.record(run.competition.name, run.name)
    return when


@contextmanager
def _noticing_lost_answers(lost: list[Exception]) -> Iterator[None]:
    """Collects errors after which Kaggle may or may not have received the request: no answer, or a server error."""
    import requests

    try:
        yield
    except requests.RequestException as error:
        status = status_of(error)
        if status is None or status >= 500:
            lost.append(error)
        raise


def _expected(run: Run, judged: Judged) -> dict[str, Any]:
    """The columns of the log with the scores to expect."""
    scores = judged.result.get("scores", {})
    honest, optimistic = scores.get("fold_model", {}), scores.get("optimistic", {})
    low, high = honest.get("interval_95") or judged.result.get("nested_interval_95") or (None, None)
    return {
        "metric": judged.result["metric"],
        "estimate": honest.get("score", judged.result["nested"]),
        "low": low,
        "high": high,
        "optimistic": optimistic.get("score", judged.result["score"]),
    }


def settle(api: Any, competition: str, slug: str) -> set[str]:
    """Updates the log with Kaggle's list of submissions to a competition.

    Returns:
        The hashes of submissions that have arrived although the command that sent them was killed.

    Raises:
        PipelineError: Kaggle does not answer.
    """
    with explained(f"list the submissions to {slug}", slug):
        by_ref = _submissions(api, slug)
    rows, late = sent.read(competition), set[str]()
    claimed = set(rows["ref"])
    for row in rows.to_dict("records"):
        if row["status"] == "sending":
            arrived = [
                answer for ref, answer in by_ref.items() if answer.description == row["message"] and ref not in claimed
            ]
            earliest = str(datetime.fromisoformat(row["sent"]) - CLOCKS)[:19]
            arrived = [answer for answer in arrived if str(answer.date).replace("T", " ")[:19] >= earliest]
            if not row["sha256"].startswith(sent.KERNEL):
                name = Path(row["what"]).name
                arrived = [answer for answer in arrived if (answer.file_name or name) == name]
            if not arrived:
                continue
            row["ref"] = str(arrived[0].ref)
            claimed.add(row["ref"])
            late.add(row["sha256"])
        if row["ref"] in by_ref:
            sent.update(row["sent"], row["run"], {"ref": row["ref"], **_told(by_ref[row["ref"]])})
    for run_name in dict.fromkeys(rows["run"]):
        sent.record(competition, run_name)
    return late


def _submissions(api: Any, slug: str) -> dict[str, Any]:
    """All submissions to a competition, by Kaggle's number of the submission."""
    known: dict[str, Any] = {}
    for page in range(1, PAGES + 1):
        answer = api.competition_submissions(slug, page_number=page, page_size=100)
        new = {str(item.ref): item for item in answer or [] if item and str(item.ref) not in known}
        if not new:
            break
        known |= new
    return known


def _told(answer: Any) -> dict[str, Any]:
    """Kaggle's answer about a submission, as columns of the log."""
    return {
        "status": answer.status.name.lower(),
        "public": answer.public_score or None,
        "private": answer.private_score or None,
        "error": " ".join((answer.error_description or "").split()) or None,
    }


# --- after -----------------------------------------------------------------------------------------------------------


def _await_score(api: Any, run: Run, when: str, request: Request) -> Iterator[str]:
    later = f"`{program()} submissions {run.competition.name}` will show its score"
    seconds = request.wait if request.wait is not None else PATIENCE if sys.stderr.isatty() else 0.0
    rows = sent.read()
    (row,) = rows[(rows["sent"] == when) & (rows["run"] == run.name)].to_dict("records")
    if not seconds or not row["ref"]:
        yield later
        return

    def ask() -> Any:
        import requests

        after = f"The submission was sent (its number is {row['ref']}); {later}."
        with explained("ask for the score", slug_of(run), after):
            try:
                answer = api.get_submission(int(row["ref"]))
            except requests.HTTPError as error:
                if status_of(error) == 404:  # Kaggle does not list it yet
                    return None
                raise
        return None if answer.status.name == "PENDING" else answer

    answer = wait_for(ask, "the score", seconds)
    if answer is None:
        yield f"no score yet; {later}"
        return
    answered = _told(answer)
    sent.update(when, run.name, answered)
    sent.record(run.competition.name, run.name)
    if answered["status"] == "error":
        raise PipelineError(f"Kaggle could not score the submission: {answered['error'] or 'no reason given'}.")
    interval = f", 95 % {float(row['low']):.4f} to {float(row['high']):.4f}" if row["low"] and row["high"] else ""
    yield f"public score {answered['public'] or 'not published'}; estimated {float(row['estimate']):.4f}{interval}"
    if answered["private"]:
        yield f"private score {answered['private']}"
    say(f"  {shown(sent.log_file())}")

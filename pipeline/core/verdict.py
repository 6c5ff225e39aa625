"""The verdict on a run: whether its submission can be trusted, and the reasons, each in one sentence.

tune writes the reasons that it finds on the held-out images into postprocess.json. encode adds those that it finds on
the test images, and writes all reasons and the verdict into submissions/<run>.json.
"""

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.markup import escape

from pipeline.core.console import line_width, link, results
from pipeline.core.files import root, shown
from pipeline.core.results import read_submission, read_tuned
from pipeline.core.run import Run
from pipeline.core.written import if_sound

Level = Literal["stop", "check", "note"]
Verdict = Literal["fine", "check first", "do not submit"]
LEVELS: tuple[Level, ...] = ("stop", "check", "note")
"""The levels of reasons, the most serious first. `stop`: the submission should not be uploaded. `check`: look at this
before you upload it. `note`: worth knowing, but no reason against the submission."""
LOOK = "look at "
STYLES: dict[Level, str] = {"stop": "bold red", "check": "bold yellow", "note": "bold"}
SHOWN = 6
"""Maximum number of reasons that the console shows."""


@dataclass(frozen=True)
class Reason:
    """A finding about a run that the verdict is based on."""

    level: Level
    kind: str
    """A short, fixed name for programs and tests, e.g. `weak group`."""
    text: str
    """One sentence with the values, ending in a full stop."""
    command: str = ""
    """The command that helps, or the file to open; empty if there is none."""
    images: list[str] = field(default_factory=list)
    """Ids of training images that show the finding, the clearest first."""


def verdict_of(reasons: Iterable[Reason]) -> Verdict:
    """Returns the verdict that follows from the most serious reason."""
    levels = {reason.level for reason in reasons}
    if "stop" in levels:
        return "do not submit"
    return "check first" if "check" in levels else "fine"


def gravest_first(reasons: Iterable[Reason]) -> list[Reason]:
    """Returns reasons sorted by level, the most serious first. Reasons of the same level keep their order."""
    return sorted(reasons, key=lambda reason: LEVELS.index(reason.level))


def to_json(reasons: Iterable[Reason]) -> list[dict[str, Any]]:
    """Returns reasons as JSON objects, the most serious first."""
    return [asdict(reason) for reason in gravest_first(reasons)]


def from_json(content: Mapping[str, Any]) -> list[Reason]:
    """Returns the reasons in postprocess.json or in a submission's record. A file of an earlier version without reasons
    gives one reason that says so."""
    if "reasons" not in content:
        text = "The version that tuned this run did not record the reasons of the verdict: run tune again."
        return [Reason("check", "not known", text)]
    return [Reason(**fields) for fields in content["reasons"]]


@dataclass(frozen=True)
class Judged:
    """What is known about a run so far."""

    reasons: list[Reason]
    """The reasons, the most serious first."""
    result: dict[str, Any]
    """The content of postprocess.json."""
    submitted: bool
    """Whether the reasons include those that encode found on the test images; otherwise they are based on the held-out
    images only."""

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the reasons."""
        return verdict_of(self.reasons)


def judge(run: Run) -> Judged | None:
    """Returns what is known about a run; None if tune has not run.

    The reasons are those of the submission. If there is none, or if tune has run again since, they are those of the
    held-out images.

    Raises:
        PipelineError: postprocess.json is damaged.
    """
    if not run.postprocess.exists():
        return None
    result = read_tuned(run)
    record = (if_sound(read_submission, run) if run.submission.exists() else None) or {}
    submitted = record.get("postprocess") == result
    return Judged(gravest_first(from_json(record if submitted else result)), result, submitted)


def constants(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the scores of trivial submissions in postprocess.json, which predict the same mask for all images, by the
    name of the prediction."""
    scores, names = result.get("constants") or {}, {"all_empty": "an all-empty file", "mean_mask": "the mean mask"}
    if scores.get("all_empty") is None and "class_iou" in result:
        names["mean_mask"] = "the most frequent class at each pixel"
    return {name: scores[key] for key, name in names.items() if scores.get(key) is not None}


def tuned(result: Mapping[str, Any]) -> bool:
    """Returns whether the submission uses the tuned rules. Otherwise the optimistic score carries no further
    information."""
    return (result.get("procedure") or {}).get("ships", "tuned") == "tuned"


def of_what(result: Mapping[str, Any]) -> str:
    """Returns a text that says on which images the honest score was measured."""
    known = (result.get("scores") or {}).get("fold_model", {}).get("epoch_optimism") is not None
    return (
        "on images that no choice was made on"
        if known
        else "on images that no choice was made on, except perhaps the epoch"
    )


def lines(reasons: Sequence[Reason], page: str = "", most: int = SHOWN) -> Iterator[str]:
    """Yields the lines in which a console shows reasons, in rich's markup, the most serious first, each with the
    command that helps.

    Args:
        reasons: the reasons.
        page: the page with all reasons.
        most: maximum number of reasons to show.
    """
    shown_commands = set[str]()
    for reason in gravest_first(reasons)[:most]:
        text = "\n".join(wrapped(reason.text, 8))
        level = f"[{STYLES[reason.level]}]{reason.level:6}[/{STYLES[reason.level]}]"
        yield from f"  {level}{escape(text[8:])}".splitlines()
        if reason.command not in ("", page, *shown_commands):  # each command once; the page is named below
            yield from step_lines("        → ", as_step(reason.command))
        shown_commands.add(reason.command)
    if len(reasons) > most:
        yield f"        {len(reasons) - most} more{f' in {escape(page)}' if page else ''}"


def step_lines(before: str, step: str) -> Iterator[str]:
    """Yields the lines of a command or of a file to look at, in rich's markup. On a terminal, a long command is
    continued after a backslash, so that it can be copied as a whole, and a file is a link.

    Args:
        before: the text before the step in the first line.
        step: the result of `as_step`, or a command.
    """
    if step.startswith(LOOK):
        name = step.removeprefix(LOOK)
        yield f"{before}{LOOK}{link(root() / name, name) if (root() / name).exists() else escape(name)}"
        return
    if not results.is_terminal:
        yield escape(f"{before}{step}")
        return
    width, space = line_width() - len(before) - len(" \\"), " " * len(before)
    parts = textwrap.wrap(step, max(20, width), break_long_words=False, break_on_hyphens=False) or [step]
    for number, part in enumerate(parts):
        yield escape(f"{space if number else before}{part}") + (" \\" if number < len(parts) - 1 else "")


def as_step(command: str) -> str:
    """Returns the step for the command of a reason: the command itself, or `look at …` for a file."""
    return command if " " in command or not command else f"{LOOK}{command}"


def wrapped(text: str, indent: int) -> list[str]:
    """Returns the lines of a text, wrapped to the console's width and indented by `indent` characters."""
    space = " " * indent
    return textwrap.wrap(
        text,
        line_width(),
        initial_indent=space,
        subsequent_indent=space,
        break_long_words=False,
        break_on_hyphens=False,
    )


def next_steps(run: Run, judged: Judged, upload: str) -> list[str]:
    """Returns the commands that the user should run next, in order. The upload is only included if the verdict allows
    it.

    Args:
        run: the run.
        judged: what is known about the run.
        upload: the command that uploads or scores the submission.
    """
    serious = [reason for reason in judged.reasons if reason.level != "note"]
    first = as_step(next((reason.command for reason in serious if reason.command), shown(run.report)))
    if judged.verdict == "do not submit":
        return [first]
    arrays = run.recipe.arrays
    after = upload if judged.submitted else run.command()
    if not run.competition.has_test:
        after = run.predict_command() if run.predicts_folders else as_step(shown(run.report))
    elif arrays and not arrays.test:
        after = "the same command with --test TEST.npy, the predictions of the test images"
    return list(dict.fromkeys([first, after])) if serious else [after]

"""The verdict on a run: whether its submission can be trusted as it is, and the reasons, each one sentence.

tune writes the reasons that the held-out images give into postprocess.json; encode adds those of the test set and
writes all of them, with the verdict, into submissions/<run>.json.
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
"""The gravest first. `stop`: the submission is not worth an upload; `check`: somebody should look before it is;
`note`: worth knowing, and no reason against it."""
LOOK = "look at "
STYLES: dict[Level, str] = {"stop": "bold red", "check": "bold yellow", "note": "bold"}
SHOWN = 6
"""Reasons that the console shows."""


@dataclass(frozen=True)
class Reason:
    """Something that was found about a run."""

    level: Level
    kind: str
    """A short, fixed name, e.g. `weak group`; what programs and tests look for."""
    text: str
    """One sentence with the figures, ending in a full stop."""
    command: str = ""
    """The command, or the file to open, that helps; empty where there is none."""
    images: list[str] = field(default_factory=list)
    """Ids of training images that show it, the clearest first."""


def verdict_of(reasons: Iterable[Reason]) -> Verdict:
    """Returns what the gravest of the reasons amounts to."""
    levels = {reason.level for reason in reasons}
    if "stop" in levels:
        return "do not submit"
    return "check first" if "check" in levels else "fine"


def gravest_first(reasons: Iterable[Reason]) -> list[Reason]:
    """Returns reasons in the order in which a person should read them; those of one level stay in theirs."""
    return sorted(reasons, key=lambda one: LEVELS.index(one.level))


def to_json(reasons: Iterable[Reason]) -> list[dict[str, Any]]:
    """Returns reasons as JSON holds them, the gravest first."""
    return [asdict(reason) for reason in gravest_first(reasons)]


def from_json(content: Mapping[str, Any]) -> list[Reason]:
    """Returns the reasons that `to_json` wrote into postprocess.json or a submission's record; of a file that is older
    than reasons, that they are not known."""
    if "reasons" not in content:
        text = "What speaks for or against this run was not written by the version that tuned it: tune again."
        return [Reason("check", "not known", text)]
    return [Reason(**one) for one in content["reasons"]]


@dataclass(frozen=True)
class Judged:
    """What is known of a run so far."""

    reasons: list[Reason]
    """The gravest first."""
    result: dict[str, Any]
    """What postprocess.json holds."""
    submitted: bool
    """Whether the reasons are those of a submission, of which the test images are a part; or of held-out images
    alone."""

    @property
    def verdict(self) -> Verdict:
        """What the reasons amount to."""
        return verdict_of(self.reasons)


def judge(run: Run) -> Judged | None:
    """Returns what is known of a run: of its submission, or where tune has run since, or encode has not, of the
    held-out images; None where tune has not run.

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
    """Returns what costs nothing scores, as postprocess.json says it: the same answer for every image, by its name."""
    found, names = result.get("constants") or {}, {"all_empty": "an all-empty file", "mean_mask": "the mean mask"}
    if found.get("all_empty") is None and "class_iou" in result:
        names["mean_mask"] = "the commonest class at every place"
    return {name: found[key] for key, name in names.items() if found.get(key) is not None}


def tuned(result: Mapping[str, Any]) -> bool:
    """Returns whether a tuned decision ships, so that the optimistic score says something of its own."""
    return (result.get("procedure") or {}).get("ships", "tuned") == "tuned"


def of_what(result: Mapping[str, Any]) -> str:
    """Returns what the honest score is of, in words."""
    known = (result.get("scores") or {}).get("fold_model", {}).get("epoch_optimism") is not None
    return "on images that chose nothing" if known else "on images that chose nothing but perhaps the epoch"


def lines(reasons: Sequence[Reason], page: str = "", most: int = SHOWN) -> Iterator[str]:
    """Yields reasons as a console shows them, in rich's markup, each with the command that helps, the gravest first.

    Args:
        reasons: what was found.
        page: where the others can be read.
        most: how many are shown.
    """
    said = set[str]()
    for reason in gravest_first(reasons)[:most]:
        text = "\n".join(wrapped(reason.text, 8))
        level = f"[{STYLES[reason.level]}]{reason.level:6}[/{STYLES[reason.level]}]"
        yield from f"  {level}{escape(text[8:])}".splitlines()
        if reason.command not in ("", page, *said):  # each once; the page is named below
            yield from step_lines("        → ", as_step(reason.command))
        said.add(reason.command)
    if len(reasons) > most:
        yield f"        {len(reasons) - most} more{f' in {escape(page)}' if page else ''}"


def step_lines(before: str, step: str) -> Iterator[str]:
    """Yields a command, or what to look at, as lines in rich's markup: on a terminal a long command goes on after a
    backslash, so that it can be copied whole, and a file is a link.

    Args:
        before: what comes before it in the line.
        step: what `as_step` returned, or a command.
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
    """Returns the command, or what to do with the file, that a reason names."""
    return command if " " in command or not command else f"{LOOK}{command}"


def wrapped(text: str, indent: int) -> list[str]:
    """Returns a text as lines that a console shows whole, indented by so many characters."""
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
    """Returns the commands that a person should run next, in their order: the upload of a submission only where it is
    worth one.

    Args:
        run: whose verdict it is.
        judged: what is known of it.
        upload: the command that uploads the submission, or scores it.
    """
    grave = [one for one in judged.reasons if one.level != "note"]
    first = as_step(next((one.command for one in grave if one.command), shown(run.report)))
    if judged.verdict == "do not submit":
        return [first]
    arrays = run.recipe.arrays
    after = upload if judged.submitted else run.command()
    if not run.competition.has_test:
        after = run.predict_command() if run.predicts_folders else as_step(shown(run.report))
    elif arrays and not arrays.test:
        after = "the same with --test TEST.npy, the predictions of the test images"
    return list(dict.fromkeys([first, after])) if grave else [after]

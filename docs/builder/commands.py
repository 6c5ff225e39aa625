"""Writes docs/cli.md: every command with its arguments and options, from the command line itself."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import typer

HEAD = """# The command line

`python -m pipeline COMMAND`, or `segpipe COMMAND` where the package is installed with `pip install .`.
`python -m pipeline COMMAND --help` prints the same as this page, which `python docs/build.py --pages` writes.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | `check` found faults, or `liars-test` failed; after a traceback: a defect of the pipeline |
| 2 | bad input; one sentence says what is wrong and what to do ([troubleshooting](troubleshooting.md)) |
| 3 | with `--strict`: the verdict is *do not submit*; every file is written all the same |
| 4 | not finished: `--stop-after` is over, or Kaggle is not done; the same command goes on |
| 130, 143 | stopped by Ctrl-C or by a signal; the same command goes on |

Ctrl-C, a kill or a power cut loses at most the epoch that was being trained: the same command goes on from there.
"""
GROUPS = {
    "Run a recipe": ("run", "status", "report", "compare", "sweep", "liars-test", "review"),
    "Run one stage": ("decode", "clean", "split", "train", "validate", "tune", "predict", "encode", "evaluate"),
    "Raw files and submissions": ("sample", "new", "check", "score", "doctor"),
    "Kaggle": (
        "download", "submit", "submissions", "leaderboard", "save", "restore", "bundle", "infer", "infer-part",
    ),
}  # fmt: skip
OTHER = "Further commands"


def page() -> str:
    """Returns the page."""
    from pipeline.__main__ import app

    group: Any = typer.main.get_command(app)
    known: dict[str, Any] = dict(group.commands)
    listed = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, OTHER: tuple(sorted(set(known) - listed))}
    parts = [HEAD]
    for title, names in groups.items():
        shown = [name for name in names if name in known and not known[name].hidden]
        if shown:
            parts += [f"\n## {title}\n", *("\n".join(_command(name, known[name])) for name in shown)]
    return "\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    visible = [one for one in command.params if not one.hidden]
    arguments = [one for one in visible if not one.opts[0].startswith("-")]
    options = [one for one in visible if one not in arguments]
    usage = " ".join([*(_metavar(one) for one in arguments), *(["[OPTIONS]"] if options else [])])
    yield f"### {name}\n"
    yield f"{' '.join((command.help or '').split())}\n"
    yield f"```\npython -m pipeline {f'{name} {usage}'.strip()}\n```\n"
    if arguments or options:
        yield "| argument or option | default | meaning |\n|---|---|---|"
        yield from (f"| `{_metavar(one)}` | {_default(one)} | {_meaning(one)} |" for one in arguments)
        yield from (f"| {_spelling(one)} | {_default(one)} | {_meaning(one)} |" for one in options)
        yield ""


def _metavar(parameter: Any) -> str:
    """What stands for its value."""
    name = max(parameter.opts, key=len).lstrip("-").replace("-", "_")
    return (parameter.metavar or name.upper()).replace("|", "&#124;")


def _spelling(option: Any) -> str:
    words = ", ".join(f"`{word}`" for word in [*option.opts, *option.secondary_opts])
    return words if option.is_flag else f"{words} <code>{_metavar(option)}</code>"


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, [], (), "") or callable(value) else f"`{value}`"


def _meaning(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split()).replace("|", "&#124;").replace("<", "&lt;")
    return f"{text} Repeatable." if parameter.multiple and "epeatable" not in text else text

"""Messages and progress bars on standard error. Standard output is reserved for results."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Element = TypeVar("Element")

WIDTH = 120
"""Maximum number of characters per line of text, unless the terminal has fewer."""
CONTINUED = "  "
"""Additional indentation of the second and further lines of a wrapped text."""


class WordConsole(Console):
    """rich's console, which on a terminal wraps long lines between words and indents the continuation. Lines in a log
    are not wrapped."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich's console does; see its documentation."""
        wraps = len(objects) == 1 and isinstance(objects[0], str | Text) and "end" not in options
        if wraps and self.is_terminal:
            markup = options.pop("markup", None)
            text = objects[0] if isinstance(objects[0], Text) else self.render_str(objects[0], markup=markup)
            objects = (between_words(text, self),)
        super().print(*objects, **options)


# rich cannot know the width of a log: use one that fits every table
console = WordConsole(
    stderr=True, highlight=False, emoji=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160
)
results = WordConsole(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
"""The console for results, on standard output."""

_verbose = False


def between_words(text: Text, target: Console) -> Text:
    """Returns a text with line breaks between words, for the width of a console. Words that are longer than a line,
    such as paths, are not broken. Continuation lines are indented a little more than their first line."""
    lines = []
    for line in text.split("\n", allow_blank=True):
        if line.cell_len <= target.width:
            lines.append(line)
            continue
        space = len(line.plain) - len(line.plain.lstrip())
        width = max(20, target.width - space - len(CONTINUED))
        for number, part in enumerate(_parts(line[space:], width)):
            part.rstrip()
            lines.append(Text(" " * space + CONTINUED * (number > 0)) + part)
    return Text("\n").join(lines)


def _parts(text: Text, width: int) -> Iterable[Text]:
    """Splits a text into parts of whole words. rich's own wrapping would cut words that are longer than a line."""
    breaks, used = [], 0
    for word in re.finditer(r"(?:→ +)?\S+\s*", text.plain):
        if used and used + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    return text.divide(breaks)


def enable_verbose() -> None:
    """Makes `detail` print its messages."""
    global _verbose
    _verbose = True


def enable_quiet() -> None:
    """Suppresses all messages except warnings and errors. Results are still printed on standard output."""
    console.quiet = True


def say(text: str) -> None:
    """Prints a text literally. Names of files and classes may contain text that rich would interpret as markup."""
    console.print(text, markup=False)


def say_markup(text: str) -> None:
    """Prints a text with rich's markup."""
    console.print(text)


def show(text: str) -> None:
    """Prints a line of a command's result, with rich's markup, on standard output."""
    results.print(text)


def plain(markup: str) -> str:
    """Returns a text without rich's markup."""
    return Text.from_markup(markup).plain


def link(path: Path, text: str) -> str:
    """Returns a text, in rich's markup, that links to a file or folder in terminals that support links."""
    return f"[link={path.absolute().as_uri()}]{escape(text)}[/link]"


def line_width() -> int:
    """Returns the maximum number of characters per line on standard output."""
    return min(WIDTH, results.width) if results.is_terminal else WIDTH


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows a spinner while work of unknown duration runs. Prints nothing if standard error is not a terminal."""
    visible = console.is_terminal and not console.quiet
    with console.status(escape(what)) if visible else nullcontext():
        yield


def loading_torch() -> Any:
    """Returns a context for importing torch, which shows a spinner if torch has not been imported yet."""
    return nullcontext() if "torch" in sys.modules else busy("loading PyTorch")


def warn(text: str) -> None:
    """Prints a warning with rich's markup, even in quiet mode."""
    quiet, console.quiet = console.quiet, False
    console.print(text)
    console.quiet = quiet


def detail(text: str) -> None:
    """Prints a message if --verbose is set, followed by this process's peak memory."""
    if _verbose:
        console.print(f"  [dim]{escape(text)}; {memory_text()} so far[/dim]")


def duration(seconds: float) -> str:
    """Returns a duration as a short text: 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def exact_duration(seconds: float) -> str:
    """Returns a duration to the second: 40 s or 2 min 5 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def memory_text() -> str:
    """Returns the peak memory of this process as a text."""
    peak = peak_memory()
    return "memory not known" if peak is None else f"at most {peak:.1f} GiB of memory"


def peak_memory() -> float | None:
    """Returns the peak memory of this process in GiB; None on Windows, where it is not known."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak / 2**30, 2)


def progress_bar() -> Progress:
    """Returns a progress bar with an estimate of the remaining time. It shows nothing if standard error is not a
    terminal."""
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    left = [TextColumn("left"), TimeRemainingColumn()]
    return Progress(*columns, *left, console=console, transient=True, disable=console.quiet or not console.is_terminal)


class Shares:
    """A progress bar over several units of work and, if units run in parallel, one more bar per running unit."""

    def __init__(self, bar: Progress, description: str, sizes: dict[str, int], beside: bool = False) -> None:
        """Adds the bar over all units.

        Args:
            bar: the progress display.
            description: the text beside the bar.
            sizes: the size of each unit by its title: 1 per training, the number of images of a prediction.
            beside: whether units run in parallel.
        """
        self.bar, self.sizes, self.beside = bar, sizes, beside
        self.task = bar.add_task(description, total=sum(sizes.values()))
        self.done = dict.fromkeys(sizes, 0.0)
        self.rows: dict[str, TaskID] = {}

    def advance(self, title: str, share: float) -> None:
        """Adds `share`, from 0 to 1, to the finished part of a unit."""
        self._show(title, self.done[title] + share)

    def end(self, title: str) -> None:
        """Marks a unit as done, in this process or another, also if it ended early."""
        self._show(title, 1)

    def _show(self, title: str, share: float) -> None:
        self.done[title] = min(share, 1.0)  # a unit that was restarted reports a part twice
        self.bar.update(self.task, completed=sum(self.sizes[unit] * done for unit, done in self.done.items()))
        if self.beside and share < 1:
            if title not in self.rows:
                self.rows[title] = self.bar.add_task(f"  {title}", total=100)
            self.bar.update(self.rows[title], completed=round(100 * share))
        elif title in self.rows:
            self.bar.remove_task(self.rows.pop(title))


def track(elements: Iterable[Element], description: str, total: int) -> Iterator[Element]:
    """Yields the elements and shows a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for element in elements:
            yield element
            bar.advance(task)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that updates a progress bar, from the number of finished elements and their total number."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

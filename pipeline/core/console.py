"""Messages and progress for a person, on standard error; standard output belongs to results."""

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
"""Characters of a line of text, where a terminal does not have fewer."""
CONTINUED = "  "
"""What the further lines of a wrapped text are indented by, beside what the first one is."""


class WordConsole(Console):
    """rich's console, which breaks what is longer than a terminal's line between words and indents the rest. A log
    keeps its lines whole, however long."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does; see there."""
        whole = len(objects) == 1 and isinstance(objects[0], str | Text) and "end" not in options
        if whole and self.is_terminal:
            markup = options.pop("markup", None)
            text = objects[0] if isinstance(objects[0], Text) else self.render_str(objects[0], markup=markup)
            objects = (between_words(text, self),)
        super().print(*objects, **options)


# a log has no width that rich could know of: wide enough for every table
console = WordConsole(
    stderr=True, highlight=False, emoji=False, soft_wrap=True, width=None if sys.stderr.isatty() else 160
)
results = WordConsole(highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
"""Prints on standard output."""

_verbose = False


def between_words(text: Text, target: Console) -> Text:
    """Returns a text with line breaks between words, so that a console shows every line whole; words that are longer
    than a line, paths for instance, stay whole. Further lines are indented as their first one, and a little more."""
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
    """A text in parts of whole words; rich's own wrapping cuts words that are longer than a line."""
    breaks, used = [], 0
    for word in re.finditer(r"(?:→ +)?\S+\s*", text.plain):
        if used and used + cell_len(word[0].rstrip()) > width:
            breaks.append(word.start())
            used = 0
        used += cell_len(word[0])
    return text.divide(breaks)


def enable_verbose() -> None:
    """Lets `detail` print."""
    global _verbose
    _verbose = True


def enable_quiet() -> None:
    """Says nothing but warnings and errors from here on; results on standard output stay."""
    console.quiet = True


def say(text: str) -> None:
    """Prints a text as it stands: names of files and classes may hold what rich would read as markup."""
    console.print(text, markup=False)


def say_markup(text: str) -> None:
    """Prints a text that holds rich's markup."""
    console.print(text)


def show(text: str) -> None:
    """Prints a line of a command's result, in rich's markup, on standard output."""
    results.print(text)


def plain(markup: str) -> str:
    """Returns a text without rich's markup."""
    return Text.from_markup(markup).plain


def link(path: Path, text: str) -> str:
    """Returns a text, in rich's markup, that a terminal which knows links opens as this file or folder."""
    return f"[link={path.absolute().as_uri()}]{escape(text)}[/link]"


def line_width() -> int:
    """Returns how many characters a line of text on standard output may have."""
    return min(WIDTH, results.width) if results.is_terminal else WIDTH


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows that something is under way whose end nobody knows: silent where standard error is no terminal."""
    moves = console.is_terminal and not console.quiet
    with console.status(escape(what)) if moves else nullcontext():
        yield


def loading_torch() -> Any:
    """Returns a context in which torch is imported for the first time: something moves on a terminal meanwhile."""
    return nullcontext() if "torch" in sys.modules else busy("loading PyTorch")


def warn(text: str) -> None:
    """Prints what must not be overlooked, even where everything else is quiet. The text is rich's markup."""
    quiet, console.quiet = console.quiet, False
    console.print(text)
    console.quiet = quiet


def detail(text: str) -> None:
    """Prints what --verbose asks for, with the most memory that this process has held."""
    if _verbose:
        console.print(f"  [dim]{escape(text)}; {memory_text()} so far[/dim]")


def duration(seconds: float) -> str:
    """Returns a length of time as a person says it: 40 s, 12 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def memory_text() -> str:
    """Returns the most memory that this process has held, for a person."""
    peak = peak_memory()
    return "memory not known" if peak is None else f"at most {peak:.1f} GiB of memory"


def peak_memory() -> float | None:
    """Returns the most memory that this process has held, in GiB; None on Windows, which does not tell."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return round(peak / 2**30, 2)


def progress_bar() -> Progress:
    """Returns a progress display with an estimate of the time left; silent where standard error is no terminal."""
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    left = [TextColumn("left"), TimeRemainingColumn()]
    return Progress(*columns, *left, console=console, transient=True, disable=console.quiet or not console.is_terminal)


class Shares:
    """One bar over several units of work, and one for each of those that are under way beside others."""

    def __init__(self, bar: Progress, description: str, sizes: dict[str, int], beside: bool = False) -> None:
        """Takes the progress display, what the units count by their titles (1 for each training, images of a
        prediction), and whether several are under way at once."""
        self.bar, self.sizes, self.beside = bar, sizes, beside
        self.task = bar.add_task(description, total=sum(sizes.values()))
        self.done = dict.fromkeys(sizes, 0.0)
        self.rows: dict[str, TaskID] = {}

    def advance(self, title: str, share: float) -> None:
        """Such a further share of a unit is done."""
        self._show(title, self.done[title] + share)

    def end(self, title: str) -> None:
        """A unit is done, early or not, here or elsewhere."""
        self._show(title, 1)

    def _show(self, title: str, share: float) -> None:
        self.done[title] = min(share, 1.0)  # a unit that begins again tells a part twice
        self.bar.update(self.task, completed=sum(self.sizes[one] * done for one, done in self.done.items()))
        if self.beside and share < 1:
            if title not in self.rows:
                self.rows[title] = self.bar.add_task(f"  {title}", total=100)
            self.bar.update(self.rows[title], completed=round(100 * share))
        elif title in self.rows:
            self.bar.remove_task(self.rows.pop(title))


def track(elements: Iterable[Element], description: str, total: int) -> Iterator[Element]:
    """Yields the elements under a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        for element in elements:
            yield element
            bar.advance(task)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a function that shows under a progress bar how many are done, and of how many."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

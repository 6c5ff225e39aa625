"""Trials one after another, in this process."""

from collections.abc import Iterable, Iterator

from pipeline.core.engine import Advance, Outcome, Unit


class InTurn:
    """An engine that runs a unit when it is asked for the next outcome."""

    def run(self, units: Iterable[Unit], advance: Advance) -> Iterator[Outcome]:
        """Yields every unit when it ended."""
        for unit in units:
            try:
                yield Outcome(unit, unit.work(unit.argument, _Reporter(advance)))
            except Exception as error:
                yield Outcome(unit, error=error)


class _Reporter:
    def __init__(self, advance: Advance) -> None:
        self.advance = advance

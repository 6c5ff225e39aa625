"""Lists the submissions with their estimates and scores, and recommends which two to select.

python -m pipeline submissions [COMPETITION]
"""

from collections.abc import Iterator

import pandas as pd
from rich.table import Table
from rich.text import Text

from pipeline.core.config.competition import Competition
from pipeline.core.config.raw_layouts import LAYOUTS, load_competition
from pipeline.core.config.settings import validate
from pipeline.core.console import warn
from pipeline.core.errors import PipelineError
from pipeline.core.files import root
from pipeline.core.recorded import read_recipe
from pipeline.core.run import input_folder
from pipeline.core.written import if_sound
from pipeline.encode import submission
from pipeline.kaggle import choice, sent
from pipeline.kaggle.client import connect
from pipeline.kaggle.submit import settle


def competition_of(rows: pd.DataFrame) -> Competition:
    """Returns the competition of rows of the log: by its name, or, if its YAML is elsewhere, from a run's recipe.

    Raises:
        PipelineError: the competition is found in neither way.
    """
    name = rows["competition"].iloc[0]
    competition = if_sound(load_competition, name)
    folder = root() / "work" / name
    for run in dict.fromkeys(rows["run"]) if competition is None else ():
        path = folder / run / "recipe.yaml"
        if path.exists():
            data = read_recipe(path)["competition"]
            competition = validate(LAYOUTS[data["reader"]], data, f"{run}/recipe.yaml")
            break
    return competition or load_competition(name)


def refresh(competitions: list[Competition]) -> None:
    """Updates the log with the scores that Kaggle reports; warns if Kaggle cannot be reached."""
    try:
        api = connect()
        for competition in competitions:
            if competition.kaggle:
                settle(api, competition.name, competition.kaggle)
    except PipelineError as error:
        from rich.markup import escape

        warn(f"[yellow]the scores below may be out of date: {escape(str(error))}[/yellow]")


def table_of(rows: pd.DataFrame) -> Table:
    """Returns the rows of the log as a table, the latest last."""
    table = Table(title=Text(f"submissions to {rows['competition'].iloc[0]}"), title_justify="left")
    columns = ("sent (UTC)", "run", "estimate", "95 %", "optimistic", "public", "private", "verdict", "message")
    for column in columns:
        table.add_column(column, justify="right" if column in columns[2:7] else "left")
    for row in rows.to_dict("records"):
        interval = f"{_digits(row['low'])}–{_digits(row['high'])}" if row["low"] else "–"
        state = row["public"] or {"sending": "arrived?", "complete": "–"}.get(row["status"], row["status"])
        cells = [row["sent"][:16], row["run"], _digits(row["estimate"]), interval, _digits(row["optimistic"]), state]
        table.add_row(*map(Text, [*cells, row["private"] or "–", row["verdict"], row["message"] or row["error"]]))
    return table


def lines(rows: pd.DataFrame, competition: Competition) -> Iterator[str]:
    """Yields lines of text: the correlations of estimates and scores, and the two submissions to select.

    Args:
        rows: the rows of the log for this competition.
        competition: the competition.
    """
    known = choice.correlations(rows)
    scored = int((rows["public"] != "").sum())
    for name, result in known.items():
        interval = f"95 % {result.low:.2f} to {result.high:.2f}"
        yield f"estimate and {name} score: correlation {result.r:.2f} ({interval}) over {result.count} submissions"
    if not known:
        yield f"estimate and public score: a correlation needs {choice.FEWEST} scored submissions; {scored} so far"
    distinct = rows.drop_duplicates("sha256", keep="last").reset_index(drop=True)
    folder = root() / "work" / competition.name
    want = if_sound(submission.expected, competition, input_folder(competition), folder)
    chosen = choice.choose(distinct, competition, choice.Files(distinct, want).differ)
    if chosen:
        names = [
            f"{distinct['run'].iloc[row]} of {distinct['sent'].iloc[row][:16]}"
            for row in (chosen.first, chosen.second)
            if row is not None
        ]
        yield f"select {' and '.join(names)}: {chosen.why}."
        yield "This choice does not use public scores, which cover only a part of the test images."


def _digits(text: str) -> str:
    value = sent.number(text)
    return "–" if value is None else f"{value:.4f}"

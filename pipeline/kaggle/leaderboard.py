"""A local leaderboard: scores a folder of submissions on a public and a private part of the true masks.

    python -m pipeline leaderboard FOLDER TRUTH --competition NAME --public 0.3

If TRUTH has Kaggle's column `Usage`, as the solution.csv of `make-competition`, this column gives the public and the
private images.

writes  work/<competition>/leaderboard.csv and .html
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.config.competition import Competition
from pipeline.core.console import track
from pipeline.core.errors import PipelineError
from pipeline.core.files import read_record
from pipeline.core.tables import write_for_people
from pipeline.encode import scoring
from pipeline.encode.file_kinds import files_in, record_of, stem
from pipeline.encode.submission import Expected
from pipeline.masks.metrics import final_metric
from pipeline.report import charts, page

PUBLIC = 0.3
"""The default share of the images in the public part."""


@dataclass(frozen=True)
class Board:
    """Submissions with their scores on both parts."""

    competition: str
    metric: str
    sign: int
    public_images: int
    private_images: int
    rows: pd.DataFrame
    """Columns name, public, private, public_rank, private_rank, estimate (NaN if unknown); best public score first."""
    unscored: dict[str, str]
    """Files that could not be scored, with the reason."""

    @property
    def shake_up(self) -> float:
        """The mean change of rank between both parts, as a share of the number of submissions."""
        moved = (self.rows["public_rank"] - self.rows["private_rank"]).abs()
        return float(moved.mean() / len(self.rows))

    def chosen(self, column: str) -> pd.Series | None:
        """Returns the row with the best value in a column; None if the column is empty."""
        known = self.rows.dropna(subset=[column])
        return None if known.empty else known.loc[(self.sign * known[column]).idxmax()]

    def sentences(self) -> list[str]:
        """Returns sentences that compare the public with the private ranking."""
        best, public = self.chosen("private"), self.chosen("public")
        assert best is not None and public is not None
        gap = _beside(self.sign * (public["private"] - public["public"]))
        if len(self.rows) == 1:
            return [
                f"{public['name']} has {public['public']:.4f} in public and {public['private']:.4f} in private: "
                f"{gap} its public score."
            ]
        leaders = self.rows[self.rows["public_rank"] == 1]
        others = len(leaders) - 1
        leads = f"leads in public with {public['public']:.4f}"
        if others:
            leads = f"and {others} other{'s' * (others > 1)} lead in public with {public['public']:.4f}; it"
        else:
            leads += " and"
        loss = _beside(self.sign * (public["private"] - best["private"]))
        place = f", and {loss} {best['name']}, the best in private."
        if public["private_rank"] == 1:
            place = ", and the best in private."
        sentences = [
            f"{public['name']} {leads} is number {public['private_rank']} of {len(self.rows)} in private, with "
            f"{public['private']:.4f}: {gap} its public score{place}",
            f"Shake-up: a rank changes by {self.shake_up:.0%} of the {len(self.rows)} submissions on average.",
        ]
        honest = self.chosen("estimate")
        if honest is not None:
            sentences.insert(1, (
                f"By the estimates alone, which use no test image, {honest['name']} would have been chosen: "
                f"{honest['private']:.4f} in private, number {honest['private_rank']}."
            ))  # fmt: skip
        return sentences


def _beside(difference: float) -> str:
    """The comparison of two scores in words, given a difference that is positive if the first score is better."""
    if f"{abs(difference):.4f}" == "0.0000":
        return "as good as"
    return f"{abs(difference):.4f} {'better' if difference > 0 else 'worse'} than"


def split(ids: list[str], share: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Returns the ids of the public part and of the private part. The result does not depend on the order of `ids`.

    Args:
        ids: ids of all images.
        share: share of the images in the public part, between 0 and 1.
        seed: seed of the random split.

    Raises:
        PipelineError: a part would be empty.
    """
    ordered = sorted(ids, key=lambda image_id: hashlib.sha256(f"{seed} {image_id}".encode()).digest())
    count = round(share * len(ids)) if 0 < share < 1 else 0
    if not 0 < count < len(ids):
        raise PipelineError(
            f"--public {share}: {count} of {len(ids)} images would be public; expected a share between 0 and 1 that "
            "leaves at least one image in each part."
        )
    return ordered[:count], ordered[count:]


def leaderboard(
    folder: Path, truth: Path, competition: Competition, want: Expected, share: float | None = None, seed: int = 0
) -> Board:
    """Returns the submissions in a folder with their scores on both parts.

    Args:
        folder: folder of submissions of any file format. A .json file that encode wrote next to one gives its estimate.
        truth: true masks, in the format of a submission.
        competition: the competition, for its metric.
        want: the expected content of a submission.
        share: share of the images in the public part; None: the column `Usage` of the truth decides, or PUBLIC if there
            is no such column.
        seed: seed of the random split, if there is no such column.

    Raises:
        PipelineError: no file in the folder can be scored, `share` is given although the truth has a column `Usage`, or
            that column holds another value than Public, Private and Ignored.
    """
    if not folder.is_dir():
        raise PipelineError(f"{folder} is not a folder; expected a folder of submissions.")
    paths = [path for path in files_in(folder) if path.resolve() != truth.resolve() and path.name != "log.csv"]
    if not paths:
        raise PipelineError(f"{folder} contains no submission; expected files such as .csv or .parquet.")
    parts = _parts(truth, want, share, seed)
    rows: list[dict[str, Any]] = []
    unscored: dict[str, str] = {}
    for path in track(paths, "score", len(paths)):
        try:
            public, private = (scoring.score(path, truth, competition, want, part)[0] for part in parts)
        except PipelineError as error:
            unscored[stem(path)] = str(error)
            continue
        rows.append({"name": stem(path), "public": public, "private": private, "estimate": _estimate(path)})
    if not rows:
        raise PipelineError(
            f"None of the {len(paths)} files in {folder} can be scored: {next(iter(unscored.values()))}"
        )
    sign = final_metric(competition).sign
    board = pd.DataFrame(rows)
    for name in ("public", "private"):
        board[f"{name}_rank"] = (-sign * board[name]).rank(method="min").astype(int)
    board = board.sort_values(["public_rank", "name"], ignore_index=True)
    return Board(competition.name, competition.scored_by, sign, len(parts[0]), len(parts[1]), board, unscored)


def _parts(truth: Path, want: Expected, share: float | None, seed: int) -> tuple[set[str], set[str]]:
    """The ids of the public images and of the private images."""
    usage = scoring.truth_usage(truth, want)
    if usage is None:
        public, private = split(scoring.truth_ids(truth, want), PUBLIC if share is None else share, seed)
        return set(public), set(private)
    if share is not None:
        raise PipelineError(
            f"--public {share:g}: the column {scoring.USAGE} of {truth} already gives the public images; omit --public."
        )
    parts = [{image_id for image_id, part in usage.items() if part == name} for name in scoring.PARTS]
    return parts[0], parts[1]


def _estimate(path: Path) -> float:
    """The honest score in a submission's record; NaN without one."""
    expected = read_record(record_of(path)).get("expect")
    try:
        return float(expected["scores"]["fold_model"]["score"])  # type: ignore[index]
    except (KeyError, TypeError, ValueError):
        return float("nan")


def write(board: Board, folder: Path) -> list[Path]:
    """Writes the board as a table and as an HTML page into a folder, and returns both paths."""
    table, html = folder / "leaderboard.csv", folder / "leaderboard.html"
    write_for_people(table, board.rows.round(6))
    columns = ["public", "private", "name", "public score", "private score", "estimate", "moved"]
    page.write(
        html, "leaderboard.html.jinja", title=f"Leaderboard of {board.competition}", board=board, columns=columns,
        rows=[cells(row) for row in board.rows.to_dict("records")],
        chart=charts.public_and_private(board.rows, board.metric),
    )  # fmt: skip
    return [table, html]


def as_json(board: Board) -> str:
    """Returns the board as a JSON array: one object per submission, those that could not be scored last, with the key
    `unscored` and the reason."""
    scored = json.loads(board.rows.to_json(orient="records"))
    unscored = [{"name": name, "unscored": why} for name, why in board.unscored.items()]
    return json.dumps([*scored, *unscored], separators=(",", ":"))


def cells(row: dict[str, Any]) -> list[str]:
    """Returns the texts of a row: both ranks, name, both scores, estimate and change of rank."""
    moved = row["public_rank"] - row["private_rank"]
    estimate = "–" if pd.isna(row["estimate"]) else f"{row['estimate']:.4f}"
    ranks = [str(row["public_rank"]), str(row["private_rank"])]
    return [
        *ranks,
        row["name"],
        f"{row['public']:.4f}",
        f"{row['private']:.4f}",
        estimate,
        f"{moved:+d}" if moved else "–",
    ]


def lines(board: Board, most: int = 20) -> list[str]:
    """Returns the board as lines of text: a table of the first `most` submissions, and the sentences about it."""
    title = f"{board.competition}, {board.metric}: {board.public_images} images public, {board.private_images} private"
    width = max(len(name) for name in board.rows["name"])
    text = [title, f"public private  {'name':{width}}  public  private  estimate  moved"]
    for row in board.rows.head(most).to_dict("records"):
        public, private, name, *scores, moved = cells(row)
        text.append(
            f"{public:>6} {private:>7}  {name:{width}}  {scores[0]}  {scores[1]:>7}  {scores[2]:>8}  {moved:>5}"
        )
    if len(board.rows) > most:
        text.append(f"… and {len(board.rows) - most} more")
    text += [f"{name}: not scored: {why}" for name, why in board.unscored.items()]
    return [*text, *board.sentences()]

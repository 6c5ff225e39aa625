"""The cost of choosing a submission by its public leaderboard score instead of by the out-of-fold score.

    python -m benchmarks.public_leaderboard RECIPE TRUTH.csv [--quick] [--fold 0] [--public 0.3] [--write FOLDER]

Takes a finished run of a competition with one class and known test masks (`sample`). Two sets of submissions are made
from the test predictions of one fold's network (`--fold`), whose probabilities are distributed like the out-of-fold
ones. The mean of several networks has another distribution, and other best thresholds.

rules       every pair of threshold and minimum area: few submissions, which truly differ;
equals      mixtures that draw, for each image, one of the rules that are best out-of-fold (within a standard error):
            many submissions that differ by chance alone, as those of other seeds and of small ideas do.

The test images are split into a public and a private part many times. For each split, the submission with the best
public score is compared on the private part, in pairs, with the rule that is best on the out-of-fold images, which is
the same for all splits.

`--write` also writes some of the equals as files, and the best rule, for `python -m pipeline leaderboard`.
"""

import argparse
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.core.files import write_json
from pipeline.core.results import read_tuned
from pipeline.core.run import Run, open_run
from pipeline.decode import table
from pipeline.encode import submission
from pipeline.kaggle.leaderboard import split
from pipeline.masks import rle
from pipeline.masks.decision import Rule, Rules, decide
from pipeline.masks.metrics import Metric, metric_of
from pipeline.predictions import blends
from pipeline.predictions.blends import Blend
from pipeline.tune.held_out import held_out

THRESHOLDS = (64, 96, 112, 128, 144, 160, 192, 224)
AREAS = (0, 500, 1000, 2000, 3000, 4000)
EQUALS, WRITTEN = 100, 40
Tried = list[Rule]


def candidates() -> Tried:
    """Returns all pairs of threshold and minimum area."""
    return [Rule(threshold, area) for threshold, area in product(THRESHOLDS, AREAS)]


def scores_of(pairs: Iterable[tuple[np.ndarray, np.ndarray]], metric: Metric, rules: Tried) -> np.ndarray:
    """Returns the metric of every rule and image (R, N), from probabilities and true masks (1, h, w)."""
    columns = []
    for probability, truth in pairs:
        masks = [decide(probability, Rules((rule,))) for rule in rules]
        columns.append(metric.by_class(metric.measured(masks, [truth] * len(masks)))[:, 0])
    return np.stack(columns, 1)


def held_out_pairs(run: Run) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the out-of-fold probabilities and the true masks (1, h, w) of a run."""
    known, plain = held_out(run), blends.plain_of(run)
    by_fold = {fold: blends.out_of_fold(run, fold, plain) for fold in run.trained_folds()}
    for image, row in zip(known.images.to_dict("records"), known.rows, strict=True):
        truth = table.true_mask(row, run.competition.classes)
        yield by_fold[image["fold"]].native(image["row"], truth.shape[1:]), truth


def test_pairs(blend: Blend, truths: dict[str, np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the probabilities and the known masks (1, h, w) of the test images, in the order of the truths."""
    place = {name: row for row, name in enumerate(blend.ids)}
    for name, truth in truths.items():
        yield blend.native(place[name], (truth.shape[0], truth.shape[1])), truth[None]


def truths_of_csv(path: Path, run: Run, images: pd.DataFrame) -> dict[str, np.ndarray]:
    """Returns the known masks (h, w) of the test images, by id."""
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    shapes = {row.image_id: (int(row.height), int(row.width)) for row in images.itertuples()}
    settings, convention = run.competition.submission, rle.convention_of(run.competition.rle)
    pairs = zip(rows[settings.id], rows[settings.rle], strict=True)
    return {name: rle.decode(text, shapes[name], convention) for name, text in pairs}


def mix(scores: np.ndarray, of_held_out: np.ndarray) -> np.ndarray:
    """Returns the rule of each of the equals for each image (EQUALS, N), from scores (R, N) of the test images and
    (R, M) of the out-of-fold images."""
    means = of_held_out.mean(1)
    error = of_held_out[means.argmax()].std() / of_held_out.shape[1] ** 0.5
    near = np.flatnonzero(means >= means.max() - error)
    return np.random.default_rng(0).choice(near, (EQUALS, scores.shape[1]))


def compare(tried: np.ndarray, honest: np.ndarray, ids: list[str], share: float, splits: int) -> pd.DataFrame:
    """Returns a row per split: the public score of the public choice, and what it, the honest choice and the best that
    was possible are worth in private, from scores (S, N) of submissions and (N,) of the honest choice."""
    place, rows = {name: number for number, name in enumerate(ids)}, []
    for seed in range(splits):
        public, private = ([place[name] for name in part] for part in split(ids, share, seed))
        seen, decides = tried[:, public].mean(1), tried[:, private].mean(1)
        chosen = int(seen.argmax())
        rows.append({
            "public": seen[chosen], "chosen": decides[chosen], "honest": honest[private].mean(), "best": decides.max(),
            "rank": int((decides > decides[chosen]).sum()) + 1,
        })  # fmt: skip
    return pd.DataFrame(rows)


def say(name: str, rows: pd.DataFrame, count: int) -> None:
    """Prints the rows of one set of submissions."""
    lost = rows["honest"] - rows["chosen"]
    print(f"{name}: {count} submissions")
    print(f"  best in public     {rows['public'].mean():.4f} public, {rows['chosen'].mean():.4f} private: number "
          f"{rows['rank'].mean():.0f} there; best in private {rows['best'].mean():.4f}")  # fmt: skip
    wins = (lost > 0).mean()
    print(f"  best out-of-fold   {rows['honest'].mean():.4f} private: {lost.mean():+.4f} to it, better in {wins:.0%}")


def write_submissions(
    run: Run, blend: Blend, mixed: list[list[Rule]], honest: Rule, estimate: float, ids: list[str], folder: Path
) -> None:
    """Writes some of the equals as files, and the best rule with its out-of-fold score as estimate."""
    want = submission.expected(run.competition, run.input, run.competition_folder)
    place = {name: row for row, name in enumerate(blend.ids)}
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"idea-{number:02}": chosen for number, chosen in enumerate(mixed[:WRITTEN], 1)}
    for title, chosen in {**named, "best-out-of-fold": [honest] * len(ids)}.items():
        texts: dict[submission.Key, list[str]] = {}
        for name, rule in zip(ids, chosen, strict=True):
            masks = decide(blend.native(place[name], want.shapes[name]), Rules((rule,)))
            texts |= submission.texts_of(name, masks, want)
        submission.write(folder / f"{title}.csv", texts, want)
    write_json(folder / "best-out-of-fold.json", {"expect": {"scores": {"fold_model": {"score": estimate}}}})


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("truth", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--public", type=float, default=0.3)
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    run, rules = open_run(options.recipe, options.quick, assignments=options.set), candidates()
    result, images = read_tuned(run), table.read_tables(run.competition_folder)
    test, metric = blends.test(run, result).models[options.fold], metric_of(run.competition)
    truth = truths_of_csv(options.truth, run, images[images["subset"] == "test"])
    of_held_out = scores_of(held_out_pairs(run), metric, rules)
    scores, ids = scores_of(test_pairs(test, truth), metric, rules), list(truth)
    means = of_held_out.mean(1)
    best = int(means.argmax())
    mixed, honest = mix(scores, of_held_out), scores[best]
    equals = np.take_along_axis(scores, mixed, 0)
    print(f"{run.name}: {len(ids)} test and {of_held_out.shape[1]} out-of-fold images, {options.splits} splits, "
          f"{options.public:.0%} public, {date.today()}")  # fmt: skip
    say("rules", compare(scores, honest, ids, options.public, options.splits), len(scores))
    say("equals", compare(equals, honest, ids, options.public, options.splits), len(equals))
    if options.write:
        chosen = [[rules[rule] for rule in row] for row in mixed]
        write_submissions(run, test, chosen, rules[best], float(means[best]), ids, options.write)


if __name__ == "__main__":
    main()

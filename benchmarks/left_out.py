"""Scores of a decision on images that did not choose it: folds left out, groups left out, and the test set.

    python -m benchmarks.left_out WORK/COMPETITION/RUN… [--truth TRUTH.csv]

For each finished run and each way of choosing a decision, whether or not tune would have kept it: the score on the
images that chose it, on folds that did not, on groups that did not (median, lowest and highest over partitions), and,
with --truth, on the test set. The last row is the choice of tune itself.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.truth_of_scores import open_run
from pipeline.core.console import enable_quiet
from pipeline.core.files import read_json
from pipeline.core.run import Run
from pipeline.encode import scoring, submission
from pipeline.encode import stage as encode
from pipeline.masks.decision import Rules, described
from pipeline.predictions import blends
from pipeline.split.folds import counted_rows
from pipeline.tune import estimate, mask_rules
from pipeline.tune import stage as tune
from pipeline.tune.drawn_masks import problem_of
from pipeline.tune.held_out import Weighting, held_out
from pipeline.tune.procedure import Parts
from pipeline.tune.selection import Choice, Fits, Nested

WAYS: tuple[tuple[str, ...], ...] = (
    (), ("threshold",), ("area",), ("triplet",), ("presence",), ("expected",), ("rank",), ("expected", "components"),
)  # fmt: skip


def truth_of(run: Run, decision: Rules, truth: Path) -> float:
    """Returns the score of a decision on the test set, from the predictions that the run kept."""
    want = submission.expected(run.competition, run.input, run.competition_folder)
    images, result = want.images[want.images["subset"] == "test"], read_json(run.postprocess)
    chosen = result | {"rules": described(decision, run.competition.classes)}
    texts, _, _ = encode._encode_all(run, images, want, blends.test(run, result), chosen)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "submission.csv"
        submission.write(path, texts, want)
        return scoring.score(path, truth, run.competition, want)[0]


def rows_of(run: Run, truth: Path | None) -> list[str]:
    """Returns the rows of the table for one run."""
    held = held_out(run)
    counted = np.flatnonzero(counted_rows(held.images, run.recipe.tune.rows))
    parts, weighting = Parts.of(held, counted), Weighting(blends.plain_of(run), blends.weights_of(run))
    evidence = mask_rules.collect(held, [weighting])[0]
    problem = problem_of(held, weighting, evidence, np.ones(evidence.true.shape))
    known = {step for group in mask_rules.steps_of(run.recipe.tune, evidence, problem.metric) for step in group}
    fits = Fits(problem, counted, parts.cells)
    for step in known:
        problem.prepare(step, [problem.untuned])

    def row(name: str, choices: Sequence[Choice]) -> str:
        final, without = choices[0], dict(zip(parts.left_out[1:], choices[1:], strict=True))
        nested = Nested.of(without, parts.partitions)
        score, scores = problem.metric.score, problem.metric.sign * nested.scores
        fold_out = estimate.fold_out(final, problem.metric, nested.rows, parts.folds)
        shown = [
            f"{score(final.fits.problem.counts(final.decision, counted).sum(0)):.4f}",
            f"{fold_out['score']:.4f} ({fold_out['difference']:+.4f} ± {fold_out['standard_error']:.4f})"
            if fold_out
            else "",
            f"{np.median(scores):.4f} ({scores.min():.4f} to {scores.max():.4f})",
            f"{truth_of(run, final.decision, truth):.4f}" if truth else "",
        ]
        return f"| {run.name} | {name} | {' | '.join(shown)} |"

    opened = [
        Choice(fits, parts.groups, parts.partitions if not without else [], without) for without in parts.left_out
    ]
    found = [
        row(" then ".join(way) or "untuned", [replace(choice, path=way) for choice in opened])
        for way in WAYS
        if set(way) <= known
    ]
    chosen = tune.choose(held, counted)[0].chosen
    steps = " then ".join(chosen.choice.path) or "untuned"
    return [
        *found,
        row(f"what tune ships: {steps}", [chosen.choice, *(chosen.without[one] for one in parts.left_out[1:])]),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--truth", type=Path, help="known masks of the test images, in the submission's format")
    options = parser.parse_args()
    enable_quiet()
    print(f"{date.today()}\n\n| run | decision | chosen on all | a fold left out | groups left out | truth |")
    print("|---|---|---|---|---|---|")
    for folder in options.runs:
        print("\n".join(rows_of(open_run(folder), options.truth)), flush=True)


if __name__ == "__main__":
    main()

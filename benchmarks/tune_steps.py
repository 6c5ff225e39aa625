"""What does each step of tune bring, to one model and to the average of two seeds, with and without averaged views?

    python -m benchmarks.tune_steps WORK/COMPETITION/RUN

Of a finished run with several seeds, one trained fold or more, and test-time augmentation: each step alone, fitted
without each part of the images and scored on it (nested), whether or not tune would have kept it; then tune's own
search. Differences are to the untuned, plain predictions of the same models, groups drawn whole. `carried`: parameters
of each single model, applied to the average.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.honesty import open_run
from pipeline.masks.bootstrap import gain, mean_score
from pipeline.masks.metrics import metric_of
from pipeline.tune import mask_rules
from pipeline.tune.held_out import Weighting, held_out
from pipeline.tune.mask_rules import MaskProblem
from pipeline.tune.selection import open_choice, parts_of, select


def main() -> None:
    """Prints one row a step, plain and with test-time augmentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = open_run(parser.parse_args().run)
    held, seeds = held_out(run), len(run.recipe.train.seeds)
    mixes = [Weighting((plain,), (1.0,), model) for plain in (True, False) for model in (None, *range(seeds))]
    evidences = mask_rules.collect(held, mixes)
    weights, rows = np.ones(evidences[0].true.shape), np.arange(len(held.rows))
    problems = {
        mix: MaskProblem(evidence, run.competition.metric, weights, mask_rules.region_counter(held, mix))
        for mix, evidence in zip(mixes, evidences, strict=True)
    }
    folds, groups = held.images["fold"].to_numpy(), held.images["group"].to_numpy()
    parts = parts_of(folds, groups)
    outer = [(rows[parts != part], rows[parts == part]) for part in np.unique(parts)]
    order = np.concatenate([part for _, part in outer])

    def nested(mix: Weighting, steps: list[list[str]], confidence: float, on: Weighting | None = None) -> np.ndarray:
        choices = [open_choice(problems[mix], others, folds, groups) for others, _ in outer]
        select(choices, steps, confidence, lambda: None)
        scored = problems[on or mix]
        pairs = zip(choices, outer, strict=True)
        return np.concatenate([scored.counts(choice.decision, part) for choice, (_, part) in pairs])

    untuned = {mix: nested(mix, [], 0.5) for mix in mixes}
    wanted = mask_rules.steps_of(run.recipe.tune, evidences[0], metric_of(run.competition))
    tried: list[tuple[str, list[list[str]], float]] = [("untuned", [], -1.0)]
    tried += [(step, [[step]], -1.0) for group in wanted for step in group]
    tried.append((f"tune, confidence {run.recipe.tune.confidence}", wanted, run.recipe.tune.confidence))
    print(f"{date.today()}, {run.competition.metric}, {len(rows)} images, {seeds} seeds")
    print(
        "| step | views | " + " | ".join(f"seed {seed}" for seed in run.recipe.train.seeds) + " | average | carried |"
    )
    print("|---" * (seeds + 4) + "|")
    for name, steps, confidence in tried:
        for plain in (True, False):
            average, *singles = (mix for mix in mixes if mix.plain == (plain,))
            cells = []
            for mix in (*singles, average):
                before = untuned[Weighting((True,), (1.0,), mix.model)]
                after = nested(mix, steps, confidence)
                found = gain(before, after, mean_score, groups[order])
                cells.append(f"{mean_score(after.sum(0)):.4f} ({found.value:+.4f} ± {found.standard_error:.4f})")
            carried = ""  # regions are not counted at another's thresholds
            if not any("components" in group for group in steps):
                own = [mean_score(nested(mix, steps, confidence, average).sum(0)) for mix in singles]
                carried = f"{np.mean(own):.4f}"
            views = "plain" if plain else run.recipe.predict.tta
            print(f"| {name} | {views} | {' | '.join(cells)} | {carried} |", flush=True)


if __name__ == "__main__":
    main()

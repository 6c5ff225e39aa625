"""The gain of each step of tune, for one model and for the average of two seeds, with and without averaged views.

    python -m benchmarks.tune_steps WORK/COMPETITION/RUN

Takes a finished run with several seeds, at least one trained fold, and test-time augmentation. Each step is forced
alone, whether or not tune would have kept it: fitted without each part of the groups and scored on that part. Then
follows tune's own search, made without each part (nested). All figures are means over the partitions that tune leaves
out. Differences are to the untuned, plain predictions of the same models, with groups drawn whole. `carried` means the
parameters of each single model, applied to the average.
"""

import argparse
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.truth_of_scores import open_run
from pipeline.masks.bootstrap import gain
from pipeline.masks.decision import Rules
from pipeline.masks.metrics import metric_of
from pipeline.tune import mask_rules
from pipeline.tune.held_out import Weighting, held_out
from pipeline.tune.mask_rules import MaskProblem
from pipeline.tune.procedure import Parts
from pipeline.tune.selection import Cells, Fits, Problem

Decisions = Mapping[Cells, Rules]
"""Decisions by the groups that they were made without."""


def forced(fits: Fits, parts: Parts, step: str) -> Decisions:
    """Returns the decisions by one step alone, whatever it brings, or by no step if `step` is empty."""
    path = (step,) if step else ()
    fits.problem.prepare(step, [fits.start])
    return {part: fits.decision(path, part) for part in parts.left_out[1:]}


def averaged(problem: Problem, decisions: Decisions, fits: Fits, parts: Parts) -> np.ndarray:
    """Returns what the score takes the sum of, image by image, under the decision made without it: the mean over
    partitions."""
    counts = {part: problem.counts(decision, fits.inside(part)) for part, decision in decisions.items()}
    total = np.zeros((len(parts.rows), *next(iter(counts.values())).shape[1:]))
    for part in (part for partition in parts.partitions for part in partition):
        total[fits.inside(part)] += counts[part]
    return total / len(parts.partitions)


def main() -> None:
    """Prints one row per step, plain and with test-time augmentation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = open_run(parser.parse_args().run)
    held, seeds, settings = held_out(run), len(run.recipe.train.seeds), run.recipe.tune
    mixes = [Weighting((plain,), (1.0,), model) for plain in (True, False) for model in (None, *range(seeds))]
    evidences = mask_rules.collect(held, mixes)
    weights, rows = np.ones(evidences[0].true.shape), np.arange(len(held.rows))
    metric, parts = metric_of(run.competition), Parts.of(held, rows)
    fits = {
        mix: Fits(MaskProblem(evidence, metric.name, weights, mask_rules.region_counter(held, mix), parts.groups), rows,
                  parts.cells)
        for mix, evidence in zip(mixes, evidences, strict=True)
    }  # fmt: skip
    wanted = mask_rules.steps_of(settings, evidences[0], metric)

    def searched(mix: Weighting) -> Decisions:
        left_out = parts.left_out[1:]
        choices = parts.choices([fits[mix]] * len(left_out), wanted, settings, left_out)
        return {part: choice.decision for part, choice in zip(left_out, choices, strict=True)}

    search = f"tune, confidence {settings.confidence}"
    print(f"{date.today()}, {metric.name}, {len(rows)} images, {seeds} seeds")
    print(
        "| step | views | " + " | ".join(f"seed {seed}" for seed in run.recipe.train.seeds) + " | average | carried |"
    )
    print("|---" * (seeds + 4) + "|")
    for name in ("", *(step for group in wanted for step in group), search):
        for plain in (True, False):
            average, *singles = (mix for mix in mixes if mix.plain == (plain,))
            decisions = {
                mix: searched(mix) if name == search else forced(fits[mix], parts, name) for mix in (*singles, average)
            }
            cells = []
            for mix, own in decisions.items():
                plainly = fits[Weighting((True,), (1.0,), mix.model)]
                before = averaged(plainly.problem, forced(plainly, parts, ""), plainly, parts)
                after = averaged(fits[mix].problem, own, fits[mix], parts)
                found = gain(before, after, metric.objective, parts.groups)
                cells.append(f"{metric.score(after.sum(0)):.4f} ({found.value:+.4f} ± {found.standard_error:.4f})")
            carried = ""  # regions are not counted at the thresholds of another model
            if name != "components" and not (name == search and ["components"] in wanted):
                problem = fits[average].problem
                scores = [metric.score(averaged(problem, decisions[mix], fits[mix], parts).sum(0)) for mix in singles]
                carried = f"{np.mean(scores):.4f}"
            views = "plain" if plain else run.recipe.predict.tta
            print(f"| {name or 'untuned'} | {views} | {' | '.join(cells)} | {carried} |", flush=True)


if __name__ == "__main__":
    main()

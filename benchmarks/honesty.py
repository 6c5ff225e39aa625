"""Does the nested estimate keep its promise? Out-of-fold predictions, tuned on a few images and scored on the rest.

    python -m benchmarks.honesty WORK/COMPETITION/RUN [--draws 500] [--images 200] [--permuted] [--processes 2]

From a finished run's out-of-fold images 200 are drawn 500 times, groups whole. tune's own search with its default
settings, connected regions included, chooses on them; its nested estimate leaves out each of five sets of their groups.
What the decision scores on the rest, which chose nothing, is what both estimates promise. Predictions are the run's,
averaged over its seeds, with or without test-time augmentation as it decided: that and an ensemble's weights are not
chosen again.

Bias is the estimate minus the score of the rest, under the decision that ships, which was chosen on all 200; and
under the decisions that the estimate itself made, which for the nested one were chosen on four fifths. Most of its
noise is which images were drawn, and that shows under decisions that do not depend on the draw, where the same
difference is 0 on average: the untuned one, one chosen on the whole pool, and empty masks. It is regressed on these
three (control variates); the bias is the intercept. Intervals are mean ± 1.96 standard errors over draws: of this pool,
which the draws share.

Coverage: how often the nested 95 % interval holds the score of the rest. The interval is of the score of endless
images, and that of the rest has an error of its own: with n images drawn and m left, their difference spreads
√(1 + n/m) times as wide, so coverage is also given for the interval made that much wider.

With --permuted every draw first gives each image the true mask of another (all have to be of one size): what can be
learnt is little, what can be fitted to chance is not. The rest is then fresh data of the same kind. Beside the nested
estimate stand two mutants: one chooses on the images it scores, too; one only keeps the steps that were kept on
all images, and fits them without those it scores.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import yaml

from pipeline.core.config.competition import load_competition
from pipeline.core.config.recipe import Recipe
from pipeline.core.config.settings import validate
from pipeline.core.console import track
from pipeline.core.run import Run
from pipeline.masks.bootstrap import interval, mean_score
from pipeline.masks.decision import Rules
from pipeline.masks.metrics import metric_of
from pipeline.masks.regions import RegionRule, shortlist_counts
from pipeline.predictions import blends
from pipeline.tune import mask_rules
from pipeline.tune.evidence import Evidence, Regions, histogram_counts, image_scores
from pipeline.tune.held_out import HeldOut, Weighting, held_out
from pipeline.tune.mask_rules import UNTUNED, MaskProblem
from pipeline.tune.selection import Choice, open_choice, parts_of, select

ESTIMATED = 0.9
"""The confidence that a step's gain has to reach; estimates are of what it chooses."""
LEVELS = (0.5, 0.84, 0.95, ESTIMATED)
"""Confidences that are compared."""
Part = tuple[np.ndarray, np.ndarray]
"""Positions of all other images, and of those of a part."""
CONTROLS = ("untuned", "pool", "empty")
"""Decisions that do not depend on the draw."""


@dataclass(frozen=True)
class Pool:
    """Out-of-fold images, their pixels in memory."""

    probability: list[np.ndarray]
    """Each (C, h, w) uint8."""
    true: list[np.ndarray]
    """Each (C, h, w) uint8 of 0, 1 and 255 (ignored)."""
    evidence: Evidence
    metric: str
    steps: list[list[str]]
    counted: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """By class and threshold: predicted and intersection pixels (N, V) of the shortlist."""

    @property
    def groups(self) -> np.ndarray:
        return self.evidence.images["group"].to_numpy()

    def regions(self, thresholds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns predicted and intersection pixels (N, C, T, V); see Regions."""
        each = [[self._at(index, level) for level in levels] for index, levels in enumerate(thresholds)]
        predicted, intersection = (
            np.stack([np.stack([pair[place] for pair in pairs], axis=1) for pairs in each], axis=1) for place in (0, 1)
        )
        return predicted, intersection

    def _at(self, index: int, level: int) -> tuple[np.ndarray, np.ndarray]:
        if (index, level) not in self.counted:
            own = slice(index, index + 1)
            pairs = zip(self.probability, self.true, strict=True)
            found = [shortlist_counts(probability[own], true[own], [[level]]) for probability, true in pairs]
            predicted, intersection = (np.stack(part)[:, 0, 0] for part in zip(*found, strict=True))
            self.counted[index, level] = predicted, intersection
        return self.counted[index, level]

    def problem(self, rows: np.ndarray) -> MaskProblem:
        """Returns the problem that tune would have with the images at `rows` alone."""
        evidence = self.evidence.only(rows)

        def count_regions(thresholds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
            predicted, intersection = self.regions(thresholds)
            return predicted[rows], intersection[rows]

        return MaskProblem(evidence, self.metric, np.ones(evidence.true.shape), count_regions)

    def scores(self, decision: Rules) -> np.ndarray:
        """Returns the score (N,) of every image under a decision."""
        evidence = self.evidence
        if any(rule.components != RegionRule() for rule in decision.rules):
            thresholds = tuple((rule.threshold,) for rule in decision.rules)
            evidence = replace(evidence, regions=Regions(thresholds, *self.regions(thresholds)))
        return image_scores(evidence, decision, self.metric).mean(1)

    def permuted(self, random: np.random.Generator) -> "Pool":
        """Returns the pool with the true mask of another image for each."""
        true = [self.true[place] for place in random.permutation(len(self.true))]
        pairs = zip(self.probability, true, strict=True)
        counts = zip(*(histogram_counts(*pair) for pair in pairs), strict=True)
        area, predicted, intersection, total = (np.stack(part) for part in counts)
        old = self.evidence
        return Pool(self.probability, true, Evidence(old.images, area, predicted, intersection, total, old.presence),
                    self.metric, self.steps)  # fmt: skip


def open_run(folder: Path) -> Run:
    """Returns a finished run, given as $PIPELINE_ROOT/work/<competition>/<run>, with the folds that were predicted."""
    folder = folder.resolve()
    os.environ["PIPELINE_ROOT"] = str(folder.parents[2])
    data = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))["recipe"]
    recipe = validate(Recipe, data, str(folder / "recipe.yaml"))
    files = (folder / "predictions").glob("oof_fold_*.csv")
    folds = sorted({int(file.stem.split("_")[2]) for file in files})
    train = recipe.train.model_copy(update={"folds": folds})
    return Run(recipe.model_copy(update={"train": train}), load_competition(recipe.competition), folder.name)


def open_pool(folder: Path) -> Pool:
    """Returns the images of a finished run."""
    run = open_run(folder)
    held: HeldOut = held_out(run)
    mix = Weighting(blends.plain_of(run), blends.weights_of(run))

    def keep(number: int, probabilities: list[np.ndarray], true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return probabilities[0], true

    probability, true = zip(*held.each([mix], keep, "read"), strict=True)
    evidence = mask_rules.collect(held, [mix])[0]
    steps = mask_rules.steps_of(run.recipe.tune, evidence, metric_of(run.competition))
    return Pool(list(probability), list(true), evidence, run.competition.metric, steps)


# --- one draw --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """Scores of one draw."""

    on_drawn: dict[str, float]
    """The images that were drawn, under each decision."""
    on_rest: dict[str, float]
    """All others, under the same decisions."""
    estimates: dict[str, float]
    """What is said of the decision with confidence ESTIMATED."""
    own: dict[str, float]
    """What the rest scores under the decisions that an estimate made."""
    interval: tuple[float, float]
    """The nested estimate's."""
    images: tuple[int, int]
    """How many were drawn, and how many not."""


def draw(random: np.random.Generator, groups: np.ndarray, images: int) -> np.ndarray:
    """Returns which images (N,) bool are drawn: whole groups, until there are enough."""
    _, group, sizes = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    order = random.permutation(len(sizes))
    enough = np.searchsorted(np.cumsum(sizes[order]), images) + 1
    return np.isin(group, order[:enough])


def one_draw(pool: Pool, images: int, permuted: bool, control: Rules, seed: int) -> Drawn:
    """Draws, tunes, and scores the rest."""
    random = np.random.default_rng(seed)
    if permuted:
        pool = pool.permuted(random)
    drawn = draw(random, pool.groups, images)
    rows, groups = np.flatnonzero(drawn), pool.groups[drawn]
    problem, every = pool.problem(rows), np.arange(len(rows))
    parts = parts_of(np.zeros(len(rows)), groups)
    outer = [(np.flatnonzero(parts != part), np.flatnonzero(parts == part)) for part in np.unique(parts)]
    nothing = replace(UNTUNED, min_area=2**31 - 1)
    decisions = {"untuned": problem.untuned, "pool": control, "empty": Rules((nothing,) * len(control.rules))}
    decisions["area"] = problem.fit("area", problem.untuned, every, True)
    decisions |= {str(level): chosen(pool, problem, [every], groups, level)[0].decision for level in LEVELS[:-1]}
    choices = chosen(pool, problem, [every, *(others for others, _ in outer)], groups, ESTIMATED)
    decisions[str(ESTIMATED)] = choices[0].decision
    scores = {name: pool.scores(decision) for name, decision in decisions.items()}
    on_drawn = {name: float(each[drawn].mean()) for name, each in scores.items()}
    on_rest = {name: float(each[~drawn].mean()) for name, each in scores.items()}
    made = {"optimistic": [choices[0].decision] * len(outer), "nested": [one.decision for one in choices[1:]]}
    if permuted:
        made["steps"] = peeking_at_steps(problem, choices[0], outer)
    counts = {name: counted(problem, each, outer) for name, each in made.items()}
    estimates = {name: float(mean_score(each.sum(0))) for name, each in counts.items()}
    bounds = interval(counts["nested"], mean_score, groups[np.concatenate([part for _, part in outer])])
    assert bounds is not None  # every pool has many groups
    sizes = [len(part) for _, part in outer]
    own = {
        name: float(np.average([pool.scores(one)[~drawn].mean() for one in each], weights=sizes))
        for name, each in made.items()
    }
    return Drawn(on_drawn, on_rest, estimates, own, bounds, (len(rows), len(drawn) - len(rows)))


def chosen(
    pool: Pool, problem: MaskProblem, row_sets: Sequence[np.ndarray], groups: np.ndarray, confidence: float
) -> list[Choice]:
    """Returns what tune's search chooses on each of several sets of images; groups (n,) are of the problem's."""
    choices = [open_choice(problem, rows, np.zeros(len(groups)), groups) for rows in row_sets]
    select(choices, pool.steps, confidence, lambda: None)
    return choices


def counted(problem: MaskProblem, decisions: Sequence[Rules], outer: Sequence[Part]) -> np.ndarray:
    """Returns the counts (n, 2) of every part under its own decision, in the order of the parts."""
    pairs = zip(decisions, outer, strict=True)
    return np.concatenate([problem.counts(decision, part) for decision, (_, part) in pairs])


def peeking_at_steps(problem: MaskProblem, final: Choice, outer: Sequence[Part]) -> list[Rules]:
    """Returns, for every part, the steps that were kept on all images, fitted without it."""
    decisions = [problem.untuned] * len(outer)
    for tried in final.tried:
        if tried.kept:
            problem.prepare(tried.step, decisions)
            pairs = zip(decisions, outer, strict=True)
            decisions = [problem.fit(tried.step, decision, others, False) for decision, (others, _) in pairs]
    return decisions


# --- all draws -------------------------------------------------------------------------------------------------------

WORK: Callable[[int], Drawn]
"""What a process does with a seed."""


def start(folder: Path, images: int, permuted: bool) -> None:
    """Opens the pool in a process, and chooses the decision that no draw depends on."""
    global WORK
    pool = open_pool(folder)
    whole = pool.permuted(np.random.default_rng(0)) if permuted else pool
    every = np.arange(len(whole.true))
    control = chosen(whole, whole.problem(every), [every], whole.groups, ESTIMATED)[0].decision
    WORK = partial(one_draw, pool, images, permuted, control)


def work(seed: int) -> Drawn:
    return WORK(seed)


def differences(found: Sequence[Drawn], name: str) -> np.ndarray:
    """Returns what a decision scores on the images of every draw above the rest."""
    return np.array([one.on_drawn[name] - one.on_rest[name] for one in found])


def bias(found: Sequence[Drawn], values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of `values`, one a draw, without what the controls explain, and its standard error."""
    system = np.stack([np.ones(len(found)), *(differences(found, name) for name in CONTROLS)], axis=1)
    inverse = np.linalg.pinv(system)
    left = values - system @ (inverse @ values)
    variance = (left @ left) / (len(found) - system.shape[1])
    return float(inverse[0] @ values), float((variance * (inverse[0] @ inverse[0])) ** 0.5)


def estimate_rows(found: Sequence[Drawn], names: dict[str, str]) -> list[str]:
    """Returns the rows of the table of biases."""
    said = {name: np.array([one.estimates[name] for one in found]) for name in names}
    ships = np.array([one.on_rest[str(ESTIMATED)] for one in found])
    optimism, rows = bias(found, said["optimistic"] - ships)[0], []
    for name, title in names.items():
        value, error = bias(found, said[name] - ships)
        own = bias(found, said[name] - np.array([one.own[name] for one in found]))
        cells = [f"{said[name].mean():.4f}", shown(value, error), f"{value / optimism:+.0%}", shown(*own)]
        rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def coverage(found: Sequence[Drawn]) -> str:
    """Returns a sentence on how often the nested interval holds the score of the rest."""
    level, as_it_is, wider = str(ESTIMATED), [], []
    for one in found:
        (low, high), nested, rest = one.interval, one.estimates["nested"], one.on_rest[level]
        factor = (1 + one.images[0] / one.images[1]) ** 0.5
        as_it_is.append(low <= rest <= high)
        wider.append(factor * (low - nested) <= rest - nested <= factor * (high - nested))
    width = np.mean([one.interval[1] - one.interval[0] for one in found])
    return (
        f"The nested 95 % interval, {width:.4f} wide on average, holds the score of the rest in "
        f"{np.mean(as_it_is):.1%} of the draws; made wider by the rest's own error, in {np.mean(wider):.1%}."
    )


def decision_rows(found: Sequence[Drawn]) -> list[str]:
    """Returns the rows of the table of decisions."""
    titles = {"untuned": "threshold 0.5", "area": "threshold and area, always"}
    titles |= {str(level): f"steps with confidence {level}" for level in sorted(LEVELS)}
    best, rows = np.array([one.on_rest[str(ESTIMATED)] for one in found]), []
    for name, title in titles.items():
        rest = np.array([one.on_rest[name] for one in found])
        difference = "first" if name == str(ESTIMATED) else shown(*plain(rest - best))
        optimism = "none" if name in CONTROLS else shown(*bias(found, differences(found, name)))
        rows.append(f"| {title} | {rest.mean():.4f} | {difference} | {optimism} |")
    return rows


def plain(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)


def shown(mean: float, error: float) -> str:
    return f"{mean:+.4f} [{mean - 1.96 * error:+.4f}, {mean + 1.96 * error:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--permuted", action="store_true")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    folder = options.folder.absolute()
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes have the cores
    with ProcessPoolExecutor(options.processes, get_context("spawn"), start,
                             (folder, options.images, options.permuted)) as processes:  # fmt: skip
        found = list(track(processes.map(work, range(1, options.draws + 1)), "draws", options.draws))
    images, kind = found[0].images, ", true masks permuted" if options.permuted else ""
    print(f"{date.today()}, {folder.name}, {sum(images)} images{kind}: {options.draws} draws of {options.images}.\n")
    print("| estimate | mean | bias [95 %] | of the optimism | bias for its own decisions [95 %] |")
    print("|---|---|---|---|---|")
    names = {"optimistic": "out-of-fold, the images that chose", "nested": "nested"}
    if options.permuted:
        names = {"optimistic": "mutant that chooses on the images it scores", "nested": "nested",
                 "steps": "mutant that takes the steps kept on all images"}  # fmt: skip
    print("\n".join(estimate_rows(found, names)))
    print(f"\n{coverage(found)}\n")
    print("| decision | on the rest | minus confidence 0.9 [95 %] | optimism [95 %] |")
    print("|---|---|---|---|")
    print("\n".join(decision_rows(found)))


if __name__ == "__main__":
    main()

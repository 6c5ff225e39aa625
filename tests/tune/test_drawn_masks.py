"""Rules under metrics that need whole masks."""

import numpy as np
import pytest
from evidence import held_out_of, random_images, run_of

from pipeline.masks.decision import Rule, Rules
from pipeline.masks.regions import SHORTLIST
from pipeline.tune.drawn_masks import THRESHOLDS, DrawnProblem, problem_of
from pipeline.tune.evidence import predicted_area
from pipeline.tune.held_out import Weighting
from pipeline.tune.mask_rules import COUNTED, collect, summary


def test_without_images_nothing_is_chosen() -> None:
    """One held-out image leaves none to choose by when it is left out."""
    images = random_images(3, number=1, head=False, shape=(18, 20))
    held, weighting = held_out_of(images, run_of({"metric": "instance_f_beta"})), Weighting((False,), (1.0,))
    (evidence,) = collect(held, [weighting])
    problem = problem_of(held, weighting, evidence, np.ones((1, 1)))
    none = np.zeros(0, np.int64)
    for step in ("threshold", "area", "watershed", "components"):
        problem.prepare(step, [problem.untuned])
        assert problem.fit(step, problem.untuned, none, False) == problem.untuned
    assert len(problem.counts(problem.untuned, none)) == 0


def test_regions_of_any_decision_are_counted_however_many_thresholds_were_tried() -> None:
    images = random_images(3, head=False, ignored=False, shape=(18, 20))
    held = held_out_of(images, run_of({"metric": "instance_precision"}))
    weighting = Weighting((False,), (1.0,))
    (evidence,) = collect(held, [weighting])
    problem = problem_of(held, weighting, evidence, np.ones((len(images.truths), 1)))
    assert isinstance(problem, DrawnProblem) and len(THRESHOLDS) > COUNTED
    decisions = [Rules((Rule(threshold),)) for threshold in THRESHOLDS]
    problem.prepare("components", decisions)
    assert problem.evidence_of(decisions[0]) is evidence  # no regions are needed where masks stay as they are
    for threshold in THRESHOLDS:
        cleaned = Rules((Rule(threshold, components=SHORTLIST[-1]),))
        counted = problem.evidence_of(cleaned)
        areas = [mask.sum((1, 2)) for mask in images.masks(cleaned)]
        np.testing.assert_array_equal(predicted_area(counted, cleaned), areas)
        assert summary(counted, cleaned)["mean_area"] == pytest.approx(np.sum(areas) / len(areas))

"""What a run with a given time trains."""

from dataclasses import replace
from typing import Any

import pytest

from pipeline.core.config.recipe import Recipe
from pipeline.core.errors import PipelineError
from pipeline.core.plan import Costs, Plan
from pipeline.plan.decide import Facts, first_plan, main_plan, seconds_after

# 1,600 images in batches of 16: 100 steps per pass, so that 30 epochs of 0.4 s per step take 1,200 s
RECIPE = Recipe(name="r", competition="c", train={"epochs": 30, "schedule": {"name": "plateau"}, "early_stopping": 5})
FACTS = Facts(
    budget=1200.0, used=0.0, folds=(0, 1, 2, 3, 4), chosen=frozenset(), images=1600, held_out=400, tests=1000, views=2,
    together=2, shared=True,
)  # fmt: skip
COSTS = Costs(half=0.1, full=0.4, image=0.01, side_by_side=1.8)


def decided(hours: float, recipe: Recipe = RECIPE, costs: Costs = COSTS, **facts: Any) -> Plan:
    plan = main_plan(recipe, replace(FACTS, budget=3600 * hours, **facts), costs)
    assert plan is not None
    return plan


@pytest.mark.parametrize(
    ("hours", "rounds"),
    [
        (0.2, [([0], [0])]),
        (0.6, [([0], [0])]),
        (1.0, [([0], [0, 1])]),
        (2.0, [([0], [0]), ([0, 1, 2, 3, 4], [0])]),
        (5.0, [([0], [0, 1]), ([0, 1, 2, 3, 4], [0, 1])]),
    ],
)
def test_longer_times_train_more_models(hours: float, rounds: list[Any]) -> None:
    plan = decided(hours)
    assert [(one.folds, one.seeds) for one in plan.rounds] == rounds
    assert (plan.settings["train.folds"], plan.settings["train.seeds"]) == rounds[-1]
    assert sum(one.training + one.after for one in plan.rounds) == pytest.approx(0.98 * 3600 * hours)
    assert plan.settings["train.epochs"] * 0.9 < sum(one.training for one in plan.rounds)
    assert plan.reasons


@pytest.mark.parametrize(
    ("hours", "together", "slower", "seeds"),
    [(0.5, 2, 1.3, [0, 1]), (0.5, 2, 1.6, [0]), (0.5, 8, 1.0, [0, 1]), (0.5, 1, 1.0, [0]), (0.8, 1, 1.0, [0, 1])],
)
def test_two_seeds_are_trained_if_both_can_have_a_complete_training(
    hours: float, together: int, slower: float, seeds: list[int]
) -> None:
    costs = COSTS.model_copy(update={"side_by_side": slower})
    plan = decided(hours, costs=costs, together=together, folds=(0,))
    assert plan.rounds[-1].seeds == seeds


@pytest.mark.parametrize("together", [1, 2, 8])
def test_the_time_for_all_folds_is_enough_for_them(together: int) -> None:
    plan = decided(0.5, together=together)
    assert plan.for_all_folds and len(plan.rounds[-1].folds) == 1
    for factor, folds in ((1.01, 5), (0.97, 1)):
        budget = factor * plan.for_all_folds
        longer = decided(budget / 3600, together=together, used=0.1 * budget)
        assert len(longer.rounds[-1].folds) == folds
    assert decided(0.5, folds=(3,)).for_all_folds is None
    assert decided(0.5, chosen=frozenset({"train.folds"})).for_all_folds is None


def test_views_that_would_cost_much_of_the_time_are_left_out() -> None:
    costs = COSTS.model_copy(update={"stages": {"validate": 60.0, "predict": 100.0}})
    short, long = decided(0.2, costs=costs), decided(1.0, costs=costs)
    assert short.settings["predict.tta"] == "none" and "no test-time augmentation" in short.reasons[0]
    assert "predict.tta" not in long.settings
    assert "predict.tta" not in decided(0.2, costs=costs, chosen=frozenset({"predict.tta"})).settings
    # with the views there would be no time for a training
    assert decided(0.1, costs=costs.model_copy(update={"stages": {"validate": 60.0, "predict": 110.0}}))


def test_a_short_time_trains_half_of_the_epochs_at_half_the_size() -> None:
    assert decided(0.2).settings["train.half_size"] == 0.5
    assert decided(1.0).settings["train.half_size"] == 0.0
    assert "train.half_size" not in decided(0.2, chosen=frozenset({"train.half_size"})).settings


def test_a_planned_training_has_a_fixed_end() -> None:
    settings = decided(0.5).settings
    assert settings["train.schedule.name"] == "one_cycle" and settings["train.early_stopping"] is None
    assert "train.keep" in settings  # early stopping keeps the best epoch
    cosine = Recipe(
        name="r", competition="c", train={"schedule": {"name": "cosine", "warm_up": 3}, "freeze_encoder": 3}
    )
    settings = decided(0.5, cosine).settings
    assert "train.schedule.name" not in settings
    assert (settings["train.schedule.warm_up"], settings["train.freeze_encoder"]) == (2.0, 2)  # 20 epochs instead of 30


def test_what_the_user_chose_stays() -> None:
    recipe = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"seeds": [3, 4]})})
    plan = decided(0.2, recipe, folds=(1, 2), chosen=frozenset({"train.folds", "train.seeds"}))
    assert [(one.folds, one.seeds) for one in plan.rounds] == [([1, 2], [3, 4])]


def test_passes_count_the_images_of_one_training() -> None:
    one = decided(0.2).rounds[0]
    assert one.passes == pytest.approx(one.seconds / 0.25 * 16 / 1600, rel=0.01)


def test_the_first_run_ends_after_a_tenth_of_the_time() -> None:
    plan = first_plan(RECIPE, replace(FACTS, used=20.0), COSTS)
    (one,) = plan.rounds
    assert 20 + one.seconds + one.after == pytest.approx(120)
    assert plan.settings["predict.tta"] == "none" and plan.settings["train.folds"] == [0]
    late = first_plan(RECIPE, replace(FACTS, used=200.0), COSTS)  # at least a short training
    assert late.rounds[0].seconds == pytest.approx(36.0)


def test_a_time_that_is_too_short_is_refused_with_one_that_is_not() -> None:
    with pytest.raises(PipelineError, match=r"--time 20 s is too short: .* Give --time 1m or more") as caught:
        first_plan(RECIPE, replace(FACTS, budget=20.0, used=5.0), COSTS)
    assert "to train 12 steps" in str(caught.value)
    assert main_plan(RECIPE, replace(FACTS, budget=60.0, used=50.0), COSTS) is None
    assert "the same command again" not in str(caught.value)
    with pytest.raises(PipelineError, match=r"or more, or the same command again, because the data are prepared now\."):
        first_plan(RECIPE, replace(FACTS, budget=60.0, used=50.0), COSTS)


def test_a_killed_first_run_loses_six_minutes_at_most() -> None:
    for hours, epochs in ((1, 5), (24, 25)):
        plan = first_plan(RECIPE, replace(FACTS, budget=3600.0 * hours), COSTS)
        assert plan.settings["train.epochs"] == plan.validate_every == epochs
        assert plan.rounds[0].seconds / epochs <= 360


def test_a_plan_says_that_the_final_model_is_left_out() -> None:
    recipe = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"final": True})})
    plan = decided(1.0, recipe)
    assert plan.settings["train.final"] is False and "no final model, which could not be scored" in plan.reasons


def test_a_plan_without_its_last_round() -> None:
    plan = decided(2.0)
    assert plan.first_rounds(2) == plan
    short = plan.first_rounds(1)
    assert short.rounds == plan.rounds[:1] and short.settings == plan.settings | {"train.folds": [0]}


def test_stages_that_were_measured_count_as_measured() -> None:
    measured = COSTS.model_copy(update={"stages": {"validate": 10.0, "predict": 20.0, "tune": 6.0, "encode": 2.0}})
    one_view = seconds_after(replace(FACTS, views=1), measured, models=1)
    assert seconds_after(FACTS, measured, models=2) - one_view == pytest.approx(3 * 30 + 3)

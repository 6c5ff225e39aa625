"""What a bundle leaves out where the time is short."""

from pipeline.kaggle.bundle import budget
from pipeline.kaggle.bundle.budget import Work

WORK = Work("small", "d4", seeds=2, folds=5, seconds=0.01)


def test_views_go_first_then_seeds_then_folds() -> None:
    found = [(one.views, one.seeds, one.folds) for (one,) in budget.reductions([WORK])]
    assert found == [
        ("d4", 2, 5), ("flips", 2, 5), ("hflip", 2, 5), ("none", 2, 5), ("none", 1, 5),
        ("none", 1, 4), ("none", 1, 3), ("none", 1, 2), ("none", 1, 1),
    ]  # fmt: skip


def test_the_most_that_fits_is_chosen_and_what_is_left_out_is_said() -> None:
    everything = budget.needed([WORK], images=100, devices=1)
    assert budget.plan([WORK], 100, 1, everything) == ([WORK], "")
    (chosen,), text = budget.plan([WORK], 100, 1, everything / 7)
    assert (chosen.views, chosen.seeds, chosen.folds) == ("none", 2, 5)
    assert "small with test-time augmentation none instead of d4" in text
    assert budget.plan([WORK], 100, 2, everything / 2) == ([WORK], "")  # two devices


def test_too_little_time_for_anything_keeps_one_fold_and_says_so() -> None:
    (chosen,), text = budget.plan([WORK], 100, 1, 0.001)
    assert (chosen.views, chosen.seeds, chosen.folds) == ("none", 1, 1)
    assert "images that are not reached in time get the usual answer" in text


def test_runs_of_an_ensemble_are_cut_alike() -> None:
    other = Work("other", "hflip", seeds=1, folds=3, seconds=0.02)
    chosen = list(budget.reductions([WORK, other]))[-2]
    assert [(one.views, one.folds) for one in chosen] == [("none", 2), ("none", 2)]

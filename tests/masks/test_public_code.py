"""Built-in metrics against public code of the competitions: figures that its authors' code gave for these same masks.

Graders of MLE-bench (github.com/openai/mle-bench, commit 783b15af) were run on files of these masks; so were the metric
of Recod.ai/LUC Scientific Image Forgery Detection as published (kaggle.com/code/metric/recodai-f1), the example of Data
Science Bowl 2018's (kaggle.com/code/wcukierski/example-metric-implementation), the F2 that public kernels of Airbus
Ship Detection share, and the surface Dice of a SenNet + HOA team (github.com/king398/SenNetKideny).
"""

import numpy as np
import pytest

from pipeline.masks.metrics import named

COUNT = 12
VOLUMES = np.array([f"volume{number // 4}" for number in range(COUNT)])


def rectangle(number: int, moved: int) -> np.ndarray:
    mask = np.zeros((1, 40, 50), np.uint8)
    if (number + moved) % 5:
        rows = slice(3 + number % 7, 20 + (2 * number + moved) % 15)
        mask[0, rows, 4 + (3 * number) % 11 + 2 * moved : 30 + (5 * number) % 13 + moved] = 1
    return mask


def cells(number: int, moved: int) -> np.ndarray:
    """Label maps of one to four objects, some of which touch; of the moved ones, some are missing."""
    labels, found = np.zeros((1, 40, 50), np.int32), 0
    for place in range(number % 4 + 1):
        if moved and (number + place) % 5 == 0:
            continue
        found += 1
        top, left = 9 * place + moved * ((number + place) % 2), 3 + 5 * (number % 3) + moved * (place % 3)
        labels[0, top : top + 9 - moved * (number % 2), left : left + 12 + (7 * number + place) % 9] = found
    return labels


def rectangles() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predicted and true masks; one mask is predicted where there is none, and four are met exactly."""
    true = [rectangle(number, 0) for number in range(COUNT)]
    return [rectangle(number, 1 if number % 5 != 4 else 0) for number in range(COUNT)], true


def all_cells() -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [cells(number, 1) for number in range(COUNT)], [cells(number, 0) for number in range(COUNT)]


def scored(text: str, predicted: list[np.ndarray], true: list[np.ndarray]) -> float:
    metric = named(text)
    groups = VOLUMES[: len(true)]
    return metric.score_of(metric.measured_all(predicted, true, groups), groups)


@pytest.mark.parametrize(
    ("text", "grader", "figure"),
    [
        ("dice(over=data_set)", "google-research-identify-contrails-reduce-global-warming", 0.7632815964523282),
        ("dice", "hubmap-kidney-segmentation", 0.6795625423834527),
        ("iou_precision", "tgs-salt-identification-challenge", 0.5416666666666666),
        ("f_beta(beta=0.5)", "vesuvius-challenge-ink-detection", 0.6908314516125124),
    ],
)
def test_graders_of_mle_bench(text: str, grader: str, figure: float) -> None:
    assert scored(text, *rectangles()) == pytest.approx(figure, rel=1e-12), grader


def test_where_graders_of_mle_bench_score_otherwise() -> None:
    """An empty prediction of a mask over 80 of 101 columns is a full one to its TGS grader, and scores 0.6. Its UW
    grader leaves empty pairs out, takes distances between centres of pixels, and joins classes before it does so."""
    true = np.zeros((1, 101, 101), np.uint8)
    true[0, :, :80] = 1
    assert scored("iou_precision", [np.zeros_like(true)], [true]) == 0.0
    assert scored("iou_precision", [np.ones_like(true)], [true]) == pytest.approx(0.6)
    pytest.importorskip("surface_distance")
    grader = 0.7763792071076869
    assert scored("0.4 * dice + 0.6 * hausdorff(over=group)", *rectangles()) == pytest.approx(grader, abs=0.015)


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("instance_f_beta(beta=2)", 0.6006596351991088),
        ("instance_precision", 0.5680555555555556),
        ("instance_f1", 0.7087936728910903),
    ],
)
def test_public_metrics_of_instances(text: str, figure: float) -> None:
    assert scored(text, *all_cells()) == pytest.approx(figure, rel=1e-12)


def test_a_public_surface_dice() -> None:
    pytest.importorskip("surface_distance")
    predicted, true = ([(one > 0).astype(np.uint8) for one in part] for part in all_cells())
    assert scored("surface_dice(over=group)", predicted, true) == pytest.approx(0.7867564075064003, rel=1e-6)

"""Sentences that say whether tuning improved the score."""

from typing import Any

import pytest

from pipeline.report import aloud

STEPS = [{"step": "threshold", "kept": True}, {"step": "area", "kept": True}, {"step": "rank", "kept": False}]
GAIN = {"gain": 0.1595, "standard_error": 0.0861}


def result(ships: str | None, steps: list[dict[str, Any]], **procedure: float) -> dict[str, Any]:
    found = {"metric": "dice", "untuned": 0.6332, "nested": 0.7927, "score": 0.8179, "steps": steps}
    return found | ({"procedure": {"ships": ships, **procedure}} if ships else {})


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            result("tuned", STEPS, **GAIN),
            "Tuning helps here. On images that were not used for tuning, dice is 0.6332 before and 0.7927 after, a "
            "change of +0.1595 (standard error 0.0861). Kept: threshold and area; tried and not kept: rank. On the "
            "images used for tuning, dice is 0.8179. That score is optimistic: trust 0.7927, the nested estimate.",
        ),
        (
            result("untuned", [step | {"kept": False} for step in STEPS], gain=-0.0034, standard_error=0.0021),
            "Tuning does not help here. The untuned decision rule is used, and dice is 0.6332. 3 steps were tried. On "
            "images that they were not fitted to, none of them improved the score by more than noise: together they "
            "changed dice by -0.0034 (standard error 0.0021).",
        ),
        (result("untuned", []), "Tuning does not help here. The untuned decision rule is used, and dice is 0.6332."),
        (result("fixed", []), "Nothing was tuned: the settings fix the decision rule, and dice is 0.8179."),
        (
            result(None, STEPS[:1]) | {"nested": 0.8179},
            "Tuning helps here. On images that were not used for tuning, dice is 0.6332 before and 0.8179 after. Kept: "
            "threshold.",
        ),
    ],
)
def test_tuning_is_read_aloud(found: dict[str, Any], said: str) -> None:
    assert aloud.tuning(found) == said

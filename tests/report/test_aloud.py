"""Whether tuning paid is said in words, whichever way it went."""

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
            "Tuning pays here. On images that chose nothing, dice is 0.6332 before and 0.7927 after, a change of "
            "+0.1595 (standard error 0.0861). Kept: threshold and area; tried and not kept: rank. The images that "
            "everything was chosen on say 0.8179: believe the 0.7927, for a choice flatters the images that it was "
            "made on.",
        ),
        (
            result("untuned", [step | {"kept": False} for step in STEPS], gain=-0.0034, standard_error=0.0021),
            "Tuning does not pay here. The untuned decision is used, and dice is 0.6332. Of 3 steps that were tried, "
            "none helped by more than noise on images that it was not fitted to: all together changed dice by -0.0034 "
            "(standard error 0.0021).",
        ),
        (result("untuned", []), "Tuning does not pay here. The untuned decision is used, and dice is 0.6332."),
        (result("fixed", []), "Nothing was tuned: the settings fix the decision, and dice is 0.8179."),
        (
            result(None, STEPS[:1]) | {"nested": 0.8179},
            "Tuning pays here. On images that chose nothing, dice is 0.6332 before and 0.8179 after. Kept: threshold.",
        ),
    ],
)
def test_tuning_is_read_aloud(found: dict[str, Any], said: str) -> None:
    assert aloud.tuning(found) == said

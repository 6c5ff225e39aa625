"""What tune, encode and training leave of a sound run of the class `thing`, as far as others read it."""

from typing import Any

from pipeline.masks import decision

RESULT: dict[str, Any] = {
    "metric": "dice", "remark": "", "score": 0.7, "interval_95": [0.6, 0.8], "nested": 0.68, "untuned": 0.66,
    "scores": {"fold_model": {"is": "honest", "score": 0.65, "interval_95": [0.55, 0.75], "epoch_optimism": 0.03},
               "optimistic": {"is": "optimistic", "score": 0.7, "interval_95": [0.6, 0.8]},
               "submission": {"is": "a mean of 2 models", "from": 0.65, "to": None, "models": 2}},
    "nested_interval_95": [0.58, 0.78], "score_by_fold": {"0": 0.7, "1": 0.7}, "images": 12, "steps": [],
    "rows": {"raw": {"images": 12, "score": 0.7}, "cleaned": {"images": 12, "score": 0.7}},
    "rules": decision.described(decision.Rules((decision.Rule(128, 6),)), ["thing"]),
    "oof": {"share_empty": 0.25, "mean_area": 300.0, "highest": 0.9}, "share_empty_true": 0.25, "mean_true_area": 300.0,
    "reasons": [],
}  # fmt: skip
FOLD: dict[str, Any] = {
    "best_epoch": 3, "best_score": 0.5, "epochs": 4, "seconds": 9.5, "images_per_second": 50.0, "sha256": ["abc"],
    "weights": {"asked": "none", "file": None}, "compute": {"accelerator": "cpu", "precision": "32"},
}  # fmt: skip


def record_of(result: dict[str, Any], reasons: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a submission's record."""
    return {
        "made": "2026-01-02 03:04:05", "sha256": "abc", "rows": 4, "test": result["oof"], "folds": {},
        "expect": {"score": result["score"], "nested": result["nested"]}, "postprocess": result, "reasons": reasons,
    }  # fmt: skip

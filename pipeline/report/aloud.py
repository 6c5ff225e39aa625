"""Results as sentences, for notebooks."""

from collections.abc import Mapping
from typing import Any


def tuning(result: Mapping[str, Any]) -> str:
    """Returns sentences that say whether tuning improved the score, and by how much.

    Args:
        result: the content of postprocess.json (see `look.result`).
    """
    metric, untuned, nested, tuned = (result[key] for key in ("metric", "untuned", "nested", "score"))
    procedure, steps = result.get("procedure") or {}, result.get("steps") or []
    kept = _listed([step["step"] for step in steps if step["kept"]])
    if procedure.get("ships") == "fixed":
        return f"Nothing was tuned: the settings fix the decision rule, and {metric} is {tuned:.4f}."
    if procedure.get("ships") == "untuned":
        text = f"Tuning does not help here. The untuned decision rule is used, and {metric} is {untuned:.4f}."
        if procedure.get("gain") is None:
            return text
        return (
            f"{text} {len(steps)} steps were tried. On images that they were not fitted to, none of them improved "
            f"the score by more than noise: together they changed {metric} by {_signed(procedure)}."
        )
    text = (
        f"Tuning helps here. On images that were not used for tuning, {metric} is {untuned:.4f} before and "
        f"{nested:.4f} after"
    )
    if procedure.get("gain") is not None:
        text += f", a change of {_signed(procedure)}"
    rejected = _listed([step["step"] for step in steps if not step["kept"]])
    text += f". Kept: {kept}{f'; tried and not kept: {rejected}' if rejected else ''}."
    if tuned != nested:
        text += (
            f" On the images used for tuning, {metric} is {tuned:.4f}. That score is optimistic: trust {nested:.4f}, "
            "the nested estimate."
        )
    return text


def _signed(procedure: Mapping[str, Any]) -> str:
    return f"{procedure['gain']:+.4f} (standard error {procedure['standard_error']:.4f})"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))

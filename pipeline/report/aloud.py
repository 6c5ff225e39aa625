"""Results in sentences, for notebooks and whoever reads them aloud."""

from collections.abc import Mapping
from typing import Any


def tuning(result: Mapping[str, Any]) -> str:
    """Returns whether tuning paid, in plain words and with the figures behind it.

    Args:
        result: what postprocess.json holds (`look.result`).
    """
    metric, untuned, nested, tuned = (result[key] for key in ("metric", "untuned", "nested", "score"))
    procedure, steps = result.get("procedure") or {}, result.get("steps") or []
    kept = _listed([step["step"] for step in steps if step["kept"]])
    if procedure.get("ships") == "fixed":
        return f"Nothing was tuned: the settings fix the decision, and {metric} is {tuned:.4f}."
    if procedure.get("ships") == "untuned":
        text = f"Tuning does not pay here. The untuned decision is used, and {metric} is {untuned:.4f}."
        if procedure.get("gain") is None:
            return text
        return (
            f"{text} Of {len(steps)} steps that were tried, none helped by more than noise on images that it was not "
            f"fitted to: all together changed {metric} by {_signed(procedure)}."
        )
    text = f"Tuning pays here. On images that chose nothing, {metric} is {untuned:.4f} before and {nested:.4f} after"
    if procedure.get("gain") is not None:
        text += f", a change of {_signed(procedure)}"
    refused = _listed([step["step"] for step in steps if not step["kept"]])
    text += f". Kept: {kept}{f'; tried and not kept: {refused}' if refused else ''}."
    if tuned != nested:
        text += (
            f" The images that everything was chosen on say {tuned:.4f}: believe the {nested:.4f}, for a choice "
            "flatters the images that it was made on."
        )
    return text


def _signed(procedure: Mapping[str, Any]) -> str:
    return f"{procedure['gain']:+.4f} (standard error {procedure['standard_error']:.4f})"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))

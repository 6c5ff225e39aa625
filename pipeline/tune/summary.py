"""Prints the choices of tune and their scores on the console."""

from typing import Any

from pipeline.core.console import console, say
from pipeline.core.files import shown
from pipeline.core.run import Run
from pipeline.masks.decision import in_words
from pipeline.tune import estimate
from pipeline.tune.drawn_masks import AREAS, THRESHOLDS
from pipeline.tune.selection import verdict

SEARCHED = {
    "pixels": "every threshold and minimum area, exactly",
    "masks": f"masks drawn at {len(THRESHOLDS)} thresholds and {len(AREAS)} areas, as the metric needs whole masks",
    "confusion": "biases of the classes, on drawn pixels",
}
"""A description of the search for each kind of counts of a metric."""
COLOURS = {"kept": "green", "refused": "dim", "outdone": "dim", "given up": "yellow"}
"""The colour of each outcome of a step."""


def say_result(run: Run, result: dict[str, Any]) -> None:
    """Prints the choices and their scores."""
    remark = f" ({result['remark']})" if result["remark"] else ""
    names = {"raw": "all images except broken ones", "cleaned": "the images that clean left unchanged"}
    of = f"{result['images']} held-out images ({names[run.recipe.tune.rows]})"
    say(f"  {result['metric']} of {of}{remark}:")
    say(f"  untuned      {result['untuned']:.4f}  the same images, {_untuned_rule(run)}")
    for text in estimate.lines(result):
        say(f"  {text}")
    for name, rows in result["rows"].items():
        if rows["images"] not in (0, result["images"]):
            of = f"{result['procedure']['ships']}, on {names[name]} ({rows['images']})"
            say(f"  {result['metric']} {rows['score']:.4f}, {of}")
    if result["method"] == "search":
        say(f"  searched: {SEARCHED[result['search']]}")
    _say_steps(run, result)
    if "bias" in result:
        values = result["class_iou"].items()
        say("  IoU: " + ", ".join(f"{name} {iou:.4f}" for name, iou in values if iou is not None))
        say("  bias: " + ", ".join(f"{name} {bias:+.2f}" for name, bias in result["bias"].items()))
    for name, rule in result.get("rules", {}).items():
        say(f"  {name}: {in_words(rule)}")
    say(f"  → {shown(run.postprocess)}")


def _say_steps(run: Run, result: dict[str, Any]) -> None:
    ships = result["procedure"]["ships"] != "untuned"
    if result["steps"]:
        console.print(f"[dim]  {'':8}  {'step':12}  held-out gain ± standard error[/dim]")
    for step in result["steps"]:
        word = verdict(step, run.recipe.tune.confidence, ships)
        text = f"{step['step']:12}  {step['gain']:+.4f} ± {step['standard_error']:.4f}"
        console.print(f"  [{COLOURS[word]}]{word:8}  {text}[/{COLOURS[word]}]")


def _untuned_rule(run: Run) -> str:
    return "the most probable class" if run.competition.kind == "multiclass" else "threshold 0.5"

"""The reasons for or against a submission that follow from the held-out images; see core/verdict.py.

Every reason names numbers that can be checked. A reason is given only if a difference is more than noise and large
enough to matter, because after false alarms users no longer read warnings.
"""

from typing import Any

import numpy as np

from pipeline.core.files import shown
from pipeline.core.run import Run
from pipeline.core.verdict import Level, Reason
from pipeline.masks.bootstrap import gain
from pipeline.split.folds import leak_remark, read_audit
from pipeline.tune import histories, mask_checks, weak_places
from pipeline.tune.findings import Findings, longer, named, trained_again, with_more_time
from pipeline.tune.procedure import FEWEST_GROUPS

ERRORS = 2.0
"""The number of standard errors above which a difference is more than noise."""
MATERIAL = 0.03
"""The difference between the honest and the out-of-fold score that matters."""
MORE = 10
"""The smallest number of epochs that is advised for a network that has learned nothing."""
FEW_GROUPS = 8
"""The number of groups below which intervals are unreliable."""
SHIFT = 2.0
"""If the shift of a fold's logits differs from that of the other folds by more, the fold has another scale."""
STEEP = 2.0
"""If the slope of a fold and that of the other folds differ by at least this factor, the fold has another scale."""
SURE = 4.0
"""The number of standard errors by which the logarithms of the two slopes must differ as well."""


def of(findings: Findings) -> list[Reason]:
    """Returns all reasons, the decisive ones first."""
    constant = _constant(findings)
    return [
        *constant,
        *mask_checks.reasons(findings),
        *_leaks(findings),
        *_gap(findings),
        *_scales(findings),
        *_slopes(findings),
        *weak_places.reasons(findings),
        *histories.reasons(findings.run),
        *_untuned(findings),
        *_few_groups(findings),
        *_missing_folds(findings.run),
        *([] if constant else _suspects(findings)),  # a network that has learned nothing cannot judge labels
    ]


def _constant(findings: Findings) -> list[Reason]:
    """Returns a reason if the model is no better than the best constant answer."""
    best, sign, honest = findings.constants.best, findings.metric.sign, findings.honest
    if honest is None:
        return []
    ahead = sign * (honest - best.score)
    if findings.nested is not None:
        noise = gain(best.rows, findings.nested, findings.metric.objective, findings.groups).standard_error
        better, worse, clearly = ahead > ERRORS * noise, ahead <= noise, ahead < -ERRORS * noise
        uncertainty = f" (standard error of the difference {noise:.3f})"
    else:
        ends = findings.result.get("nested_interval_95")
        better = ahead > 0 and (not ends or all(sign * (end - best.score) > 0 for end in ends))
        worse, clearly = ahead <= 0, False
        uncertainty = " (95 % interval {:.3f} to {:.3f})".format(*ends) if ends else ""
    if better:
        return []
    compared = "worse than" if ahead < 0 else "better by no more than noise than"
    if f"{honest:.3f}" == f"{best.score:.3f}":
        compared = "no better than"
    text = (f"The honest score {honest:.3f} is {compared} the {best.score:.3f} of {best.name}, an answer that "
            f"looks at no image{uncertainty}.")  # fmt: skip
    trains = findings.run.recipe.trains
    command = longer(findings.run, max(MORE, 2 * findings.run.recipe.train.epochs)) if trains else findings.pictures
    few = findings.held.images.iloc[findings.counted]["group"].nunique() < FEWEST_GROUPS
    # the mean mask of few groups is nearly their own mask
    level: Level = "stop" if clearly or (worse and not few) else "check"
    return [Reason(level, "no better than a constant", text, command)]


def _leaks(findings: Findings) -> list[Reason]:
    """Returns a reason if the folds leak, so that all scores are too optimistic."""
    run = findings.run
    if not (run.audit.exists() and leak_remark(run)):
        return []
    text = f"All scores are too optimistic, including the honest one: {read_audit(run)['verdict']}."
    return [Reason("check", "leaking folds", text, shown(run.audit))]


def _gap(findings: Findings) -> list[Reason]:
    """Returns a reason if the honest score is far below the out-of-fold score."""
    result, sign = findings.result, findings.metric.sign
    score, honest = result.get("score"), findings.honest
    if score is None or honest is None:
        return []
    gap, noise = sign * (score - honest), 0.0
    if findings.nested is not None:
        noise = gain(findings.nested, findings.rows, findings.metric.objective, findings.groups).standard_error
    if gap <= MATERIAL * max(1.0, abs(score)) or gap <= ERRORS * noise:
        return []
    text = (
        f"The honest score {honest:.3f} is far worse than the out-of-fold score {score:.3f}, which was tuned on the "
        f"same images{_why(findings)}."
    )
    return [Reason("check", "nested far below out-of-fold", text, _rescale(findings))]


def _why(findings: Findings) -> str:
    """Returns the possible causes of the gap, as the end of a sentence."""
    causes = []
    if _other_scales(findings):
        causes.append("the folds' networks have different scales")
    optimism = findings.result.get("scores", {}).get("fold_model", {}).get("epoch_optimism") or 0.0
    if optimism > MATERIAL / 2:
        causes.append(f"choosing the epoch made the score too optimistic by {optimism:.3f}")
    if len(set(findings.groups)) < FEW_GROUPS:
        causes.append("there are few groups to choose on")
    return f": {named(causes)}" if causes else ""


# --- scales of the folds ---------------------------------------------------------------------------------------------


def _other_scales(findings: Findings) -> bool:
    """Returns whether rules chosen without a fold are far worse on it than rules chosen with some of its images."""
    alarm = findings.result.get("fold_out") or {}
    difference, error = alarm.get("difference"), alarm.get("standard_error")
    if difference is None or error is None:
        return False
    return difference < -MATERIAL and difference < -ERRORS * error


def _scales(findings: Findings) -> list[Reason]:
    if not _other_scales(findings):
        return []
    alarm = findings.result["fold_out"]
    odd = _odd_folds(findings, STEEP) or _odd_folds(findings, 1.5)
    steep = [f"fold {fold} (slope {slope:.2f}, the others {usual:.2f})" for fold, slope, usual in odd]
    folds = named([*steep, *_shifted_folds(findings, {fold for fold, _, _ in odd})])
    text = (f"The folds' probabilities have different scales: tuned without the whole fold, the score is "
            f"{alarm['score']:.3f}, {abs(alarm['difference']):.3f} worse than tuned without only its groups (standard "
            f"error {alarm['standard_error']:.3f}){'; conspicuous: ' + folds if folds else ''}.")  # fmt: skip
    return [Reason("check", "folds of different scale", text, _rescale(findings))]


def _slopes(findings: Findings) -> list[Reason]:
    """Returns reasons for folds whose logits are far steeper or flatter than those of the others."""
    odd, reasons = _odd_folds(findings, STEEP), []
    level: Level = "check"
    for kind, of_kind in (
        ("steep fold", [fold for fold in odd if fold[1] > fold[2]]),
        ("flat fold", [fold for fold in odd if fold[1] < fold[2]]),
    ):
        if of_kind:
            how, many = "less" if kind == "steep fold" else "more", len(of_kind) > 1
            folds, by = named([fold for fold, _, _ in of_kind]), named([f"{slope:.2f}" for _, slope, _ in of_kind])
            text = (
                f"The network{'s' * many} of fold{'s' * many} {folds} {'are' if many else 'is'} far {how} confident "
                f"than the others, so that no threshold suits all: calibration multiplies {'their' if many else 'its'} "
                f"logits by {by} (the others' by {of_kind[0][2]:.2f})."
            )
            reasons.append(Reason(level, kind, text, _rescale(findings)))
    return reasons


def _odd_folds(findings: Findings, factor: float) -> list[tuple[str, float, float]]:
    """Returns fold, slope, and median slope of the others, for folds that differ by a factor and by more than noise."""
    calibration: dict[str, dict[str, dict[str, Any]]] = findings.result.get("calibration") or {}
    odd: dict[str, tuple[str, float, float]] = {}
    for by_fold in calibration.values():
        for entry in _odd_of_class(by_fold, factor):
            odd.setdefault(entry[0], entry)
    return [odd[fold] for fold in sorted(odd)]


def _odd_of_class(by_fold: dict[str, dict[str, Any]], factor: float) -> list[tuple[str, float, float]]:
    """Returns the odd folds of one class. If some are steep and others flat, the smaller number is odd; if there are
    equally many, there is no usual fold, and none is odd."""
    known = {fold: fit for fold, fit in by_fold.items() if fit.get("standard_error") and fit["own_slope"] > 0}
    slopes = {fold: float(fit["own_slope"]) for fold, fit in known.items()}
    relative = {fold: float(fit["standard_error"]) / slopes[fold] for fold, fit in known.items()}
    steep: list[tuple[str, float, float]] = []
    flat: list[tuple[str, float, float]] = []
    for fold, slope in slopes.items():
        others = [other for name, other in slopes.items() if name != fold]
        if not others:
            continue
        usual, error = float(np.median(others)), max(relative[fold], float(np.median(list(relative.values()))))
        off = np.log(slope / usual)
        if abs(off) > max(np.log(factor), SURE * 2**0.5 * error):
            (steep if off > 0 else flat).append((fold, slope, usual))
    if len(slopes) == 2:  # each differs from the other; the steeper one is named
        return steep
    return steep if not flat else flat if not steep else min(steep, flat, key=len) if len(steep) != len(flat) else []


def _shifted_folds(findings: Findings, known: set[str]) -> list[str]:
    """Returns descriptions of folds, except `known` ones, whose logits need a very different shift from the others."""
    calibration: dict[str, dict[str, dict[str, Any]]] = findings.result.get("calibration") or {}
    descriptions = {}
    for by_fold in calibration.values():
        shifts = {fold: float(fit["intercept"]) for fold, fit in by_fold.items() if fit.get("intercept") is not None}
        for fold, shift in shifts.items():
            others = [other for name, other in shifts.items() if name != fold]
            if fold not in known and len(others) > 1 and abs(shift - float(np.median(others))) > SHIFT:
                descriptions[fold] = f"fold {fold} (shift {shift:+.2f}, the others {np.median(others):+.2f})"
    return [descriptions[fold] for fold in sorted(descriptions)]


def _rescale(findings: Findings) -> str:
    """Returns the command that makes the folds' networks more similar, or the report if nothing is trained."""
    run = findings.run
    if not run.recipe.trains:
        return findings.pictures
    if run.recipe.train.monitor == "loss" or run.recipe.train.keep != "best":
        return longer(run, 2 * run.recipe.train.epochs)
    return trained_again(run, "loss", "train.monitor=loss")


# --- notes -----------------------------------------------------------------------------------------------------------


def _untuned(findings: Findings) -> list[Reason]:
    procedure = findings.result.get("procedure") or {}
    if procedure.get("ships") != "untuned":
        return []
    known = procedure.get("gain") is not None and procedure.get("standard_error") is not None
    figures = f" ({procedure['gain']:+.4f} ± {procedure['standard_error']:.4f})" if known else ""
    why = f"all steps together gained no more than noise on images that were not used for tuning{figures}"
    if findings.result.get("steps") == []:
        why = "none of tune.steps can be tried on these predictions"
    return [Reason("note", "untuned ships", f"The untuned rule is used: {why}.")]


def _few_groups(findings: Findings) -> list[Reason]:
    number = findings.held.images.iloc[findings.counted]["group"].nunique()
    if number >= FEW_GROUPS:
        return []
    text = f"There {'are' if number > 1 else 'is'} only {number} group{'s' if number > 1 else ''} of held-out images: "
    text += "the intervals say little about images of other groups"
    if number < FEWEST_GROUPS:
        text += ", and none can be left out, so choices were judged on images of the same groups, too optimistically"
    return [Reason("note", "few groups", f"{text}.")]


def _missing_folds(run: Run) -> list[Reason]:
    trained, folds = run.trained_folds(), run.split.folds
    if not run.recipe.trains or len(trained) >= folds:
        return []
    text = (
        f"Only {len(trained)} of {folds} folds {'is' if len(trained) == 1 else 'are'} trained: training the others "
        "makes the estimate more certain and the submission better."
    )
    command = with_more_time(run, folds, all_folds=True) if run.budget else run.command("--set", "train.folds=null")
    return [Reason("note", "folds not trained", text, command)]


def _suspects(findings: Findings) -> list[Reason]:
    if not findings.suspects:
        return []
    labels = "1 label contradicts" if findings.suspects == 1 else f"{findings.suspects} labels contradict"
    text = f"{labels} the networks: one of the two is wrong."
    return [Reason("note", "suspect labels", text, shown(findings.run.suspects))]

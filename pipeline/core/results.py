"""The result files of tune, encode and evaluate: the keys that postprocess.json, the submission's record and test.json
must have.

This is a separate module from trainings.py, so that the code of the prediction stages does not depend on it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core.intact import damaged
from pipeline.core.run import Run
from pipeline.core.written import Part, again, read_checked

Interval = Annotated[list[float], Field(min_length=2, max_length=2)] | None
"""The lower and upper end of an interval; None if there is only one group."""
Shares = dict[str, float | None]
"""A value per class; None for classes without any pixel."""


# --- postprocess.json ------------------------------------------------------------------------------------------------


class Rows(Part):
    """The score of a set of images."""

    images: int
    score: float | None


class Said(Part):
    """A reason of the verdict, with the fields of verdict.Reason."""

    level: Literal["stop", "check", "note"]
    kind: str
    text: str
    command: str = ""
    images: list[str] = []


class Scored(Part):
    """The values by which runs are compared. Runs of earlier versions may lack some of them."""

    metric: str
    remark: str = ""
    score: float | None = None
    interval_95: Interval = None
    nested: float | None = None
    score_by_fold: dict[str, float] = {}
    rows: dict[str, Rows] = {}
    images: int | None = None
    ensemble: dict[str, float] = {}


def searched_by(result: dict[str, Any]) -> str:
    """Returns the built-in metric that tuning used. Scores of single images and curves use it too. If the competition's
    own function computes the final scores, `metric` is the file of that function instead."""
    by: str = result.get("tuned_by", result)["metric"]
    return by


class Labelled(Part):
    """A score, and a text that says which images and predictions it belongs to."""

    what: str = Field("", alias="is")
    score: float
    interval_95: Interval = None


class FoldModel(Labelled):
    """The score of one fold's model on images that were used for no choice."""

    epoch_optimism: float | None = None


class Bracket(Part):
    """The range in which the submission's score is expected."""

    lower: float | None = Field(alias="from")
    upper: float | None = Field(alias="to")
    models: int


class Scores(Part):
    """The three kinds of scores: of one fold's model, optimistic, and of the submission."""

    fold_model: FoldModel
    optimistic: Labelled
    submission: Bracket


class Tried(Part):
    """A post-processing step that was tried."""

    step: str
    kept: bool
    gain: float
    standard_error: float
    confidence: float


class Views(Part):
    """The decision about test-time augmentation."""

    views: str
    kept: bool
    gain: float
    standard_error: float
    confidence: float


class Tuned(Scored):
    """The content of postprocess.json for all kinds of competitions."""

    remark: str
    score: float
    interval_95: Interval
    nested: float
    nested_interval_95: Interval
    nested_spread: Interval = None
    untuned: float
    score_by_fold: dict[str, float]
    rows: dict[str, Rows]
    images: int
    steps: list[Tried]
    scores: Scores
    constants: dict[str, float | None] | None = None
    reasons: list[Said] = []
    tta: Views | None = None


class Cut(Part):
    """The minimum probability of presence for a mask to be kept."""

    probability: dict[str, float]
    cut: float | None
    worth: dict[str, float] | None


class Slope(Part):
    """The calibration of one fold's probabilities."""

    slope: float


class Ranked(Part):
    """The rule that finds the best threshold for each image."""

    metric: str
    pooled: Slope
    folds: dict[str, Slope]


class Apart(Part):
    """The rule that separates touching objects."""

    source: str
    level: int
    min_seed: int


class MaskRule(Part):
    """The rules that turn the probabilities of a class into its mask."""

    threshold: int
    min_area: int
    top: int | None
    presence: Cut | None
    rank: Ranked | None = None
    components: dict[str, bool | int]
    separation: Apart | None = None


class MaskTotals(Part):
    """Statistics over all predicted masks."""

    share_empty: float
    mean_area: float
    highest: float


class TunedMasks(Tuned):
    """The content of postprocess.json for binary and multilabel competitions."""

    rules: dict[str, MaskRule]
    curves: dict[str, dict[str, list[list[float]]]] = {}
    share_empty_true: float
    mean_true_area: float
    oof: MaskTotals


class LabelTotals(Part):
    """Statistics over all predicted class maps."""

    class_share: Shares


class TunedLabels(Tuned):
    """The content of postprocess.json for multiclass competitions."""

    bias: dict[str, float]
    never: list[int]
    readings: dict[str, dict[str, float]]
    class_iou: Shares
    class_iou_by_fold: dict[str, Shares]
    class_share_true: Shares
    oof: LabelTotals


def read_tuned(run: Run) -> dict[str, Any]:
    """Returns the content of postprocess.json: what tune chose, and its scores.

    Raises:
        PipelineError: the file is damaged, or belongs to other classes.
    """
    multiclass = run.competition.kind == "multiclass"
    result = read_checked(run.postprocess, TunedLabels if multiclass else TunedMasks, again("tune"))
    found_classes, classes = list(result["bias" if multiclass else "rules"]), run.competition.classes
    lacking = [name for name in run.recipe.ensemble if "ensemble" in result and name not in result["ensemble"]]
    if found_classes != classes:
        fault = f"it has the classes {', '.join(found_classes)}, and the competition has {', '.join(classes)}"
        raise damaged(run.postprocess, fault, again("tune"))
    if lacking:
        raise damaged(run.postprocess, f"ensemble lacks {', '.join(lacking)}", again("tune"))
    return result


def read_scored(folder: Path) -> dict[str, Any]:
    """Returns the content of postprocess.json in the folder of a run that is compared with others.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    return read_checked(folder / "postprocess.json", Scored, again("tune"))


# --- the submission's record, and test.json --------------------------------------------------------------------------


class Expected(Part):
    """The score to expect of a submission."""

    score: float
    nested: float


class Timed(Part):
    """The duration of one training that a submission is made from."""

    seconds: float


class Submission(Part):
    """The record of a submission: how it was made."""

    made: str
    sha256: str
    rows: int
    expect: Expected
    postprocess: dict[str, Any]
    folds: dict[str, Timed]
    reasons: list[Said] = []


class MaskSubmission(Submission):
    """The record of a submission to a binary or multilabel competition."""

    test: MaskTotals


class LabelSubmission(Submission):
    """The record of a submission to a multiclass competition."""

    test: LabelTotals


class Spread(Part):
    """Mean and standard deviation of a value over images or batches."""

    mean: float
    standard_deviation: float


class TestScores(Part):
    """The scores on a test set with known masks."""

    __test__ = False  # pytest would collect it

    images: int
    metric: str
    score: float
    data_set_iou: float
    over_images: dict[str, Spread]
    over_batches_of_8: dict[str, Spread]


def read_submission(run: Run) -> dict[str, Any]:
    """Returns the record of a run's submission: the content of submissions/<run>.json.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    model = LabelSubmission if run.competition.kind == "multiclass" else MaskSubmission
    return read_checked(run.record, model, again("encode"))


def read_test_scores(run: Run) -> dict[str, Any]:
    """Returns the scores of evaluate on the test set: the content of test.json.

    Raises:
        PipelineError: the file is missing or damaged.
    """
    return read_checked(run.folder / "test.json", TestScores, again("evaluate"))

"""The result files of tune, encode and evaluate: the keys that postprocess.json, the submission's record and test.json
must have.

This is a separate module from trainings.py, so that the code of the prediction stages does not depend on it.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core.intact import damaged
from pipeline.core.run import Run
from pipeline.core.written import Exact, Part, again, read_checked

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
AtLeastZero = Annotated[float, Field(ge=0)]
Level = Annotated[int, Field(ge=1, le=255)]
"""A threshold: the probability, from 1 to 255, that a pixel must reach."""
Factor = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A coefficient of a logit."""
Slope = Annotated[float, Field(gt=0, le=1e6)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)] | None
"""The lower and upper end of an interval; None if there is only one group."""
Shares = dict[str, Share | None]
"""A value per class; None for classes without any pixel."""
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
"""A point of a curve: a position and its score."""


# --- postprocess.json ------------------------------------------------------------------------------------------------


class Rows(Part):
    """The score of a set of images."""

    images: Count
    score: float | None


class RecordedReason(Part):
    """A reason of the verdict, with the fields of verdict.Reason."""

    level: Literal["stop", "check", "note"]
    kind: str
    text: str
    command: str = ""
    images: list[str] = []


class Named(Part):
    """The scores by the built-in metric, if a published one gives the final scores."""

    metric: str


class Scored(Part):
    """The values by which runs are compared. Runs of earlier versions may lack some of them."""

    metric: str
    remark: str = ""
    score: float | None = None
    interval_95: Interval = None
    nested: float | None = None
    score_by_fold: dict[str, float] = {}
    rows: dict[str, Rows] = {}
    images: Count | None = None
    ensemble: dict[str, Share] = {}
    published: dict[str, Any] = {}
    tuned_by: Named = Named(metric="")


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

    epoch_optimism: AtLeastZero | None = None


class Bracket(Part):
    """The range in which the submission's score is expected."""

    lower: float | None = Field(alias="from")
    upper: float | None = Field(alias="to")
    models: Count


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
    standard_error: AtLeastZero
    confidence: Share


class Views(Part):
    """The decision about test-time augmentation."""

    views: str
    kept: bool
    gain: float
    standard_error: AtLeastZero
    confidence: Share


class Procedure(Part):
    """Which rules the submission uses, and the gain of the search over the untuned rules on other groups."""

    ships: Literal["tuned", "untuned", "fixed"]
    gain: float
    standard_error: AtLeastZero


class FoldOut(Part):
    """The score of the chosen steps if they are fitted without the fold that they are scored on, and its difference
    from the nested estimate."""

    score: float
    difference: float
    standard_error: AtLeastZero


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
    images: Count
    steps: list[Tried]
    procedure: Procedure | None = None
    fold_out: FoldOut | None = None
    presence_prior: Share | None = None
    scores: Scores
    constants: dict[str, float | None] | None = None
    reasons: list[RecordedReason] = []
    tta: Views | None = None


class Weighed(Exact):
    """A weighted sum of the features of a mask, as decision.Linear."""

    head: Factor
    area: Factor
    highest: Factor
    confidence: Factor
    intercept: Factor


class Cut(Exact):
    """The minimum probability of presence for a mask to be kept."""

    probability: Weighed
    cut: Share | None
    worth: Weighed | None


class Calibrated(Exact):
    """The calibration of one fold's probabilities."""

    slope: Slope
    intercept: Factor


class FoldCalibration(Part):
    """The calibration of one fold's probabilities, with the figures that it was fitted from."""

    slope: Slope
    intercept: Factor
    images: Count
    own_slope: float
    standard_error: AtLeastZero | None


class Ranked(Exact):
    """The rule that finds the best threshold for each image."""

    metric: str
    pooled: Calibrated
    folds: dict[str, Calibrated]


class Apart(Exact):
    """The rule that separates touching objects."""

    source: Literal["shape", "probability", "border", "distance"]
    level: Count
    min_seed: Count


class Regions(Exact):
    """The rule that removes or fills connected regions of a mask."""

    fill: bool
    largest: bool
    min_size: Count


class MaskRule(Exact):
    """The rules that turn the probabilities of a class into its mask."""

    threshold: Level
    min_area: Count
    top: Level | None
    presence: Cut | None
    rank: Ranked | None = None
    components: Regions
    separation: Apart | None = None


class MaskTotals(Part):
    """Statistics over all predicted masks."""

    share_empty: Share
    mean_area: AtLeastZero
    highest: Share


class TunedMasks(Tuned):
    """The content of postprocess.json for binary and multilabel competitions."""

    rules: dict[str, MaskRule]
    curves: dict[str, dict[str, list[Point]]] = {}
    shares_of_empty: list[Annotated[tuple[Share, float | None], Field(strict=False)]] = []
    calibration: dict[str, dict[str, FoldCalibration]] = {}
    share_empty_true: Share
    mean_true_area: AtLeastZero
    oof: MaskTotals


class LabelTotals(Part):
    """Statistics over all predicted class maps."""

    class_share: Shares


class TunedLabels(Tuned):
    """The content of postprocess.json for multiclass competitions."""

    bias: dict[str, Annotated[float, Field(ge=-80, le=80)]]
    never: list[Count]
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
    if multiclass and (fault := _fault_of_never(result["never"], len(classes))):
        raise damaged(run.postprocess, fault, again("tune"))
    return result


def _fault_of_never(never: list[int], classes: int) -> str:
    """Returns what is wrong with the numbers of the classes that are never predicted, or ""."""
    if max(never, default=0) >= classes:
        return f"never: there are {classes} classes, numbered from 0, not {max(never)}"
    return "never: it names every class" if len(set(never)) == classes else ""


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

    seconds: AtLeastZero


class Submission(Part):
    """The record of a submission: how it was made."""

    made: str
    sha256: str
    rows: Count
    expect: Expected
    postprocess: dict[str, Any]
    folds: dict[str, Timed]
    reasons: list[RecordedReason] = []


class MaskSubmission(Submission):
    """The record of a submission to a binary or multilabel competition."""

    test: MaskTotals


class LabelSubmission(Submission):
    """The record of a submission to a multiclass competition."""

    test: LabelTotals


class Spread(Part):
    """Mean and standard deviation of a value over images or batches."""

    mean: float
    standard_deviation: AtLeastZero


class TestScores(Part):
    """The scores on a test set with known masks."""

    __test__ = False  # pytest would collect it

    images: Count
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


def honest_score(result: dict[str, Any]) -> float:
    """Returns the honest score of a postprocess.json: on images that were not used for any choice."""
    return result.get("scores", {}).get("fold_model", {}).get("score", result["nested"])

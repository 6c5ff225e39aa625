"""What tune, encode and evaluate leave: which keys postprocess.json, the submission's record and test.json must have.

Apart from trainings.py, so that predictions do not depend on what these files say.
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
"""A probability of 255 that a pixel must reach."""
Factor = Annotated[float, Field(ge=-1e6, le=1e6)]
"""A coefficient of a logit."""
Slope = Annotated[float, Field(gt=0, le=1e6)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)] | None
"""Its two ends; None of one group alone."""
Shares = dict[str, Share | None]
"""A figure of each class; None where no pixel tells it."""
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
"""A place on a curve, and its score."""


# --- postprocess.json ------------------------------------------------------------------------------------------------


class Rows(Part):
    """The score of some images."""

    images: Count
    score: float | None


class Said(Part):
    """A reason, as verdict.Reason."""

    level: Literal["stop", "check", "note"]
    kind: str
    text: str
    command: str = ""
    images: list[str] = []


class Named(Part):
    """What the built-in metric says, where a published one gives the final scores."""

    metric: str


class Scored(Part):
    """What two runs are compared by; a run of an earlier version may lack some of it."""

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
    """Returns the built-in metric that tuning went by, and that scores of single images and curves are of; where the
    competition's own function gives the final scores, `metric` is that function's file."""
    by: str = result.get("tuned_by", result)["metric"]
    return by


class Labelled(Part):
    """One of the numbers to expect, and what it is of."""

    what: str = Field("", alias="is")
    score: float
    interval_95: Interval = None


class FoldModel(Labelled):
    """The honest one."""

    epoch_optimism: AtLeastZero | None = None


class Bracket(Part):
    """The bracket around the submission's score."""

    lower: float | None = Field(alias="from")
    upper: float | None = Field(alias="to")
    models: Count


class Scores(Part):
    """The three numbers to expect."""

    fold_model: FoldModel
    optimistic: Labelled
    submission: Bracket


class Tried(Part):
    """A step of post-processing that was tried."""

    step: str
    kept: bool
    gain: float
    standard_error: AtLeastZero
    confidence: Share


class Views(Part):
    """What was decided about test-time augmentation."""

    views: str
    kept: bool
    gain: float
    standard_error: AtLeastZero
    confidence: Share


class Procedure(Part):
    """What the search as a whole is worth."""

    ships: Literal["tuned", "untuned", "fixed"]
    gain: float
    standard_error: AtLeastZero


class FoldOut(Part):
    """What the chosen steps are worth where they are fitted to the other folds."""

    score: float
    difference: float
    standard_error: AtLeastZero


class Tuned(Scored):
    """What tune leaves of any competition."""

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
    reasons: list[Said] = []
    tta: Views | None = None


class Weighed(Exact):
    """A weighted sum of what is known about a mask, as decision.Linear."""

    head: Factor
    area: Factor
    highest: Factor
    confidence: Factor
    intercept: Factor


class Cut(Exact):
    """From which probability of presence on a mask stays."""

    probability: Weighed
    cut: Share | None
    worth: Weighed | None


class Calibrated(Exact):
    """How one fold's probabilities are calibrated."""

    slope: Slope
    intercept: Factor


class FoldCalibration(Part):
    """The same, with what it rests on."""

    slope: Slope
    intercept: Factor
    images: Count
    own_slope: float
    standard_error: AtLeastZero | None


class Ranked(Exact):
    """How each image's own best threshold is found."""

    metric: str
    pooled: Calibrated
    folds: dict[str, Calibrated]


class Apart(Exact):
    """How touching objects are told apart."""

    source: Literal["shape", "probability", "border", "distance"]
    level: Count
    min_seed: Count


class Regions(Exact):
    """What of a mask stays, by its connected regions."""

    fill: bool
    largest: bool
    min_size: Count


class MaskRule(Exact):
    """How the probabilities of a class become its mask."""

    threshold: Level
    min_area: Count
    top: Level | None
    presence: Cut | None
    rank: Ranked | None = None
    components: Regions
    separation: Apart | None = None


class MaskTotals(Part):
    """What the predicted masks look like as a whole."""

    share_empty: Share
    mean_area: AtLeastZero
    highest: Share


class TunedMasks(Tuned):
    """What tune leaves of a binary or multilabel competition."""

    rules: dict[str, MaskRule]
    curves: dict[str, dict[str, list[Point]]] = {}
    shares_of_empty: list[Annotated[tuple[Share, float | None], Field(strict=False)]] = []
    calibration: dict[str, dict[str, FoldCalibration]] = {}
    share_empty_true: Share
    mean_true_area: AtLeastZero
    oof: MaskTotals


class LabelTotals(Part):
    """What the predicted class maps look like as a whole."""

    class_share: Shares


class TunedLabels(Tuned):
    """What tune leaves of a multiclass competition."""

    bias: dict[str, Annotated[float, Field(ge=-80, le=80)]]
    never: list[Count]
    readings: dict[str, dict[str, float]]
    class_iou: Shares
    class_iou_by_fold: dict[str, Shares]
    class_share_true: Shares
    oof: LabelTotals


def read_tuned(run: Run) -> dict[str, Any]:
    """Returns what tune chose, and what it is worth: the content of postprocess.json.

    Raises:
        PipelineError: it is damaged, or of other classes.
    """
    multiclass = run.competition.kind == "multiclass"
    result = read_checked(run.postprocess, TunedLabels if multiclass else TunedMasks, again("tune"))
    named, classes = list(result["bias" if multiclass else "rules"]), run.competition.classes
    lacking = [name for name in run.recipe.ensemble if "ensemble" in result and name not in result["ensemble"]]
    if named != classes:
        fault = f"it is of the classes {', '.join(named)}, and the competition has {', '.join(classes)}"
        raise damaged(run.postprocess, fault, again("tune"))
    if lacking:
        raise damaged(run.postprocess, f"ensemble lacks {', '.join(lacking)}", again("tune"))
    if multiclass and (fault := _fault_of_never(result["never"], len(classes))):
        raise damaged(run.postprocess, fault, again("tune"))
    return result


def _fault_of_never(never: list[int], classes: int) -> str:
    """What is wrong with the numbers of the classes that are never predicted; "" where nothing is."""
    if max(never, default=0) >= classes:
        return f"never: there are {classes} classes, numbered from 0, not {max(never)}"
    return "never: it names every class" if len(set(never)) == classes else ""


def read_scored(folder: Path) -> dict[str, Any]:
    """Returns what postprocess.json says of a run that others are compared with, by the run's folder.

    Raises:
        PipelineError: it is damaged.
    """
    return read_checked(folder / "postprocess.json", Scored, again("tune"))


# --- the submission's record, and test.json --------------------------------------------------------------------------


class Expected(Part):
    """The score to expect of a submission."""

    score: float
    nested: float


class Timed(Part):
    """A training of a submission."""

    seconds: AtLeastZero


class Submission(Part):
    """How a submission came about."""

    made: str
    sha256: str
    rows: Count
    expect: Expected
    postprocess: dict[str, Any]
    folds: dict[str, Timed]
    reasons: list[Said] = []


class MaskSubmission(Submission):
    """Of a binary or multilabel competition."""

    test: MaskTotals


class LabelSubmission(Submission):
    """Of a multiclass competition."""

    test: LabelTotals


class Spread(Part):
    """A figure of images or batches."""

    mean: float
    standard_deviation: AtLeastZero


class TestScores(Part):
    """The scores of a test set with known truth."""

    __test__ = False  # pytest would collect it

    images: Count
    metric: str
    score: float
    data_set_iou: float
    over_images: dict[str, Spread]
    over_batches_of_8: dict[str, Spread]


def read_submission(run: Run) -> dict[str, Any]:
    """Returns how the submission came about: the content of submissions/<run>.json.

    Raises:
        PipelineError: it is missing or damaged.
    """
    what = LabelSubmission if run.competition.kind == "multiclass" else MaskSubmission
    return read_checked(run.record, what, again("encode"))


def read_test_scores(run: Run) -> dict[str, Any]:
    """Returns what evaluate says of the test set: the content of test.json.

    Raises:
        PipelineError: it is missing or damaged.
    """
    return read_checked(run.folder / "test.json", TestScores, again("evaluate"))

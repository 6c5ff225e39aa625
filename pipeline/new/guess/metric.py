"""The guess for the metric, which raw files cannot tell."""

from pipeline.core.config.metric_text import METRICS
from pipeline.new.guess.base import Guess

_OF_MASKS = [name for name, of in METRICS.items() if of == "masks"]
METRIC = Guess("metric", None, "FILL IN", f"{', '.join(_OF_MASKS[:-1])} or {_OF_MASKS[-1]}; the files cannot tell")
MEAN_IOU = Guess("metric", "mean_iou", "sure", "the only metric of kind multiclass")

"""A competition's own published metric: a Python file, and the settings of the competition's YAML for it.

    metric:
      file: metric.py
      tune: f_beta(beta=0.5, over=data_set)

The metric is run by predictions/published.py.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.core.config.metric_text import parse, written
from pipeline.core.config.settings import Settings, validate
from pipeline.core.errors import PipelineError


class MetricFile(Settings):
    """The Python file of a competition's metric, written as `metric: {file: metric.py}`. Its code is executed, so use
    only files that you trust."""

    file: str = Field(min_length=1)
    """The file: its name in the competition's folder of raw files, or its full path."""
    function: str = "score"
    """The function in the file: `score(solution, submission, row_id_column_name, …)`, which takes two tables and
    returns the score over all rows."""
    row_id: str | None = None
    """The column that identifies a row. null: the column of ids in a submission."""
    better: Literal["higher", "lower"] = "higher"
    """Whether a higher or a lower score is better."""
    tune: str | None = None
    """The built-in metric that training and tuning use. null: training uses `dice` (in multiclass competitions
    `mean_iou`), and tuning the built-in metric that agrees best with the file's metric on the held-out images."""
    arguments: dict[str, Any] = {}
    """Further arguments of the function by name, e.g. `{tolerance: 0.0}`."""
    solution: dict[str, str] = {}
    """Columns of the solution that the function needs and the raw files do not have. Each is a text in which {id},
    {group}, {height}, {width} and the columns of the table of masks are replaced, e.g. `shape: "[{height},
    {width}]"`."""
    seconds: float = Field(60.0, gt=0)
    """Maximum number of seconds for each estimate that calls the function many times, such as intervals and the nested
    estimate. A slow function is called fewer times, and the console reports how often."""

    @field_validator("tune")
    @classmethod
    def _known_metric(cls, text: str | None) -> str | None:
        return None if text is None else written(parse(text))

    @property
    def sign(self) -> int:
        """1 if higher scores are better, otherwise -1."""
        return 1 if self.better == "higher" else -1


def separate_metric_file(data: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Returns a competition's settings in which `metric` is the name of a built-in metric. If `metric` was a mapping,
    it is moved to `metric_file`, and `metric` is the built-in metric that training and tuning use.

    Args:
        data: the competition's settings, as read from YAML.
        kind: the competition's kind.

    Raises:
        ValueError: a key of the mapping is unknown, or has a wrong value.
    """
    if not isinstance(data.get("metric"), dict):
        return data
    try:
        metric_file = validate(MetricFile, data["metric"], "metric")
    except PipelineError as error:
        raise ValueError(str(error).rstrip(".")) from None
    usual = "mean_iou" if kind == "multiclass" else "dice"
    return {**data, "metric": metric_file.tune or usual, "metric_file": metric_file}

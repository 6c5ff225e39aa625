"""A competition's metric as it is published: a Python file, and what the competition's YAML says of it.

    metric:
      file: metric.py
      tune: f_beta(beta=0.5, over=data_set)

What runs it is predictions/published.py.
"""

from typing import Any, Literal

from pydantic import Field, field_validator

from pipeline.core.config.metric_text import parse, written
from pipeline.core.config.settings import Settings, validate
from pipeline.core.errors import PipelineError


class MetricFile(Settings):
    """The Python file of a competition's metric; `metric: {file: metric.py}` in the YAML. It is code, and runs as it
    is: use files that you trust."""

    file: str = Field(min_length=1)
    """The file, in the competition's folder of raw files or by its full path."""
    function: str = "score"
    """The function in it: `score(solution, submission, row_id_column_name, …)`, of two tables, which returns the score
    of all rows."""
    row_id: str | None = None
    """The column that names a row. null: the one that holds the ids in a submission."""
    better: Literal["higher", "lower"] = "higher"
    """Which score is better."""
    tune: str | None = None
    """The built-in metric that training and tuning go by. null: training goes by `dice` (of class maps by `mean_iou`),
    and tuning by the built-in metric that is nearest to the file's on the held-out images."""
    arguments: dict[str, Any] = {}
    """Further arguments of the function, by name, e.g. `{tolerance: 0.0}`."""
    solution: dict[str, str] = {}
    """Columns that the function needs of the solution and the raw files do not have: texts in which {id}, {group},
    {height}, {width} and the columns of the table of masks are replaced, e.g. `shape: "[{height}, {width}]"`."""
    seconds: float = Field(60.0, gt=0)
    """How long calls of the function may take in all where it is called many times, for intervals and the nested
    estimate; one that is slow is called fewer times, and the console says how often."""

    @field_validator("tune")
    @classmethod
    def _known_metric(cls, text: str | None) -> str | None:
        return None if text is None else written(parse(text))

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1."""
        return 1 if self.better == "higher" else -1


def taken_apart(data: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Returns a competition's settings with a metric that is a mapping as `metric_file`, and as `metric` the built-in
    one that training and tuning go by.

    Args:
        data: the settings, as read from YAML.
        kind: of the competition.

    Raises:
        ValueError: a key of the mapping is unknown or has a wrong value.
    """
    if not isinstance(data.get("metric"), dict):
        return data
    try:
        found = validate(MetricFile, data["metric"], "metric")
    except PipelineError as error:
        raise ValueError(str(error).rstrip(".")) from None
    usual = "mean_iou" if kind == "multiclass" else "dice"
    return {**data, "metric": found.tune or usual, "metric_file": found}

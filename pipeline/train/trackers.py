"""Experiment trackers that a recipe asks for besides TensorBoard: MLflow, Weights & Biases, Trackio.

Each writes local files and asks no network: MLflow work/<competition>/mlflow.db, Trackio work/<competition>/trackio/,
Weights & Biases wandb/ in the folder of each training. Every training is one run of the tracker, <run>/fold_<k>, with
the recipe's settings.
"""

import logging
import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from pipeline.core.config.settings import flatten
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run

SETTINGS = {"image", "model", "loss", "augment", "train", "predict"}
"""Parts of a recipe that a tracker is told."""


def trackers(run: Run, folder: Path) -> list[Any]:
    """Returns Lightning's loggers of the trackers that `train.loggers` names; none of them has written anything yet.

    Args:
        run: the run.
        folder: that of the training, which gives it its name.

    Raises:
        PipelineError: one is not installed.
    """
    found = []
    for name in run.recipe.train.loggers:
        try:
            found.append(_TRACKERS[name](run, f"{run.name}/{folder.name}", folder))
        except ModuleNotFoundError:
            raise PipelineError(
                f"train.loggers asks for {name}, which is not installed: pip install {name}, or leave it out "
                "(TensorBoard is always written)."
            ) from None
    return found


def tell_settings(run: Run, loggers: list[Any]) -> None:
    """Tells trackers the settings of a run, so that its trainings can be compared there."""
    settings = flatten(run.recipe.model_dump(mode="json", include=SETTINGS))
    for logger in loggers:
        logger.log_hyperparams({key: value if value is not None else "null" for key, value in settings.items()})


def finish(loggers: list[Any]) -> None:
    """Ends the runs that Lightning leaves open, Weights & Biases': the next training would write on in this one's."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _mlflow(run: Run, title: str, folder: Path) -> Any:
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from lightning.pytorch.loggers import MLFlowLogger

    return MLFlowLogger(run.competition.name, title, tracking_uri=f"sqlite:///{run.competition_folder / 'mlflow.db'}")


def _wandb(run: Run, title: str, folder: Path) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    return WandbLogger(title, save_dir=folder, offline=True, project=run.competition.name)


def _trackio(run: Run, title: str, folder: Path) -> Any:
    return TrackioLogger(run.competition.name, title, run.competition_folder / "trackio")


_TRACKERS = {"mlflow": _mlflow, "wandb": _wandb, "trackio": _trackio}


class TrackioLogger(Logger):
    """Trackio behind Lightning's interface of loggers, which Lightning has none for."""

    def __init__(self, project: str, title: str, folder: Path) -> None:
        """Takes what the project and its run are called, and the folder that holds the database.

        Raises:
            ModuleNotFoundError: Trackio is not installed.
        """
        super().__init__()
        os.environ.setdefault("TRACKIO_DIR", str(folder))  # Trackio reads it when it is imported
        import trackio

        self._trackio, self._project, self._title = trackio, project, title
        self._settings: dict[str, Any] = {}
        self._run: Any = None

    @property
    def name(self) -> str:
        """The project."""
        return self._project

    @property
    def version(self) -> str:
        """The run."""
        return self._title

    @property
    def experiment(self) -> Any:
        """Trackio's run, which begins when it is first asked for."""
        if self._run is None:
            with redirect_stdout(StringIO()):  # standard output belongs to results
                self._run = self._trackio.init(
                    self._project, self._title, config=self._settings, resume="allow", embed=False
                )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Takes the settings that the run begins with."""
        self._settings |= dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Writes the figures of a step."""
        self.experiment.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run, once all that it was told is in the database."""
        if self._run is not None:
            self._run = None
            with redirect_stdout(StringIO()):
                self._trackio.finish()

"""Experiment trackers that a recipe may use in addition to TensorBoard: MLflow, Weights & Biases, Trackio.

Each writes local files without using the network: MLflow work/<competition>/mlflow.db, Trackio
work/<competition>/trackio/, Weights & Biases wandb/ in the folder of each training. Every training is one run of the
tracker, <run>/fold_<k>, with the recipe's settings.
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
"""The parts of a recipe that trackers record."""


def trackers(run: Run, folder: Path) -> list[Any]:
    """Returns Lightning's loggers for the trackers that `train.loggers` names, before they write anything.

    Args:
        run: the run.
        folder: the folder of the training, whose name the tracker uses.

    Raises:
        PipelineError: a tracker is not installed.
    """
    loggers = []
    for name in run.recipe.train.loggers:
        try:
            loggers.append(_TRACKERS[name](run, f"{run.name}/{folder.name}", folder))
        except ModuleNotFoundError:
            raise PipelineError(
                f"train.loggers names {name}, which is not installed: pip install {name}, or remove it "
                "(TensorBoard is always written)."
            ) from None
    return loggers


def tell_settings(run: Run, loggers: list[Any]) -> None:
    """Sends the settings of a run to the trackers, so that trainings can be compared there."""
    settings = flatten(run.recipe.model_dump(mode="json", include=SETTINGS))
    for logger in loggers:
        logger.log_hyperparams({key: value if value is not None else "null" for key, value in settings.items()})


def finish(loggers: list[Any]) -> None:
    """Ends runs of Weights & Biases, which Lightning leaves open; the next training would otherwise continue in
    them."""
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
    """A Lightning logger for Trackio, for which Lightning has none."""

    def __init__(self, project: str, title: str, folder: Path) -> None:
        """Takes the names of the project and the run, and the folder of the database.

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
        """The name of the project."""
        return self._project

    @property
    def version(self) -> str:
        """The name of the run."""
        return self._title

    @property
    def experiment(self) -> Any:
        """Trackio's run, which starts when it is first used."""
        if self._run is None:
            with redirect_stdout(StringIO()):  # standard output is only for results
                self._run = self._trackio.init(
                    self._project, self._title, config=self._settings, resume="allow", embed=False
                )
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Stores the settings with which the run starts."""
        self._settings |= dict(params)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Writes the metrics of a step."""
        self.experiment.log(metrics, step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Ends the run after everything is written to the database."""
        if self._run is not None:
            self._run = None
            with redirect_stdout(StringIO()):
                self._trackio.finish()

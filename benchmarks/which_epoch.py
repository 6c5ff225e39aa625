"""Comparison of rules that choose the kept epoch's weights on the same trainings, scored on images that chose no epoch.

    python -m benchmarks.which_epoch FOLDER --data ../shared/data [--only NAME…] [--table]

Two trainings per data set and seed: one on a schedule that ends at zero (one_cycle), one on a plateau schedule. After
every epoch the held-out fold and the test images are predicted with the current weights, and at the end also with
averages of the weights. So each rule picks from the same trajectory, and early stopping is replayed from the recorded
scores. Finished trainings are kept in FOLDER and not run again.

The test images are those of truth.csv (`sample`) or of a known test set. For the other data sets they are one fold, on
which nothing is trained or chosen. The score is the competition's metric at network size: untuned (0.5, or the most
probable class), and with the threshold that is best on the held-out fold. Training seed s holds out fold s.

Hypothesis, stated before the first training: the last epoch of a schedule that ends at zero, averaged over its last
tenth with BatchNorm re-estimated, is within noise of the best rule on every data set and varies least over seeds.
"""

import argparse
import copy
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core import driver
from pipeline.core.files import writing
from pipeline.core.run import Run, open_run
from pipeline.core.trainings import epochs_of
from pipeline.decode import table
from pipeline.decode.readers.files import read_table
from pipeline.evaluate.stage import wanted
from pipeline.masks import rle
from pipeline.masks.geometry import IGNORE, geometry_of, mask_to_network
from pipeline.masks.metrics import metric_of
from pipeline.networks.device import detect
from pipeline.new.sample import write_sample
from pipeline.split.folds import read_folds
from pipeline.train import fit

LEVELS = np.arange(1, 20) / 20
"""Thresholds that are tried on the held-out images."""
MIDDLE = 9
"""Index of 0.5 in LEVELS."""
DECAY = 0.99
PATIENCE = 5
"""Epochs without a better score after which early stopping ends a training."""
SMALL = {"model.architecture": "Unet", "model.encoder": "resnet18", "model.weights": "none"}
PLAIN: dict[str, Any] = {"model.architecture": "ConfigurableUnet", "model.encoder": "plain", "model.weights": "none"}
SCHEDULES: dict[str, dict[str, Any]] = {
    "zero": {"train.schedule": {"name": "one_cycle"}},
    "plateau": {"train.schedule": {"name": "plateau", "factor": 0.5, "patience": 1}},
    "cosine": {"train.schedule": {"name": "cosine"}},
}


@dataclass(frozen=True)
class DataSet:
    """One data set with a small network."""

    recipe: str
    settings: dict[str, Any]
    seeds: tuple[int, ...] = (0, 1)
    drawn: int | None = None
    """Seed that the sample competition is drawn with."""
    test_fold: int | None = None
    """Fold whose images are the test images; None: the competition's own test images, whose masks are known."""
    limits: tuple[int, int, int] = (10**6, 10**6, 10**6)
    """Largest numbers of training, held-out and test images."""
    schedules: tuple[str, ...] = ("zero", "plateau")
    """Schedules that are trained unless --schedules names others."""


def _sample(drawn: int, norm: str | None = None) -> DataSet:
    """Returns the data set of a drawn sample competition; with a norm, for a plain network on one schedule."""
    settings = {"image.size": [64, 96], "train.epochs": 12, **(_plain(norm) if norm else SMALL)}
    if norm:
        return DataSet("sample", settings, (0,), drawn=drawn, schedules=("zero",))
    return DataSet("sample", settings, (0, 1, 2), drawn=drawn)


def _plain(norm: str) -> dict[str, Any]:
    return {**PLAIN, "model.options": {"channels": [16, 32, 64, 128], "norm": norm}}


DATA = {
    **{f"sample-{drawn}": _sample(drawn) for drawn in (1, 2, 3)},
    "tgs-salt": DataSet(
        "tgs-salt",
        {**SMALL, "image": {"size": [64, 64], "fit": "stretch", "position": "fixed"}, "train.epochs": 15,
         "train.half_size": 0, "model.options": {"encoder_depth": 4, "decoder_channels": [128, 64, 32, 16]}},
        test_fold=4, limits=(700, 200, 400),
    ),
    "mars-format": DataSet(
        "mars-terrain", {**_plain("batch"), "train.epochs": 12, "train.batch_size": 16}, test_fold=4,
        limits=(400, 150, 250),
    ),
    "pets-format": DataSet("oxford-pet", {**SMALL, "folds": None, "image.size": [96, 96], "train.epochs": 20,
                                          "train.learning_rate": 1e-3}),
    "nerve-part": DataSet("ultrasound-nerve", {**SMALL, "image.size": [64, 96], "image.fit": "stretch",
                                               "train.epochs": 20, "train.batch_size": 8, "train.ema": None,
                                               "train.learning_rate": 1e-3}, test_fold=4),
    **{f"sample-{drawn}-{norm}": _sample(drawn, norm) for norm in ("batch", "group") for drawn in (1, 2, 3)},
}  # fmt: skip
NAMES = {"mars-format": "mars-terrain", "pets-format": "oxford-pet", "nerve-part": "ultrasound-nerve"}
"""Name of the competition that a folder of the data is linked as."""
FOLDERS = {"nerve-part": "ultrasound-nerve"}


# --- one training ----------------------------------------------------------------------------------------------------


@dataclass
class Images:
    """Images (N, C, H, W) and masks (N, classes, H, W) at network size."""

    pixels: torch.Tensor
    masks: np.ndarray
    units: np.ndarray


class Recorder(Callback):
    """Records counts of the held-out and test images after every epoch, and for several averages of the weights."""

    def __init__(self, run: Run, train: torch.Tensor, held: Images, test: Images) -> None:
        self.run, self.train, self.held, self.test = run, train, held, test
        self.compute = detect(run.recipe.train.precision)
        self.found: dict[str, list[np.ndarray]] = {"held": [], "test": []}
        self.names: list[str] = []
        self.averages: dict[str, Any] = {}
        self.step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the network for each average."""
        for name in ("ema", "tenth", "quarter"):
            self.averages[name] = copy.deepcopy(pl_module.network)
        self.total = int(trainer.estimated_stepping_batches)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Updates the averages after a step of the optimiser."""
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        for name, average in self.averages.items():
            share = 1 - min(DECAY, (1 + self.step) / (10 + self.step))
            if name != "ema":
                first = self.total - max(1, round(self.total * {"tenth": 0.1, "quarter": 0.25}[name]))
                share = 1 / max(1, self.step - first)
            network: Any = pl_module.network
            state = network.state_dict()
            for key, mean in average.state_dict().items():
                if mean.is_floating_point():
                    mean.lerp_(state[key], share)
                else:
                    mean.copy_(state[key])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts with the current weights, and after the last epoch also with the averages."""
        network: Any = copy.deepcopy(pl_module.network)
        self._add(f"epoch {trainer.current_epoch}", network)
        if trainer.current_epoch < (trainer.max_epochs or 0) - 1:
            return
        self._add("last, BN", self._re_estimated(network))
        for name, average in self.averages.items():
            self._add(name, average)
            self._add(f"{name}, BN", self._re_estimated(average))

    @torch.no_grad()
    def _re_estimated(self, network: torch.nn.Module) -> torch.nn.Module:
        norms = [module for module in network.eval().modules() if isinstance(module, _BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        if norms:
            with self.compute.autocast():
                for batch in self.train.split(16):
                    network(batch)
        return network

    def _add(self, name: str, network: torch.nn.Module) -> None:
        self.names.append(name)
        for subset, images in (("held", self.held), ("test", self.test)):
            self.found[subset].append(counts_of(self.run, network, images, self.compute))


@torch.no_grad()
def counts_of(run: Run, network: torch.nn.Module, images: Images, compute: Any) -> np.ndarray:
    """Returns counts (19, N, 3, C) at all thresholds, or confusion matrices (1, N, C, C), int32."""
    network.eval()
    parts = []
    for start in range(0, len(images.pixels), 50):
        with compute.autocast():
            logits = network(images.pixels[start : start + 50]).mask.float()
        masks = images.masks[start : start + 50]
        if run.competition.kind == "multiclass":
            logits[:, list(run.never)] = -torch.inf
            parts.append(_confusions(logits.argmax(1).numpy(), masks[:, 0], logits.shape[1])[None])
        else:
            probability, valid = logits.sigmoid().numpy(), masks != IGNORE
            true = (masks == 1) & valid
            planes = [((probability >= level) & valid) for level in LEVELS]
            parts.append(np.stack([
                np.stack([(one & true).sum((2, 3)), one.sum((2, 3)), true.sum((2, 3))], 1) for one in planes
            ]))  # fmt: skip
    return np.concatenate(parts, 1).astype(np.int32)


def _confusions(predicted: np.ndarray, true: np.ndarray, classes: int) -> np.ndarray:
    found = []
    for one, truth in zip(predicted, true, strict=True):
        valid = truth != IGNORE
        pairs = truth[valid].astype(int) * classes + one[valid]
        found.append(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))
    return np.stack(found)


def as_pixels(images: np.ndarray) -> torch.Tensor:
    """Returns stored images (N, H, W, C) as a tensor (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(images), -1, 1)))


def train(name: str, schedule: str, seed: int, folder: Path, data: Path) -> float:
    """Trains once and writes the record; returns the seconds, or 0 if the record exists."""
    path = folder / name / f"{schedule}-{seed}.npz"
    if path.exists():
        return 0.0
    one, root = DATA[name], (folder / name).absolute()
    os.environ["PIPELINE_ROOT"] = str(root)
    os.environ.pop("PIPELINE_INPUT", None)
    _link(name, root, data)
    settings = {**one.settings, **SCHEDULES[schedule], "train.folds": [seed], "train.seeds": [seed],
                "train.early_stopping": None, "train.keep": "last"}  # fmt: skip
    run = _opened(one, f"{schedule}-{seed}", settings)
    for stage in ("decode", "clean", "split"):
        driver.run_stage(run, stage)
    excluded, tests = _excluded(run, one, seed)
    if excluded is not None:
        run = _opened(one, run.name, settings | {"train.exclude": excluded})
    recorder = _recorder(run, one, seed, tests)
    shutil.rmtree(run.fold_folder(seed, seed), ignore_errors=True)  # an interrupted record is incomplete
    started = time.perf_counter()
    build: Callable[..., Trainer] = fit._trainer
    setattr(fit, "_trainer", lambda *given: build(*given[:-1], [*given[-1], recorder]))  # noqa: B010
    try:
        driver.run_stage(run, "train")
    finally:
        setattr(fit, "_trainer", build)  # noqa: B010
    seconds = time.perf_counter() - started
    rows = epochs_of(run.fold_folder(seed, seed) / "history.json")
    with writing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file, names=recorder.names, loss=[row["valid/loss"] for row in rows], seconds=seconds,
            held=np.stack(recorder.found["held"]), test=np.stack(recorder.found["test"]),
            held_units=recorder.held.units.astype(str), test_units=recorder.test.units.astype(str),
            steps=recorder.total,
        )  # fmt: skip
    return seconds


def _opened(one: DataSet, name: str, settings: dict[str, Any]) -> Run:
    from pipeline.core.config.settings import assignments_of

    return open_run(one.recipe, False, name, assignments_of(settings))


def _link(name: str, root: Path, data: Path) -> None:
    one = DATA[name]
    link = root / "input" / NAMES.get(name, one.recipe)
    if link.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if one.drawn is not None:
        write_sample(link, 240, 120, one.drawn, lambda *_: None)
    else:
        link.symlink_to((data / FOLDERS.get(name, name)).absolute())


def _excluded(run: Run, one: DataSet, fold: int) -> tuple[str | None, np.ndarray]:
    """Writes the list of images that are neither trained on nor held out; returns its path and the test rows."""
    folds = read_folds(run)
    usable, random = folds["use"] == "train", np.random.default_rng(0)
    parts = [usable & ~folds["fold"].isin([fold, one.test_fold]), usable & (folds["fold"] == fold),
             usable & (folds["fold"] == one.test_fold)]  # fmt: skip
    kept = [np.sort(random.permutation(np.flatnonzero(part))[:limit])
            for part, limit in zip(parts, one.limits, strict=True)]  # fmt: skip
    left = np.ones(len(folds), bool)
    left[np.concatenate(kept[:2])] = False
    left &= usable.to_numpy()
    if not left.any():
        return None, kept[2]
    path = run.competition_folder / f"excluded_{fold}.csv"
    with writing(path) as temporary:
        folds.loc[left, ["image_id"]].to_csv(temporary, index=False)
    return str(path), kept[2]


def _recorder(run: Run, one: DataSet, fold: int, tests: np.ndarray) -> Recorder:
    from pipeline.train.stage import rows_of

    images = table.read_table(run.table, "train")
    pixels, masks = (np.load(run.pixels / f"train_{what}.npy", mmap_mode="r") for what in ("images", "masks"))
    units, chosen = table.units_of(images), rows_of(run, fold)
    held = Images(as_pixels(pixels[chosen.valid]), np.array(masks[chosen.valid]), units[chosen.valid])
    if one.test_fold is not None:
        test = Images(as_pixels(pixels[tests]), np.array(masks[tests]), units[tests])
    else:
        test = _known_test(run)
    return Recorder(run, as_pixels(pixels[chosen.train]), held, test)


def _known_test(run: Run) -> Images:
    images = table.read_table(run.test_table)
    pixels = as_pixels(np.load(run.pixels / "test_images.npy", mmap_mode="r"))
    geometry, masks = geometry_of(run.recipe.image), []
    truth = {} if wanted(run.competition) else read_table(run.input / "truth.csv", []).set_index("img")["pixels"]
    convention = rle.convention_of(run.competition.rle)
    for _, row in images.iterrows():
        if wanted(run.competition):
            mask = table.true_mask(row, run.competition.classes)
        else:
            mask = rle.decode(truth[row["image_id"]], (int(row["height"]), int(row["width"])), convention)[None]
        masks.append(mask_to_network(mask, geometry))
    return Images(pixels, np.stack(masks), table.units_of(images))


# --- rules -----------------------------------------------------------------------------------------------------------


@dataclass
class Trajectory:
    """The scores (T,) of the held-out and of the test images for every candidate of one training."""

    names: list[str]
    loss: np.ndarray
    held: np.ndarray
    """Scores (candidates, T)."""
    test: np.ndarray
    middle: int
    seconds: float
    epochs: int = field(init=False)

    def __post_init__(self) -> None:
        self.epochs = len(self.loss)

    def scored(self, name: str) -> tuple[float, float]:
        """Returns the test score of a candidate: untuned, and with the threshold that is best on the held-out fold."""
        place = self.names.index(name)
        tuned = int(self.held[place].argmax())
        return float(self.test[place, self.middle]), float(self.test[place, tuned])


def read(path: Path, run: Run) -> Trajectory:
    """Returns a finished training."""
    metric = metric_of(run.competition)
    with np.load(path) as data:
        scores = {
            subset: np.array([[metric.score_of(one.astype(np.int64), data[f"{subset}_units"]) for one in levels]
                              for levels in data[subset]])
            for subset in ("held", "test")
        }  # fmt: skip
        names, loss, seconds = data["names"].tolist(), data["loss"], float(data["seconds"])
    middle = MIDDLE if scores["held"].shape[1] > 1 else 0
    return Trajectory(names, loss, scores["held"], scores["test"], middle, seconds)


def smoothed(loss: np.ndarray) -> np.ndarray:
    """Returns the mean of the last three losses (E,), or of fewer at the start."""
    return np.array([loss[max(0, place - 2) : place + 1].mean() for place in range(len(loss))])


def best_score(one: Trajectory, patience: int | None) -> str:
    """Returns the epoch of the best untuned score among those that a training with early stopping reaches."""
    scores = one.held[: one.epochs, one.middle]
    best = 0
    for epoch in range(len(scores)):
        if scores[epoch] > scores[best]:
            best = epoch
        if patience and epoch - best >= patience:
            break
    return f"epoch {best}"


def lowest(one: Trajectory, back: int, patience: int | None = None) -> str:
    """Returns the epoch `back` before the end of the window of three with the lowest mean loss."""
    loss, best = smoothed(one.loss), 0
    for epoch in range(len(loss)):
        if loss[epoch] < loss[best]:
            best = epoch
        if patience and epoch - best >= patience:
            break
    return f"epoch {max(0, best - back)}"


RULES: dict[str, tuple[str, Callable[[Trajectory], str]]] = {
    "a  zero: last epoch": ("zero", lambda one: f"epoch {one.epochs - 1}"),
    "a' zero: last epoch, BN": ("zero", lambda one: "last, BN"),
    "b  zero: last tenth averaged, BN": ("zero", lambda one: "tenth, BN"),
    "b' zero: last quarter averaged, BN": ("zero", lambda one: "quarter, BN"),
    'b" zero: last tenth averaged, old BN': ("zero", lambda one: "tenth"),
    "c  zero: lowest smoothed loss, last of three": ("zero", lambda one: lowest(one, 0)),
    "c' zero: lowest smoothed loss, middle of three": ("zero", lambda one: lowest(one, 1)),
    "d  zero: moving average": ("zero", lambda one: "ema"),
    "d' zero: moving average, BN": ("zero", lambda one: "ema, BN"),
    "e  zero: best score": ("zero", lambda one: best_score(one, None)),
    "e  plateau: best score, stopped": ("plateau", lambda one: best_score(one, PATIENCE)),
    "   plateau: last epoch": ("plateau", lambda one: f"epoch {one.epochs - 1}"),
    "   plateau: last tenth averaged, BN": ("plateau", lambda one: "tenth, BN"),
    "   plateau: lowest smoothed loss, last": ("plateau", lambda one: lowest(one, 0, PATIENCE)),
    "   plateau: lowest smoothed loss, middle": ("plateau", lambda one: lowest(one, 1, PATIENCE)),
    "   plateau: moving average": ("plateau", lambda one: "ema"),
    "   cosine: last epoch": ("cosine", lambda one: f"epoch {one.epochs - 1}"),
    "   cosine: last tenth averaged, BN": ("cosine", lambda one: "tenth, BN"),
    "   cosine: lowest smoothed loss, last": ("cosine", lambda one: lowest(one, 0)),
    "   cosine: moving average": ("cosine", lambda one: "ema"),
    "   cosine: best score": ("cosine", lambda one: best_score(one, None)),
}


def results(folder: Path, names: list[str]) -> Iterator[tuple[str, str, int, float, float]]:
    """Yields data set, rule, seed, untuned and tuned test score of every finished training."""
    for name in names:
        one = DATA[name]
        os.environ["PIPELINE_ROOT"] = str((folder / name).absolute())
        for seed in one.seeds:
            paths = {schedule: folder / name / f"{schedule}-{seed}.npz" for schedule in SCHEDULES}
            paths = {schedule: path for schedule, path in paths.items() if path.exists()}
            run = _opened(one, f"zero-{seed}", one.settings)
            trained = {schedule: read(path, run) for schedule, path in paths.items()}
            for rule, (schedule, choose) in RULES.items():
                if schedule not in trained:
                    continue
                yield name, rule, seed, *trained[schedule].scored(choose(trained[schedule]))


def tables(found: pd.DataFrame, column: str) -> Iterator[str]:
    """Yields the lines of a table: per rule and data set mean ± deviation over seeds, and the worst; then over all."""
    if found.empty:
        return
    groups = found.groupby(["rule", "data"], sort=False)[column]
    mean, deviation, worst = groups.mean().unstack(), groups.std(ddof=1).unstack(), groups.min().unstack()
    order = list(dict.fromkeys(found["data"]))
    behind = (mean.max() - mean)[order]
    yield f"\n{column}: mean ± deviation over seeds (worst)\n"
    header = ["rule", *order, "behind the best: mean", "most", "mean deviation"]
    yield f"| {' | '.join(header)} |\n{'|---' * len(header)}|"
    for rule in mean.index:
        known = [one for one in order if not np.isnan(mean.at[rule, one])]
        cells = [f"{mean.at[rule, one]:.3f} ± {deviation.at[rule, one]:.3f} ({worst.at[rule, one]:.3f})"
                 if one in known else "" for one in order]  # fmt: skip
        if deviation.loc[rule].isna().all():  # one seed
            cells = [f"{mean.at[rule, one]:.3f}" for one in known]
        if len(known) == len(order):
            over_all = (behind.loc[rule].mean(), behind.loc[rule].max(), deviation.loc[rule].mean())
            cells += ["" if np.isnan(value) else f"{value:.4f}" for value in over_all]
        yield f"| {rule} | {' | '.join(cells)} |"


def paired(found: pd.DataFrame, column: str) -> Iterator[str]:
    """Yields the difference of each rule to the last epoch of the same data set and seed: mean ± standard error over
    trainings, and the largest loss."""
    scores = found.pivot_table(index=["data", "seed"], columns="rule", values=column, sort=False).dropna(axis=1)
    first = next(iter(RULES))
    yield f"\n{column}: minus {first}, {len(scores)} trainings\n"
    yield "| rule | mean ± standard error | at worst |\n|---|---|---|"
    for rule in (one for one in RULES if one in scores and one != first):
        difference = scores[rule] - scores[first]
        error = difference.std(ddof=1) / len(difference) ** 0.5
        yield f"| {rule} | {difference.mean():+.4f} ± {error:.4f} | {difference.min():+.4f} |"


def left_out(found: pd.DataFrame, column: str) -> Iterator[str]:
    """Yields, for each kind of data, the rule that is best on all others (by its largest distance, then the mean), and
    how far behind the best it is on this one."""
    mean = found.groupby(["rule", "data"], sort=False)[column].mean().unstack().dropna()
    behind = mean.max() - mean
    kinds = {name: name.split("-")[0] for name in behind}
    yield f"\n{column}: the rule picked without a data set, and how far behind that set's best rule it is\n"
    yield "| left out | rule | behind |\n|---|---|---|"
    for kind in dict.fromkeys(kinds.values()):
        inside = [name for name in behind if kinds[name] == kind]
        others = behind.drop(columns=inside)
        if others.empty:
            continue
        rule = others.assign(most=others.max(axis=1), mean=others.mean(axis=1)).sort_values(["most", "mean"]).index[0]
        yield f"| {kind} | {rule} | {behind.loc[rule, inside].mean():.4f} |"


def main() -> None:
    """Trains what is missing and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), help="train on these alone")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    for name in options.only if not options.table else []:
        for seed in DATA[name].seeds:
            for schedule in options.schedules or DATA[name].schedules:
                seconds = train(name, schedule, seed, options.folder, options.data)
                print(f"=== {name} {schedule} {seed}: {seconds:.0f} s", flush=True)
    found = pd.DataFrame(results(options.folder, options.only), columns=["data", "rule", "seed", "untuned", "tuned"])
    print(f"{date.today()}, {len(os.sched_getaffinity(0))} CPU cores, {torch.get_num_threads()} threads")
    both = found["data"].map(lambda name: len(DATA[name].schedules) > 1)
    for column in ("untuned", "tuned"):
        for part in (tables(found[both], column), paired(found[both], column), left_out(found[both], column),
                     tables(found[~both], column)):  # fmt: skip
            print("\n".join(part))


if __name__ == "__main__":
    main()

"""The table of benchmarks that `python -m benchmarks` runs: commands, what they need, and how long they take."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.files import input_root, root


@dataclass(frozen=True)
class Need:
    """Something without which a benchmark cannot run."""

    name: str
    met: Callable[[], bool]
    remedy: str
    """How to get it, for the table."""


def package(name: str) -> Need:
    """Returns the need for a Python package."""
    return Need(f"the package {name}", lambda: importlib.util.find_spec(name) is not None, f"pip install {name}")


def data(name: str) -> Need:
    """Returns the need for a file or folder under input/."""
    competition = name.partition("/")[0]
    return Need(f"input/{name}", (input_root() / name).exists, f"python -m pipeline download {competition}")


def decoded(competition: str, recipe: str) -> Need:
    """Returns the need for the pixel arrays and folds of a competition, as a recipe uses them."""
    folder = root() / "work" / competition
    met: Callable[[], bool] = lambda: any(folder.glob("pixels_*/train_images.npy"))  # noqa: E731
    return Need(f"decoded {competition}", met, f"python -m pipeline run {recipe} --to split")


def finished(run: str) -> Need:
    """Returns the need for a finished run, given as competition/name."""
    path: Path = root() / "work" / run / "postprocess.json"
    return Need(f"a finished run {run}", path.exists, f"./run_all.sh {run.rpartition('/')[2]}")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the suite."""

    name: str
    """The module: `python -m benchmarks.<name>`."""
    answers: str
    """What it measures."""
    arguments: str = ""
    """The arguments; {folder} is a folder for its files."""
    short: str | None = None
    """The arguments with --short; None: it has no short form and is left out."""
    needs: tuple[Need, ...] = ()
    minutes: float | None = None
    """The time on one core, from RESULTS.md or measured; None: not measured."""
    result: str = r"\S.*"
    """The pattern of the lines of its output that are its result; by default the last line."""


TABLE = r"^\|(?! ?-).*\|$"
"""The pattern of the rows of a Markdown table, with its head."""
SALT, NERVE = "tgs-salt", "ultrasound-nerve"

SUITE = [
    Benchmark("train_speed", "training against a plain notebook", "", "--steps 2 --rounds 2", result=r"^ratio.*"),
    Benchmark("step_speed", "training step by encoder, decoder, size and frozen stages", "--rounds 7",
              "--encoders resnet18 --decoders 64-32-16-8 --sizes 64 --freeze none all --rounds 2", minutes=2,
              result=TABLE),
    Benchmark("step_profile", "where the time of an epoch goes", "tgs-salt-lite0 tgs-salt", "tgs-salt-lite0 --steps 2",
              (decoded(SALT, "tgs-salt-lite0"),), result=TABLE),
    Benchmark("stored_features", "training step with stored features", "", "--steps 1", result=TABLE),
    Benchmark("recipe_speed", "training speed of each recipe's network", "", "sample --rounds 1", result=TABLE),
    Benchmark("augment_speed", "augmentation in the loader and on the device", "",
              "--sizes 64x64 --batch 16 --rounds 1", result=TABLE),
    Benchmark("predict_speed", "prediction against a plain fp32 loop", "",
              "--sizes 64x64 --batch 8 --batches 1 --rounds 2", result=r"^pipeline: .*"),
    Benchmark("predict_backends", "prediction by torch, ONNX Runtime and OpenVINO", "",
              "--sizes 64x64 --batch 4 --rounds 1", (package("onnxruntime"), package("openvino")), result=TABLE),
    Benchmark("parallel_folds", "folds in parallel and one after another", "sample --set train.epochs=4", None,
              (decoded("sample", "sample"),), 10, TABLE),
    Benchmark("tune_speed", "tune against the loops of notebooks", "",
              "--images 40 --loop 4 --rounds 1 --all 100", result=TABLE),
    Benchmark("encode_speed", "the encode stage", "--repeats 2", None),
    Benchmark("rle_speed", "run lengths against the usual snippet", "{input}/ultrasound-nerve/train_masks_full.csv",
              "{input}/ultrasound-nerve/train_masks_full.csv --repeats 1", (data(f"{NERVE}/train_masks_full.csv"),),
              result=TABLE),
    Benchmark("read_speed", "reading image files against the library's own call", "", "--images 50 --rounds 1",
              result=TABLE),
    Benchmark("duplicate_speed", "the search for near-duplicates", "", None, result=TABLE),
    Benchmark("start_speed", "--help, and run with nothing changed", "sample", None, (finished("sample/sample"),)),
    Benchmark("report_size", "size and speed of the report", "{folder}", "{folder} --images 100 --groups 5"),
    Benchmark("scale", "cost of each stage by the number of images", "{folder} --sizes 1000x128 4000x128",
              "{folder} --sizes 100x64", result=TABLE),
    Benchmark("huge_images", "one huge TIFF", "{folder}", None, minutes=3, result=TABLE),
    Benchmark("there_and_back", "masks that differ after decode and encode", SALT, SALT, (decoded(SALT, SALT),)),
    Benchmark("right_metric", "tuning on the right metric", "", "--draws 1 --images 8", result=TABLE),
    Benchmark("epoch_optimism", "optimism from choosing the best epoch", "", "--draws 5", result=TABLE),
    Benchmark("short_ema", "a moving average in a short run", "{folder}", None, result=TABLE),
    Benchmark("few_images", "--quick on few images", "{folder}", None, minutes=6, result=TABLE),
    Benchmark("touching", "separating touching objects", "{folder} --seeds 0", None, result=TABLE),
    Benchmark("sample_seeds", "how stable the sample's score is", "{folder}", None, minutes=25, result=TABLE),
    Benchmark("leaking_folds", "do leaking folds raise the score", "{folder}", None, minutes=30, result=TABLE),
    Benchmark("cleaned_labels", "leaving out contradictory labels", "{folder}", None, minutes=30, result=TABLE),
    Benchmark("board", "the quality board", "{folder}", None, minutes=40, result=TABLE),
]  # fmt: skip

ELSEWHERE = {
    "against_notebook": "compares two finished runs that you name",
    "baseline_notebook": "trains for as long as you say",
    "calibrated_average": "needs the finished runs of an experiment with several seeds",
    "full_size": "takes hours",
    "imagenet_weights": "needs photographs",
    "left_out": "needs finished runs that you name",
    "nnunet": "needs nnU-Net in its own environment",
    "public_leaderboard": "needs a finished run that you name",
    "reliability": "writes docs/reliability.md",
    "portfolio": "takes hours and appends to portfolio.csv",
    "truth_of_scores": "needs finished runs that you name",
    "tune_steps": "needs a finished run with several seeds that you name",
    "variants": "needs an experiment of benchmarks/experiments",
    "which_epoch": "takes hours",
}
"""Benchmarks that are not part of the suite, and why."""

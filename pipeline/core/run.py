"""A run: a recipe under a name, and where every file that it reads and writes lies."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.arrays_recipe import recipe_of_arrays, with_arrays
from pipeline.core.config.competition import Competition
from pipeline.core.config.places import name_fault
from pipeline.core.config.preparing import SplitSettings
from pipeline.core.config.raw_layouts import RleCsv, load_competition
from pipeline.core.config.recipe import Recipe, load_recipe, recipe_file
from pipeline.core.config.submission_settings import ENDINGS
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, read_record, root, shown
from pipeline.core.version import program


def input_folder(competition: Competition) -> Path:
    """Returns the folder of a competition's raw files: what was unpacked of them into work/, or its own in input/, or
    else one of its name on Kaggle, as Kaggle mounts it under /kaggle/input."""
    own, on_kaggle = input_root() / competition.folder, competition.kaggle
    mounted = [input_root() / on_kaggle, input_root() / "competitions" / on_kaggle] if on_kaggle else []
    folders = (unpacked_folder(competition.name), own, *mounted)
    return next((folder for folder in folders if folder.is_dir()), own)


def unpacked_folder(name: str) -> Path:
    """Returns the folder into which archives among a competition's raw files are unpacked."""
    return root() / "work" / name / "raw"


@dataclass(frozen=True)
class Member:
    """One training: a fold held out, or none (the final model on all images), with one seed."""

    fold: int | None
    seed: int

    @property
    def title(self) -> str:
        """What messages call it."""
        seed = f" seed {self.seed}" if self.seed else ""
        return ("final" if self.fold is None else f"fold {self.fold}") + seed


@dataclass(frozen=True)
class Run:
    """A recipe under a run name, and the place of everything it reads and writes."""

    recipe: Recipe
    competition: Competition
    name: str
    options: tuple[str, ...] = ()
    """What a command line says to open it: the recipe, and what is changed of it."""

    def command(self, *more: str) -> str:
        """Returns the command line that runs it, with further options."""
        return shlex.join([*program().split(), "run", *(self.options or (self.recipe.name,)), *more])

    @property
    def predicts_folders(self) -> bool:
        """Whether it has models that predict any folder of images: of one file each, and not made elsewhere."""
        return self.competition.images_are_files and self.recipe.arrays is None

    def predict_command(self) -> str:
        """Returns the command line that predicts any folder of images by this run."""
        return shlex.join([*program().split(), "predict", *(self.options or (self.recipe.name,)), "--images", "FOLDER"])

    @property
    def input(self) -> Path:
        """Raw files of the competition."""
        return input_folder(self.competition)

    @property
    def competition_folder(self) -> Path:
        """Artefacts that all recipes of the competition share."""
        return root() / "work" / self.competition.name

    @property
    def folder(self) -> Path:
        """Artefacts of this run."""
        return self.competition_folder / self.name

    @property
    def table(self) -> Path:
        """One row per training image."""
        return self.competition_folder / "images.parquet"

    @property
    def test_table(self) -> Path:
        """One row per test image."""
        return self.competition_folder / "test_images.parquet"

    @property
    def outliers(self) -> Path:
        """One row a finding."""
        return self.competition_folder / "outliers.csv"

    @property
    def outlier_pictures(self) -> Path:
        """Pictures of the findings."""
        return self.competition_folder / "outliers"

    @property
    def pairs_apart(self) -> Path:
        """The nearest pairs of images that are not taken for near-duplicates, in the columns of outliers.csv."""
        return self.outlier_pictures / "apart.csv"

    @property
    def test_duplicates(self) -> Path:
        """One row per training image that a test image looks like."""
        return self.competition_folder / "test_duplicates.csv"

    @property
    def histograms(self) -> Path:
        """Block histograms (N, D) uint8 of the training images, in the order of their table."""
        return self.competition_folder / "histograms.npy"

    @property
    def test_histograms(self) -> Path:
        """Block histograms (N, D) uint8 of the test images, in the order of their table."""
        return self.competition_folder / "test_histograms.npy"

    @property
    def thumbnails(self) -> Path:
        """Standardised thumbnails (N, 256) float16 of the training images, in the order of their table."""
        return self.competition_folder / "thumbnails.npy"

    @property
    def test_thumbnails(self) -> Path:
        """Standardised thumbnails (N, 256) float16 of the test images, in the order of their table."""
        return self.competition_folder / "test_thumbnails.npy"

    @property
    def folds_file(self) -> Path:
        """The split this run trains on."""
        suffix = f"-{self.recipe.folds}" if self.recipe.folds else ""
        return root() / "folds" / f"{self.competition.name}{suffix}.csv"

    @property
    def audit(self) -> Path:
        """What the split is like, and whether it leaks."""
        return self.folds_file.with_suffix(".audit.json")

    @property
    def pixels(self) -> Path:
        """Pixel arrays at network size, shared by all recipes with the same geometry."""
        image = self.recipe.image
        (rows, columns), channels = image.stored, image.channels
        colour = {1: "grey", 3: "rgb", 4: "four"}.get(channels, f"{channels}_channels")
        border = "-constant" if image.fit == "pad" and image.border == "constant" else ""
        return self.competition_folder / f"pixels_{rows}x{columns}_{image.fit}{border}_{colour}"

    @property
    def separators(self) -> Path | None:
        """What separates touching objects of the training images, beside their masks; None where nothing learns it."""
        instances = self.recipe.model.instances
        return None if instances == "none" else self.pixels / f"train_{instances}.npy"

    @property
    def planes(self) -> int:
        """Planes of a prediction: one per class, and as many separators where the network gives them."""
        return self.recipe.model.planes(len(self.competition.classes))

    def fold_folder(self, number: int | None, seed: int | None = None) -> Path:
        """Weights and history of one fold (None: of the final model), by default with the first seed."""
        suffix = "" if seed in (None, self.recipe.train.seeds[0]) else f"_seed_{seed}"
        return self.folder / (("final" if number is None else f"fold_{number}") + suffix)

    def weights(self, member: Member) -> tuple[Path, ...]:
        """The weights that one training leaves: several with snapshots."""
        train, folder = self.recipe.train, self.fold_folder(member.fold, member.seed)
        if member.fold is None:
            return (folder / "last.safetensors",)
        if train.snapshots > 1:
            return tuple(folder / f"snapshot_{number}.safetensors" for number in range(1, train.snapshots + 1))
        return (folder / f"{train.keep}.safetensors",)

    def members(self, fold: int | None) -> list[Member]:
        """Returns the trainings of a fold (None: the final ones), whose predictions are averaged; none where a run does
        not train."""
        return [Member(fold, seed) for seed in self.recipe.train.seeds] if self.recipe.trains else []

    def predictions(
        self, subset: Literal["oof", "test"], fold: int | None, seed: int | None = None, plain: bool = False
    ) -> Path:
        """Probabilities (N, C, H, W); the row order is in the .csv beside it.

        Of the test images one file a fold (None: the final model), the mean over its seeds. Of the images that a fold
        holds out one file a fold and seed, by default the first, and a second one without test-time augmentation.
        """
        suffix = "" if seed in (None, self.recipe.train.seeds[0]) else f"_seed_{seed}"
        name = f"{subset}_final" if fold is None else f"{subset}_fold_{fold}"
        return self.folder / "predictions" / f"{name}{suffix}{'_plain' if plain else ''}.npy"

    def oof_predictions(self, fold: int, plain: bool = False) -> list[Path]:
        """Returns the files of the images that a fold holds out, one a seed; they are averaged."""
        seeds = self.recipe.train.seeds if self.recipe.trains else [None]
        return [self.predictions("oof", fold, seed, plain) for seed in seeds]

    def test_folds(self) -> list[int | None]:
        """Returns the folds whose test predictions are averaged: all that are trained, or the final model alone, as
        whose the predictions count that were made elsewhere."""
        return [None] if self.recipe.train.final or self.recipe.arrays else list(self.trained_folds())

    @property
    def postprocess(self) -> Path:
        """Tuned thresholds and areas, with their scores."""
        return self.folder / "postprocess.json"

    @property
    def mask_statistics(self) -> Path:
        """What the training masks look like, beside which encode holds those of a submission."""
        return self.folder / "mask_statistics.npz"

    @property
    def suspects(self) -> Path:
        """Images whose out-of-fold prediction disagrees most with their mask."""
        return self.folder / "suspects.csv"

    @property
    def submission(self) -> Path:
        """The file to upload."""
        return root() / "submissions" / f"{self.name}{ENDINGS[self.competition.submission_file]}"

    @property
    def record(self) -> Path:
        """How the submission came about."""
        return root() / "submissions" / f"{self.name}.json"

    @property
    def report(self) -> Path:
        """One page to look at."""
        return self.folder / "report.html"

    @property
    def split(self) -> SplitSettings:
        """How this run's folds file is made."""
        return self.competition.splits.get(self.recipe.folds or "", self.competition.split)

    @property
    def never(self) -> tuple[int, ...]:
        """Numbers of the classes that this run does not predict.

        Raises:
            PipelineError: a class that the competition does not have.
        """
        classes = self.competition.classes
        numbers = [classes.index(one) if one in classes else one for one in self.recipe.predict.never]
        wrong = [one for one in numbers if not isinstance(one, int) or not 0 <= one < len(classes)]
        if wrong or (numbers and self.competition.kind != "multiclass") or len(set(numbers)) == len(classes):
            raise PipelineError(
                f"predict.never is {self.recipe.predict.never}; expected some classes of a multiclass competition, by "
                f"name or number (0 is the first): {', '.join(classes)}."
            )
        return tuple(sorted(set(numbers)))  # type: ignore[arg-type]

    @property
    def remark(self) -> str:
        """What must be said beside every score."""
        said, arrays = [self.competition.remark], self.recipe.arrays
        if self.recipe.trains and self.recipe.train.final:
            said.append(
                "the submission is by a final model on all images, which has no out-of-fold score: these are the folds'"
            )
        if arrays:
            said.append(f"predictions brought from {Path(arrays.oof).name}")
            if self.brought.exists():
                unknown = f"whether their models knew these images is not known: {shown(self.brought)} is damaged"
                said.append(read_record(self.brought).get("leak_remark", unknown))
        return "; ".join(filter(None, said))

    @property
    def brought(self) -> Path:
        """What is known about predictions that were made elsewhere."""
        return self.folder / "predictions" / "brought.json"

    def trained_folds(self) -> list[int]:
        """Returns the numbers of the folds this run has out-of-fold predictions of: those it trains, or those of the
        predictions that were made elsewhere.

        Raises:
            PipelineError: `train.folds` asks for others, or for none.
        """
        if self.recipe.arrays:
            from pipeline.core import external_arrays

            known = external_arrays.folds_of(Path(self.recipe.arrays.oof), self.folds_file, self.split.folds)
            expected = (
                f"some of {', '.join(map(str, known))}, of which {Path(self.recipe.arrays.oof).name} has predictions"
            )
        else:
            known = list(range(self.split.folds))
            expected = f"numbers from 0 to {known[-1]}, at least one"
        folds = self.recipe.train.folds
        if folds is None:
            return known
        if not folds or not set(folds) <= set(known):
            raise PipelineError(f"train.folds is {folds}; expected {expected}.")
        return sorted(set(folds))


def open_run(
    recipe: str,
    quick: bool = False,
    name: str | None = None,
    assignments: list[str] | None = None,
    competition: str | None = None,
    oof: str | None = None,
    test: str | None = None,
) -> Run:
    """Returns the run of a recipe: named after it, `<recipe>-quick`, or `name`.

    With `oof` no recipe is read: `recipe` is the run's name, and the default recipe takes predictions made elsewhere,
    from these .npy files, relative to the working directory.

    Raises:
        PipelineError: a wrong setting, or an array that is missing or is none.
    """
    if oof is None and (competition or test):
        raise PipelineError(
            f"{'--test' if test else '--competition'} goes with --oof, for predictions made elsewhere; a recipe says "
            "these itself (competition, arrays)."
        )
    if oof is not None:
        loaded, folder = recipe_of_arrays(recipe, competition, oof, test, assignments or []), Path.cwd()
    else:
        loaded = load_recipe(recipe, quick, assignments)
        folder = recipe_file(recipe)[0].absolute().parent
    run_name = check_name(name or (f"{loaded.name}-quick" if quick else loaded.name))
    if loaded.arrays:
        loaded = with_arrays(loaded, folder)
    given = {"--name": name, "--competition": competition, "--oof": oof, "--test": test}
    words = [recipe, *["--quick"] * quick, *[word for pair in given.items() if pair[1] for word in pair if word]]
    words += [word for one in assignments or [] for word in ("--set", one)]
    run = Run(loaded, load_competition(loaded.competition), run_name, tuple(words))
    _check_submission(run)
    _ = run.never  # an unknown class shows now
    if loaded.trains:
        weights, reason = loaded.model.weights, run.competition.forbids_pretrained
        if reason and weights != "none":
            raise PipelineError(f"model.weights is {weights}, but {reason}: set model.weights=none.")
        loaded.loss.terms(run.competition.kind, loaded.model.presence, loaded.model.separates)
        _check_instances(run)
    return run


def _check_instances(run: Run) -> None:
    """Checks that a competition is one whose touching objects can be separated, where the recipe asks for that."""
    competition, instances = run.competition, run.recipe.model.instances
    if instances == "none":
        return
    windows = isinstance(competition, RleCsv) and competition.windows
    if competition.kind == "multiclass" or windows:
        what = "cut into windows, whose edges cut objects" if windows else "one class per pixel (multiclass)"
        raise PipelineError(
            f"model.instances is {instances}, and the images of {competition.name} are {what}; expected masks of whole "
            "images, binary or multilabel: set model.instances=none."
        )


def check_name(name: str) -> str:
    """Returns a run's name, if it is one.

    Raises:
        PipelineError: it is no plain file name.
    """
    if " " in name or name_fault(name):
        raise PipelineError(f"--name {name[:130]!r}: expected a plain file name without spaces or slashes.")
    if name in ("outliers", "raw") or name.startswith("pixels_"):
        raise PipelineError(f"--name {name!r}: a folder of this name lies beside those of runs; choose another.")
    return name


def _check_submission(run: Run) -> None:
    """Checks that the submission of this name is not one to another competition, which the run would take for its
    own."""
    competition = read_record(run.record).get("competition")
    of = competition.get("name") if isinstance(competition, dict) else None
    if of not in (None, run.competition.name):
        raise PipelineError(
            f"{shown(run.submission)} is a submission to {of}, and {run.name} is a run of {run.competition.name}: give "
            "this run another --name."
        )


def describe(run: Run) -> dict[str, Any]:
    """Returns the resolved recipe and competition, for the record."""
    return {"recipe": run.recipe.model_dump(mode="json"), "competition": run.competition.model_dump(mode="json")}

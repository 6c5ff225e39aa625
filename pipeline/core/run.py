"""A run: a recipe under a name, and the paths of all files that it reads and writes."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.core.arrays_recipe import recipe_of_arrays, with_arrays
from pipeline.core.config.competition import Competition
from pipeline.core.config.preparing import SplitSettings
from pipeline.core.config.raw_layouts import load_competition
from pipeline.core.config.recipe import Recipe, load_recipe
from pipeline.core.config.recipe_files import AUTO, recipe_file
from pipeline.core.config.settings import assignments_of
from pipeline.core.config.submission_settings import ENDINGS
from pipeline.core.errors import PipelineError
from pipeline.core.files import input_root, read_record, root, shown
from pipeline.core.moments import Moment
from pipeline.core.plan import CLOCK, FIRST, PLAN, find_clock, find_plan
from pipeline.core.run_checks import budget_of, check_budget, check_name, check_plan, check_run, words_of
from pipeline.core.version import program


def input_folder(competition: Competition) -> Path:
    """Returns the folder of raw files: that of unpacked archives in work/, else that in input/, else Kaggle's
    folder."""
    in_input, on_kaggle = input_root() / competition.folder, competition.kaggle
    mounted = [input_root() / on_kaggle, input_root() / "competitions" / on_kaggle] if on_kaggle else []
    folders = (unpacked_folder(competition.name), in_input, *mounted)
    return next((folder for folder in folders if folder.is_dir()), in_input)


def unpacked_folder(name: str) -> Path:
    """Returns the folder into which archives among a competition's raw files are unpacked."""
    return root() / "work" / name / "raw"


@dataclass(frozen=True)
class Member:
    """One trained model: the fold that it holds out, or None for the final model on all images, and its seed."""

    fold: int | None
    seed: int

    @property
    def title(self) -> str:
        """The name of the member in messages."""
        seed = f" seed {self.seed}" if self.seed else ""
        return ("final" if self.fold is None else f"fold {self.fold}") + seed


@dataclass(frozen=True)
class Run:
    """A recipe under a run name, and the paths of everything that the run reads and writes."""

    recipe: Recipe
    competition: Competition
    name: str
    options: tuple[str, ...] = ()
    """The arguments of the command line that open this run: the recipe and the options that change it."""
    budget: float | None = None
    """The time of a planned run (`--time`) in seconds; None for other runs."""
    until: Moment | None = None
    """When the trainings that now run must end; None if no plan is being carried out."""

    def command(self, *more: str) -> str:
        """Returns the command line of this run, with the options `more` added. A planned run is always run as a whole:
        `--from` and `--to` are left out."""
        words = words_of(self, renamed="--name" in more)
        if more[:1] in (("--from",), ("--to",)) and (self.budget or "--time" in words):
            more = more[2:]
        return shlex.join([*program().split(), "run", *words, *more])

    @property
    def is_planned(self) -> bool:
        """Whether this is the main run of a planned run, and not the first run."""
        return self.budget is not None and not self.name.endswith(FIRST)

    @property
    def predicts_folders(self) -> bool:
        """Whether the run can predict any folder of images: images are single files, and predictions are not
        external."""
        return self.competition.images_are_files and self.recipe.arrays is None

    def predict_command(self) -> str:
        """Returns the command line that predicts any folder of images with this run."""
        return shlex.join([*program().split(), "predict", *(self.options or (self.recipe.name,)), "--images", "FOLDER"])

    @property
    def input(self) -> Path:
        """The folder of the competition's raw files."""
        return input_folder(self.competition)

    @property
    def competition_folder(self) -> Path:
        """The folder of the artefacts that all runs of the competition share."""
        return root() / "work" / self.competition.name

    @property
    def folder(self) -> Path:
        """The folder of the artefacts of this run."""
        return self.competition_folder / self.name

    @property
    def plan(self) -> Path:
        """The plan of a run with `--time`, which its trainings follow."""
        return self.folder / PLAN

    @property
    def clock(self) -> Path:
        """The record of how much of its budget a run with `--time` has used."""
        return self.folder / CLOCK

    @property
    def table(self) -> Path:
        """The table with one row per training image."""
        return self.competition_folder / "images.parquet"

    @property
    def test_table(self) -> Path:
        """The table with one row per test image."""
        return self.competition_folder / "test_images.parquet"

    @property
    def outliers(self) -> Path:
        """The table of clean, with one row per finding."""
        return self.competition_folder / "outliers.csv"

    @property
    def outlier_pictures(self) -> Path:
        """The folder of pictures of the findings."""
        return self.competition_folder / "outliers"

    @property
    def pairs_apart(self) -> Path:
        """The table of the most similar pairs that do not count as near-duplicates, with the columns of
        outliers.csv."""
        return self.outlier_pictures / "apart.csv"

    @property
    def test_duplicates(self) -> Path:
        """The table with one row per training image that has a near-duplicate in the test set."""
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
        """The table of the folds that this run trains on."""
        suffix = f"-{self.recipe.folds}" if self.recipe.folds else ""
        return root() / "folds" / f"{self.competition.name}{suffix}.csv"

    @property
    def audit(self) -> Path:
        """The audit of the split: its balance, and whether it leaks."""
        return self.folds_file.with_suffix(".audit.json")

    @property
    def pixels(self) -> Path:
        """The folder of pixel arrays, shared by all recipes with the same image size, fit, border and channels."""
        image = self.recipe.image
        (rows, columns), channels = image.stored, image.channels
        colour = {1: "grey", 3: "rgb", 4: "four"}.get(channels, f"{channels}_channels")
        border = "-constant" if image.fit == "pad" and image.border == "constant" else ""
        return self.competition_folder / f"pixels_{rows}x{columns}_{image.fit}{border}_{colour}"

    @property
    def separators(self) -> Path | None:
        """The array of separators in the training images; None if the network does not learn them."""
        instances = self.recipe.model.instances
        return None if instances == "none" else self.pixels / f"train_{instances}.npy"

    @property
    def planes(self) -> int:
        """Number of planes of a prediction: one per class, and one more per class with separators."""
        return self.recipe.model.planes(len(self.competition.classes))

    def fold_folder(self, number: int | None, seed: int | None = None) -> Path:
        """Returns the folder of weights and history of a fold (None: the final model), by default for the first
        seed."""
        suffix = "" if seed in (None, self.recipe.train.seeds[0]) else f"_seed_{seed}"
        return self.folder / (("final" if number is None else f"fold_{number}") + suffix)

    def weights(self, member: Member) -> tuple[Path, ...]:
        """Returns the files of weights that one training writes: several with snapshots, otherwise one."""
        train, folder = self.recipe.train, self.fold_folder(member.fold, member.seed)
        if member.fold is None:
            return (folder / "last.safetensors",)
        if train.snapshots > 1:
            return tuple(folder / f"snapshot_{number}.safetensors" for number in range(1, train.snapshots + 1))
        return (folder / f"{train.keep}.safetensors",)

    def members(self, fold: int | None) -> list[Member]:
        """Returns the members of a fold (None: the final models); an empty list if the run does not train."""
        return [Member(fold, seed) for seed in self.recipe.train.seeds] if self.recipe.trains else []

    def predictions(
        self, subset: Literal["oof", "test"], fold: int | None, seed: int | None = None, plain: bool = False
    ) -> Path:
        """Returns the file of probabilities (N, C, H, W). The .csv file beside it holds the order of the images.

        For test images there is one file per fold (None: of the final model) with the mean over its seeds. For the
        images that a fold holds out there is one file per fold and seed, by default the first seed, and with `plain`
        the one without test-time augmentation.
        """
        suffix = "" if seed in (None, self.recipe.train.seeds[0]) else f"_seed_{seed}"
        name = f"{subset}_final" if fold is None else f"{subset}_fold_{fold}"
        return self.folder / "predictions" / f"{name}{suffix}{'_plain' if plain else ''}.npy"

    def oof_predictions(self, fold: int, plain: bool = False) -> list[Path]:
        """Returns the files of out-of-fold predictions of a fold, one per seed, which are averaged."""
        seeds = self.recipe.train.seeds if self.recipe.trains else [None]
        return [self.predictions("oof", fold, seed, plain) for seed in seeds]

    def test_folds(self) -> list[int | None]:
        """Returns the folds whose test predictions are averaged; [None] for a final model or external predictions."""
        return [None] if self.recipe.train.final or self.recipe.arrays else list(self.trained_folds())

    @property
    def postprocess(self) -> Path:
        """The result of tune: post-processing rules and their scores."""
        return self.folder / "postprocess.json"

    @property
    def mask_statistics(self) -> Path:
        """Statistics of the training masks, with which encode compares the masks of a submission."""
        return self.folder / "mask_statistics.npz"

    @property
    def suspects(self) -> Path:
        """The table of images whose out-of-fold prediction disagrees most with their mask."""
        return self.folder / "suspects.csv"

    @property
    def submission(self) -> Path:
        """The submission, the file to upload."""
        return root() / "submissions" / f"{self.name}{ENDINGS[self.competition.submission_file]}"

    @property
    def record(self) -> Path:
        """The record of how the submission was made."""
        return root() / "submissions" / f"{self.name}.json"

    @property
    def report(self) -> Path:
        """The report, an HTML page."""
        return self.folder / "report.html"

    @property
    def split(self) -> SplitSettings:
        """The settings by which this run's folds are made."""
        return self.competition.splits.get(self.recipe.folds or "", self.competition.split)

    @property
    def never(self) -> tuple[int, ...]:
        """The numbers of the classes that this run never predicts.

        Raises:
            PipelineError: `predict.never` names an unknown class or all classes, or the competition is not multiclass.
        """
        classes = self.competition.classes
        numbers = [classes.index(given) if given in classes else given for given in self.recipe.predict.never]
        wrong = [number for number in numbers if not isinstance(number, int) or not 0 <= number < len(classes)]
        if wrong or (numbers and self.competition.kind != "multiclass") or len(set(numbers)) == len(classes):
            raise PipelineError(
                f"predict.never is {self.recipe.predict.never}; expected some classes of a multiclass competition, by "
                f"name or number (0 is the first): {', '.join(classes)}."
            )
        return tuple(sorted(set(numbers)))  # type: ignore[arg-type]

    @property
    def remark(self) -> str:
        """A text that must accompany each score of the run, because the score depends on it."""
        remarks, arrays = [self.competition.remark], self.recipe.arrays
        if self.recipe.trains and self.recipe.train.final:
            remarks.append(
                "the submission is made by a final model on all images, which has no out-of-fold score: these scores "
                "are those of the folds"
            )
        if arrays:
            remarks.append(f"external predictions from {Path(arrays.oof).name}")
            if self.brought.exists():
                unknown = (
                    f"whether their models were trained on these images is not known: {shown(self.brought)} is damaged"
                )
                remarks.append(read_record(self.brought).get("leak_remark", unknown))
        return "; ".join(filter(None, remarks))

    @property
    def brought(self) -> Path:
        """The record of external predictions."""
        return self.folder / "predictions" / "brought.json"

    def trained_folds(self) -> list[int]:
        """Returns the folds with out-of-fold predictions: the trained folds, or those of external predictions.

        Raises:
            PipelineError: `train.folds` is empty or contains other folds.
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
    time: str | None = None,
    follow_plan: bool = True,
) -> Run:
    """Returns the run of a recipe. Its name is `name`, or by default the recipe's name, with `-quick` added if `quick`,
    or with the `time` of a planned run added. A planned run has the settings of its plan as soon as there is one,
    unless `follow_plan` is false.

    With `competition`, the recipe is used for another competition than its own, with whose name the run's name then
    starts; `auto` is the recipe that was chosen for it. With `oof` no recipe is read: `recipe` is the name of the run,
    and the default recipe uses the external predictions in the .npy files `oof` and `test`, whose paths are relative to
    the working directory.

    Raises:
        PipelineError: a setting is wrong or contradicts the plan, or an array of predictions is missing or invalid.
    """
    if oof is None and test:
        raise PipelineError("--test can only be used with --oof, for external predictions; in a recipe, set arrays.")
    budget = None if time is None else budget_of(time, quick, oof, assignments or [])
    if oof is not None:
        loaded, folder = recipe_of_arrays(recipe, competition, oof, test, assignments or []), Path.cwd()
    else:
        loaded = load_recipe(recipe, quick, assignments, competition)
        folder = Path() if recipe == AUTO else recipe_file(recipe)[0].absolute().parent
    suffix = "-quick" if quick else f"-{''.join(time.split())}" if time else ""
    run_name = check_name(name or f"{loaded.name}{suffix}")
    folder_of_run = root() / "work" / load_competition(loaded.competition).name / run_name
    if oof is None and follow_plan and (plan := find_plan(folder_of_run)):
        planned = [*(assignments or []), *assignments_of(plan.settings)]
        own = loaded
        try:
            loaded = load_recipe(recipe, quick, planned, competition)
        except PipelineError as error:
            raise PipelineError(
                f"{shown(folder_of_run / PLAN)} does not fit to this recipe: {str(error).rstrip('.')}. Give the run "
                "another --name, restore the recipe, or plan and train again with --force."
            ) from error
        check_plan(run_name, plan, budget, (own, loaded), assignments or [])
        budget = plan.budget
    elif oof is None and follow_plan and (clock := find_clock(folder_of_run)) and clock.budget:
        check_budget(run_name, clock.budget, budget)
        budget = clock.budget
    if loaded.arrays:
        loaded = with_arrays(loaded, folder)
    given = {"--name": name, "--time": time, "--competition": competition, "--oof": oof, "--test": test}
    words = [recipe, *["--quick"] * quick, *[word for pair in given.items() if pair[1] for word in pair if word]]
    words += [word for assignment in assignments or [] for word in ("--set", assignment)]
    run = Run(loaded, load_competition(loaded.competition), run_name, tuple(words), budget)
    check_run(run)
    return run


def describe(run: Run) -> dict[str, Any]:
    """Returns the resolved recipe and competition as they are recorded."""
    return {"recipe": run.recipe.model_dump(mode="json"), "competition": run.competition.model_dump(mode="json")}

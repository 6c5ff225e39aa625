"""The rules choose, from a fingerprint, the recipe and the settings that docs/auto.md lists."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.auto.fingerprint import Fingerprint, counted, percent
from pipeline.auto.machine import PACKAGE, Machine
from pipeline.auto.rules import AS_GIVEN, RULES, InputSize, choose, network_size, shown
from pipeline.core.config.recipe import load_recipe
from pipeline.core.config.recipe_files import FOLDER
from pipeline.core.config.settings import assignments_of, flatten

CPU = Machine(cores=2, has_weights=True)
GPU = Machine("Tesla T4", 15.0, 1, 4, False, True)
SALT = Fingerprint(
    "binary", ("salt",), "iou_precision", False, True, 3200, 300, None, 101, 101, True, 1, False, True,
    empty_share=0.39, mask_share=0.3, regions=1, object_share=0.55, class_images={"salt": 0.61},
    class_pixels={"salt": 0.25}, machine=CPU,
)  # fmt: skip
NERVE = replace(SALT, metric="dice", images=5635, groups=47, rows=420, columns=580, empty_share=0.59, object_share=0.17)
MARS = replace(
    SALT, kind="multiclass", classes=("background", "soil", "rock"), metric="mean_iou", by_image=False, images=2615,
    rows=64, columns=128, empty_share=0.0, forbids_pretrained="the rules forbid them", ignored_class="background",
    class_images={"background": 1.0, "soil": 0.8, "rock": 0.1}, 
    class_pixels={"background": 0.2, "soil": 0.7, "rock": 0.01},
)  # fmt: skip
PETS = replace(
    SALT, metric="dice", images=3680, rows=400, columns=500, one_size=False, channels=3, photographs=True,
    empty_share=0.0,
)  # fmt: skip
NUCLEI = replace(
    PETS, metric="instance_precision", scores_objects=True, images=670, rows=256, columns=320, object_share=0.07,
    instances=True, touching=0.2,
)  # fmt: skip
SHIPS = replace(PETS, images=190_000, rows=768, columns=768, one_size=True, object_share=0.02, empty_share=0.78)
TISSUE = replace(
    PETS, images=2000, rows=2048, columns=2048, windows=True, object_share=0.1, empty_share=0.9, by_image=False
)


@pytest.mark.parametrize(
    ("fingerprint", "recipe", "expected"),
    [
        (SALT, "masks", {
            "image.size": [128, 128], "image.fit": "pad", "image.position": "random", "image.channels": 3,
            "model.presence": True, "train.batch_size": 16, "train.epochs": 59, "quick.image.fit": "stretch",
            "quick.image.position": "fixed", "quick.image.size": [64, 64],
        }),
        (NERVE, "masks", {
            "image.size": [128, 192], "image.channels": 3, "model.presence": True, "train.batch_size": 16,
            "train.epochs": 34, "quick.image.size": [64, 96],
        }),
        (MARS, "classes-scratch", {
            "image.size": [64, 128], "image.channels": 1, "train.sampler.rare_classes": 0.5,
            "predict.never": ["background"], "train.batch_size": 16, "train.epochs": 60, "quick.image.size": [32, 64],
        }),
        (NUCLEI, "instances", {"image.size": [128, 160]}),
        (SHIPS, "tiles", {
            "image.size": [256, 256], "image.store": [384, 384], "train.epochs": 4, "train.batch_size": 8,
        }),
        (TISSUE, "tiles", {"image.size": [256, 256], "image.store": [512, 512], "train.sampler.positive_share": 0.5}),
        (replace(SALT, machine=Machine()), "masks-scratch", {"image.channels": 1}),
        (replace(NERVE, machine=GPU), "masks", {"image.size": [448, 608], "image.fit": "pad"}),
        (replace(PETS, machine=GPU), "masks", {"image.size": [416, 512]}),
        (replace(SHIPS, machine=GPU), "masks", {"image.size": [512, 512]}),
        (replace(PETS, channels=7, photographs=False, eight_bits=False), "masks", {
            "image.channels": 7, "model.freeze": "none", "image.normalize": "dataset",
        }),
        (replace(SALT, images=170), "masks", {"train.batch_size": 8, "train.epochs": 60}),
    ],
)  # fmt: skip
def test_choice(fingerprint: Fingerprint, recipe: str, expected: dict[str, Any]) -> None:
    choice = choose(fingerprint)
    settings = flatten(choice.settings)
    assert choice.recipe == f"portfolio/{recipe}"
    assert {key: settings.get(key) for key in expected} == expected
    if fingerprint in (SALT, NERVE, MARS):
        assert settings == expected
    load_recipe(choice.recipe, assignments=["competition=sample", *assignments_of(settings)])


@pytest.mark.parametrize("machine", [CPU, GPU])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 1.0])
@pytest.mark.parametrize("one_size", [True, False])
@pytest.mark.parametrize("size", [(1, 1), (5, 5), (16, 2000), (2000, 16), (3, 9000), (20_000, 30), (6000, 5000)])
def test_images_of_any_shape_get_a_recipe(
    size: tuple[int, int], one_size: bool, share: float, machine: Machine
) -> None:
    rows, columns = size
    fingerprint = replace(SALT, rows=rows, columns=columns, one_size=one_size, object_share=share, machine=machine)
    choice = choose(fingerprint)
    load_recipe(choice.recipe, assignments=["competition=sample", *assignments_of(flatten(choice.settings))])


def test_long_images_are_stored_at_the_resolution_that_their_objects_need() -> None:
    fingerprint = replace(SALT, rows=16, columns=2000, object_share=0.045)
    assert choose(fingerprint).settings["image"] == {"size": [32, 256], "store": [32, 1024], "channels": 3}
    image = choose(replace(SALT, rows=6000, columns=5000, object_share=0.009)).settings["image"]
    assert image["store"][0] / image["store"][1] == pytest.approx(6000 / 5000, rel=0.05)


def test_a_given_size_decides_the_other_settings() -> None:
    choice = choose(SALT, input_size=InputSize((256, 288)))
    assert choice.settings["image"] == {"size": [256, 288], "channels": 3}
    assert choice.settings["train"]["batch_size"] == 8
    assert f"image.size [256, 288]: {AS_GIVEN}" in choice.lines()
    crops = choose(SALT, input_size=InputSize((64, 64), (128, 128)))
    assert (crops.recipe, crops.settings["image"]["store"]) == ("portfolio/tiles", [128, 128])
    assert crops.settings["train"]["epochs"] == 15
    whole = choose(SHIPS, input_size=InputSize((96, 96)))
    assert (whole.recipe, "store" in whole.settings["image"]) == ("portfolio/masks", False)
    assert choose(SHIPS, "portfolio/tiles", InputSize((96, 96))).settings["image"]["store"] is None


def test_reasons_are_true_and_in_plain_english() -> None:
    lines = list(choose(replace(SALT, images=1, empty_share=0.9996)).lines())
    assert "model.presence true: 99.9 % of the masks are empty" in lines
    assert "train.batch_size 8, train.epochs 60: 1 image" in lines
    assert "predict.never [background]: class background is not scored, and predicting it costs" in choose(MARS).lines()
    assert any(
        line.endswith("images of 400×500 (median) at a size that a CPU can train") for line in choose(PETS).lines()
    )
    assert (counted(1, "image"), counted(0, "image"), percent(0.996), percent(1)) == (
        "1 image", "0 images", "99.6 %", "100 %",
    )  # fmt: skip


def test_photographs_vary_in_scale_and_colour() -> None:
    assert shown(choose(PETS).settings["augment"]) == "HorizontalFlip, Affine, ColorJitter"
    assert "augment" not in choose(SALT).settings and "augment" not in choose(SHIPS).settings


def test_a_presence_head_only_if_each_image_is_scored_by_itself() -> None:
    assert "model" not in choose(replace(SALT, by_image=False)).settings
    assert "model" not in choose(replace(SALT, empty_share=0.05)).settings


def test_every_decision_has_a_reason() -> None:
    lines = list(choose(SALT).lines())
    assert lines[0] == "portfolio/masks: one mask per class and image"
    assert lines[1] == f"portfolio/masks: from ImageNet weights: the package {PACKAGE} is installed"
    assert "model.presence true: 39 % of the masks are empty" in lines
    assert not any("quick" in line for line in lines)
    assert [percent(share) for share in (0, 0.006, 0.39, 1)] == ["0 %", "0.6 %", "39 %", "100 %"]


def test_another_recipe_can_be_asked_for() -> None:
    assert choose(PETS, "portfolio/masks-scratch").settings == choose(PETS).settings
    assert choose(NERVE, "portfolio/tiles").settings["image"] == {
        "size": [128, 192],
        "store": [256, 384],
        "channels": 3,
    }
    small = choose(SALT, "portfolio/tiles")
    assert small.settings["image"]["store"] is None
    load_recipe("portfolio/tiles", True, ["competition=sample", *assignments_of(flatten(small.settings))])
    assert choose(SALT, "tgs-salt").settings == {}


@pytest.mark.parametrize(
    ("size", "expected"),
    [((420, 580), (128, 192)), ((101, 101), (128, 128)), ((64, 128), (64, 128)), ((256, 1600), (64, 384))],
)
def test_network_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert network_size(size) == expected


def test_the_package_of_the_weights_is_the_one_that_networks_look_for() -> None:
    from pipeline.networks.weights import PACKAGES

    assert PACKAGES["tf_efficientnet_lite0"] == PACKAGE


def test_the_docs_list_every_rule_and_recipe() -> None:
    page = (REPOSITORY / "docs" / "auto.md").read_text(encoding="utf-8")
    names = sorted(path.stem for path in (FOLDER / "portfolio").glob("*.yaml"))
    assert len(names) == 9 and all(f"`{name}`" in page for name in names)
    assert all((rule.__doc__ or "").split(".")[0].split(",")[0].split(";")[0] in page for rule in RULES)


@pytest.mark.parametrize("name", [path.stem for path in sorted((FOLDER / "portfolio").glob("*.yaml"))])
def test_every_recipe_of_the_portfolio_can_be_trained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.core.run import open_run
    from pipeline.train.stage import preflight

    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    text = (FOLDER / "portfolio" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "easured" in text.split("\nbase:")[0]
    competition = {"classes": "mars-terrain", "instances": "dsb2018"}.get(name.removesuffix("-scratch"), "tgs-salt")
    run = open_run(
        f"portfolio/{name}", competition=competition, assignments=["model.weights=none", "model.freeze=none"]
    )
    assert run.name == f"{competition}-{name}" and run.competition.name == competition
    preflight(run)

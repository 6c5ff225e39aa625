"""The wheels of a bundle: which the image lacks, that they fit, and that they are those of the lock file."""

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import finished
import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.tags import parse_tag

from pipeline.core.config.recipe import load_recipe
from pipeline.core.errors import PipelineError
from pipeline.kaggle.bundle import image, script, wheels
from pipeline.kaggle.bundle.image import Package

THERE: dict[str, str | None] = {"numpy": "2.0.2", "torch": "2.10.0+cu128", "kaggle": None, "opencv-python": "4.13.0.92"}
CODECS = Package("imagecodecs", ">=2024.1", "nothing")


def locked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Lets the lock file pin what the folder's wheels are."""
    pins = {}
    for path in folder.glob("*.whl"):
        name, version, _ = path.name.split("-", 2)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        pins[name] = [wheels.Locked(name, version, (f"sha256:{digest}",))]
    monkeypatch.setattr(wheels, "lock", lambda python: pins)


def test_the_image_lacks_what_it_has_not_or_has_too_old() -> None:
    wanted = [Requirement(line) for line in ("numpy>=1.26", "torch>=2.8", "kaggle>=2", "imagecodecs>=2024.1")]
    assert [one.name for one in image.lacking(wanted, THERE)] == ["imagecodecs"]
    assert image.lacking([Requirement("numpy>=2.1")], THERE) == [Package("numpy", ">=2.1", "numpy 2.0.2")]
    assert image.lacking([Requirement("opencv-python-headless>=4.9,<5")], THERE) == []  # the same module
    with pytest.raises(PipelineError, match="torch is never replaced"):
        image.lacking([Requirement("torch>=2.99")], THERE)


def test_kaggles_image_lacks_two_packages_and_no_torch() -> None:
    there = image.packages()
    assert len(there) > 700 and "lightning" not in there and "segmentation-models-pytorch" not in there
    assert {"torch", "timm", "opencv-python", "pip", "pytorch-lightning"} <= there.keys()
    assert {one.name for one in image.lacking(image.requirements([]), there)} == {
        "segmentation-models-pytorch",
        "imagecodecs",
    }


def test_openvino_is_part_of_a_bundle_that_predicts_with_it() -> None:
    recipe = load_recipe("sample", assignments=["predict.backend=openvino"])
    lacking = image.lacking(image.requirements([SimpleNamespace(recipe=recipe)]), image.packages())  # type: ignore[list-item]
    assert {one.name for one in lacking} == {"segmentation-models-pytorch", "imagecodecs", "openvino"}


def test_the_own_wheel_has_every_file_and_the_same_bytes_every_time(tmp_path: Path) -> None:
    first = wheels.write_own(tmp_path)
    content = first.read_bytes()
    assert wheels.write_own(tmp_path).read_bytes() == content
    with zipfile.ZipFile(first) as archive:
        names = set(archive.namelist())
    files = [
        path for path in (REPOSITORY / "pipeline").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {path.relative_to(REPOSITORY).as_posix() for path in files} - names == {"pipeline/environment.sh"}


def test_the_lock_file_is_read_for_another_python_with_what_others_get_after_it() -> None:
    text = (
        "one==1.0 ; python_full_version < '3.12' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "one==2.0 ; python_full_version >= '3.12' \\\n    --hash=sha256:cc\n    # via other\n"
    )
    assert [(one.version, one.hashes) for one in wheels.read_lock(text, "3.12")["one"]] == [
        ("2.0", ("sha256:cc",)),
        ("1.0", ("sha256:aa", "sha256:bb")),
    ]
    assert [one.version for one in wheels.read_lock(text, "3.11")["one"]] == ["1.0", "2.0"]


@pytest.mark.parametrize(
    ("tag", "python", "fits"),
    [
        ("py3-none-any", "3.12", True),
        ("cp312-cp312-manylinux_2_28_x86_64", "3.12", True),
        ("cp311-abi3-manylinux_2_28_x86_64", "3.12", True),
        ("cp311-cp311-manylinux_2_28_x86_64", "3.12", False),
        ("cp313-abi3-manylinux_2_28_x86_64", "3.12", False),
        ("cp312-cp312-macosx_11_0_arm64", "3.12", False),
    ],
)
def test_wheels_are_chosen_by_their_tags(tag: str, python: str, fits: bool) -> None:
    assert wheels.fits(parse_tag(tag), python) is fits


def test_what_a_wheel_is_for_is_said_as_the_script_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wheels.python_of(parse_tag("py3-none-any"), "3.12") == "any"
    assert wheels.python_of(parse_tag("cp311-abi3-manylinux_2_28_x86_64"), "3.12") == ">=3.11"
    assert wheels.python_of(parse_tag("cp312-cp312-manylinux_2_28_x86_64"), "3.12") == "3.12"
    monkeypatch.setattr(script.sys, "version_info", (3, 12, 1))
    assert [script.fits(one) for one in ("any", ">=3.11", ">=3.13", "3.12", "3.11")] == [True, True, False, True, False]


def test_a_wheel_for_another_python_is_refused(tmp_path: Path) -> None:
    source = finished.wheel_folder(tmp_path / "wheels", ("imagecodecs", "2026.3.6", "cp311-cp311-linux_x86_64"))
    with pytest.raises(
        PipelineError, match=r"imagecodecs-2026.3.6-cp311.* does not suit the bundle's Python 3.12 on Linux x86-64"
    ):
        wheels.gather([CODECS], tmp_path, "3.12", source, THERE)


def test_a_missing_a_wrong_and_a_damaged_wheel_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = finished.wheel_folder(tmp_path / "wheels")
    with pytest.raises(PipelineError, match="has no wheel of imagecodecs, which Kaggle's image lacks"):
        wheels.gather([CODECS], tmp_path, "3.12", source, THERE)
    finished.wheel_folder(source, ("imagecodecs", "2026.3.6", "py3-none-any"))
    locked(monkeypatch, source)
    assert [path.name for path in wheels.gather([CODECS], tmp_path, "3.12", source, THERE)] == [
        "imagecodecs-2026.3.6-py3-none-any.whl"
    ]
    (path,) = source.glob("*.whl")
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(PipelineError, match="is damaged or another file: its SHA-256 is not in requirements.lock"):
        wheels.gather([CODECS], tmp_path, "3.12", source, THERE)
    path.rename(source / "imagecodecs-2025.1-py3-none-any.whl")
    with pytest.raises(PipelineError, match=r"is version 2025.1, but requirements.lock pins 2026.3.6"):
        wheels.gather([CODECS], tmp_path, "3.12", source, THERE)


def test_a_wheel_that_does_not_go_with_the_image_is_named(tmp_path: Path) -> None:
    source = finished.wheel_folder(tmp_path / "wheels", ("one", "1.0", "py3-none-any"))
    (path,) = source.glob("*.whl")
    with zipfile.ZipFile(path, "w") as archive:
        lines = [
            "Requires-Dist: numpy>=2.1",
            "Requires-Dist: other",
            "Requires-Dist: torch>=99",
            "Requires-Dist: kaggle",
            "Requires-Dist: openvino-telemetry",  # never used
        ]
        archive.writestr("one-1.0.dist-info/METADATA", "\n".join(["Name: one", *lines]))
    assert wheels.conflicts(path, THERE, {}) == [
        "one-1.0-py3-none-any.whl needs numpy>=2.1, and the image has 2.0.2",
        "one-1.0-py3-none-any.whl needs other, which the image lacks",
    ]
    assert wheels.conflicts(path, THERE, {"other": "1", "numpy": "2.2"}) == []

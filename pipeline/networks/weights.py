"""Weights: where the encoder's first ones come from (nowhere, a file, ImageNet by way of the local cache), and trained
ones, which are read only as training left them."""

import threading
from pathlib import Path
from typing import Any

from pipeline.core import freshness
from pipeline.core.config.recipe import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.core.files import shown
from pipeline.core.trainings import Weights, read_training

SECONDS_TO_ANSWER = 10


def resolve(settings: ModelSettings) -> Path | None:
    """Returns the file of the encoder's weights, or None to train from scratch.

    ImageNet weights are looked up in the local cache, then downloaded in one attempt.

    Raises:
        PipelineError: the file does not exist, or ImageNet weights cannot be had; the two ways on are offered.
    """
    if settings.weights == "none":
        return None
    if settings.weights != "imagenet":
        path = Path(settings.weights).expanduser()
        if not path.is_file():
            raise PipelineError(f"model.weights: {path} does not exist; give a file, `imagenet` or `none`.")
        return path
    source = _imagenet_source(settings.encoder)
    return _cached(source) or _downloaded(source, settings.encoder)


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
    return load_file(path)


def _imagenet_source(encoder: str) -> dict[str, Any]:
    from segmentation_models_pytorch.encoders import encoders

    known = encoders.get(encoder, {}).get("pretrained_settings", {}).get("imagenet")
    if not known or "repo_id" not in known:
        raise PipelineError(_ways_on(f"segmentation-models-pytorch has no ImageNet weights for encoder {encoder}"))
    return {"repo_id": known["repo_id"], "revision": known["revision"], "filename": "model.safetensors"}


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
        raise PipelineError(_ways_on(f"ImageNet weights for {encoder} are not in the cache and cannot be fetched"))
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(**source))
    except Exception as error:
        raise PipelineError(_ways_on(f"The download of ImageNet weights for {encoder} broke off ({error})")) from None


def _ways_on(what: str) -> str:
    return (
        f"{what}: train from scratch with `--set model.weights=none`, or give a file with "
        "`--set model.weights=PATH` (.safetensors or a PyTorch state dict)."
    )

"""Weight files of torchvision: translates its tensor names to timm's, and accounts for differences in its networks.

A translation is included here only if the features of torchvision's network and of timm's encoder were compared and
were equal.
"""

import re
from collections.abc import Callable

from torch import Tensor
from torch.nn import BatchNorm2d, Module

State = dict[str, Tensor]

TRUNK = re.compile(r"(^|\.)(features|layers)\.\d+\.")
"""The start of the names of trunk tensors in networks that are matched by order. Names of classifiers do not match."""
KINDS = ("weight", "bias", "running_mean", "running_var")
NORM_EPS = 1e-3
"""The eps of BatchNorm in torchvision's MobileNetV3, EfficientNet-B5 to B7 and EfficientNetV2; all others use 1e-5."""
MOBILENET_V3 = re.compile(r"(^|\.)features\.\d+\.block\.0\.0\.weight$")
FUSED = re.compile(r"(^|\.)features\.1\.0\.block\.0\.0\.weight$")
LAST = re.compile(r"(^|\.)features\.8\.0\.weight$")
STAGE = r"(^|\.)features\.([1357])\.(\d+)\."
STEP = r"(^|\.)features\.([246])\."
CONVNEXT = {"block.0.": "conv_dw.", "block.2.": "norm.", "block.3.": "mlp.fc1.", "block.5.": "mlp.fc2."}
SWIN = {"mlp.0.": "mlp.fc1.", "mlp.3.": "mlp.fc2."}
REGNET = {"f.a.": "conv1.", "f.b.": "conv2.", "f.c.": "conv3.", "f.se.": "se.", "proj.": "downsample."}
WITHOUT_ENCODER = {
    "features.1.0.attn.cpb_mlp.": "a Swin transformer v2",
    "encoder.layers.encoder_layer_0.": "a vision transformer",
    "layers.0.layers.MBconv.": "a MaxViT",
    "layers.8.0.layers.0.": "an MNASNet",
    "features.3.squeeze.": "a SqueezeNet",
    "stage2.0.branch1.": "a ShuffleNetV2",
    "inception3a.branch1.": "a GoogLeNet",
}
"""Parts of tensor names in networks of torchvision for which there is no encoder, with a name for each network."""


def in_timms_words(state: State) -> State:
    """Returns the tensors of a file under timm's names if it is torchvision's ConvNeXt, Swin transformer (v1) or
    RegNet. Tensors of any other file keep their names."""
    translate = _translation(state)
    return {translate(name): _as_timm(name, tensor) for name, tensor in state.items()} if translate else state


def in_definition_order(state: State) -> State:
    """Returns the tensors in the order in which torchvision's network uses them, the classifier last.

    In safetensors files they are sorted by name, with 10 before 2. Tensors of other libraries stay in the order of the
    file.
    """
    return dict(sorted(state.items(), key=lambda entry: _place(entry[0])))


def without_encoder(state: State) -> str | None:
    """Returns the kind of network, with its article, if a file of torchvision belongs to no encoder, else None."""
    return next((kind for part, kind in WITHOUT_ENCODER.items() if any(part in name for name in state)), None)


def norm_eps(state: State) -> float:
    """Returns the eps of BatchNorm in torchvision's MobileNet or EfficientNet, which weight files do not contain."""
    fused = any(FUSED.search(name) and tensor.shape[1] > 1 for name, tensor in state.items())
    large = any(LAST.search(name) and len(tensor) >= 2048 for name, tensor in state.items())
    return NORM_EPS if fused or large or any(MOBILENET_V3.search(name) for name in state) else 1e-5


def with_eps(state: State, encoder: Module, eps: float) -> State:
    """Returns the tensors adapted to an encoder whose BatchNorm has a smaller eps than the network they come from.

    The difference is added to the running variances, so that the features in evaluation are the same.

    Args:
        state: tensors by the encoder's names.
        encoder: the encoder.
        eps: the eps of the network in which the tensors were trained.
    """
    layers = {f"{name}.running_var": layer for name, layer in encoder.named_modules() if isinstance(layer, BatchNorm2d)}
    more = {name: eps - layer.eps for name, layer in layers.items() if layer.eps < eps}
    return {name: tensor + more[name] if name in more else tensor for name, tensor in state.items()}


def _translation(state: State) -> Callable[[str], str] | None:
    for part, translate in ((".layer_scale", _convnext), (".attn.qkv.weight", _swin), (".f.a.0.weight", _regnet)):
        if any(name.endswith(part) and re.search(r"(^|\.)(features\.1|trunk_output)\.", name) for name in state):
            return translate if not without_encoder(state) else None
    return None


def _convnext(name: str) -> str:
    name = re.sub(r"(^|\.)features\.0\.", r"\1stem.", name)
    name = re.sub(STEP, lambda found: f"{found[1]}stages.{int(found[2]) // 2}.downsample.", name)
    name = re.sub(STAGE, lambda found: f"{found[1]}stages.{int(found[2]) // 2}.blocks.{found[3]}.", name)
    return _replaced(name, CONVNEXT).replace(".layer_scale", ".gamma")


def _swin(name: str) -> str:
    name = re.sub(r"(^|\.)features\.0\.0\.", r"\1patch_embed.proj.", name)
    name = re.sub(r"(^|\.)features\.0\.2\.", r"\1patch_embed.norm.", name)
    name = re.sub(STEP, lambda found: f"{found[1]}layers.{int(found[2]) // 2}.downsample.", name)
    name = re.sub(STAGE, lambda found: f"{found[1]}layers.{int(found[2]) // 2}.blocks.{found[3]}.", name)
    return _replaced(name, SWIN)


def _regnet(name: str) -> str:
    block = re.search(r"(^|\.)trunk_output\.block(\d)\.block\d-(\d+)\.", name)
    if block:
        start = f"{name[: block.start()]}{block[1]}s{block[2]}.b{int(block[3]) + 1}."
        name = start + _replaced("." + name[block.end() :], REGNET)[1:]
    return re.sub(r"(^|\.)((?:stem|conv\d|downsample)\.)([01])\.", _conv_or_norm, name)


def _conv_or_norm(match: re.Match[str]) -> str:
    return f"{match[1]}{match[2]}{'bn' if match[3] == '1' else 'conv'}."


def _replaced(name: str, words: dict[str, str]) -> str:
    for theirs, timms in words.items():
        name = name.replace(f".{theirs}", f".{timms}")
    return name


def _as_timm(name: str, tensor: Tensor) -> Tensor:
    return tensor.flatten() if name.endswith(".layer_scale") else tensor


def _place(name: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    if not TRUNK.search(name):
        return True, []
    *path, kind = name.split(".")
    places = [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in path]
    return False, [*places, (True, KINDS.index(kind) if kind in KINDS else len(KINDS), kind)]

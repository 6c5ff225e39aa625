"""Matches the tensors of a file of pretrained weights to those of an encoder, for files of several libraries.

timm, torchvision and segmentation-models-pytorch store the same network differently: wrapped, with prefixes, with a
classifier at the end, or with other names for the parts of blocks.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import BatchNorm2d, Module

from pipeline.core.errors import PipelineError, first_line
from pipeline.core.shortage import pass_on
from pipeline.networks import torchvision_files
from pipeline.networks.known_encoders import KNOWN

State = dict[str, Tensor]

WRAPPERS = ("state_dict", "model_state_dict", "model", "state_dict_ema", "model_ema", "net", "network", "encoder")
"""Keys under which checkpoints store the state dict."""
WITHOUT = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Name endings of tensors that a file may lack, because they are not learned."""
IN_ORDER = re.compile(
    r"conv_dw|_depthwise_conv|(^|\.)features\.\d+\.(conv|(\d+\.)?block)\.0\.0|(^|\.)layers\.\d+\.\d+\.layers\.\d"
)
"""Names of tensors in MobileNets, MNASNets and EfficientNets. The three libraries name the parts of these networks
differently but define them in the same order."""
TORCHVISION, TENSORFLOW = re.compile(r"(^|\.)features\.\d+\.(\d+\.)?block\."), re.compile(r"(^|\.)_depthwise_conv\.")
"""Names of tensors in torchvision's EfficientNets and MobileNetV3, and in networks converted from TensorFlow."""
SHOWN = 2
DECODER = 4
"""The largest number of tensors of one shape that a decoder is expected to add to those of an encoder."""


@dataclass(frozen=True)
class Match:
    """The tensors of a file that an encoder takes, and the differences that prevent loading."""

    state: State
    """The tensors by the encoder's names."""
    missing: list[str] = field(default_factory=list)
    """Tensors of the encoder that the file lacks."""
    misshapen: list[str] = field(default_factory=list)
    """Tensors with another shape, each as a phrase that names both shapes."""
    unused: list[str] = field(default_factory=list)
    """Tensors of the file that would belong inside the encoder, so that the file is of a larger network."""
    in_order: bool = False
    """Whether the names differ and tensors were matched by their order and shapes."""

    @property
    def fits(self) -> bool:
        """Whether the file has every tensor of the encoder, with the same shapes, and none of a larger network."""
        return not (self.missing or self.misshapen or self.unused)


def read_state(path: Path) -> State:
    """Returns the tensors of a .safetensors file or PyTorch state dict, also from inside a checkpoint.

    Raises:
        PipelineError: the file is not readable, or is not a state dict.
    """
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # damaged files raise many types
        pass_on(error)
        raise PipelineError(f"{path} holds no readable weights: {first_line(error)}") from None
    while isinstance(state, dict) and (inner := next((key for key in WRAPPERS if key in state), None)):
        if isinstance(state[inner], Tensor):
            break
        state = state[inner]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise PipelineError(f"{path} holds {type(state).__name__}; expected a state dict with tensors by name.")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def match(state: State, encoder: Module) -> Match:
    """Returns which tensors of a file belong to which ones of an encoder.

    Tensors are matched by name, after translating torchvision's names for ConvNeXt, RegNet and Swin. In MobileNets,
    MNASNets and EfficientNets they are matched by order if the names do not match.
    """
    wanted: State = encoder.state_dict()
    named = _by_name(torchvision_files.in_timms_words(state), wanted)
    if named.fits or not (ordered := _by_order(torchvision_files.in_definition_order(state), wanted)):
        return named
    return replace(ordered, state=torchvision_files.with_eps(ordered.state, encoder, torchvision_files.norm_eps(state)))


def difference(matched: Match, state: State, encoder: Module, name: str) -> str:
    """Returns a sentence on why a file does not fit an encoder, and which network it looks like.

    Args:
        matched: the result of `match` for the two.
        state: the tensors of the file.
        encoder: the encoder.
        name: its name in model.encoder; empty if it is not known.
    """
    parts = []
    if matched.missing:
        parts.append(
            f"{len(matched.missing)} of its {len(encoder.state_dict())} tensors are missing{_some(matched.missing)}"
        )
    if matched.misshapen:
        parts.append(f"{len(matched.misshapen)} have another shape{_some(matched.misshapen)}")
    if matched.unused:
        parts.append(f"{len(matched.unused)} tensors of the file do not belong to it{_some(matched.unused)}")
    like = looks_like(state, skip=name)
    if like:
        advice = f"set model.encoder={like}, or give another file" if name else "give the file of this encoder"
        return f"{'; '.join(parts)}; the file looks like {like}: {advice}."
    if kind := torchvision_files.without_encoder(state):
        return (
            f"{'; '.join(parts)}; the file holds torchvision's weights of {kind}, which fit no encoder: give the file "
            "of this encoder (for a tu- encoder, timm's file), or set model.weights=none."
        )
    some = ", ".join(list(state)[:SHOWN])
    content = f"the file holds {some} and others, which fit no known encoder" if state else "the file holds no tensors"
    return f"{'; '.join(parts)}; {content}: give the file of this encoder, or set model.weights=none."


def padding_remark(state: State, encoder: Module, name: str) -> str:
    """Returns a sentence if the network of a file pads differently from the encoder; empty if it does not, or if the
    names in the file do not tell.

    TensorFlow pads convolutions of stride 2 first at the bottom and on the right, torchvision on all sides. Each such
    convolution shifts features by half a pixel. The weights still work (for photographs, the most probable class stays
    the same), but training has to compensate for the shift.

    Args:
        state: the tensors of the file.
        encoder: the encoder.
        name: its name in model.encoder; empty if it is not known.
    """
    as_tensorflow = any("Same" in type(layer).__name__ for layer in encoder.modules())
    if any(TORCHVISION.search(key) for key in state) and as_tensorflow:
        likely = re.sub(r"^efficientnet-", "tu-efficientnet_", name.replace("tu-tf_", "tu-"))
        return _other_padding("on all sides", "as TensorFlow does", likely, name)
    if any(TENSORFLOW.search(key) for key in state) and not as_tensorflow:
        likely = re.sub(r"^(tu-|timm-)(tf_)?efficientnet[-_]", "tu-tf_efficientnet_", name)
        return _other_padding("as TensorFlow does", "on all sides", likely, name)
    return ""


def norm_remark(state: State, encoder: Module) -> str:
    """Returns a sentence if BatchNorm has another eps in the network of a file than in the encoder; empty if it is the
    same, or if the file is not torchvision's MobileNetV3 or EfficientNet.

    Args:
        state: the tensors of the file.
        encoder: the encoder.
    """
    ours = {layer.eps for layer in encoder.modules() if isinstance(layer, BatchNorm2d)}
    theirs = torchvision_files.norm_eps(state)
    if not any(TORCHVISION.search(key) for key in state) or ours <= {theirs}:
        return ""
    start = f"BatchNorm adds {theirs:g} to variances in the file's network and {max(ours):g} in the encoder"
    if max(ours) > theirs:
        return f"{start}: where variances are small, features differ, and training has to compensate for it"
    return f"{start}: the difference was added to the running variances, so that features in evaluation are the same"


def _other_padding(theirs: str, ours: str, likely: str, name: str) -> str:
    better = f"; model.encoder={likely} pads like the file's network" if likely != name else ""
    encoder = f"encoder {name}" if name else "the encoder"
    return f"the file's network pads {theirs}, but {encoder} pads {ours}: training has to compensate for it{better}"


def looks_like(state: State, skip: str = "") -> str | None:
    """Returns the name of a known encoder that the tensors of a file fit, or None. Encoders that pad like the file's
    network are preferred."""
    from segmentation_models_pytorch.encoders import get_encoder

    fitting = None
    for name in _candidates(state, skip):
        with torch.device("meta"):  # names and shapes only
            encoder = get_encoder(name, weights=None)
        if match(state, encoder).fits:
            fitting = fitting or name
            if not padding_remark(state, encoder, name):
                return name
    return fitting


def _candidates(state: State, skip: str) -> list[str]:
    """Returns the known encoders whose most frequent shape is about as frequent in the file, equal counts first.

    A decoder or a second copy of the network may add tensors of this shape; a larger network has many more of them.
    """
    shapes = Counter(tuple(tensor.shape) for tensor in state.values())
    excess = {name: shapes[shape] - count for name, (count, shape) in KNOWN.items() if name != skip}
    likely = [name for name, more in excess.items() if 0 <= more <= max(KNOWN[name][0], DECODER)]
    return sorted(likely, key=excess.__getitem__)


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"


def _by_name(state: State, wanted: State) -> Match:
    names = {_plain(name): name for name in wanted}
    inner = {key.removeprefix("model_"): name for key, name in names.items()}  # a timm encoder inside of one of smp
    choices = [(tensors, target) for tensors in _by_prefix(state) for target in (names, inner)]
    common = [len(tensors.keys() & target.keys()) for tensors, target in choices]
    if not any(common):  # no name matches, so all choices are equally bad
        return _compared(*choices[0], wanted)
    best = [_compared(*choice, wanted) for choice, count in zip(choices, common, strict=True) if count == max(common)]
    return min(best, key=lambda candidate: len(candidate.unused))


def _compared(tensors: dict[str, tuple[str, Tensor]], target: dict[str, str], wanted: State) -> Match:
    missing = [name for key, name in target.items() if key not in tensors and not name.endswith(WITHOUT)]
    taken = {name: tensors[key][1] for key, name in target.items() if key in tensors}
    misshapen = [
        f"{name} is {_shape(tensor)}, expected {_shape(wanted[name])}"
        for name, tensor in taken.items()
        if tensor.shape != wanted[name].shape
    ]
    starts = _starts(target)  # a classifier shares no start with a name of the encoder
    left = [name for key, (name, _) in tensors.items() if key not in target and not name.endswith(WITHOUT)]
    unused = [name for name in left if name.split(".")[0] + "_" in starts]
    return Match(_completed(taken, wanted), missing, misshapen, unused)


def _by_prefix(state: State) -> list[dict[str, tuple[str, Tensor]]]:
    """Returns the tensors whose names have a prefix, for every prefix of up to three parts, the shortest first.

    The keys are the plain names after the prefix. The values are the original names after the prefix, with the tensors.
    """
    by_prefix: dict[str, dict[str, tuple[str, Tensor]]] = {"": {}}
    for depth in range(4):
        for name, tensor in state.items():
            parts = name.split(".", depth)
            if len(parts) > depth:
                prefix = name[: len(name) - len(parts[-1])]
                by_prefix.setdefault(prefix, {})[_plain(parts[-1])] = (parts[-1], tensor)
    return list(by_prefix.values())


def _plain(name: str) -> str:
    """Returns a name in a form that is the same for all libraries: timm joins some parts with underscores, and old
    DenseNets write norm.1 for norm1."""
    if "denselayer" in name:
        name = re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", name)
    return name.replace(".", "_")


def _starts(target: Iterable[str]) -> set[str]:
    """Returns the starts of plain names, up to and including each underscore."""
    return {name[: underscore.end()] for name in target for underscore in re.finditer("_", name)}


def _by_order(state: State, wanted: State) -> Match | None:
    """Returns the match by order; None if the names are not those of such a network, or if a tensor differs."""
    if not all(any(IN_ORDER.search(name) for name in names) for names in (state, wanted)):
        return None
    source = [(name, tensor) for name, tensor in state.items() if not name.endswith(WITHOUT)]
    target = [(name, tensor) for name, tensor in wanted.items() if not name.endswith(WITHOUT)]
    rest = [name for name, _ in source[len(target) :]]
    if len(source) < len(target) or any(_kind(a) != _kind(b) for a, b in zip(source, target, strict=False)):
        return None
    if any(IN_ORDER.search(name) for name in rest):  # further blocks belong to a larger network
        return None
    taken = {name: tensor for (name, _), (_, tensor) in zip(target, source, strict=False)}
    return Match(_completed(taken, wanted), in_order=True)


def _kind(entry: tuple[str, Tensor]) -> tuple[str, torch.Size]:
    return entry[0].rpartition(".")[2], entry[1].shape


def _completed(taken: State, wanted: State) -> State:
    return {name: taken.get(name, tensor) for name, tensor in wanted.items()}


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"

"""Files of pretrained weights: which tensor of a file belongs to which one of an encoder, whoever wrote the file.

timm, torchvision and segmentation-models-pytorch write the same network under other names: wrapped, with prefixes, with
a classifier at the end, or with the parts of blocks named otherwise.
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
"""Keys under which checkpoints keep the state dict."""
WITHOUT = ("num_batches_tracked", "relative_position_index", "attn_mask")
"""Ends of names of tensors that files may lack: nothing in them was learned."""
IN_ORDER = re.compile(
    r"conv_dw|_depthwise_conv|(^|\.)features\.\d+\.(conv|(\d+\.)?block)\.0\.0|(^|\.)layers\.\d+\.\d+\.layers\.\d"
)
"""What names in MobileNets, MNASNets and EfficientNets look like: the three libraries name their parts differently and
define them in the same order."""
TORCHVISION, TENSORFLOW = re.compile(r"(^|\.)features\.\d+\.(\d+\.)?block\."), re.compile(r"(^|\.)_depthwise_conv\.")
"""Names in EfficientNets and MobileNetV3 of torchvision, and in networks that were converted from TensorFlow."""
SHOWN = 2
DECODER = 4
"""The most tensors of one shape that a decoder is expected to add to an encoder's."""


@dataclass(frozen=True)
class Match:
    """Which tensors of a file an encoder takes, and what stands in the way."""

    state: State
    """The tensors by the encoder's names."""
    missing: list[str] = field(default_factory=list)
    """Names of the encoder that the file lacks."""
    misshapen: list[str] = field(default_factory=list)
    """Tensors of another shape, each as half a sentence."""
    unused: list[str] = field(default_factory=list)
    """Names of the file that belong between the encoder's: it is of a larger network."""
    in_order: bool = False
    """Names differ, and tensors were matched by their order and shapes."""

    @property
    def fits(self) -> bool:
        """Whether the encoder has every tensor that it needs, and nothing of it is left over."""
        return not (self.missing or self.misshapen or self.unused)


def read_state(path: Path) -> State:
    """Returns the tensors of .safetensors or of a PyTorch state dict, taken out of what a checkpoint wraps them in.

    Raises:
        PipelineError: the file is not readable, or holds no tensors by name.
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
        raise PipelineError(f"{path} holds {type(state).__name__}; expected a state dict, tensors by name.")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def match(state: State, encoder: Module) -> Match:
    """Returns which tensors of a file belong to an encoder: by name (torchvision's ConvNeXt, RegNet and Swin names are
    translated), or else, in MobileNets, MNASNets and EfficientNets, by order."""
    wanted: State = encoder.state_dict()
    named = _by_name(torchvision_files.in_timms_words(state), wanted)
    if named.fits or not (ordered := _by_order(torchvision_files.in_definition_order(state), wanted)):
        return named
    return replace(ordered, state=torchvision_files.with_eps(ordered.state, encoder, torchvision_files.norm_eps(state)))


def difference(found: Match, state: State, encoder: Module, name: str) -> str:
    """Returns as a sentence why a file does not fit an encoder, and which network it looks like.

    Args:
        found: what `match` returned of the two.
        state: the tensors of the file.
        encoder: the encoder.
        name: its name in model.encoder; empty where it is not known.
    """
    parts = []
    if found.missing:
        parts.append(
            f"{len(found.missing)} of its {len(encoder.state_dict())} tensors are missing{_some(found.missing)}"
        )
    if found.misshapen:
        parts.append(f"{len(found.misshapen)} have another shape{_some(found.misshapen)}")
    if found.unused:
        parts.append(f"{len(found.unused)} of the file have no place in it{_some(found.unused)}")
    like = looks_like(state, skip=name)
    if like:
        way = f"set model.encoder={like}, or give another file" if name else "give the file of this encoder"
        return f"{'; '.join(parts)}; the file looks like {like}: {way}."
    if what := torchvision_files.without_encoder(state):
        return (
            f"{'; '.join(parts)}; the file holds torchvision's weights of {what}, which fit no encoder: give the file "
            "of this encoder (timm's of a tu- encoder), or set model.weights=none."
        )
    some = ", ".join(list(state)[:SHOWN])
    content = f"the file holds {some} and so on, of no encoder known here" if state else "the file holds no tensors"
    return f"{'; '.join(parts)}; {content}: give the file of this encoder, or set model.weights=none."


def padding_remark(state: State, encoder: Module, name: str) -> str:
    """Returns a sentence where the network of a file pads otherwise than the encoder; empty where it does not, or where
    the names in the file do not tell.

    TensorFlow pads convolutions of stride 2 at the bottom and on the right first, torchvision all around: by each of
    them features move half a pixel. Weights still work (on photographs the most probable class stays), and training
    has to make up for it.

    Args:
        state: the tensors of the file.
        encoder: the encoder.
        name: its name in model.encoder; empty where it is not known.
    """
    as_tensorflow = any("Same" in type(layer).__name__ for layer in encoder.modules())
    if any(TORCHVISION.search(key) for key in state) and as_tensorflow:
        likely = re.sub(r"^efficientnet-", "tu-efficientnet_", name.replace("tu-tf_", "tu-"))
        return _other_padding("all around", "as TensorFlow does", likely, name)
    if any(TENSORFLOW.search(key) for key in state) and not as_tensorflow:
        likely = re.sub(r"^(tu-|timm-)(tf_)?efficientnet[-_]", "tu-tf_efficientnet_", name)
        return _other_padding("as TensorFlow does", "all around", likely, name)
    return ""


def norm_remark(state: State, encoder: Module) -> str:
    """Returns a sentence where BatchNorm has another eps in the network of a file than in the encoder; empty where
    it is the same, or where the file is not a MobileNetV3 or EfficientNet of torchvision.

    Args:
        state: the tensors of the file.
        encoder: the encoder.
    """
    own = {layer.eps for layer in encoder.modules() if isinstance(layer, BatchNorm2d)}
    theirs = torchvision_files.norm_eps(state)
    if not any(TORCHVISION.search(key) for key in state) or own <= {theirs}:
        return ""
    start = f"BatchNorm adds {theirs:g} to variances in the file's network and {max(own):g} in the encoder"
    if max(own) > theirs:
        return f"{start}: where variances are small, features differ, and training has to make up for it"
    return f"{start}: the difference was added to the running variances, so that in evaluation features are the same"


def _other_padding(theirs: str, ours: str, likely: str, name: str) -> str:
    better = f"; model.encoder={likely} pads like the file's" if likely != name else ""
    own = f"encoder {name}" if name else "the encoder"
    return f"the file's network pads {theirs}, and {own} {ours}: training has to make up for it{better}"


def looks_like(state: State, skip: str = "") -> str | None:
    """Returns the name of an encoder that the tensors of a file fit, one that pads like the file's network where there
    is one, or None."""
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
    """Known encoders whose most frequent shape is about as frequent in the file, those with equal counts first: a
    decoder, or a second copy of the network, may add to it, and a larger network has many more."""
    shapes = Counter(tuple(tensor.shape) for tensor in state.values())
    excess = {name: shapes[shape] - count for name, (count, shape) in KNOWN.items() if name != skip}
    likely = [name for name, more in excess.items() if 0 <= more <= max(KNOWN[name][0], DECODER)]
    return sorted(likely, key=excess.__getitem__)


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})"


def _by_name(state: State, wanted: State) -> Match:
    names = {_plain(name): name for name in wanted}
    inner = {key.removeprefix("model_"): name for key, name in names.items()}  # timm's, inside of smp's
    choices = [(own, target) for own in _by_prefix(state) for target in (names, inner)]
    common = [len(own.keys() & target.keys()) for own, target in choices]
    if not any(common):  # no name agrees: every choice says the same
        return _compared(*choices[0], wanted)
    best = [_compared(*choice, wanted) for choice, count in zip(choices, common, strict=True) if count == max(common)]
    return min(best, key=lambda candidate: len(candidate.unused))


def _compared(own: dict[str, tuple[str, Tensor]], target: dict[str, str], wanted: State) -> Match:
    missing = [name for key, name in target.items() if key not in own and not name.endswith(WITHOUT)]
    taken = {name: own[key][1] for key, name in target.items() if key in own}
    misshapen = [
        f"{name} is {_shape(tensor)}, expected {_shape(wanted[name])}"
        for name, tensor in taken.items()
        if tensor.shape != wanted[name].shape
    ]
    starts = _starts(target)  # a classifier, or what an encoder leaves out, stands beside none of its names
    left = [name for key, (name, _) in own.items() if key not in target and not name.endswith(WITHOUT)]
    unused = [name for name in left if name.split(".")[0] + "_" in starts]
    return Match(_completed(taken, wanted), missing, misshapen, unused)


def _by_prefix(state: State) -> list[dict[str, tuple[str, Tensor]]]:
    """The tensors after each prefix, the shortest first: nothing, or up to three leading parts. Each is found by its
    plain name, with the name after the prefix beside it."""
    found: dict[str, dict[str, tuple[str, Tensor]]] = {"": {}}
    for depth in range(4):
        for name, tensor in state.items():
            parts = name.split(".", depth)
            if len(parts) > depth:
                prefix = name[: len(name) - len(parts[-1])]
                found.setdefault(prefix, {})[_plain(parts[-1])] = (parts[-1], tensor)
    return list(found.values())


def _plain(name: str) -> str:
    """A name as all libraries write it: timm joins some parts by underscores, old DenseNets write norm.1 for norm1."""
    if "denselayer" in name:
        name = re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", name)
    return name.replace(".", "_")


def _starts(target: Iterable[str]) -> set[str]:
    """What plain names begin with, up to any underscore and with it."""
    return {name[: found.end()] for name in target for found in re.finditer("_", name)}


def _by_order(state: State, wanted: State) -> Match | None:
    """The match by order; None where names look like no network of such a kind, or a tensor differs."""
    if not all(any(IN_ORDER.search(name) for name in names) for names in (state, wanted)):
        return None
    own = [(name, tensor) for name, tensor in state.items() if not name.endswith(WITHOUT)]
    target = [(name, tensor) for name, tensor in wanted.items() if not name.endswith(WITHOUT)]
    rest = [name for name, _ in own[len(target) :]]
    if any(_kind(one) != _kind(other) for one, other in zip(own, target, strict=False)) or len(own) < len(target):
        return None
    if any(IN_ORDER.search(name) for name in rest):  # more blocks: a larger network
        return None
    taken = {name: tensor for (name, _), (_, tensor) in zip(target, own, strict=False)}
    return Match(_completed(taken, wanted), in_order=True)


def _kind(entry: tuple[str, Tensor]) -> tuple[str, torch.Size]:
    return entry[0].rpartition(".")[2], entry[1].shape


def _completed(taken: State, wanted: State) -> State:
    return {name: taken.get(name, tensor) for name, tensor in wanted.items()}


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"

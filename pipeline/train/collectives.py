"""Communication between the devices of one training, in addition to the gradients that DDP averages.

Losses see the images of all devices as one batch in its original order, and BatchNorm uses the statistics of that
batch. A step is therefore the same as on a single device for every loss, also if one device has one image more than
another. Averaging losses over devices would not suffice: the Dice of a batch is not the mean over its parts, and
neither is a mean over valid pixels.
"""

from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, distributed
from torch.nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, Module, SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.core.errors import PipelineError
from pipeline.networks.output import Output
from pipeline.train.batches.sharing import Share

# --- tensors ---------------------------------------------------------------------------------------------------------


def whole(tensor: Tensor, share: Share) -> Tensor:
    """Returns the tensors (n, …) of all devices as one tensor (share.batch, …) in the order of the batch, of any dtype.

    Each device receives the gradient of its own part, multiplied by the number of devices. DDP then averages the
    gradients, while every device computes the loss of the whole batch.
    """
    return tensor if share.devices == 1 else _Gather.apply(tensor, share)


def whole_output(output: Output, share: Share) -> Output:
    """Returns a network's output for the whole batch."""
    presence = None if output.presence is None else whole(output.presence, share)
    return Output(whole(output.mask, share), presence, tuple(whole(logits, share) for logits in output.deep))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor, share: Share) -> Tensor:
        context.share = share
        return _gathered(tensor, share)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[context.share.part] * context.share.devices, None


def _gathered(tensor: Tensor, share: Share) -> Tensor:
    sizes = share.sizes
    padded = tensor.new_zeros((sizes[0], *tensor.shape[1:]))  # every device must send the same size
    padded[: len(tensor)] = tensor
    sent = padded.flatten().view(torch.uint8)  # gloo does not support every dtype
    parts = [torch.empty_like(sent) for _ in sizes]
    distributed.all_gather(parts, sent)
    received = [part.view(tensor.dtype).view(padded.shape)[:size] for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(received)


# --- objects ---------------------------------------------------------------------------------------------------------


def in_turn(mine: list[Any], share: Share) -> list[Any] | None:
    """Returns, on the first device, the objects that all devices have for the batches of Share.held_out, in the order
    of the batches; None on the other devices."""
    if share.devices == 1:
        return mine
    lists: list[Any] | None = [None] * share.devices if share.rank == 0 else None
    distributed.gather_object(mine, lists)
    if lists is None:
        return None
    return [of_device[turn] for turn in range(len(lists[0])) for of_device in lists if turn < len(of_device)]


def from_first(value: Any, share: Share) -> Any:
    """Returns the value of the first device on all devices."""
    if share.devices == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


# --- BatchNorm -------------------------------------------------------------------------------------------------------


def synchronize_norms(network: Module, on_cpu: bool) -> None:
    """Makes every BatchNorm of a network compute its statistics over the images of all devices.

    The layers are changed in place, because a network may keep references to them. Lightning's `sync_batchnorm` is not
    used, because it drops the activation of timm's BatchNormAct2d.

    Raises:
        PipelineError: a BatchNorm has a type that is neither torch's nor timm's.
    """
    for name, module in network.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        layer: Any = module
        kind: Any = SYNCHRONIZED.get(type(layer))
        if kind is None:
            raise PipelineError(
                f"train.devices: {name} of the network is a {type(layer).__name__}, whose statistics cannot be "
                "computed over all devices; expected torch's BatchNorm or timm's BatchNormAct2d: set train.devices=1."
            )
        layer.__class__ = kind[on_cpu]
        layer.process_group = None


class _SynchronizedOnCpu(_BatchNorm):
    """A synchronized BatchNorm for CPUs; torch's SyncBatchNorm supports only GPUs."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns a batch (n, C, …) normalised by the statistics of all devices."""
        if not self.training:
            return super().forward(input)
        axes = [0, *range(2, input.dim())]
        values = input.float()
        per_channel = values.numel() // values.shape[1]
        total = _Sum.apply(torch.cat([values.sum(axes), values.new_tensor([per_channel])]))
        count = total[-1].detach()
        if count == 1:
            raise ValueError("Expected more than 1 value per channel when training")
        centred = values - _column(total[:-1] / count, values)
        variance = _Sum.apply((centred**2).sum(axes)) / count
        self._remember(total[:-1].detach() / count, variance.detach() * count / (count - 1))
        normalised = centred * _column(torch.rsqrt(variance + self.eps), values)
        if self.affine:
            normalised = normalised * _column(self.weight, values) + _column(self.bias, values)
        return normalised.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any number of axes."""

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _SynchronizedActOnCpu(_SynchronizedOnCpu):
    """_SynchronizedOnCpu with timm's drop and activation."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns a batch (n, C, …) normalised by the statistics of all devices, then activated."""
        layer: Any = self
        return layer.act(layer.drop(super().forward(input)))


SYNCHRONIZED: dict[type, tuple[type, type]] = {
    BatchNormAct2d: (SyncBatchNormAct, _SynchronizedActOnCpu),
    **{kind: (SyncBatchNorm, _SynchronizedOnCpu) for kind in (BatchNorm1d, BatchNorm2d, BatchNorm3d)},
}
"""The synchronized types of each BatchNorm, for a GPU and for a CPU."""


class _Sum(torch.autograd.Function):
    """The sum over all devices, in the forward and the backward pass."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.contiguous().clone()
    distributed.all_reduce(total)
    return total


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (like.dim() - 2))

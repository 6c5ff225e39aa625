"""Gradients of depthwise convolutions on a CPU, which torch computes faster in float32 than in bfloat16."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def fast_gradients(device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context for the forward pass of training, in which slow depthwise convolutions get faster gradients.

    These are depthwise convolutions with a stride or with a kernel larger than 3×3, under bfloat16 autocast on a CPU.
    Their gradients are computed in float32. Outputs do not change. In any other case the context does nothing.
    """
    bfloat16 = device.type == "cpu" and torch.is_autocast_enabled("cpu")
    bfloat16 = bfloat16 and torch.get_autocast_dtype("cpu") is torch.bfloat16
    return _FastGradients() if bfloat16 else nullcontext()


class _FastGradients(TorchFunctionMode):
    """Replaces calls of torch.conv2d, whatever module makes them: timm's convolutions are subclasses of Conv2d."""

    def __torch_function__(
        self, function: Callable, types: Sequence[type], arguments: tuple = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if function is torch.conv2d and torch.is_grad_enabled():
            return _convolved(*arguments, **options)
        return function(*arguments, **options)


def _convolved(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """Returns torch.conv2d with these arguments."""
    depthwise = groups == weight.shape[0] > 1 and weight.shape[1] == 1
    slow = torch.nn.modules.utils._pair(stride) != (1, 1) or max(weight.shape[2:]) > 3
    if not (depthwise and slow) or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    places = [torch.nn.modules.utils._pair(value) for value in (stride, padding, dilation)]
    return _Depthwise.apply(input, weight, bias, *places)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in bfloat16 whose gradients are computed in float32."""

    @staticmethod
    def forward(
        context: Any, images: Tensor, weight: Tensor, bias: Tensor | None,
        stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        images = images.bfloat16()
        context.save_for_backward(images, weight)
        context.dtype, context.places = images.dtype, (stride, padding, dilation)
        context.bias_shape = None if bias is None else list(bias.shape)
        return torch.conv2d(images, weight.bfloat16(), bias, stride, padding, dilation, len(weight))

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Any:
        images, weight = context.saved_tensors
        needed = [*context.needs_input_grad[:2], context.bias_shape is not None]
        of_images, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient.float(), images.float(), weight.float(), context.bias_shape, *context.places, False, [0, 0],
            len(weight), needed,
        )  # fmt: skip
        return None if of_images is None else of_images.to(context.dtype), of_weight, of_bias, None, None, None

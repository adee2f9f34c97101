"""Channels last in memory, there and back: how a network of convolutions is trained fast on a CPU.

A map (B, C, H, W) lies in memory as (B, H, W, C), so that what belongs to a place lies together. Torch then is fast,
with exceptions that are mended here; what is computed is the same.

- The gradient that comes out of the mean over a map lies otherwise, and each batch norm on its way takes up to ten
  times as long. It is put in order where it comes in.
- A 1 x 1 convolution is a product of matrices. There and back to its input a convolution is the faster way; for the
  gradient of its weights a product of matrices is, by up to a half, with the longer side of the weights first.
- The gradient of the weights of a depthwise convolution is fast for kernels of up to three columns alone. Wider ones
  are done three columns at a time, two to four times as fast.
- An activation that is computed in place first copies its input for the way back. That of a clipped one (ReLU6) can be
  told from its output, which costs nothing; others are computed out of place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

COPYING = (nn.Hardswish, nn.SiLU)
"""Activations whose derivative needs their input."""

COLUMNS = 3
"""So many columns of a depthwise kernel have a fast gradient."""


def channels_last(batch: Tensor) -> Tensor:
    """Return a batch with its channels last in memory where it is of maps."""
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def train_channels_last(network: nn.Module) -> None:
    """Let the gradients of a network have their channels last, too, and take the faster ways."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(_order_gradient)
        elif type(module) is nn.Conv2d and _is_pointwise(module):
            module.__class__ = Pointwise
        elif type(module) is nn.Conv2d and _is_wide_depthwise(module):
            module.__class__ = Depthwise
        elif type(module) in (nn.Hardtanh, nn.ReLU6):
            module.__class__ = Clipped
        elif isinstance(module, COPYING):
            module.inplace = False


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution with a faster way back."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (B, C, H, W) -> (B, D, H, W)."""
        if torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        result: Tensor = _Pointwise.apply(input, self.weight, self.bias)
        return result


class _Pointwise(torch.autograd.Function):
    """input (B, C, H, W), weight (D, C, 1, 1), bias (D,) or None -> (B, D, H, W)."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(maps, weight)
        return conv2d(maps, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (maps, weight) = gradients, ctx.saved_tensors
        of_maps, of_weight, of_bias = ctx.needs_input_grad
        outputs, inputs = _rows(gradient), _rows(maps)
        back = None, None, None
        if of_maps:
            back = torch.ops.aten.convolution_backward(
                gradient, maps, weight, None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (True, False, False)
            )
        product = None
        if of_weight:
            long = weight.shape[0] >= weight.shape[1]
            product = (outputs.t() @ inputs if long else (inputs.t() @ outputs).t()).view_as(weight)
        return back[0], product, outputs.sum(0) if of_bias else None


class Depthwise(nn.Conv2d):
    """A depthwise convolution of stride 1 with more than COLUMNS columns, and a faster way back."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return (B, C, H, W) -> (B, C, H', W')."""
        if torch.is_autocast_enabled(input.device.type) or input.device.type != "cpu":
            return super().forward(input)
        result: Tensor = _Depthwise.apply(input, self.weight, self.bias, self.padding)
        return result


class _Depthwise(torch.autograd.Function):
    """maps (B, C, H, W), weight (C, 1, h, w), bias (C,) or None, padding (2) -> (B, C, H', W')."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.padding = padding
        return conv2d(maps, weight, bias, 1, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (maps, weight) = gradients, ctx.saved_tensors
        (down, across), (of_maps, of_weight, of_bias, _) = ctx.padding, ctx.needs_input_grad
        gradient = channels_last(gradient)
        of_input = of_kernel = None
        if of_maps:
            of_input = _depthwise_back(gradient, maps, weight, (down, across), 0)
        if of_weight:
            strips = []
            for first in range(0, weight.shape[3], COLUMNS):
                strip = weight[..., first : first + COLUMNS]
                seen = _columns(maps, first - across, gradient.shape[3] + strip.shape[3] - 1)
                strips.append(_depthwise_back(gradient, seen, strip, (down, 0), 1))
            of_kernel = torch.cat(strips, dim=3)
        return of_input, of_kernel, gradient.sum((0, 2, 3)) if of_bias else None, None


def _depthwise_back(gradient: Tensor, maps: Tensor, weight: Tensor, padding: tuple[int, int], which: int) -> Tensor:
    """Return the gradient of the maps (0) or of the weights (1) of a depthwise convolution."""
    result: Tensor = torch.ops.aten.convolution_backward(
        gradient, maps, weight, None, (1, 1), padding, (1, 1), False, (0, 0), len(weight), (not which, which, False)
    )[which]
    return result


def _columns(maps: Tensor, first: int, count: int) -> Tensor:
    """Return so many columns of maps (B, C, H, W) from `first` on; those that lie outside are zero."""
    batch, channels, height, width = maps.shape
    result = maps.new_empty((batch, height, count, channels))
    start, stop = max(0, -first), min(count, width - first)
    result[:, :, :start].zero_()
    result[:, :, stop:].zero_()
    result[:, :, start:stop] = maps.permute(0, 2, 3, 1)[:, :, first + start : first + stop]
    return result.permute(0, 3, 1, 2)


class Clipped(nn.Hardtanh):
    """An activation that is its input between two limits, and is remembered by its output alone."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Return the input between the limits, in its place where the network allows that."""
        result: Tensor = _Clipped.apply(input, self.min_val, self.max_val, self.inplace)
        return result


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, low: float, high: float, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(maps)
        result = maps.clamp_(low, high) if inplace else maps.clamp(low, high)
        ctx.save_for_backward(result)
        ctx.limits = low, high
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (result,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(*gradients, result, *ctx.limits), None, None, None


def _rows(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) as a row for each place (B H W, C)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def _is_pointwise(module: nn.Conv2d) -> bool:
    plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1
    return plain and module.padding in ((0, 0), 0, "valid", "same")


def _is_wide_depthwise(module: nn.Conv2d) -> bool:
    depthwise = module.groups == module.in_channels == module.out_channels
    plain = module.stride == module.dilation == (1, 1) and module.padding_mode == "zeros"
    return depthwise and plain and module.kernel_size[1] > COLUMNS and not isinstance(module.padding, str)


def _order_gradient(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
    if output.requires_grad:
        output.register_hook(channels_last)  # type: ignore[no-untyped-call]

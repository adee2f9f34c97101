"""What is done to a training batch of activations: channels shifted, images mixed with others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.cli import UserError

if TYPE_CHECKING:
    import torch


def mixed(
    inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, mixup: float, cutmix: float, jitter: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shift channels, and mix each image with another: all of it (mixup), or a rectangle of it (cutmix).

    inputs : (B, *shape); targets : (B, classes); weights : (B,). mixup, cutmix : alpha of the Beta distribution, 0 is
    off; jitter : the largest shift as a share of a channel's range. Raises UserError for cutmix of what are no maps,
    and for jitter of what has one number per channel.

    Channels are scaled to 0 ... 1, shifted by a random number each, and scaled back: Bär et al., CVPR 2024,
    arXiv:2403.10519, section 3, brightness by channel. Mixup: Zhang et al., ICLR 2018, arXiv:1710.09412, equation 1.
    Cutmix: Yun et al., ICCV 2019, arXiv:1905.04899, equations 1 and 2.
    """
    import torch

    if jitter:
        axes = map_axes(inputs.shape) or [1] * (inputs.ndim == 3)
        if not axes:
            raise UserError("jitter needs maps or tokens at the cut; what is stored there has one number per channel")
        low, high = inputs.amin(axes, keepdim=True), inputs.amax(axes, keepdim=True)
        shift = (2 * torch.rand(low.shape, device=inputs.device) - 1) * jitter
        inputs = torch.minimum(torch.maximum(inputs + shift * (high - low), low), high)
    alpha = mixup or cutmix
    if alpha:
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(inputs), device=inputs.device)
        if cutmix:
            inputs, share = cut_and_paste(inputs, other, share)
        else:
            inputs = share * inputs + (1 - share) * inputs[other]
        mixed = share * weights + (1 - share) * weights[other]
        # Each label counts as much as its image does, times the weight of its class.
        own, others = (
            (share * weights).unsqueeze(1) * targets,
            ((1 - share) * weights[other]).unsqueeze(1) * targets[other],
        )
        targets, weights = (own + others) / mixed.unsqueeze(1), mixed
    return inputs, targets, weights


def map_axes(shape: Sequence[int]) -> list[int]:
    """Return which axes of a batch of some shape are a map's height and width; none where it holds no maps."""
    if len(shape) != 4:
        return []
    return [1, 2] if shape[1] == shape[2] != shape[3] else [2, 3]


def cut_and_paste(inputs: torch.Tensor, other: torch.Tensor, share: float) -> tuple[torch.Tensor, float]:
    """Put a rectangle of another image, of (1 - share) of the area, into each; returns the share that is left, too."""
    import torch

    axes = map_axes(inputs.shape)
    if not axes:
        raise UserError("cutmix needs maps at the cut; what is stored there is none: use mixup")
    slices = [slice(None)] * 4
    left = 1.0
    for axis in axes:
        size = inputs.shape[axis]
        side, centre = size * math.sqrt(1 - share), float(torch.rand(())) * size
        first, last = max(0, round(centre - side / 2)), min(size, round(centre + side / 2))
        slices[axis] = slice(first, last)
        left *= max(0, last - first) / size
    pasted = inputs.clone()
    pasted[tuple(slices)] = inputs[other][tuple(slices)]
    return pasted, 1 - left

"""From pixels to what a network reads: normalisation, and grey images in the way that costs least.

A grey image could be given as three equal channels. But the first convolution is linear, so its weights can be added up
once instead of the channels at every image. With h a normalised grey value, channel c is a_c h + b_c, and

    sum_c w_c * (a_c h + b_c)  =  (sum_c a_c w_c) * h  +  (sum_c b_c w_c) * 1

where `1` has to be a channel, too, for a convolution pads with 0 beyond the border, not with 1. Where mean and standard
deviation are the same for all colours every b is 0, and h is enough.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from stages.backbones.cut import random_images

TOLERANCE = 1e-5
"""Largest difference that folding may make, relative to the largest output; rounding makes about 1e-6."""


class FromPixels(nn.Module):
    """A part of a network that reads pixels: uint8 (B, C, S, S), 0 ... 255 -> the part's tuple of float32.

    scale, shift : per channel that the part reads; grey pixels spread over as many. ones : append a channel of ones.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, part: nn.Module, mean: Sequence[float], std: Sequence[float], ones: bool = False):
        super().__init__()
        self.part, self.ones = part, ones
        m, s = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", (1 / (255 * s)).float())
        self.register_buffer("shift", (-m / s).float())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalise, and run the part."""
        normalised = images.float() * self.scale + self.shift
        if self.ones:
            normalised = torch.cat([normalised, torch.ones_like(normalised)], 1)
        outputs: tuple[Tensor, ...] = self.part(normalised)
        return outputs


def from_pixels(
    part: nn.Module, mean: Sequence[float], std: Sequence[float], channels: int, image_size: int
) -> FromPixels:
    """Let a part of a network read pixels of 3 or, grey, 1 channel; grey is folded into its first convolution.

    Where the image is not read by one plain convolution alone, grey pixels become three equal channels instead, which is
    as exact and a little slower.
    """
    in_colour = FromPixels(part, mean, std)
    if channels == 3:
        return in_colour
    folded = _folded(part, mean, std, image_size)
    if folded is None:
        return in_colour
    pixels = (random_images(image_size)[:, :1] * 64 + 128).clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        found, wanted = folded(pixels), in_colour(pixels)
    exact = all((f - w).abs().max() <= TOLERANCE * w.abs().max() for f, w in zip(found, wanted, strict=True))
    return folded if exact else in_colour


def _folded(part: nn.Module, mean: Sequence[float], std: Sequence[float], image_size: int) -> FromPixels | None:
    name = _reader(part, random_images(image_size))
    if name is None:
        return None
    m, s = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
    grey_m, grey_s = m.mean(), s.mean()
    scales, shifts = grey_s / s, (grey_m - m) / s
    # The copy shares all parameters but the one that is replaced.
    part = copy.deepcopy(part, {id(p): p for p in part.parameters()})
    convolution = part.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    weight = convolution.weight.detach().double()  # (out, 3, h, w)
    channels = [torch.einsum("ocij,c->oij", weight, v) for v in (scales, shifts)]
    ones = bool(shifts.any())
    channels = channels if ones else channels[:1]
    convolution.weight = nn.Parameter(torch.stack(channels, 1).float(), requires_grad=False)
    convolution.in_channels = len(channels)
    return FromPixels(part, [float(grey_m)], [float(grey_s)], ones)


def _reader(part: nn.Module, images: Tensor) -> str | None:
    """Return the name of the plain convolution that is the only module to read the image itself, if there is one."""
    readers: list[str] = []

    def note(name: str) -> object:
        return lambda _module, arguments: readers.append(name) if arguments and arguments[0] is images else None

    # A container that hands the image on reads it, too: only what has no modules inside counts.
    leaves = {n: m for n, m in part.named_modules() if not next(m.children(), None)}
    hooks = [m.register_forward_pre_hook(note(n)) for n, m in leaves.items()]
    try:
        with torch.no_grad():
            part(images)
    finally:
        for hook in hooks:
            hook.remove()
    if len(readers) != 1:
        return None
    module = leaves[readers[0]]
    plain = isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels == 3
    return readers[0] if plain else None

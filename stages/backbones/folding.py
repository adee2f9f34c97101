"""From pixels to what a network reads, and what can be worked out once instead of at every image.

Batch norm after a convolution multiplies and shifts each channel by numbers that are fixed while it is frozen: both go
into the convolution's weights.

Grey images could be given as three equal channels. But the first convolution is linear, so its weights can be added up
instead of the channels. With h a normalised grey value, channel c is a_c h + b_c, and

    sum_c w_c * (a_c h + b_c)  =  (sum_c a_c w_c) * h  +  (sum_c b_c w_c) * 1

where `1` has to be a channel, too, for a convolution pads with 0 beyond the border, not with 1. Where mean and standard
deviation are the same for all colours every b is 0, and h is enough.

Neither changes more than rounding does, which is checked on the spot: what does not fold is left as it is. An output
has the same bits whatever is taken beside it: where one keeps another from folding (a convolution's own output does,
for its batch norm), each goes its own way through the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stages.backbones.cut import plain_attention, random_images

TOLERANCE = 1e-5
"""Largest difference that folding may make, relative to the largest output; rounding makes some 1e-6."""


class FromPixels(nn.Module):
    """A part of a network that reads pixels: uint8 (B, C, S, S), 0 ... 255 -> the part's tuple of outputs.

    mean, std : for pixels scaled to 0 ... 1, one for each channel that the part reads; grey is spread over as many.
    ones : append a channel of ones.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, part: nn.Module, mean: Sequence[float], std: Sequence[float], ones: bool = False):
        super().__init__()
        self.part, self.ones = part, ones
        m, s = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", (1 / (255 * s)).float())
        self.register_buffer("shift", (-m / s).float())
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalise, and run the part."""
        normalised = images.float() * self.scale + self.shift
        if self.ones:
            normalised = torch.cat([normalised, torch.ones_like(normalised)], 1)
        return cast("tuple[Tensor, ...]", self.part(normalised))


class Apart(nn.Module):
    """Parts of a network that read the same pixels, each by itself: uint8 (B, C, S, S) -> all their outputs."""

    def __init__(self, parts: Sequence[FromPixels]):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Run one part after the other."""
        return tuple(output for part in self.parts for output in part(images))


def folded(
    whole: FromPixels,
    alone: Callable[[], Sequence[FromPixels]],
    mean: Sequence[float],
    std: Sequence[float],
    channels: int,
    image_size: int,
) -> FromPixels | Apart:
    """Return a module that gives what `whole` gives for images of 3 or 1 channels, to rounding, with less work.

    alone : makes a module for each of the outputs of `whole`. mean, std : those of the three colours. What is returned
    shares with `whole` the tensors that stay as they are.
    """
    together, how = _fold(whole, mean, std, channels, image_size)
    if all(how):
        return together
    apart = [_fold(part, mean, std, channels, image_size) for part in alone()]
    return together if all(own == how for _, own in apart) else Apart([part for part, _ in apart])


def _fold(
    whole: FromPixels, mean: Sequence[float], std: Sequence[float], channels: int, image_size: int
) -> tuple[FromPixels, list[bool]]:
    """Fold what folds, and say for each way of folding whether it did."""
    noise = random_images(image_size, 1)[:, :channels]
    pixels = (noise * 64 + 128).clamp(0, 255).to(torch.uint8)
    with plain_attention(), torch.no_grad():
        result, wanted, how = whole, whole(pixels), []
        for fold in (_without_batch_norm, _for_grey) if channels == 1 else (_without_batch_norm,):
            trial = fold(_copy_of(result), pixels, mean, std)
            if trial is not None and _near(trial(pixels), wanted):
                result = trial
            how.append(result is trial)
    return result, how


def _near(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    return all((f - w).abs().max() <= TOLERANCE * w.abs().max() for f, w in zip(found, wanted, strict=True))


def _copy_of(module: FromPixels) -> FromPixels:
    """Copy the tree of modules; the tensors stay the same ones."""
    return copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})


def _without_batch_norm(module: FromPixels, pixels: Tensor, *_: Any) -> FromPixels:
    """Move each batch norm that reads what one convolution alone gives into that convolution."""
    made: dict[int, tuple[str, Tensor]] = {}  # id of a tensor: the convolution that gave it; kept alive with it
    pairs: dict[str, str] = {}  # batch norm: convolution
    calls: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if isinstance(layer, nn.Conv2d):
                made[id(output)] = name, output
            elif id(arguments[0]) in made:
                pairs[name] = made[id(arguments[0])][0]

        return hook

    layers = {n: m for n, m in module.named_modules() if _is_plain_convolution(m) or isinstance(m, nn.BatchNorm2d)}
    hooks = [m.register_forward_hook(note(n)) for n, m in layers.items()]
    try:
        module(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    for norm, convolution in pairs.items():
        if calls[norm] == calls[convolution] == 1:
            _fold_norm(module, layers[convolution], norm, layers[norm])
    return module


def _fold_norm(module: nn.Module, convolution: nn.Module, name: str, norm: nn.Module) -> None:
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        return
    gain = (norm.running_var.double() + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight.double())
    before = 0 if convolution.bias is None else convolution.bias.double()
    bias = (before - norm.running_mean.double()) * gain + (0 if norm.bias is None else norm.bias.double())
    convolution.weight = _fixed(convolution.weight.double() * gain.reshape(-1, 1, 1, 1))
    convolution.bias = _fixed(bias)
    # timm's batch norm holds the activation that follows it.
    rest = [m for m in (getattr(norm, "drop", None), getattr(norm, "act", None)) if m is not None]
    module.set_submodule(name, nn.Sequential(*rest))


def _for_grey(module: FromPixels, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> FromPixels | None:
    """Let the convolution that reads the image read grey; None where no plain one alone reads it."""
    name = _reader(module.part, module, pixels)
    convolution = module.part.get_submodule(name) if name else None
    if not (isinstance(convolution, nn.Conv2d) and _is_plain_convolution(convolution) and convolution.groups == 1):
        return None
    m, s = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
    a, b = s.mean() / s, (m.mean() - m) / s  # h is normalised by the mean of the means and of the deviations
    weights = [torch.einsum("ocij,c->oij", convolution.weight.double(), v) for v in ((a, b) if b.any() else (a,))]
    convolution.weight = _fixed(torch.stack(weights, 1))
    convolution.in_channels = len(weights)
    return FromPixels(module.part, [float(m.mean())], [float(s.mean())], ones=len(weights) == 2)


def _reader(part: nn.Module, module: FromPixels, pixels: Tensor) -> str | None:
    """Return the name of the one layer in `part` that reads the normalised image itself, if there is but one."""
    given: list[Any] = []
    readers: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _layer, arguments: readers.append(name) if arguments and arguments[0] is given[0] else None

    hooks = [part.register_forward_pre_hook(lambda _part, arguments: given.append(arguments[0]))]
    # A container that hands the image on gets it, too: only what has no modules inside counts.
    hooks += [
        m.register_forward_pre_hook(note(n)) for n, m in part.named_modules() if n and next(m.children(), None) is None
    ]
    try:
        module(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return readers[0] if len(readers) == 1 else None


def _is_plain_convolution(module: nn.Module) -> bool:
    """Whether a module only convolves, with or without padding: others compute their weights before they use them."""
    return type(module) is nn.Conv2d or type(module).__name__ == "Conv2dSame"


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.float(), requires_grad=False)

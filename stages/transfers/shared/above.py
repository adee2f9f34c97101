"""What lies above a cut, with a new head: the part of a network that is trained, activation (B, *shape) -> logits.

`body` is the network's own, from the cut to what its last linear layer reads; `head` is a new linear layer for the
classes at hand. Where nothing is frozen (cut: image) the body also normalises pixels, and makes grey ones coloured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stages.backbones.cut import IMAGE, body, inner
from stages.backbones.registry import build_network
from stages.threads import thread_count
from stages.transfers.shared.layout import channels_last


class Above(nn.Module):
    """The trained part: activation (B, *shape) -> logits (B, classes); `body` gives what `head` reads (B, D).

    classifier : the name of the layer of the network's own that the head takes the place of.
    """

    def __init__(self, lower: nn.Module, width: int, classes: int, classifier: str | None):
        super().__init__()
        self.body, self.dropout, self.head = lower, nn.Dropout(0.0), nn.Linear(width, classes)
        self.classifier = classifier
        nn.init.zeros_(self.head.weight)  # it knows nothing yet
        nn.init.zeros_(self.head.bias)

    def forward(self, activations: Tensor) -> Tensor:
        """Return the logits (B, classes)."""
        logits: Tensor = self.head(self.dropout(self.body(activations)))
        return logits

    @property
    def lower(self) -> nn.Module:
        """The network's own modules, by their own names."""
        return self.body.network if isinstance(self.body, Pixels) else self.body

    def training_mode(self) -> None:
        """Go into training mode; batch norms of which nothing is trained keep their statistics."""
        self.train()
        for module in self.modules():
            norm = isinstance(module, nn.modules.batchnorm._NormBase)
            if norm and not any(p.requires_grad for p in module.parameters()):
                module.eval()

    def groups(self) -> dict[str, list[str]]:
        """Return the names of all parameters by the layer that they belong to, from the cut up; the head comes last.

        A layer is what the network's builder counts: blocks.4, layer3.1, features.denseblock3, Mixed_6c, conv_head.
        """
        found: dict[str, list[str]] = {}
        for name, _ in self.named_parameters():
            found.setdefault(_layer(name), []).append(name)
        return found


def _layer(name: str) -> str:
    parts = name.split(".")[:-1]
    for at, part in enumerate(parts):
        if re.search(r"\d[a-z]?$", part):
            blocks = not part.isdecimal() and "".join(parts[at + 1 : at + 2]).isdecimal()  # layer3.1, in a ResNet
            return ".".join(parts[: at + 1 + blocks])
    return ".".join(parts)


class Pixels(nn.Module):
    """Pixels as they are stored (B, 1 or 3, S, S), 0 ... 255 -> a network's input (B, 3, S, S)."""

    scale: Tensor
    shift: Tensor

    def __init__(self, lower: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.network = lower
        m, s = (torch.tensor(v, dtype=torch.float64).reshape(-1, 1, 1) for v in (mean, std))
        self.register_buffer("scale", (1 / (255 * s)).float(), persistent=False)
        self.register_buffer("shift", (-m / s).float(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise, and run the network."""
        # Grey pixels lie both ways in memory at once; of the coloured ones that they become, channels are to be last.
        read: Tensor = self.network(channels_last(pixels * self.scale + self.shift))
        return read


def lying_above(network: nn.Module, facts: Mapping[str, Any], cut: str, image_size: int, classes: int) -> Above:
    """Return what lies above a cut of a network, ready for training; its modules are the network's own.

    facts : what network.json says. Raises UserError for a cut that is none.
    """
    found = body(network, cut, image_size)
    lower = Pixels(found.part, facts["mean"], facts["std"]) if cut == IMAGE else found.part
    return Above(lower, found.width, classes, found.classifier).requires_grad_(True)


def built_above(facts: Mapping[str, Any], cut: str, image_size: int, classes: int) -> Above:
    """Return the same with the library's random weights, to load trained ones into."""
    return lying_above(_built(facts), facts, cut, image_size, classes)


def inner_above(
    network: nn.Module, facts: Mapping[str, Any], cut: str, layers: Sequence[str], image_size: int
) -> nn.Module:
    """Return what gives the averaged outputs of layers above a cut: activation (B, *shape) -> vectors (B, D).

    Its modules are the network's own, in eval mode. Raises UserError for a layer that does not lie there.
    """
    found = inner(network, cut, layers, image_size)
    return Pixels(found, facts["mean"], facts["std"]) if cut == IMAGE else found


def built_inner(facts: Mapping[str, Any], cut: str, layers: Sequence[str], image_size: int) -> nn.Module:
    """Return the same with the library's random weights, to load others into."""
    return inner_above(_built(facts), facts, cut, layers, image_size)


def _built(facts: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        network = build_network(facts["library"], facts["network"], facts["classes"])
    return network.requires_grad_(False)


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use as many threads as this process may."""
    before = torch.get_num_threads()
    torch.set_num_threads(thread_count())
    try:
        yield
    finally:
        torch.set_num_threads(before)

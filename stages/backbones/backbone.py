"""A backbone as it lies in a folder: weights.safetensors and network.json, and the same beside features and models."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import UserError
from stages.files import damaged, doubt_copy, made_again, missing, read_json

if TYPE_CHECKING:
    from torch import nn

    from stages.backbones.int8 import Ranges


@dataclass(frozen=True)
class Backbone:
    """A network with its weights, frozen. The network is built when it is first asked for.

    facts : what network.json holds; see weights.py.
    ranges : for features of `precision: int8` how far its tensors reach, by image size; see int8.py.
    """

    path: Path
    facts: dict[str, Any]
    ranges: dict[str, Ranges] | None = None

    @property
    def weights_hash(self) -> str:
        """The sha256 over names, types, shapes and bytes of all tensors."""
        return str(self.facts["weights_hash"])

    @property
    def name(self) -> str:
        """The network's name in its library."""
        return str(self.facts["network"])

    @cached_property
    def network(self) -> nn.Module:
        """The network in eval mode; no parameter of it asks for a gradient."""
        from stages.backbones.weights import load_weights

        facts = self.facts
        return load_weights(self.path, facts["library"], facts["network"], facts["classes"]).requires_grad_(False)


def load_backbone(folder: Path, weights: str = "weights.safetensors") -> Backbone:
    """Read a backbone from a folder.

    weights : the name of the file in it. Raises UserError when a file is not there, or holds other weights than
    network.json says.
    """
    from safetensors import SafetensorError

    from stages.backbones.weights import hash_weights

    facts, path = read_json(folder / "network.json"), folder / weights
    try:
        found = hash_weights(path)
    except FileNotFoundError:
        raise missing(path) from None
    except SafetensorError as error:
        raise damaged(path, error) from error
    if found != facts["weights_hash"]:
        doubt_copy(path)
        raise UserError(f"{path} holds other weights than network.json beside it says: run {made_again(path)}")
    return Backbone(path, facts)

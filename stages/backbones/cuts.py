"""Where a network can be cut, and what each cut means: a table to choose `cut` in params.yaml from.

    make cuts BACKBONE=lite0                      a download of weights in params.yaml
    make cuts BACKBONE=resnet50                   any network of timm's
    make cuts BACKBONE=torchvision/resnet50 SIZE=256

Stored bytes and the share of the work that is frozen are what a cut buys; the parameters above it are what is trained.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.backbones.cut import IMAGE, POOLED, counting, cuts, random_images, split
from stages.backbones.registry import LIBRARIES, build_network, network_facts
from stages.backbones.weights import library_of
from stages.cli import UserError, guard
from stages.params import read_params, suggest

if TYPE_CHECKING:
    from torch import nn


class Cut(NamedTuple):
    """A place where a network can be cut.

    shape : of what is stored of an image; share_below : of the network's multiply-adds that are frozen below it;
    parameters_above : how many numbers lie above it, the classifier's among them.
    """

    name: str
    shape: tuple[int, ...]
    share_below: float
    parameters_above: int

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one view of one image in float32; pixels take one each."""
        return math.prod(self.shape) * (1 if self.name == IMAGE else 4)


def describe_cuts(network: nn.Module, image_size: int) -> list[Cut]:
    """Return all cuts of a network, from the image up. Raises UserError for images that it does not take."""
    import torch

    names = cuts(network, image_size)
    seen: dict[str, tuple[tuple[int, ...], Any, int]] = {}

    def note(name: str, counted: Callable[[], int]) -> Callable[..., None]:
        def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
            seen[name] = tuple(output.shape[1:]), output.grad_fn, counted()

        return hook

    modules = dict(network.named_modules())
    hooks = []
    before = {p: p.requires_grad for p in network.parameters()}
    try:
        network.eval().requires_grad_(True)
        with torch.enable_grad(), counting() as counted:
            hooks = [modules[n].register_forward_hook(note(n, counted)) for n in names if n != POOLED]
            logits = network(random_images(image_size, 1))
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, wanted in before.items():
            parameter.requires_grad_(wanted)
    total = max(1, counted())
    parameters = sum(p.numel() for p in network.parameters())
    found = [Cut(IMAGE, (3, image_size, image_size), 0.0, parameters)]
    for name in names:
        if name == POOLED:
            parts = split(network, POOLED, image_size)
            above = sum(p.numel() for p in parts.above.parameters())
            weights = sum(p.numel() for p in parts.above.parameters() if p.ndim > 1)
            found.append(Cut(POOLED, parts.shape, 1 - weights / total, above))
        else:
            shape, node, below = seen[name]
            found.append(Cut(name, shape, below / total, _parameters_above(logits.grad_fn, node)))
    return found


def _parameters_above(end: Any, cut: Any) -> int:
    """Count the numbers of all parameters that autograd's graph reaches from its end without passing a node."""
    found, todo, parameters = {cut, end}, [end], 0
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None and node not in found:
                found.add(node)
                todo.append(node)
                if hasattr(node, "variable"):
                    parameters += node.variable.numel()
    return parameters


def find(name: str) -> tuple[str, str]:
    """Return library and network for a download of params.yaml, or for `network` or `library/network`."""
    library, _, network = name.rpartition("/")
    if library and library not in LIBRARIES:
        raise UserError(f"{name}: {library} is no library; {suggest(library, LIBRARIES)}")
    if not library and Path("params.yaml").is_file():
        downloads = {k: d for k, d in read_params().downloads.items() if d.source == "weights"}
        if name in downloads:
            return library_of(downloads[name]), downloads[name].network
    return library or "timm", network


def main() -> None:
    """Print the table."""
    about = argparse.ArgumentParser("python -m stages.backbones.cuts", description="Print where a network can be cut.")
    about.add_argument("backbone", help="a download of params.yaml, a timm network, or library/network")
    about.add_argument("--image-size", type=int, help="side of the images in pixels; the network's own if not told")
    chosen = about.parse_args()
    library, network = find(chosen.backbone)
    size = network_facts(library, network).image_size if chosen.image_size is None else chosen.image_size
    if size < 1:
        raise UserError(f"--image-size is {size}: name the side of the images in pixels")
    rows = describe_cuts(build_network(library, network), size)
    width = max(len("cut"), *(len(row.name) for row in rows))
    print(f"{network} ({library}) at {size} pixels")
    print(f"{'cut':<{width}}  {'shape':>15}  {'KiB an image':>12}  {'work below':>10}  {'parameters above':>16}")
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        print(
            f"{row.name:<{width}}  {shape:>15}  {row.bytes_per_image / 1024:>12,.1f}  {row.share_below:>10.1%}  "
            f"{row.parameters_above:>16,}"
        )


if __name__ == "__main__":
    guard(main)

"""Every cut on offer of every kind of network: its parts compute what the whole does, also while they are trained."""

from __future__ import annotations

import copy

import pytest
import torch

from stages.backbones.cut import cuts, plain_attention, split
from tests.backbones.conftest import network
from tests.backbones.test_cut import images

NETWORKS = [
    ("torchvision", "resnet18", 64),
    ("torchvision", "resnet50", 64),
    ("torchvision", "vgg16", 32),
    ("torchvision", "inception_v3", 75),
    ("torchvision", "densenet121", 64),
    ("timm", "mobilenetv3_small_100", 64),
    ("timm", "tf_efficientnet_lite0", 64),
    ("timm", "efficientnet_b0", 64),
    ("timm", "convnext_atto", 64),
    ("timm", "regnety_002", 64),
    ("timm", "vit_tiny_patch16_224", 224),
    ("timm", "deit_tiny_patch16_224", 224),
    ("torchvision", "swin_t", 64),
    ("torchvision", "squeezenet1_1", 64),
    ("textbook", "small_cnn", 64),
]


@pytest.mark.parametrize(("library", "name", "size"), NETWORKS, ids=[name for _, name, _ in NETWORKS])
def test_parts_compute_what_the_whole_does_at_every_cut(library: str, name: str, size: int) -> None:
    whole, x = copy.deepcopy(network(library, name)), images(size)
    offered = cuts(whole, size)
    assert len(offered) > 5
    for cut in offered:
        parts = split(whole, cut, size)
        with plain_attention(), torch.no_grad():
            assert torch.equal(parts.above(parts.below(x)), whole.eval()(x)), f"{cut}, in eval mode"
            # Trained above, frozen below: dropout and stochastic depth live, batch norms take the batch's statistics.
            whole.train()
            parts.above.train()
            parts.below.eval()
            torch.manual_seed(0)
            expected = whole(x)
            torch.manual_seed(0)
            found = parts.above(parts.below(x))
            expected, found = (o if isinstance(o, torch.Tensor) else o[0] for o in (expected, found))
            assert torch.equal(found, expected), f"{cut}, in train mode"

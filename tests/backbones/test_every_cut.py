"""Every cut on offer of every kind of network: its parts compute what the whole does, also while they are trained."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
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


DROPPING = [
    ("test_convnext", 64, {"drop_path_rate": 0.4, "drop_rate": 0.3}),
    ("test_efficientnet", 64, {"drop_path_rate": 0.4, "drop_rate": 0.3}),
    ("test_byobnet", 64, {"drop_path_rate": 0.4, "drop_rate": 0.3}),
    ("test_vit", 160, {"drop_path_rate": 0.4, "drop_rate": 0.3, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2}),
    ("test_vit", 160, {"pos_drop_rate": 0.3}),
]


@pytest.mark.parametrize(("name", "size", "rates"), DROPPING, ids=[f"{name}-{len(r)}" for name, _, r in DROPPING])
def test_with_drop_rates_the_parts_still_compute_in_training_what_the_whole_does(
    name: str, size: int, rates: dict[str, Any]
) -> None:
    """The same numbers are drawn: above the cut all that drops is alive, below it nothing is."""
    torch.manual_seed(0)
    whole, x = timm.create_model(name, **rates).requires_grad_(False), images(size, count=6)
    offered = cuts(whole, size)
    tried = offered[:: -max(1, len(offered) // 10)]  # from `pooled` down
    alive = []
    for cut in tried:
        parts = split(whole, cut, size)
        whole.train()
        parts.above.train()
        parts.below.eval()
        with plain_attention(), torch.no_grad():
            torch.manual_seed(1)
            expected = whole(x)
            torch.manual_seed(1)
            found = parts.above(parts.below(x))
            assert torch.equal(found, expected), cut
            if not torch.equal(parts.above(parts.below(x)), found):  # other numbers, another result
                alive.append(cut)
            whole.eval()
            assert torch.equal(parts.above.eval()(parts.below(x)), whole(x)), cut
    # Dropout of positions lies above the first layer alone.
    assert alive == [cut for cut in tried if "drop_rate" in rates or cut.startswith("patch_embed")] != []

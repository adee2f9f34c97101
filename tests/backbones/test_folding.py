"""What is folded into a network's weights changes nothing beyond rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.backbones.cut import taken
from stages.backbones.folding import FromPixels, folded
from tests.backbones.conftest import cells, far, network, normalised

EQUAL = ([0.5] * 3, [0.5] * 3)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def parts(whole: nn.Module, scaling: tuple[list[float], list[float]], channels: int, size: int) -> FromPixels:
    part = folded(FromPixels(taken(whole, "pooled", [], False, size), *scaling), list, *scaling, channels, size)
    assert isinstance(part, FromPixels)
    return part


def pooled(whole: nn.Module, images: Tensor, size: int) -> np.ndarray:
    (vectors,) = taken(whole, "pooled", [], False, size)(images)
    return vectors.numpy()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scaling", [EQUAL, IMAGENET], ids=["equal", "imagenet"])
@pytest.mark.parametrize(
    ("library", "name", "size"),
    [
        ("timm", "tf_efficientnet_lite0", 64),  # its first convolution pads more below than above
        ("torchvision", "resnet18", 64),
        ("torchvision", "densenet121", 64),  # batch norm before the convolution, too
        ("torchvision", "googlenet", 64),  # reads each channel of the image by itself
        ("timm", "test_vit", 160),
        ("torchvision", "swin_t", 64),
    ],
)
def test_pixels_give_what_normalised_colour_images_give(
    library: str, name: str, size: int, scaling: tuple[list[float], list[float]], channels: int
) -> None:
    whole, images = network(library, name), cells(2, size, channels)
    with torch.no_grad():
        wanted = pooled(whole, normalised(images, *scaling), size)
        (found,) = parts(whole, scaling, channels, size)(torch.from_numpy(images))
    assert far(found.numpy(), wanted) < 1e-5


def first_convolution(module: nn.Module) -> nn.Conv2d:
    return next(m for m in module.modules() if isinstance(m, nn.Conv2d))


def test_grey_costs_one_channel_or_two_where_colours_are_scaled_differently() -> None:
    whole = network("torchvision", "resnet18")
    assert first_convolution(parts(whole, EQUAL, 1, 64)).weight.shape == (64, 1, 7, 7)
    assert first_convolution(parts(whole, IMAGENET, 1, 64)).weight.shape == (64, 2, 7, 7)
    assert first_convolution(parts(whole, IMAGENET, 3, 64)).weight.shape == (64, 3, 7, 7)
    assert first_convolution(whole).weight.shape == (64, 3, 7, 7)


def test_batch_norm_is_gone_where_it_follows_a_convolution_and_stays_elsewhere() -> None:
    def norms(module: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())

    resnet, densenet = network("torchvision", "resnet18"), network("torchvision", "densenet121")
    assert (norms(resnet), norms(parts(resnet, EQUAL, 3, 64))) == (20, 0)
    assert norms(parts(network("timm", "tf_efficientnet_lite0"), EQUAL, 3, 64)) == 0
    # In a dense layer norm1 reads what earlier layers gave, norm2 follows conv1: 58 of 121 and the stem's go.
    assert (norms(densenet), norms(parts(densenet, EQUAL, 3, 64))) == (121, 121 - 58 - 1)


def test_a_layer_whose_output_is_wanted_is_not_folded_into_and_keeps_no_other_from_it() -> None:
    whole, images = network("torchvision", "resnet18"), torch.from_numpy(cells(2, 64, 3))

    def part(only: str | None) -> FromPixels:
        return FromPixels(taken(whole, "pooled", ["conv1", "layer1"], False, 64, only), *EQUAL)

    both = folded(part(None), lambda: [part("conv1"), part("layer1")], *EQUAL, 3, 64)(images)
    wanted = whole.conv1(normalised(images.numpy(), *EQUAL)).mean((2, 3))
    assert far(both[0].numpy(), wanted.numpy()) < 1e-5
    alone = folded(part("layer1"), list, *EQUAL, 3, 64)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in alone.modules())
    assert torch.equal(both[1], alone(images)[0])


class Standardised(nn.Conv2d):
    """Computes its weights before it uses them, as weight standardisation does."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        return self._conv_forward(x, (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True), self.bias)


def test_a_convolution_that_computes_its_weights_is_left_alone() -> None:
    torch.manual_seed(0)
    whole = nn.Sequential(
        Standardised(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    ).eval()
    whole[1].running_mean.normal_()
    images = cells(2, 16, 1)
    module = parts(whole, IMAGENET, 1, 16)
    assert first_convolution(module).weight.shape == (8, 3, 3, 3)
    (found,) = module(torch.from_numpy(images))
    assert far(found.detach().numpy(), pooled(whole.requires_grad_(False), normalised(images, *IMAGENET), 16)) < 1e-5


def test_folding_leaves_the_network_as_it_was() -> None:
    whole = network("torchvision", "resnet18")
    before = {n: t.clone() for n, t in whole.state_dict().items()}
    parts(whole, IMAGENET, 1, 64)
    assert all(torch.equal(t, before[n]) for n, t in whole.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in whole.modules())

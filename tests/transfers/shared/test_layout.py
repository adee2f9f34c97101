"""Channels last changes where numbers lie, and not what they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stages.transfers.shared.above import Pixels
from stages.transfers.shared.layout import Clipped, Depthwise, Pointwise, channels_last, train_channels_last
from tests.backbones.conftest import network


def test_batches_have_their_channels_last_where_they_are_maps() -> None:
    assert channels_last(torch.zeros(2, 3, 4, 5)).is_contiguous(memory_format=torch.channels_last)
    assert channels_last(torch.zeros(2, 3, 4)).shape == (2, 3, 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_reads_grey_pixels_and_coloured_ones_with_their_channels_last(channels: int) -> None:
    seen: list[torch.Tensor] = []
    reader = nn.Conv2d(3, 4, 3)
    reader.register_forward_hook(lambda _, given, maps: seen.extend((*given, maps)))
    pixels = channels_last(torch.rand(2, channels, 8, 8) * 255)
    Pixels(reader, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])(pixels)
    assert [maps.is_contiguous(memory_format=torch.channels_last) for maps in seen] == [True, True]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(seen[0], (pixels / 255 - mean) / std)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_outputs_and_gradients_are_those_of_the_network_as_it_is(name: str) -> None:
    plain = copy.deepcopy(network("timm", name)).double().train().requires_grad_(True)
    ordered = copy.deepcopy(plain)
    train_channels_last(ordered)
    assert any(isinstance(m, Pointwise) for m in ordered.modules())
    torch.manual_seed(0)
    images = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    found = []
    for tried, given in ((plain, images), (ordered, channels_last(images))):
        logits = tried(given)
        (logits * torch.linspace(-1, 1, logits.numel()).reshape(logits.shape).double()).sum().backward()
        found.append((logits, {n: p.grad for n, p in tried.named_parameters()}, tried.state_dict()))
    (logits, gradients, state), (own, own_gradients, own_state) = found
    torch.testing.assert_close(own, logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own_gradients, gradients, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(own_state, state, rtol=1e-9, atol=1e-9)


def goes_back_right(convolution: nn.Conv2d, maps: torch.Tensor) -> bool:
    """Whether what comes back to maps and parameters is the derivative, told from small differences."""
    names = [name for name, _ in convolution.named_parameters()]

    def result(maps: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(convolution, dict(zip(names, parameters, strict=True)), (maps,))

    return torch.autograd.gradcheck(result, (maps, *convolution.parameters()))


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_way_back_of_a_pointwise_convolution_is_its_derivative(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(inputs, outputs, 1, bias=bias).double()
    train_channels_last(convolution)
    assert isinstance(convolution, Pointwise)
    maps = channels_last(torch.randn(2, inputs, 3, 4, dtype=torch.float64)).requires_grad_(True)
    assert goes_back_right(convolution, maps)


@pytest.mark.parametrize(
    ("kernel", "padding", "bias"),
    [(5, 2, True), (7, 3, False), ((3, 5), (1, 0), False), ((1, 4), (0, 3), True), (5, 0, False)],
)
def test_the_way_back_of_a_wide_depthwise_convolution_is_its_derivative(
    kernel: int | tuple[int, int], padding: int | tuple[int, int], bias: bool
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 3, kernel, padding=padding, groups=3, bias=bias).double()
    plain = copy.deepcopy(convolution)
    train_channels_last(convolution)
    assert isinstance(convolution, Depthwise)
    maps = channels_last(torch.randn(2, 3, 6, 8, dtype=torch.float64)).requires_grad_(True)
    assert torch.equal(convolution(maps), plain(maps))
    assert goes_back_right(convolution, maps)


@pytest.mark.parametrize(
    "convolution", [nn.Conv2d(4, 4, 5, stride=2, groups=4), nn.Conv2d(4, 8, 5), nn.Conv2d(4, 4, 3, groups=4)]
)
def test_other_convolutions_stay_as_they_are(convolution: nn.Conv2d) -> None:
    train_channels_last(convolution)
    assert type(convolution) is nn.Conv2d


@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_clipped_goes_back_where_it_was_within_its_limits(inplace: bool) -> None:
    body = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU6(inplace=inplace))
    plain = copy.deepcopy(body)
    train_channels_last(body)
    assert isinstance(body[1], Clipped)
    maps = channels_last(10 * torch.randn(4, 3, 5, 5))
    found = []
    for tried in (plain, body):
        given = maps.clone().requires_grad_(True)
        (tried(given) * torch.arange(25.0).reshape(5, 5)).sum().backward()
        found.append((given.grad, tried[0].weight.grad))
    torch.testing.assert_close(found[1], found[0])
    kept = torch.linspace(-7, 7, 8)
    result = body[1](kept)
    assert torch.equal(result, torch.linspace(-7, 7, 8).clamp(0, 6))
    assert (result.data_ptr() == kept.data_ptr()) is inplace


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU])
def test_activations_no_longer_overwrite_what_their_derivative_needs(activation: type[nn.Module]) -> None:
    body = activation(inplace=True)
    train_channels_last(body)
    maps = torch.linspace(-7, 7, 8)
    before = maps.clone()
    assert torch.equal(body(maps), activation()(before))
    assert torch.equal(maps, before)


def test_gradients_that_come_otherwise_are_put_in_order() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    train_channels_last(body)
    seen: list[bool] = []
    read = channels_last(torch.randn(2, 3, 9, 9))
    maps = body[0](read)
    maps.register_hook(lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last)))
    body[2](body[1](maps)).mean((2, 3)).sum().backward()
    assert seen == [True]


def test_other_convolutions_stay_what_they_are() -> None:
    others = [
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 1, padding=1),
    ]
    train_channels_last(nn.Sequential(*others))
    assert [type(module) for module in others] == [nn.Conv2d] * 4

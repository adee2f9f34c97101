"""The textbook's small network against the same layers written out one by one in torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.backbones.textbook import small_cnn
from stages.transfers.shared.above import Above, lying_above
from tests.backbones.conftest import network
from tests.backbones.test_cut import images

FACTS = {"library": "textbook", "network": "small_cnn", "classes": 10, "mean": [0.5] * 3, "std": [0.5] * 3}


def written_out(x: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the hidden layer gives, and the logits."""
    for layer in ("conv1", "conv2"):
        x = functional.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1).relu()
        x = functional.max_pool2d(x, 2)
    x = functional.adaptive_avg_pool2d(x, 7).flatten(1)
    hidden = functional.linear(x, weights["hidden.weight"], weights["hidden.bias"]).relu()
    return hidden, functional.linear(hidden, weights["classifier.weight"], weights["classifier.bias"])


@pytest.mark.parametrize("size", [4, 28, 33, 50, 65])
def test_it_computes_two_convolutions_a_hidden_layer_and_a_classifier_at_any_size(size: int) -> None:
    whole, x = network("textbook", "small_cnn").eval(), images(size)
    with torch.no_grad():
        _, logits = written_out(x, whole.state_dict())
        torch.testing.assert_close(whole(x), logits, rtol=1e-5, atol=1e-6)
    assert logits.std() > 0.01


def test_of_28_pixels_the_map_is_as_large_as_the_hidden_layer_reads_it() -> None:
    whole = network("textbook", "small_cnn").eval()
    with torch.no_grad():
        maps = whole[:6](images(28))  # type: ignore[index]
        assert torch.equal(whole.average(maps), maps)  # type: ignore[operator]


def test_half_of_the_hidden_units_are_left_out_in_training_and_none_in_a_prediction() -> None:
    whole, x = small_cnn(3), images(28, count=16)
    read: list[Tensor] = []
    whole.get_submodule("classifier").register_forward_pre_hook(lambda _, given: read.append(given[0]))
    torch.manual_seed(0)
    with torch.no_grad():
        hidden, logits = written_out(x, whole.state_dict())
        whole.train()(x)
        assert torch.allclose(whole.eval()(x), logits, atol=1e-6)
    lit = hidden > 1e-3
    left_out = (read[0] == 0) & lit
    assert float(left_out[lit].float().mean()) == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(read[0][lit & ~left_out], 2 * hidden[lit & ~left_out], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read[1], hidden, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cut", ["image", "pool1"])
def test_its_dropout_lives_while_it_is_trained_above_a_cut(cut: str) -> None:
    above = lying_above(copy.deepcopy(network("textbook", "small_cnn")), FACTS, cut, 28, 2)
    x = torch.rand(8, 3, 28, 28) * 255 if cut == "image" else torch.rand(8, 32, 14, 14)

    def zeros(part: Above) -> float:
        with torch.no_grad():
            return float((part.body(x) == 0).float().mean())

    dark = zeros(above.eval())  # of the ReLU
    above.training_mode()
    assert zeros(above) == pytest.approx(dark + (1 - dark) / 2, abs=0.03)


def test_it_starts_as_torch_starts_its_layers() -> None:
    torch.manual_seed(5)
    found = small_cnn(4)
    torch.manual_seed(5)
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(3136, 1024), nn.Linear(1024, 4)
    expected = [p for layer in layers for p in layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected, strict=True))

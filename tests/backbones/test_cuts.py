"""`make cuts`: what it says of each cut against a network that is counted by hand, and against torch's own modules."""

from __future__ import annotations

import copy
import sys
from math import prod
from pathlib import Path

import pytest
import torch

from stages.backbones import cuts
from stages.backbones.cut import split
from stages.backbones.cuts import Cut, describe_cuts, find
from stages.cli import guard
from tests.backbones.conftest import network

WEIGHTS = """\
downloads:
  photos: {source: folder, path: photos}
  small: {source: weights, path: requirements.lock, network: small_cnn, library: textbook, origin: random, seed: 0}
  timms: {source: weights, path: requirements.lock, network: test_resnet, origin: random, seed: 0}
datasets: {}
features: {}
runs: {}
compare: {references: {}}
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without params.yaml."""
    monkeypatch.chdir(tmp_path)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Call the program; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["cuts", *arguments])
    with pytest.raises(SystemExit) as end:
        guard(cuts.main)
    return int(str(end.value.code))


def described(library: str, name: str, size: int) -> dict[str, Cut]:
    return {cut.name: cut for cut in describe_cuts(copy.deepcopy(network(library, name)), size)}


def test_every_cut_of_the_small_network_is_as_counted_by_hand() -> None:
    """Of images of 30 x 30: the maps are 30, 15 and 7 wide, as the pools leave out what is over."""
    conv1, conv2, hidden, classifier = 3 * 9 * 32, 32 * 9 * 64, 64 * 7 * 7 * 1024, 1024 * 10
    work = 30 * 30 * conv1, 15 * 15 * conv2, hidden, classifier
    shares = [sum(work[:done]) / sum(work) for done in range(4)]
    parameters = conv1 + 32, conv2 + 64, hidden + 1024, classifier + 10
    above = [sum(parameters[done:]) for done in range(4)]
    expected = [
        ("image", (3, 30, 30), 3 * 30 * 30, 0),  # pixels are stored in a byte each
        ("conv1", (32, 30, 30), 4 * 32 * 30 * 30, 1),
        ("relu1", (32, 30, 30), 4 * 32 * 30 * 30, 1),
        ("pool1", (32, 15, 15), 4 * 32 * 15 * 15, 1),
        ("conv2", (64, 15, 15), 4 * 64 * 15 * 15, 2),
        ("relu2", (64, 15, 15), 4 * 64 * 15 * 15, 2),
        ("pool2", (64, 7, 7), 4 * 64 * 7 * 7, 2),
        ("average", (64, 7, 7), 4 * 64 * 7 * 7, 2),
        ("flatten", (3136,), 4 * 3136, 2),
        ("hidden", (1024,), 4 * 1024, 3),
        ("relu3", (1024,), 4 * 1024, 3),
        ("pooled", (1024,), 4 * 1024, 3),
    ]
    found = describe_cuts(copy.deepcopy(network("textbook", "small_cnn")), 30)
    assert [(c.name, c.shape, c.bytes_per_image) for c in found] == [row[:3] for row in expected]
    assert [c.parameters_above for c in found] == [above[done] for *_, done in expected]
    assert [c.share_below for c in found] == pytest.approx([shares[done] for *_, done in expected], abs=1e-12)


@pytest.mark.parametrize(
    ("library", "name", "size", "cut", "above"),
    [
        ("timm", "test_resnet", 64, "layer2", ["layer3", "layer4", "fc"]),
        ("timm", "test_resnet", 64, "global_pool", ["fc"]),
        ("timm", "test_vit", 160, "blocks.3", ["blocks.4", "blocks.5", "norm", "head"]),  # tokens and positions: below
        ("timm", "tf_efficientnet_lite0", 64, "blocks.4", ["blocks.5", "blocks.6", "conv_head", "bn2", "classifier"]),
        ("torchvision", "squeezenet1_1", 64, "features.11", ["features.12", "classifier"]),
        ("torchvision", "resnet18", 64, "layer3", ["layer4", "fc"]),
    ],
)
def test_parameters_above_a_cut_are_those_of_the_modules_above_it(
    library: str, name: str, size: int, cut: str, above: list[str]
) -> None:
    whole, found = network(library, name), described(library, name, size)
    assert found[cut].parameters_above == sum(p.numel() for m in above for p in whole.get_submodule(m).parameters())
    assert found["image"].parameters_above == sum(p.numel() for p in whole.parameters())


def test_what_is_said_of_a_cut_is_what_extract_stores_and_fine_tuning_trains() -> None:
    whole = network("timm", "test_efficientnet")
    found = described("timm", "test_efficientnet", 64)
    assert len(found) > 10
    for cut in found.values():
        parts = split(whole, cut.name, 64)
        assert (cut.shape, cut.parameters_above) == (parts.shape, sum(p.numel() for p in parts.above.parameters()))
        assert cut.bytes_per_image == prod(parts.shape) * (1 if cut.name == "image" else 4)
    shares = [cut.share_below for cut in found.values()]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1] < 1) == (0, True)


def test_the_network_is_left_as_it_came() -> None:
    whole = copy.deepcopy(network("timm", "test_resnet"))
    whole.layer4.requires_grad_(True)
    state = {n: t.clone() for n, t in whole.state_dict().items()}
    wanted = {n: p.requires_grad for n, p in whole.named_parameters()}
    describe_cuts(whole, 64)
    assert {n: p.requires_grad for n, p in whole.named_parameters()} == wanted
    assert all(torch.equal(t, state[n]) for n, t in whole.state_dict().items())
    assert not any(m._forward_hooks for m in whole.modules())


def test_a_name_is_that_of_a_download_or_of_a_librarys_network() -> None:
    assert find("test_resnet") == ("timm", "test_resnet")
    assert find("torchvision/resnet18") == ("torchvision", "resnet18")
    assert find("small") == ("timm", "small")  # there is no params.yaml
    Path("params.yaml").write_text(WEIGHTS)
    assert find("small") == ("textbook", "small_cnn")
    assert find("timms") == ("timm", "test_resnet")
    assert find("timm/small") == ("timm", "small")
    assert find("resnet50") == ("timm", "resnet50")


def test_the_table_has_a_row_for_each_cut_at_the_networks_own_size_or_the_one_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("params.yaml").write_text(WEIGHTS)
    assert call(monkeypatch, "small") == 0
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "small_cnn (textbook) at 64 pixels"
    assert header.split() == ["cut", "shape", "KiB", "an", "image", "work", "below", "parameters", "above"]
    assert [row.split()[0] for row in rows] == [c.name for c in describe_cuts(network("textbook", "small_cnn"), 64)]
    # 64 x 32 x 32 numbers of 4 bytes; 22,413,312 of 25,634,816 multiply-adds; the hidden layer and the classifier.
    assert rows[4].split() == ["conv2", "64", "x", "32", "x", "32", "256.0", "87.4%", "3,222,538"]
    assert call(monkeypatch, "textbook/small_cnn", "--image-size", "30") == 0
    out = capsys.readouterr().out
    assert out.startswith("small_cnn (textbook) at 30 pixels\n")
    assert out.splitlines()[2].split() == ["image", "3", "x", "30", "x", "30", "2.6", "0.0%", "3,241,930"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tmm/resnet18"], "tmm/resnet18: tmm is no library; did you mean timm?"),
        (["test_resnt"], "network test_resnt is none of timm's; did you mean test_resnet?"),
        (["torchvision/resnet19"], "network resnet19 is none of torchvision's; did you mean resnet1"),
        (
            ["vit_tiny_patch16_224", "--image-size", "64"],
            "image_size: 64: the network takes no images of 64 x 64",
        ),
        (["textbook/small_cnn", "--image-size", "0"], "--image-size is 0: name the side of the images in pixels"),
        (["textbook/small_cnn", "--image-size", "3"], "image_size: 3: the network takes no images of 3 x 3 pixels"),
    ],
)
def test_a_name_or_a_size_that_is_none_is_an_error_of_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 2
    found = capsys.readouterr()
    assert found.err.startswith(message)
    assert (found.out, found.err.count("\n")) == ("", 1)

"""Engines: ONNX Runtime gives what torch gives, the same bytes each time, whatever else is in a batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stages.backbones import engines
from stages.backbones.backbone import Backbone, load_backbone
from stages.backbones.cut import plain_attention
from stages.backbones.engines import open_engine
from stages.cli import UserError
from stages.files import hash_file
from stages.params import Features
from tests.backbones.conftest import cells, far, normalised

ROOT = Path(__file__).parents[2]
LAYERS = ["blocks.3", "blocks.5", "pooled"]


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSFER_ENGINE", "TRANSFER_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFER_DEVICE", "cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


def features(**keys: Any) -> Features:
    return Features.model_validate({"images": "cells", "backbone": "raw/lite0", "image_size": 64, **keys})


def wanted(backbone: Backbone, images: np.ndarray) -> dict[str, np.ndarray]:
    """The layers of Lite0 from a plain pass of the undivided network."""
    network, found = backbone.network, {}
    hooks = [
        network.get_submodule(n).register_forward_hook(lambda _m, _a, out, n=n: found.update({n: out.mean((2, 3))}))
        for n in ("blocks.3", "blocks.5")
    ]
    with torch.no_grad():
        x = normalised(images, [0.5] * 3, [0.5] * 3)
        found["pooled"] = network.forward_head(network.forward_features(x), pre_logits=True)
        found["logits"] = network(x)
    for hook in hooks:
        hook.remove()
    return {n: t.numpy() for n, t in found.items()}


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_real_cells_come_out_as_from_the_undivided_network(
    engine: str, channels: int, lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_ENGINE", engine)
    images = cells(5, 64, channels)
    opened = open_engine(lite0, features(layers=LAYERS, logits=True), cache)
    assert opened.identity["engine"] == engine
    found = opened(images)
    expected = wanted(lite0, images)
    assert list(found) == [*LAYERS, "logits"]
    for name, values in found.items():
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert far(values, expected[name]) < 2e-5, name


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_cut_inside_the_network_gives_its_whole_output(
    engine: str, lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_ENGINE", engine)
    images = cells(3, 64, 1)
    (name, found), *_ = open_engine(lite0, features(cut="blocks.3"), cache)(images).items()
    network = lite0.network
    with torch.no_grad():
        x = network.bn1(network.conv_stem(normalised(images, [0.5] * 3, [0.5] * 3)))
        for block in network.blocks[:4]:
            x = block(x)
    assert (name, found.shape) == ("blocks.3", (3, 80, 4, 4))
    assert far(found, x.numpy()) < 2e-5


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_misspelt_layer_is_answered_by_the_nearest(
    engine: str, lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_ENGINE", engine)
    with pytest.raises(UserError, match=r"blocks\.3"):
        open_engine(lite0, features(cut="bloks.3"), cache)(cells(1, 64, 1))


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_a_network_of_which_nothing_folds_is_left_as_it_was(
    engine: str, lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts for other sizes and colours are made of it, and whether they fold may hang on how its tensors lie."""
    monkeypatch.setenv("TRANSFER_ENGINE", engine)
    monkeypatch.setattr("stages.backbones.folding.TOLERANCE", -1.0)
    backbone = Backbone(lite0.path, lite0.facts)
    before = [(t.device, t.stride()) for t in backbone.network.state_dict().values()]
    opened = open_engine(backbone, features(layers=LAYERS), cache / "unfolded")
    for channels in (3, 1):
        opened(cells(2, 64, channels))
    assert [(t.device, t.stride()) for t in backbone.network.state_dict().values()] == before


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_what_comes_out_for_an_image_depends_on_that_image_alone(
    engine: str, lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_ENGINE", engine)
    images = cells(9, 64, 1)
    opened = open_engine(lite0, features(layers=LAYERS), cache)
    together, alone = opened(images), opened(images[6:7])
    with ThreadPoolExecutor(4) as pool:
        at_once = list(pool.map(lambda i: opened(images[i : i + 3]), [0, 3, 6]))
    again = open_engine(lite0, features(layers=LAYERS), cache)(images)
    for name in LAYERS:
        assert np.array_equal(alone[name][0], together[name][6])
        assert np.array_equal(np.concatenate([part[name] for part in at_once]), together[name])
        assert np.array_equal(again[name], together[name])


def test_the_number_of_threads_changes_how_many_calls_are_wanted_and_no_byte(
    lite0: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for threads in ("1", "3"):
        monkeypatch.setenv("TRANSFER_THREADS", threads)
        opened = open_engine(lite0, features(), cache)
        assert opened.calls == int(threads)
        found[threads] = opened(cells(3, 64, 1))["pooled"], opened.identity
    assert np.array_equal(found["1"][0], found["3"][0])
    assert found["1"][1] == found["3"][1]


def test_an_export_is_made_once_and_then_torch_is_not_imported(lite0: Backbone, cache: Path) -> None:
    found = open_engine(lite0, features(), cache)(cells(2, 64, 1))["pooled"]
    (path,) = [p for p in cache.glob("*.json") if lite0.name in p.name and _is_made_of(p, ["pooled"], 1)]
    facts = json.loads(path.read_text())
    assert 0 < facts["largest_difference"] < engines.TOLERANCE
    np.save(cache / "images.npy", cells(2, 64, 1))
    program = f"""
import sys
import numpy as np
from pathlib import Path
from stages.backbones.backbone import load_backbone
from stages.backbones.engines import open_engine
from stages.params import Features
engine = open_engine(load_backbone(Path({str(lite0.path.parent)!r})),
                     Features(images="cells", backbone="raw/lite0", image_size=64), Path({str(cache)!r}))
np.save(Path({str(cache)!r}) / "found.npy", engine(np.load(Path({str(cache)!r}) / "images.npy"))["pooled"])
assert engine.operations(64, 1) == {facts["operations"]}
assert not {{"torch", "timm", "onnx"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env={**os.environ, "TRANSFER_DEVICE": "cpu"})
    assert np.array_equal(np.load(cache / "found.npy"), found)


def _is_made_of(path: Path, outputs: list[str], channels: int) -> bool:
    facts = json.loads(path.read_text())
    return bool(facts["outputs"] == outputs and facts["image"][0] == channels)


def test_a_damaged_export_is_made_again(lite0: Backbone, tmp_path: Path) -> None:
    first = open_engine(lite0, features(), tmp_path)(cells(1, 64, 1))["pooled"]
    (path,) = tmp_path.glob("*.onnx")
    content = path.read_bytes()
    path.write_bytes(content[:-100] + bytes(100))
    again = open_engine(lite0, features(), tmp_path)(cells(1, 64, 1))["pooled"]
    assert np.array_equal(first, again)
    assert json.loads(path.with_suffix(".json").read_text())["hash"] == hash_file(path)
    assert len(path.read_bytes()) == len(content)


def test_an_export_that_differs_from_torch_is_refused_and_not_kept(
    lite0: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = engines._write_onnx

    def bent(part: nn.Module, *arguments: Any) -> None:
        part.part.classifier = None  # an export without what it was made of
        next(p for n, p in part.named_parameters() if n.endswith("conv_head.weight")).mul_(1.01)
        honest(part, *arguments)

    monkeypatch.setattr(engines, "_write_onnx", bent)
    backbone = Backbone(lite0.path, lite0.facts)  # its own network, to be spoilt
    with pytest.raises(UserError, match=r"pooled: ONNX Runtime differs from torch by .*set TRANSFER_ENGINE=torch"):
        open_engine(backbone, features(), tmp_path)(cells(1, 64, 1))
    assert not list(tmp_path.iterdir())


def test_operations_are_those_of_the_layers_by_their_formula(lite0: Backbone, cache: Path) -> None:
    counted = 0

    def count(module: nn.Module, _arguments: Any, out: torch.Tensor) -> None:
        nonlocal counted
        counted += module.weight.numel() * (out.shape[2] * out.shape[3] if out.ndim == 4 else 1)

    hooks = [m.register_forward_hook(count) for m in lite0.network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        lite0.network(torch.zeros(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    classifier, stem = 1280 * 1000, 32 * 3 * 3 * 32 * 32
    whole = open_engine(lite0, features(logits=True), cache)
    assert whole.operations(64, 3) == counted
    assert whole.operations(64, 1) == counted - 2 * stem  # one channel instead of three
    assert open_engine(lite0, features(), cache).operations(64, 3) == counted - classifier


def test_operations_count_attention(fetched: Any, cache: Path) -> None:
    backbone = load_backbone(fetched("random", "test_vit"))
    engine = open_engine(backbone, features(image_size=160, cut="blocks.0"), cache)
    tokens, width = 101, 64
    embedding = 100 * width * 3 * 16**2
    attention = tokens * width * 3 * width + 2 * tokens**2 * width + tokens * width * width
    hidden = backbone.network.blocks[0].mlp.fc1.out_features
    assert engine.operations(160, 3) == embedding + attention + 2 * tokens * width * hidden


def test_attention_comes_out_as_from_the_undivided_network(fetched: Any, cache: Path) -> None:
    backbone = load_backbone(fetched("random", "test_vit"))
    images = cells(3, 160, 3)
    found = open_engine(backbone, features(image_size=160, logits=True), cache)(images)
    with plain_attention(), torch.no_grad():
        logits = backbone.network(normalised(images, backbone.facts["mean"], backbone.facts["std"]))
    assert far(found["logits"], logits.numpy()) < 1e-4


def test_a_network_of_torchvision_runs_too(fetched: Any, cache: Path) -> None:
    backbone = load_backbone(fetched("random", "squeezenet1_1", "torchvision"))
    images = cells(3, 64, 1)
    found = open_engine(backbone, features(layers=["features"]), cache)(images)["features"]
    with torch.no_grad():
        maps = backbone.network.features(normalised(images, backbone.facts["mean"], backbone.facts["std"]))
    assert far(found, maps.mean((2, 3)).numpy()) < 1e-4


def test_images_themselves_pass_without_a_network(tmp_path: Path) -> None:
    engine = open_engine(Backbone(tmp_path, {}), features(cut="image", image_size=24), tmp_path)
    images = cells(3, 24, 1)
    assert np.array_equal(engine(images)["image"], images)
    assert engine.operations(24, 1) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("TRANSFER_ENGINE", "tensorrt", "TRANSFER_ENGINE is 'tensorrt': it can be onnxruntime or torch"),
        ("TRANSFER_DEVICE", "gpu", "TRANSFER_DEVICE is 'gpu': it can be cpu or cuda"),
        ("TRANSFER_THREADS", "many", "TRANSFER_THREADS is 'many'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(
    name: str, value: str, message: str, lite0: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        open_engine(lite0, features())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_a_gpu_that_is_not_there_is_missed(lite0: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_DEVICE", "cuda")
    with pytest.raises(UserError, match="TRANSFER_DEVICE is cuda: torch finds no GPU here"):
        open_engine(lite0, features())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives_within_its_precision(lite0: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFER_DEVICE", "cuda")
    images = cells(5, 64, 1)
    opened = open_engine(lite0, features(layers=LAYERS))
    found, again = opened(images), opened(images)
    for name, values in wanted(lite0, images).items():
        if name in found:
            assert far(found[name], values) < 3e-2  # bfloat16 has eight bits
            assert np.array_equal(found[name], again[name])

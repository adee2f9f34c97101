"""A run's model as a backbone: one network, which gives what its two parts gave one after the other."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from stages.backbones.backbone import load_backbone
from stages.backbones.cut import split
from stages.backbones.trained import backbone_folder
from stages.backbones.weights import hash_weights, save_weights
from stages.cli import UserError
from stages.extract import extract
from stages.files import FEATURES, LEARNED, hash_file, read_json, write_json, write_table
from stages.params import Features
from stages.samples.decoding import to_array
from stages.sources._raw import Found, write_images
from stages.store.activations import read_features
from stages.store.models import write_model
from stages.transfers import Part, TrainingData
from stages.transfers.shared.above import lying_above
from stages.transfers.shared.network import NetworkModel
from tests.backbones.conftest import cells, far, network, normalised
from tests.conftest import cell_files
from tests.transfers.made_up import fit, make_data

FACTS = {
    "library": "timm",
    "network": "test_resnet",
    "classes": 1000,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "origin": "random",
    "source": "seed 0",
    "licence": "none needed: random numbers",
}


@pytest.mark.parametrize("cut", ["layer2", "image"])
def test_the_trained_network_gives_what_its_parts_give(
    cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    whole, pixels = network("timm", "test_resnet"), cells(24, 64, 3)
    images = normalised(pixels, FACTS["mean"], FACTS["std"])
    below = split(whole, cut, 64).below
    with torch.no_grad():
        stored = pixels.astype(np.float32) if cut == "image" else below(images).numpy()
    labels = np.arange(24) % 3
    part = Part(stored[:, np.newaxis], labels, np.eye(3, dtype=np.float32)[labels], None)
    run, facts = tmp_path / "run", {**FACTS, "weights_hash": "w"}
    write_json(run / "run.json", {})
    save_weights(whole, tmp_path / "weights.safetensors")

    def above():
        return lying_above(copy.deepcopy(whole), FACTS, cut, 64, 3)

    recipe = {"network": FACTS, "cut": cut, "image_size": 64}
    model = fit("fine_tune", TrainingData(["a", "b", "c"], part, part, above, recipe), epochs=1, min_steps=8)
    write_model(run / "repeat-0", model)
    write_json(run / "repeat-0" / "network.json", facts)
    (tmp_path / "weights.safetensors").rename(run / "repeat-0" / "backbone.safetensors")
    with pytest.raises(UserError, match=f"{LEARNED} is not there: run `dvc repro`"):
        backbone_folder(run)
    write_table(run / LEARNED, pa.table({"pixel_hash": ["a", "b"]}))

    backbone = load_backbone(backbone_folder(run))
    assert backbone.facts["classes"] == 3
    assert backbone.facts["origin"] == "run"
    assert backbone.weights_hash == hash_weights(backbone.path)
    with torch.no_grad():
        logits = backbone.network(images) / model.facts["temperature"]
    expected = model.predict_proba(part.activations)
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert backbone_folder(run) == backbone.path.parent  # found again
    assert (backbone.path.parent / LEARNED).read_bytes() == (run / LEARNED).read_bytes()
    shutil.rmtree(tmp_path / "cache")
    for name in ("backbone.safetensors", "model.safetensors"):
        path = run / "repeat-0" / name
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match=rf"{name} cannot be read \(.*\): run `dvc repro --force"):
            backbone_folder(run)


def test_a_model_that_is_no_network_is_an_error_of_one_line(tmp_path: Path) -> None:
    data, _ = make_data(["sound", "broken"])
    write_json(tmp_path / "run.json", {})
    write_model(tmp_path / "repeat-0", fit("nearest_mean", data))
    write_json(tmp_path / "repeat-0" / "network.json", FACTS)
    with pytest.raises(UserError, match="a model of kind nearest_mean is no network"):
        backbone_folder(tmp_path)


def test_downloads_are_taken_as_they_are(tmp_path: Path) -> None:
    assert backbone_folder(tmp_path) == tmp_path


# ---- pretraining: features of what a run has trained, cut elsewhere, of other images


def pretrained(weights: Path, seed: int) -> NetworkModel:
    """Train above layer2 of a network, of three classes, and write the run as finetune does."""
    backbone = load_backbone(weights)
    recipe = {"network": backbone.facts, "cut": "layer2", "image_size": 64}
    images = normalised(cells(24, 64, 3), backbone.facts["mean"], backbone.facts["std"])
    with torch.no_grad():
        stored = split(backbone.network, "layer2", 64).below(images).numpy()[:, np.newaxis]
    labels = np.arange(24) % 3
    part = Part(stored, labels, np.eye(3, dtype=np.float32)[labels], None)

    def above():
        return lying_above(load_backbone(weights).network, backbone.facts, "layer2", 64, 3)

    data = TrainingData(["a", "b", "c"], part, part, above, recipe)
    model: NetworkModel = fit("fine_tune", data, seed, epochs=1, min_steps=8, learning_rate=0.003, start="zero")
    run = Path("data/models/pretrain")
    shutil.rmtree(run, ignore_errors=True)
    write_model(run / "repeat-0", model)
    shutil.copy(weights / "weights.safetensors", run / "repeat-0" / "backbone.safetensors")
    shutil.copy(weights / "network.json", run / "repeat-0")
    write_table(run / LEARNED, pa.table({"pixel_hash": ["a"]}))
    write_json(run / "run.json", {})
    return model


def put_together(weights: Path, model: NetworkModel) -> nn.Module:
    """The network that a run has trained, by its own names: what lay below the cut, what was trained, the new head."""
    whole = load_backbone(weights).network
    whole.fc = nn.Linear(whole.get_submodule("fc").in_features, 3)  # type: ignore[arg-type]
    trained = {n.removeprefix("body.").replace("head.", "fc."): torch.from_numpy(a) for n, a in model.arrays.items()}
    assert not whole.load_state_dict(trained, strict=False).unexpected_keys
    return whole.requires_grad_(False).eval()


def other_cells() -> None:
    """Put cells that the pretraining has not seen into data/raw/photos/."""
    folder = Path("data/raw/photos")
    folder.mkdir(parents=True)
    found = [Found(path.name, path, {"size": path.stat().st_size}) for path in cell_files(60)[36:]]
    write_images(folder, found, source="test", origin="a test", licence="none")


ENTRY = Features(images="photos", backbone="models/pretrain", image_size=64, cut="layer3")


@pytest.fixture
def weights(fetched: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a small network's folder, in a project of its own that knows images it has not seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRANSFER_ENGINE", "torch")
    other_cells()
    return fetched("random", "test_resnet", "timm")


def test_features_above_an_inner_cut_of_what_a_run_has_trained(weights: Path) -> None:
    """Stored is what the trained network gives there; a training above it starts from what was trained above it."""
    whole = put_together(weights, pretrained(weights, 0))
    extract("own", ENTRY)
    store = read_features("own")
    files = {hash_file(path): path for path in cell_files(60)[36:]}
    facts = store.facts["network"]
    assert (facts["origin"], facts["classes"], len(store)) == ("run", 3, len(files))
    arrays = [to_array(Image.open(files[h]), 64, interpolation=facts["interpolation"]) for h in store.image_hashes]
    images = normalised(np.stack(arrays), facts["mean"], facts["std"])
    with torch.no_grad():
        expected, untrained = (
            split(n, "layer3", 64).below(images).numpy() for n in (whole, load_backbone(weights).network)
        )
    stored = store.read(np.arange(len(store)))
    assert far(stored[:, 0], expected) < 1e-4
    assert far(stored[:, 0], untrained) > 1e-2

    labels = np.arange(len(store)) % 2
    rows = np.arange(len(store))
    parts = [Part(stored[at], labels[at], np.eye(2, dtype=np.float32)[labels[at]], None) for at in np.split(rows, [16])]
    recipe = {"network": facts, "cut": "layer3", "image_size": 64}

    def tuned(of: nn.Module) -> NetworkModel:
        data = TrainingData(["x", "y"], *parts, lambda: lying_above(copy.deepcopy(of), facts, "layer3", 64, 2), recipe)
        model: NetworkModel = fit("fine_tune", data, 0, epochs=1, min_steps=4)
        return model

    found, direct = tuned(load_backbone(FEATURES / "own", "backbone.safetensors").network), tuned(whole)
    assert found.arrays.keys() == direct.arrays.keys()
    assert all(np.array_equal(array, direct.arrays[name]) for name, array in found.arrays.items())
    np.testing.assert_array_equal(found.predict_proba(stored), direct.predict_proba(stored))


def test_another_pretraining_is_another_backbone_and_its_features_are_computed_anew(weights: Path) -> None:
    found = []
    for seed in (0, 1, 0):
        pretrained(weights, seed)
        extract("own", ENTRY)
        store = read_features("own")
        facts = read_json(Path("data/features/own/features.json"))
        hashes = facts["weights_hash"], facts["content_hash"], hash_file(Path("data/features/own/backbone.safetensors"))
        found.append((*hashes, store.read(np.arange(len(store))).tobytes()))
    assert found[0] == found[2]
    assert all(first != second for first, second in zip(found[0], found[1], strict=True))

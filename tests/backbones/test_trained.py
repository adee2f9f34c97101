"""A run's model as a backbone: one network, which gives what its two parts gave one after the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.backbones.backbone import load_backbone
from stages.backbones.cut import split
from stages.backbones.trained import backbone_folder
from stages.backbones.weights import hash_weights, save_weights
from stages.cli import UserError
from stages.files import LEARNED, write_json, write_table
from stages.store.models import write_model
from stages.transfers import Part, TrainingData
from stages.transfers.shared.above import lying_above
from tests.backbones.conftest import cells, network, normalised
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
        from copy import deepcopy

        return lying_above(deepcopy(whole), FACTS, cut, 64, 3)

    recipe = {"network": FACTS, "cut": cut, "image_size": 64}
    model = fit("fine_tune", TrainingData(["a", "b", "c"], part, part, above, recipe), epochs=1)
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
        with pytest.raises(UserError, match=rf"{name} cannot be read \(.*\): run `dvc checkout` or `dvc repro`"):
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

"""A training that is killed in the middle of an epoch, again and again, ends with the bytes of an undisturbed one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.store.models import write_model
from stages.transfers import Part, TrainingData
from stages.transfers.shared.above import Above
from tests.backbones.conftest import cells
from tests.transfers.made_up import fit, with_network

KEYS: dict[str, Any] = {"epochs": 2, "batch_size": 6, "min_steps": 0, "learning_rate": 0.003}
LIVE: dict[str, Any] = {"optimizer": "sgd", "stochastic_depth": 0.3, "dropout": 0.3, "jitter": 0.1, "start": "zero"}
AUGMENT = ["flip", "turns", "crop", "rotate", "light", "rand_augment"]
NETWORK = {"library": "timm", "network": "test_efficientnet", "classes": 1000, "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def pixels() -> TrainingData:
    """Real cells, every other one darkened, as they are stored; nothing of the network is frozen."""
    stored, labels = cells(36, 32, 3)[:, np.newaxis].astype(np.float32), np.arange(36) % 2
    stored[labels == 1] //= 2
    parts = [
        Part(stored[at], labels[at], np.eye(2, dtype=np.float32)[labels[at]], None)
        for at in np.split(np.arange(36), [24])
    ]
    return with_network(TrainingData(["bright", "dark"], *parts), NETWORK, "image", 32)


def lasting(data: TrainingData, steps: Iterator[int], most: int) -> TrainingData:
    """Let a training be interrupted as a step after so many begins."""

    def above() -> Above:
        assert data.above is not None
        network = data.above()

        def count(part: torch.nn.Module, _: Any) -> None:
            if part.training and next(steps) == most:
                raise KeyboardInterrupt

        network.register_forward_pre_hook(count)
        return network

    return replace(data, above=above)


def written(model: Any, folder: Path) -> dict[str, bytes]:
    write_model(folder, model)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "keys", "cut"),
    [
        ("fine_tune", {"mixup": 0.2, "refit": True, "start": "zero"}, "layer3"),
        ("fine_tune", {**LIVE, "augment": AUGMENT}, "image"),
        ("l2_sp", {"alpha": 10.0, "refit": True}, "layer3"),
        ("wise_ft", {"alpha": [0.3, 0.7], "refit": True}, "layer3"),
        ("greedy_soup", {"step_sizes": [0.5, 1.0], "refit": True, "start": "zero"}, "layer3"),
        ("calibrated_ensemble", {"layers": ["layer4"], "C": 1.0, "cutmix": 0.5}, "layer3"),
    ],
)
def test_a_training_killed_within_every_epoch_ends_with_the_same_bytes(
    kind: str, keys: dict[str, Any], cut: str, dark_cells: TrainingData, pixels: TrainingData, tmp_path: Path
) -> None:
    data = pixels if cut == "image" else dark_cells
    undisturbed = written(fit(kind, data, 3, **KEYS, **keys), tmp_path / "undisturbed")
    kept = replace(data, checkpoint=tmp_path / "course")
    killed, model = 0, None
    while model is None:
        # An epoch is four steps, that of a refit six: each process ends one, and dies within the next.
        try:
            model = fit(kind, lasting(kept, iter(range(100)), 7), 3, **KEYS, **keys)
        except KeyboardInterrupt:
            killed += 1
        assert killed < 20
    assert killed >= 1 + keys.get("refit", False)
    assert min(model.earlier) > 0  # seconds of those that were killed
    assert written(model, tmp_path / "killed") == undisturbed


@pytest.mark.parametrize("damage", ["one bit", "cut off", "empty"])
def test_a_damaged_checkpoint_is_told_and_the_training_begins_anew(
    damage: str, dark_cells: TrainingData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    undisturbed = written(fit("fine_tune", dark_cells, 3, **KEYS), tmp_path / "undisturbed")
    kept = replace(dark_cells, checkpoint=tmp_path / "course")
    with pytest.raises(KeyboardInterrupt):
        fit("fine_tune", lasting(kept, iter(range(100)), 7), 3, **KEYS)
    [checkpoint] = tmp_path.glob("course*.pt")
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes({"one bit": content, "cut off": content[: len(content) // 2], "empty": b""}[damage])
    model = fit("fine_tune", kept, 3, **KEYS)
    assert capsys.readouterr().err == f"warning: {checkpoint} was damaged: the training begins anew\n"
    assert written(model, tmp_path / "again") == undisturbed

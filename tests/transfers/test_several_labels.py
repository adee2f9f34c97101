"""Several labels of an image, with every kind of transfer that takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from stages.cli import UserError
from stages.params import Dataset, Features, Label, kind_module, kinds
from stages.store.models import read_model, write_model
from stages.transfers import Part, TrainingData
from stages.transfers.shared.several import fit_each
from tests.transfers.made_up import NETWORK, WIDTH, fit, with_network

LABELS = ["bent", "crack", "dust"]
KINDS = [kind for kind in kinds("transfers") if kind != "calibrated_ensemble"]
LEARNING = [kind for kind in KINDS if kind != "majority"]


@pytest.fixture(scope="module")
def several() -> tuple[TrainingData, Part]:
    """Each label moves the features in a direction of its own; one image in five has none."""
    random = np.random.default_rng(0)
    directions = 1.5 * random.standard_normal((len(LABELS), WIDTH))

    def part(count: int) -> Part:
        has = (random.random((count, len(LABELS))) < [0.5, 0.4, 0.3]).astype(np.int64)
        features = has @ directions + random.standard_normal((count, WIDTH))
        views = features[:, None] + 0.1 * random.standard_normal((count, 2, WIDTH))
        return Part(views.astype(np.float32), has, has.astype(np.float32), None)

    return TrainingData(LABELS, training=part(160), validation=part(80)), part(200)


def fitted(kind: str, data: TrainingData, **keys: Any) -> Any:
    """Fit as finetune does."""
    module = kind_module("transfers", kind)
    if getattr(module, "STREAMS", False):
        return fit(kind, with_network(data, NETWORK, "pooled", 160), **keys)
    return fit_each(module.fit, module.Params.model_validate({"kind": kind, **keys}), data, 0)


@pytest.mark.parametrize("kind", LEARNING)
def test_finds_each_label_by_itself(kind: str, several: tuple[TrainingData, Part]) -> None:
    data, test = several
    probabilities = fitted(kind, data).predict_proba(test.activations)
    assert probabilities.shape == test.labels.shape
    assert average_precision_score(test.labels, probabilities, average="macro") > 0.9  # by chance 0.4
    assert ((probabilities >= 0.5) == test.labels).mean() > 0.88  # of no label at all: 0.6
    own = np.where(test.labels, probabilities, 1 - probabilities)
    assert -np.log(own).mean() < 0.4  # of the labels' shares: 0.66


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_predicts_the_same_bits(kind: str, several: tuple[TrainingData, Part], tmp_path: Path) -> None:
    data, test = several
    model = fitted(kind, data)
    write_model(tmp_path / "model", model)
    loaded = read_model(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(test.activations), model.predict_proba(test.activations))
    assert (loaded.chosen, loaded.trained_parameters) == (model.chosen, model.trained_parameters)


def test_a_value_is_chosen_for_each_label(several: tuple[TrainingData, Part]) -> None:
    model = fitted("logistic", several[0], C=[1e-6, 1.0])
    assert model.chosen == {"C": 1.0}  # the same for all three
    assert fitted("majority", several[0]).chosen == {}


def test_a_class_weight_is_for_the_label_that_it_names(several: tuple[TrainingData, Part]) -> None:
    data, test = several
    plain, weighted = (
        fitted("logistic", data, C=[0.01], **keys).predict_proba(test.activations)
        for keys in ({}, {"class_weight": {"crack": 5.0}})
    )
    assert weighted[:, 1].mean() > plain[:, 1].mean() + 0.02
    assert np.array_equal(weighted[:, [0, 2]], plain[:, [0, 2]])
    with pytest.raises(UserError, match="class_weight names carck, which is no label; did you mean crack"):
        fitted("logistic", data, class_weight={"carck": 2.0})


def test_what_takes_one_class_of_each_image_refuses_several_labels() -> None:
    dataset = Dataset(images="photos", label=Label(column=LABELS))
    features = Features(images="photos", backbone="raw/net", image_size=64, cut="blocks.5")
    for kind, keys, message in (
        ("calibrated_ensemble", {}, "takes one class of each image"),
        ("fine_tune", {"class_weight": "auto"}, "transfer.class_weight is for one class of each image"),
        ("fine_tune", {"soft_labels": True}, "has no soft labels"),
    ):
        module = kind_module("transfers", kind)
        problem = module.problem(module.Params.model_validate({"kind": kind, **keys}), features, dataset)
        assert message in problem

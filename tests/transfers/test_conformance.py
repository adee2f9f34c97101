"""What holds for every kind of transfer, run for each file in stages/transfers/."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from stages.cli import UserError
from stages.params import kind_module, kinds
from stages.store.models import read_model, write_model
from stages.transfers import Part, TrainingData
from stages.transfers.shared.shallow import ShallowParams
from tests.transfers.made_up import fit, make_data, take

KINDS = kinds("transfers")
LEARNING = [kind for kind in KINDS if kind != "majority"]
SHALLOW = [kind for kind in LEARNING if issubclass(kind_module("transfers", kind).Params, ShallowParams)]
TRAINED = [kind for kind in LEARNING if kind not in SHALLOW]  # networks above a cut, in torch
WEIGHTED = [kind for kind in KINDS if "class_weight" in kind_module("transfers", kind).Params.model_fields]
LISTS = {
    "logistic": {"C": [0.01, 1.0]},
    "linear_svm": {"C": [0.001, 0.1]},
    "rbf_svm": {"C": [1.0, 10.0], "gamma": [0.5, 2.0]},
    "knn": {"k": [3, 15], "temperature": [0.07, None]},
    "lda": {"shrinkage": ["auto", 0.5]},
    "lda_probe": {"shrinkage": ["auto", 0.5], "C": [0.1, 10.0]},
    "ridge": {"alpha": [1.0, 100.0]},
    "mlp": {"hidden": [8, 16], "learning_rate": [0.001, 0.01], "epochs": 5},
    "nearest_mean": {},
}
Data = tuple[TrainingData, Part]


def saved(model: Any, folder: Path) -> dict[str, bytes]:
    write_model(folder, model)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_kind_is_covered() -> None:
    assert {*LISTS, "majority"} == {*SHALLOW, "majority"}
    assert all(kind_module("transfers", kind).STREAMS for kind in TRAINED)


@pytest.mark.parametrize("kind", KINDS)
def test_says_its_family_and_version(kind: str) -> None:
    module = kind_module("transfers", kind)
    family = {"majority": "none"}.get(kind, "parameter" if kind in TRAINED else "feature")
    assert family == module.FAMILY
    assert isinstance(module.VERSION, int)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_gives_the_same_bytes(kind: str, three_classes: Data, tmp_path: Path) -> None:
    data, _ = three_classes
    first, second = (saved(fit(kind, data, seed=3), tmp_path / name) for name in ("first", "second"))
    assert {"model.json", "model.safetensors"} <= set(first)
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_predicts_the_same_bits(kind: str, three_classes: Data, tmp_path: Path) -> None:
    data, test = three_classes
    model = fit(kind, data)
    write_model(tmp_path / "model", model)
    loaded = read_model(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(test.activations), model.predict_proba(test.activations))
    assert (loaded.chosen, loaded.trained_parameters) == (model.chosen, model.trained_parameters)


@pytest.mark.parametrize(
    ("kind", "views"),
    [*itertools.product(SHALLOW, ["mean", "identity", "all"]), *itertools.product(TRAINED, ["identity", "all"])],
)
def test_probabilities_sum_to_one_and_none_is_zero(
    kind: str, views: str, two_classes: Data, three_classes: Data
) -> None:
    for data, test in (two_classes, three_classes):
        probabilities = fit(kind, data, views=views).predict_proba(test.activations)
        assert probabilities.shape == (len(test.labels), len(data.classes))
        assert probabilities.dtype == np.float64
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
        assert probabilities.min() > 0


@pytest.mark.parametrize("kind", LEARNING)
def test_tells_apart_what_lies_apart(kind: str, two_classes: Data, three_classes: Data) -> None:
    for data, test in (two_classes, three_classes):
        probabilities = fit(kind, data).predict_proba(test.activations)
        own = probabilities[np.arange(len(test.labels)), test.labels]
        assert (probabilities.argmax(axis=1) == test.labels).mean() > 0.95  # the majority class: 1/2 and 1/3
        assert -np.log(own).mean() < 0.3  # the shares of the classes: 0.69 and 1.10


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_labels_fall_to_chance(kind: str, shuffled: Data) -> None:
    data, test = shuffled
    probabilities = fit(kind, data).predict_proba(test.activations)
    right = (probabilities.argmax(axis=1) == test.labels).mean()
    assert abs(right - 0.5) < 0.07  # 3.4 times the counting error of 600
    # Nor does it claim to know: a model that fits noise, or calibrates on what it was fitted on, is sure and wrong.
    own = probabilities[np.arange(len(test.labels)), test.labels]
    assert -np.log(own).mean() < 0.75  # of no knowledge: 0.693


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_predicted_the_same_alone_and_among_others(kind: str, three_classes: Data) -> None:
    data, test = three_classes
    model = fit(kind, data)
    together, alone = model.predict_proba(test.activations), model.predict_proba(test.activations[5:6])
    np.testing.assert_allclose(alone[0], together[5], rtol=1e-5, atol=1e-7)
    assert model.predict_proba(test.activations[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", SHALLOW)
def test_what_the_folds_keep_whole_is_a_recorded_fact(kind: str, two_classes: Data) -> None:
    """Groups as a rule; images where a class lies in a single group."""

    def in_one_group(part: Part) -> Part:
        return Part(part.activations, part.labels, part.targets, [f"module {label}" for label in part.labels])

    data, _ = two_classes
    poor = TrainingData(data.classes, in_one_group(data.training), in_one_group(data.validation))
    found = [fit(kind, d).facts.get("folds_keep_whole") for d in (data, poor)]
    assert found == ([None, None] if kind in ("logistic", "knn", "mlp") else ["group", "image"])


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_keys_are_refused(kind: str) -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        kind_module("transfers", kind).Params.model_validate({"kind": kind, "regularisation": 1.0})


@pytest.mark.parametrize("kind", SHALLOW)
def test_lists_are_chosen_from_by_log_loss_on_validation(kind: str, three_classes: Data) -> None:
    data, _ = three_classes
    model = fit(kind, data, **LISTS[kind], refit=False)
    losses = [choice["validation_log_loss"] for choice in model.facts["choices"]]
    lists = [key for key, value in LISTS[kind].items() if isinstance(value, list)]
    assert len(losses) == 2 ** len(lists)
    best = model.facts["choices"][int(np.argmin(losses))]
    assert {key: model.chosen[key] for key in lists} == {key: best[key] for key in lists}
    probabilities = model.predict_proba(data.validation.activations)
    own = probabilities[np.arange(len(data.validation.labels)), data.validation.labels]
    assert -np.log(own).mean() == pytest.approx(min(losses), rel=1e-9)


@pytest.mark.parametrize("kind", [kind for kind in SHALLOW if kind != "mlp"])
def test_what_is_chosen_is_fitted_again_with_the_validation_part(kind: str, three_classes: Data) -> None:
    data, test = three_classes
    parts = (data.training, data.validation)
    both = Part(
        np.concatenate([part.activations for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.targets for part in parts]),
        [group for part in parts for group in part.groups or ()],
    )
    chosen = fit(kind, data, **LISTS[kind])
    expected = fit(kind, TrainingData(data.classes, both, data.validation), **chosen.chosen, refit=False)
    assert np.array_equal(chosen.predict_proba(test.activations), expected.predict_proba(test.activations))


@pytest.mark.parametrize("kind", SHALLOW)
def test_one_stored_view_is_the_same_whatever_is_done_with_views(kind: str, two_classes: Data) -> None:
    data, test = two_classes
    only = slice(0, 1)
    parts = (take(part, range(len(part.labels)), only) for part in (data.training, data.validation))
    one = TrainingData(data.classes, *parts)
    found = [fit(kind, one, views=views).predict_proba(test.activations[:, only]) for views in ("mean", "all")]
    expected = fit(kind, one, views="identity").predict_proba(test.activations)
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1], expected)


def logit(model: Any, test: Part) -> Any:
    probabilities = model.predict_proba(test.activations)
    return np.log(probabilities[:, 1] / probabilities[:, 0])


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_class_of_weight_two_is_that_class_twice(kind: str) -> None:
    """Scores must agree up to slope and shift: how samples are dealt into the folds of Platt scaling may differ."""
    data, test = make_data(["sound", "broken"], apart=0.2)
    # One step an epoch, and nothing random: then a network sees the same loss, too.
    keys: dict[str, Any] = {"mlp": {"batch_size": 1000, "dropout": 0.0, "learning_rate": 0.01}}.get(kind, {})
    if kind in TRAINED:
        keys = {"batch_size": 1000, "views": "identity", "start": "zero", "learning_rate": 0.01}
    keys |= {key: value[1] for key, value in LISTS.get(kind, {}).items() if isinstance(value, list) and kind != "mlp"}

    def twice(part: Part) -> Part:
        return take(part, [*range(len(part.labels)), *np.flatnonzero(part.labels == 1)])

    doubled = TrainingData(data.classes, twice(data.training), twice(data.validation))
    expected = logit(fit(kind, doubled, **keys), test)
    weighted = logit(fit(kind, data, class_weight={"broken": 2.0}, **keys), test)
    unweighted = logit(fit(kind, data, **keys), test)
    assert np.corrcoef(weighted, expected)[0, 1] > 1 - 1e-5
    assert np.corrcoef(unweighted, expected)[0, 1] < 1 - 1e-4
    if kind in ("logistic", "mlp", *TRAINED) and kind != "calibrated_ensemble":  # half of which is on folds
        np.testing.assert_allclose(weighted, expected, atol=2e-3)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_sample_of_weight_two_counts_as_a_class_of_weight_two_would(kind: str) -> None:
    data, test = make_data(["sound", "broken"], apart=0.2)
    keys: dict[str, Any] = {"epochs": 2} if kind in ("mlp", *TRAINED) else {}

    def weighted(part: Part) -> Part:
        return replace(part, weights=1.0 + part.labels)

    own = TrainingData(data.classes, weighted(data.training), weighted(data.validation))
    found = fit(kind, own, **keys).predict_proba(test.activations)
    expected = fit(kind, data, class_weight={"broken": 2.0}, **keys).predict_proba(test.activations)
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, fit(kind, data, **keys).predict_proba(test.activations))


@pytest.mark.parametrize("kind", WEIGHTED)
def test_weights_auto_make_rare_classes_count_as_much_as_frequent_ones(kind: str, two_classes: Data) -> None:
    data, test = two_classes

    def thinned(part: Part) -> Part:
        return take(part, [row for row, label in enumerate(part.labels) if label == 0 or row % 4 == 1])

    rare = TrainingData(data.classes, thinned(data.training), thinned(data.validation))
    counts = np.bincount(np.concatenate([rare.training.labels, rare.validation.labels]))
    weights = {name: counts.sum() / (2 * n) for name, n in zip(data.classes, counts.tolist(), strict=True)}
    by_epochs = kind in ("mlp", *TRAINED)
    keys = {} if by_epochs else {k: v[0] for k, v in LISTS[kind].items()}
    auto = fit(kind, rare, class_weight="auto", **keys).predict_proba(test.activations)
    named = fit(kind, rare, class_weight=weights, **keys).predict_proba(test.activations)
    if by_epochs:  # the weights on training alone, where the epoch is chosen, are a little different
        np.testing.assert_allclose(auto, named, atol=0.05)
    else:
        assert np.array_equal(auto, named)


@pytest.mark.parametrize("kind", WEIGHTED)
def test_a_weight_for_no_class_is_answered_by_the_nearest(kind: str, two_classes: Data) -> None:
    with pytest.raises(UserError, match="class_weight names brokn, which is no class; did you mean broken"):
        fit(kind, two_classes[0], class_weight={"brokn": 2.0})


@pytest.mark.parametrize("kind", sorted(set(KINDS) - set(WEIGHTED)))
def test_kinds_to_which_class_weights_mean_nothing_refuse_them(kind: str) -> None:
    assert kind in ("knn", "majority", "nearest_mean")
    with pytest.raises(ValidationError, match="extra_forbidden"):
        kind_module("transfers", kind).Params.model_validate({"kind": kind, "class_weight": "auto"})


@pytest.mark.parametrize("kind", SHALLOW)
def test_more_features_than_samples(kind: str) -> None:
    data, test = make_data(["sound", "broken"], apart=0.5, width=400)
    probabilities = fit(kind, data).predict_proba(test.activations)
    assert (probabilities.argmax(axis=1) == test.labels).mean() > 0.95


@pytest.mark.parametrize("kind", SHALLOW)
def test_features_that_never_vary_change_nothing(kind: str, two_classes: Data) -> None:
    data, test = two_classes

    def with_constants(part: Part) -> Part:
        constant = np.full((*part.activations.shape[:2], 3), 0.1, np.float32)
        constant[..., 1] = 0
        activations = np.concatenate([part.activations, constant], axis=2)
        return Part(activations, part.labels, part.targets, part.groups)

    wider = TrainingData(data.classes, with_constants(data.training), with_constants(data.validation))
    probabilities = fit(kind, wider).predict_proba(with_constants(test).activations)
    assert np.isfinite(probabilities).all()
    assert (probabilities.argmax(axis=1) == test.labels).mean() > 0.95


def test_shallow_heads_are_fitted_without_torch_and_predict_without_scikit_learn(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from stages.params import kinds
from stages.store.models import read_model, write_model
from stages.transfers.shared.shallow import ShallowParams
from tests.transfers.made_up import fit, make_data
data, test = make_data(["sound", "broken"])
if sys.argv[1] == "fit":
    for kind in {[kind for kind in SHALLOW if kind != "mlp"]}:
        write_model(Path({str(tmp_path)!r}) / kind, fit(kind, data))
    write_model(Path({str(tmp_path)!r}) / "nothing", fit("majority", data))
    print([name for name in ("torch", "matplotlib") if name in sys.modules])
else:
    for folder in Path({str(tmp_path)!r}).iterdir():
        read_model(folder).predict_proba(test.activations)
    print([name for name in ("torch", "sklearn", "scipy", "pandas") if name in sys.modules])
"""
    for step in ("fit", "predict"):
        command = [sys.executable, "-c", program, step]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        assert result.stdout == "[]\n"

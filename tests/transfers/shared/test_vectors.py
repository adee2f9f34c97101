"""Vectors that stay on disk: heads come to what they come to on an array, and do not hold them in memory."""

from __future__ import annotations

import hashlib
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from stages.params import kind_module, kinds
from stages.store import models
from stages.store.activations import read_features, write_features
from stages.store.models import OnDisk, read_model, write_model
from stages.transfers import Part, TrainingData, knn, linear_svm
from stages.transfers.shared import search, shallow, vectors
from stages.transfers.shared.vectors import StoredVectors, pieces
from tests.transfers.made_up import fit, make_data

IN_PIECES = [kind for kind in kinds("transfers") if getattr(kind_module("transfers", kind), "PIECES", False)]
KEYS: dict[str, dict[str, Any]] = {
    "logistic": {"C": [0.001, 0.1]},
    "lda": {"shrinkage": ["auto", 0.5]},
    "lda_probe": {"shrinkage": ["auto"], "C": [0.1, 1.0]},
    "ridge": {"alpha": [1.0, 100.0]},
    "nearest_mean": {},
    "linear_svm": {"C": [0.001, 0.1]},
    "knn": {"k": [5, 20]},
    "majority": {},
    "mlp": {"hidden": [8], "epochs": 5, "learning_rate": 0.03, "batch_size": 8},
}
READING = [kind for kind in IN_PIECES if kind != "majority"]
NEAR = {"logistic": 1e-4, "lda_probe": 1e-5}
"""How far probabilities may lie apart: what an optimum is searched for is found to within some digits."""
Data = tuple[TrainingData, Part]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a piece be a few rows: of 64 columns seven."""
    monkeypatch.setattr(vectors, "PIECE_BYTES", 7 * 64 * 8)


def stored(data: TrainingData, folder: Path, dtype: str = "float32") -> TrainingData:
    """Return the same data with activations that lie in a folder of features, in the order of their hashes."""
    parts = (data.training, data.validation)
    activations = np.concatenate([part.activations for part in parts])
    hashes = [hashlib.sha256(bytes([*row.to_bytes(4, "big")])).hexdigest() for row in range(len(activations))]
    order = np.argsort(hashes)
    backbone = folder / "backbone"
    backbone.mkdir()
    (backbone / "weights.safetensors").write_bytes(b"weights")
    (backbone / "network.json").write_text("{}")
    views = [f"view {number}" for number in range(activations.shape[1])]
    facts = {"views": views, "shape": list(activations.shape[2:]), "dtype": dtype}
    write_features(folder / "features", facts, sorted(hashes), {}, [activations[order]], [], backbone)
    store = read_features(folder / "features")
    rows = store.rows(hashes)
    first = len(data.training.labels)
    training, validation = (cast("Any", store.stored(own)) for own in (rows[:first], rows[first:]))
    return replace(
        data,
        training=replace(data.training, activations=training),
        validation=replace(data.validation, activations=validation),
    )


def test_every_kind_that_reads_in_pieces_is_tried() -> None:
    assert sorted(IN_PIECES) == sorted(KEYS)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("views", ["mean", "identity", "all"])
@pytest.mark.parametrize("kind", READING)
def test_stored_vectors_give_the_head_that_an_array_gives(
    kind: str, views: str, three_classes: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, test = three_classes
    monkeypatch.setattr(linear_svm, "MOST_ROWS", 10)
    expected, found = (fit(kind, own, views=views, **KEYS[kind]) for own in (data, stored(data, tmp_path)))
    assert found.chosen == expected.chosen
    probabilities = expected.predict_proba(test.activations)
    near = NEAR.get(kind, 1e-6)
    np.testing.assert_allclose(found.predict_proba(test.activations), probabilities, atol=near)
    assert np.ptp(probabilities) > 0.5


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("normalize", ["standard", "l2", "none"])
@pytest.mark.parametrize("kind", ["logistic", "ridge"])
def test_whatever_the_normalisation_and_the_weights(
    kind: str, normalize: str, two_classes: Data, tmp_path: Path
) -> None:
    data, test = two_classes
    random = np.random.default_rng(0)
    training, validation = (
        replace(part, weights=random.uniform(0.1, 3, len(part.labels))) for part in (data.training, data.validation)
    )
    data = replace(data, training=training, validation=validation)
    keys = {**KEYS[kind], "normalize": normalize, "class_weight": {"sound": 2.0}}
    expected, found = (fit(kind, own, **keys) for own in (data, stored(data, tmp_path)))
    np.testing.assert_allclose(
        found.predict_proba(test.activations), expected.predict_proba(test.activations), atol=NEAR.get(kind, 1e-6)
    )


@pytest.mark.usefixtures("small_pieces")
def test_of_many_columns_the_search_has_the_diagonal_alone_and_comes_to_the_same(
    three_classes: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, test = three_classes
    expected = fit("logistic", data, **KEYS["logistic"])
    monkeypatch.setattr(search, "MOST_COLUMNS", 10)
    found = fit("logistic", stored(data, tmp_path), **KEYS["logistic"])
    np.testing.assert_allclose(
        found.predict_proba(test.activations), expected.predict_proba(test.activations), atol=NEAR["logistic"]
    )


def test_columns_that_depend_on_each_other_and_lie_far_from_zero_do_not_end_the_search(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features = random.standard_normal((600, 20)) @ random.standard_normal((20, 60)) + 300
    features = features.astype(np.float32)[:, np.newaxis]
    labels = (features[:, 0, 0] > 300).astype(np.int64)
    parts = [Part(features[rows], labels[rows], None, None) for rows in (slice(0, 500), slice(500, 600))]
    data = stored(TrainingData(["low", "high"], *parts), tmp_path)
    found = fit("logistic", data, normalize="none").predict_proba(features)
    assert (found.argmax(axis=1) == labels).mean() > 0.95


@pytest.mark.parametrize("kind", IN_PIECES)
def test_of_fewer_rows_than_columns_the_model_has_the_same_bytes(kind: str, tmp_path: Path) -> None:
    data, _ = make_data(["sound", "broken"], width=300)
    models = [fit(kind, own, **KEYS[kind]) for own in (data, stored(data, tmp_path))]
    arrays, same = (model.arrays for model in models)
    assert arrays.keys() == same.keys()
    assert all(arrays[name].tobytes() == same[name].tobytes() for name in arrays)


@pytest.mark.parametrize("kind", IN_PIECES)
def test_rows_that_stay_on_disk_are_not_held_in_memory(
    kind: str, two_classes: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key: values[:1] for key, values in KEYS[kind].items() if isinstance(values, list)}
    keys |= {"epochs": 1} if kind == "mlp" else {}
    fit(kind, two_classes[0], **keys)  # imports are no part of it
    random, count, width = np.random.default_rng(0), 20_000, 128
    labels = np.arange(count) % 2
    activations = random.standard_normal((count, 1, width), np.float32)
    activations[:, 0, 0] += labels
    whole = Part(activations, labels, None, None)
    data = stored(TrainingData(["a", "b"], whole, Part(activations[:100], labels[:100], None, None)), tmp_path)
    size = activations.nbytes
    del activations, whole
    monkeypatch.setattr(vectors, "PIECE_BYTES", 100 * width * 8)
    monkeypatch.setattr(shallow, "ROWS_AT_ONCE", 100)
    tracemalloc.start()
    try:
        fit(kind, data, **keys)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size / 2


def test_vectors_are_read_by_numbers_and_by_slices_from_all_parts(three_classes: Data, tmp_path: Path) -> None:
    data, _ = three_classes
    found = stored(data, tmp_path)
    parts = [found.training.activations, found.validation.activations]
    both = np.concatenate([data.training.activations, data.validation.activations])
    for views, expected in (("all", both.reshape(360, 64)), ("mean", both.mean(axis=1)), ("identity", both[:, 0])):
        read = StoredVectors(parts, views)
        assert read.shape == expected.shape
        np.testing.assert_array_equal(read[:], expected)
        np.testing.assert_array_equal(read[115:125], expected[115:125])
        rows = np.array([150, 3, 3, 0, 119, 120])
        np.testing.assert_array_equal(read[rows], expected[rows])
        assert read.astype(np.float64)[rows].dtype == np.float64
        assert read[np.empty(0, np.int64)].shape == (0, 64)
        for row in (-1, len(expected)):
            with pytest.raises(IndexError):
                read[np.array([0, row])]


@pytest.mark.usefixtures("small_pieces")
def test_pieces_are_all_rows_once_and_of_an_array_there_is_one(three_classes: Data, tmp_path: Path) -> None:
    data, _ = three_classes
    read = StoredVectors([stored(data, tmp_path).training.activations], "identity")
    numbers = np.arange(120)
    found = list(pieces(read))
    assert [len(piece) for _, piece in found] == [7] * 17 + [1]
    np.testing.assert_array_equal(np.concatenate([numbers[rows] for rows, _ in found]), numbers)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in found]), read[:])
    some = np.arange(40, 80, 2)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces(read, some)]), read[some])
    assert [len(piece) for _, piece in pieces(read, numbers[:0])] == [0]
    assert replace(read, views="mean").at_once == 3  # of two views
    ((rows, piece),) = pieces(read[:])
    assert (rows, piece.shape) == (slice(None), (120, 64))


@pytest.mark.usefixtures("small_pieces")
def test_neighbours_that_stay_on_disk_are_those_of_an_array(
    three_classes: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, test = three_classes
    written = [tmp_path / "array", tmp_path / "stored"]
    for folder, own in zip(written, (data, stored(data, tmp_path)), strict=True):
        write_model(folder, fit("knn", own, k=[7]))
    one, other = ((folder / "model.safetensors").read_bytes() for folder in written)
    assert one == other
    assert {path.name for path in written[1].iterdir()} == {"model.json", "model.safetensors"}
    expected = read_model(written[0]).predict_proba(test.activations)
    monkeypatch.setattr(models, "LARGE", 0)
    monkeypatch.setattr(knn, "_NUMBERS_AT_ONCE", 11 * 64)  # eleven rows
    found: Any = read_model(written[1])
    assert isinstance(found.head.stored, OnDisk)
    np.testing.assert_allclose(found.predict_proba(test.activations), expected, rtol=1e-5)


@pytest.mark.parametrize("classes", [2, 3])
def test_of_equally_near_neighbours_the_first_vote_however_they_are_read(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows are one vector: only the first five vote, though pieces hold three."""
    labels = np.arange(40) % classes
    part = Part(np.ones((40, 1, 4), np.float32), labels, None, None)
    names = [str(number) for number in range(classes)]
    monkeypatch.setattr(knn, "_NUMBERS_AT_ONCE", 3 * 4)
    model = fit("knn", TrainingData(names, part, part), k=5, normalize="none", temperature=None, refit=False)
    votes = np.bincount(labels[:5], minlength=classes) + np.bincount(labels) / 40
    np.testing.assert_allclose(model.predict_proba(part.activations)[0], votes / votes.sum(), rtol=1e-6)


def test_neighbours_are_written_and_read_without_all_of_them_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random, count, width = np.random.default_rng(0), 20_000, 128
    activations = random.standard_normal((count, 1, width), np.float32)
    whole = Part(activations, np.arange(count) % 2, None, None)
    few = Part(activations[:50], whole.labels[:50], None, None)
    data = stored(TrainingData(["a", "b"], whole, few), tmp_path)
    model = fit("knn", data, k=5, refit=False)
    monkeypatch.setattr(vectors, "PIECE_BYTES", 100 * width * 8)
    monkeypatch.setattr(models, "LARGE", 2**18)
    monkeypatch.setattr(knn, "_NUMBERS_AT_ONCE", 100 * width)
    tracemalloc.start()
    try:
        write_model(tmp_path / "model", model)
        probabilities = read_model(tmp_path / "model").predict_proba(few.activations)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < activations.nbytes / 4
    assert (probabilities.argmax(axis=1) == few.labels).mean() > 0.8

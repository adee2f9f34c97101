"""The stage finetune, on a small made-up data set and features that other stages' writers have written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.cli import UserError
from stages.files import write_table
from stages.finetune import finetune
from stages.params import Dataset, Label, Run, Split, kind_module, kinds
from stages.samples.labels import Labels
from stages.samples.table import read_samples, write_samples
from stages.store.activations import FeatureStore, write_checksums, write_features
from stages.store.models import read_model

CLASSES = ["broken", "sound"]
COUNT, GROUPS, REPEATS, WIDTH = 80, 16, 4, 12
LABELS = np.arange(COUNT) // 5 % 3 // 2  # a third of the 16 groups of 5 samples is sound
HASHES = [hashlib.sha256(bytes([i])).hexdigest() for i in range(COUNT)]
ROWS = {image_hash: row for row, image_hash in enumerate(sorted(HASHES))}


def parts(repeat: int) -> list[str]:
    """Return the part of each sample: groups whole, test parts that rotate."""
    names = ["test", "validation", "train", "train"]
    return [names[(i // 5 - repeat) % 4] for i in range(COUNT)]


def make_activations(views: int = 2) -> Any:
    """Return activations (samples, views, WIDTH) in which the classes lie apart."""
    random = np.random.default_rng(0)
    features = random.standard_normal((COUNT, 1, WIDTH)) + 3 * LABELS[:, None, None]
    return (features + 0.1 * random.standard_normal((COUNT, views, WIDTH))).astype(np.float32)


def write_dataset(labels: Any = LABELS, group: str | None = "module", name: str = "cells") -> None:
    columns: dict[str, Any] = {
        "sample": [f"cell{i:03}.png" for i in range(COUNT)],
        "image_hash": HASHES,
        "pixel_hash": [image_hash[::-1] for image_hash in HASHES],
        "group": [f"module {i // 5}" if group else None for i in range(COUNT)],
        "label": labels,
        "target": [[float(label == c) for c in range(2)] for label in labels],
        **{f"split_{repeat}": parts(repeat) for repeat in range(REPEATS)},
    }
    table = pa.table({**columns, "target": pa.array(columns["target"], pa.list_(pa.float32()))})
    entry = Dataset(images="elpv", label=Label(), group=group, split=Split(test=0.25, repeats=REPEATS))
    folder = Path("data/prepared") / name
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"source": "folder", "origin": "photos", "licence": "unknown"}
    made = Labels(CLASSES, np.asarray(labels, np.int64))
    write_samples(folder, name, entry, made, table, table.slice(0, 0), origin=origin)


def write_store(
    activations: Any = None, hashes: list[str] = HASHES, name: str = "lite0", cut: str = "pooled", **network: str
) -> None:
    activations = make_activations() if activations is None else activations
    weights = Path("data/raw/lite0")
    weights.mkdir(parents=True, exist_ok=True)
    facts = {"network": "tf_efficientnet_lite0", "origin": "package", "licence": "apache-2.0", **network}
    (weights / "weights.safetensors").write_bytes(b"weights")
    (weights / "network.json").write_text(json.dumps(facts))
    about = {
        "entry": {"cut": cut, "backbone": "models/pretrained"},
        "views": ["identity", "flip"],
        "shape": [WIDTH],
        "dtype": "float32",
        "weights_hash": "w" * 64,
        "network": facts,
        "preprocessing_version": 1,
        "operations": 7,
        "content_hash": "f" * 64,
    }
    order = sorted(hashes)
    rows = activations[[hashes.index(image_hash) for image_hash in order]]
    write_features(Path("data/features") / name, about, order, {}, [rows], [], weights)


def make_run(kind: str = "logistic", keys: dict[str, Any] | None = None, **more: Any) -> Run:
    transfer = kind_module("transfers", kind).Params.model_validate({"kind": kind, **(keys or {})})
    return Run(dataset="cells", features="lite0", transfer=transfer, **more)


def run_facts(name: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(Path(f"data/models/{name}/run.json").read_text())
    return facts


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which prepare and extract have run."""
    monkeypatch.chdir(tmp_path)
    write_dataset()
    write_store()


def test_a_head_that_may_not_fit_into_memory_is_told_before_it_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(left: int, run: Run) -> bool:
        monkeypatch.setattr("stages.finetune.available_memory", lambda: left)
        finetune("probe", run)
        said = capsys.readouterr().err
        full = (
            r"warning: runs\.probe: (16|60|80) images of [12] x 12 numbers may take \S+ GB to fit, and \S+ GB of "
            r"memory are left; docs/own-images\.md says under Many images which kinds read them piece by piece, and "
            r"what else takes less\n"
        )
        assert not said or re.fullmatch(full, said)
        return bool(said)

    one, classes = 4 * WIDTH, 50 * 2  # bytes of a view, and of what the classes take
    for left, run in (
        (60 * (one * (2 + 10) + classes), make_run(repeats=1)),  # two views are read; ten rows more are of their mean
        (60 * (one * (1 + 10) + classes), make_run(keys={"views": "identity"}, repeats=1)),
        (60 * (one * (2 + 20) + 2 * classes), make_run(keys={"views": "all"}, repeats=1)),
        (16 * (one * (2 + 10) + classes), make_run(repeats=1, labels_per_class=[8])),
        (80 * (one * (2 + 10) + classes), make_run(repeats=1, final=True)),
        (80 * (one * (2 + 10) + classes), make_run(repeats=1, final=True, labels_per_class=[8])),
    ):
        assert not told(left, run)
        assert told(left - 1, run)


def test_many_rows_stay_on_disk_and_are_not_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune("probe", make_run(keys={"C": 0.01}, repeats=1))
    expected = read_model(Path("data/models/probe/repeat-0")).predict_proba(make_activations())
    used = 60 * 4 * WIDTH  # bytes of the rows of training and validation, the mean of two views each

    def read(*_: Any) -> None:
        raise AssertionError("all rows were read at once")

    monkeypatch.setattr("stages.finetune.MANY_BYTES", used - 1)
    monkeypatch.setattr("stages.finetune.check_finite", read)
    needed = 8 * WIDTH * (11 * WIDTH + 90 * 2) + 60 * 50 * 2  # matrices of columns by columns, and what classes take
    monkeypatch.setattr("stages.finetune.available_memory", lambda: needed)
    finetune("probe", make_run(keys={"C": 0.01}, repeats=1))
    found = read_model(Path("data/models/probe/repeat-0")).predict_proba(make_activations())
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.array_equal(found, expected)  # it was another search
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("stages.finetune.available_memory", lambda: needed - 1)
    finetune("probe", make_run(keys={"C": 0.01}, repeats=1))
    assert "runs.probe: 60 images of 2 x 12 numbers may take" in capsys.readouterr().err
    monkeypatch.setattr("stages.finetune.MANY_BYTES", used)
    with pytest.raises(AssertionError, match="at once"):
        finetune("probe", make_run(keys={"C": 0.01}, repeats=1))


def test_a_kind_may_hold_as_many_rows_as_it_says_and_one_may_hold_no_matrix_of_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: Any) -> None:
        raise AssertionError("all rows were read at once")

    machine, neighbours = (make_run(kind=kind, repeats=1) for kind in ("linear_svm", "knn"))
    monkeypatch.setattr("stages.finetune.MANY_BYTES", 0)
    monkeypatch.setattr("stages.finetune.check_finite", read)
    monkeypatch.setattr("stages.transfers.linear_svm.PIECES", 60)  # the rows of training and validation
    with pytest.raises(AssertionError, match="at once"):
        finetune("svm", machine)
    monkeypatch.setattr("stages.transfers.linear_svm.PIECES", 59)
    finetune("svm", machine)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("stages.finetune.available_memory", lambda: 8 * WIDTH * 90 * 2 + 60 * 50 * 2)
    finetune("knn", neighbours)
    assert capsys.readouterr().err == ""
    finetune("svm", machine)
    assert "runs.svm: 60 images of 2 x 12 numbers may take" in capsys.readouterr().err


def test_of_many_rows_the_views_that_are_used_are_read_and_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    activations = make_activations()
    activations[:, 1] = np.nan
    shutil.rmtree("data/features/lite0")
    write_store(activations)
    run = make_run(keys={"C": 0.01, "views": "identity"}, repeats=1)
    finetune("probe", run)
    monkeypatch.setattr("stages.finetune.MANY_BYTES", 0)
    finetune("probe", run)
    with pytest.raises(UserError, match="not finite, the first is number 0 of the view flip"):
        finetune("probe", make_run(keys={"C": 0.01}, repeats=1))


def test_each_repeat_gets_a_folder_that_is_enough_to_predict() -> None:
    finetune("probe", make_run(keys={"C": [0.01, 0.1]}))
    assert sorted(p.name for p in Path("data/models/probe").iterdir()) == [
        *(f"repeat-{k}" for k in range(REPEATS)),
        "run.json",
    ]
    for repeat in range(REPEATS):
        folder = Path(f"data/models/probe/repeat-{repeat}")
        frozen = {"backbone.safetensors", "features.json", "network.json"}
        assert {p.name for p in folder.iterdir()} == {*frozen, "model.json", "model.safetensors"}
        for name in frozen:
            assert (folder / name).read_bytes() == Path("data/features/lite0", name).read_bytes()
            assert (folder / name).samefile(Path("data/features/lite0", name))
        test = read_samples("cells").part(repeat, "test")
        probabilities = read_model(folder).predict_proba(make_activations()[test])
        assert (probabilities.argmax(axis=1) == LABELS[test]).all()


def test_run_json_says_what_the_run_is_and_no_name() -> None:
    finetune("probe", make_run(keys={"C": [0.01, 0.1]}, seed=7, repeats=2))
    facts = run_facts("probe")
    assert facts.pop("chosen")[0]["C"] in (0.01, 0.1)
    assert len(facts.pop("fingerprint")) == 64
    transfer = facts.pop("transfer")
    assert (transfer["kind"], transfer["C"], transfer["refit"]) == ("logistic", [0.01, 0.1], True)
    assert facts == {
        "family": "feature",
        "kind": "logistic",
        "dataset": read_samples("cells").facts["content_hash"],
        "features": "f" * 64,
        "weights_hash": "w" * 64,
        "seed": 7,
        "repeats": 2,
        "final": False,
        "images": {"source": "folder", "origin": "photos", "licence": "unknown"},
        "versions": {"method": 1, "preprocessing": 1},
        "network": "tf_efficientnet_lite0",
        "origin": "package",
        "licence": "apache-2.0",
        "classes": CLASSES,
        "trained_parameters": WIDTH + 1,
        "budgets": ["all"],
    }


def test_cost_says_what_the_training_took() -> None:
    finetune("probe", make_run())
    cost = json.loads(Path("data/costs/finetune/probe.json").read_text())
    counts = {"operations": 0, "pass_operations": 0, "training_operations": 0}  # a head alone: not worth counting
    counts |= {"trained_parameters": WIDTH + 1, "training_images": list(parts(0)).count("train")}
    assert {name: cost.pop(name) for name in counts} == counts
    assert set(cost) == {"seconds", "core_seconds", "peak_memory_bytes"}
    assert 0 < cost["seconds"] < 60
    assert cost["peak_memory_bytes"] > 10_000_000


@pytest.mark.parametrize("kind", [k for k in kinds("transfers") if not hasattr(kind_module("transfers", k), "STREAMS")])
def test_rows_of_the_test_part_are_never_read(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test = {ROWS[HASHES[i]] for i, part in enumerate(parts(0)) if part == "test"}
    activations = make_activations()
    activations[[i for i, part in enumerate(parts(0)) if part == "test"]] = np.nan
    shutil.rmtree("data/features/lite0")
    write_store(activations)
    seen: list[int] = []
    read = FeatureStore.read

    def watched(store: FeatureStore, rows: Any, views: Any = None) -> Any:
        seen.extend(np.asarray(rows).tolist())
        return read(store, rows, views)

    monkeypatch.setattr(FeatureStore, "read", watched)
    finetune("run", make_run(kind, repeats=1))
    assert set(seen) == set(range(COUNT)) - test


@pytest.mark.parametrize("kind", ["logistic", "rbf_svm", "mlp"])
def test_two_runs_of_the_same_inputs_have_the_same_bytes_whatever_their_names(kind: str) -> None:
    for name in ("first", "second"):
        finetune(name, make_run(kind))
    assert contents(Path("data/models/first")) == contents(Path("data/models/second"))


def change_transfer() -> Run:
    return make_run(keys={"C": 0.3})


def change_weights() -> Run:
    facts = json.loads(Path("data/features/lite0/features.json").read_text())
    Path("data/features/lite0/features.json").write_text(json.dumps({**facts, "weights_hash": "x" * 64}))
    write_checksums(Path("data/features/lite0"))
    return make_run()


def change_features() -> Run:
    facts = json.loads(Path("data/features/lite0/features.json").read_text())
    Path("data/features/lite0/features.json").write_text(json.dumps({**facts, "content_hash": "x" * 64}))
    write_checksums(Path("data/features/lite0"))
    return make_run()


def change_labels() -> Run:
    write_dataset(labels=1 - LABELS)
    return make_run()


@pytest.mark.parametrize(
    "change",
    [
        change_transfer,
        change_weights,
        change_features,
        change_labels,
        lambda: make_run(seed=1),
        lambda: make_run(repeats=3),
        lambda: make_run(final=True),
    ],
    ids=["transfer", "weights", "features", "labels", "seed", "repeats", "final"],
)
def test_the_fingerprint_moves_with_every_input(change: Callable[[], Run]) -> None:
    finetune("probe", make_run())
    before = run_facts("probe")["fingerprint"]
    finetune("probe", make_run(repeats=REPEATS))  # said or left out, it is the same
    assert run_facts("probe")["fingerprint"] == before
    finetune("probe", change())
    assert run_facts("probe")["fingerprint"] != before


def test_the_fingerprint_is_the_same_however_budgets_are_written() -> None:
    found = []
    for budgets in (None, ["all"], [5, "all"], ["all", 5, 5]):
        finetune("probe", make_run(labels_per_class=budgets))
        found.append(run_facts("probe")["fingerprint"])
    assert found[0] == found[1] != found[2] == found[3]


@pytest.mark.parametrize("file", ["learned.parquet", "network.json", "backbone.safetensors", "activations-00000.npy"])
@pytest.mark.parametrize("how", ["a bit flipped", "gone"])
def test_a_file_of_features_that_has_changed_since_is_told_and_not_learned_from(file: str, how: str) -> None:
    path = Path("data/features/lite0") / file
    write_table(path.with_name("learned.parquet"), pa.table({"pixel_hash": ["x"]}))
    write_checksums(path.parent)
    finetune("svm", make_run())
    before = contents(Path("data/models"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    if how != "gone":
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} (cannot be read|is not there).*: run `dvc repro"):
        finetune("svm", make_run())
    assert contents(Path("data/models")) == before


def test_a_backbone_that_has_learned_from_images_to_be_tested_is_refused() -> None:
    """It has learned from all that are not tested in repeat 0: repeat 1 tests some of them."""
    learned = [HASHES[i][::-1] for i, part in enumerate(parts(0)) if part != "test"]
    write_table(Path("data/features/lite0/learned.parquet"), pa.table({"pixel_hash": learned}))
    write_checksums(Path("data/features/lite0"))
    with pytest.raises(
        UserError, match="has learned from 20 of the 20 images that cells tests in repeat 1: train it on"
    ):
        finetune("probe", make_run())
    assert not Path("data/models/probe").exists()
    finetune("probe", make_run(repeats=1))


def test_the_fingerprint_moves_with_the_version_of_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    finetune("probe", make_run())
    before = run_facts("probe")["fingerprint"]
    monkeypatch.setattr(kind_module("transfers", "logistic"), "VERSION", 99)
    finetune("probe", make_run())
    assert run_facts("probe")["fingerprint"] != before


@pytest.mark.parametrize(
    ("kind", "features", "family"),
    [
        ("logistic", {}, "feature"),
        ("logistic", {"origin": "random"}, "none"),
        ("logistic", {"cut": "image"}, "none"),
        ("majority", {}, "none"),
    ],
)
def test_what_carries_nothing_over_is_of_no_family(kind: str, features: dict[str, str], family: str) -> None:
    shutil.rmtree("data/features/lite0")
    write_store(**features)
    finetune("run", make_run(kind, repeats=1))
    assert run_facts("run")["family"] == family


def test_the_final_model_is_of_all_samples() -> None:
    finetune("majority", make_run("majority", final=True))
    activations = make_activations()[:1]
    final = read_model(Path("data/models/majority/final")).predict_proba(activations)
    np.testing.assert_allclose(final[0], np.bincount(LABELS) / COUNT)
    first = read_model(Path("data/models/majority/repeat-0")).predict_proba(activations)
    seen = LABELS[[i for i, part in enumerate(parts(0)) if part != "test"]]
    np.testing.assert_allclose(first[0], np.bincount(seen) / len(seen))
    assert (Path("data/models/majority/final") / "backbone.safetensors").is_file()


def test_the_final_model_is_of_all_samples_also_where_the_scored_ones_are_of_training_alone() -> None:
    activations = make_activations()
    predictions = []
    for refit in (True, False):
        run = make_run("nearest_mean", final=True)
        finetune("run", run.model_copy(update={"transfer": run.transfer.model_copy(update={"refit": refit})}))
        predictions.append(read_model(Path("data/models/run/final")).predict_proba(activations))
    np.testing.assert_array_equal(*predictions)


def test_training_by_epochs_leaves_its_history() -> None:
    finetune("mlp", make_run("mlp", keys={"epochs": 3}, repeats=1))
    lines = Path("data/models/mlp/repeat-0/history.csv").read_text().splitlines()
    assert lines[0] == "epoch,training_log_loss,validation_log_loss"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "2", "3"]


def test_a_budget_counts_training_and_validation_labels_and_smaller_ones_are_part_of_larger_ones() -> None:
    samples = read_samples("cells")
    for repeat in range(REPEATS):
        test, before = set(samples.part(repeat, "test").tolist()), set[int]()
        for budget in (2, 5, 10, 100):
            training, validation = samples.labelled(repeat, ("train",), budget)
            both = set(training.tolist()) | set(validation.tolist())
            assert set(training.tolist()) <= set(samples.part(repeat, "train").tolist())
            assert set(validation.tolist()) <= set(samples.part(repeat, "validation").tolist())
            assert before <= both
            assert not both & test
            counts = np.bincount(LABELS[sorted(both)], minlength=2)
            available = np.bincount(LABELS[[i for i in range(COUNT) if i not in test]], minlength=2)
            assert (counts <= np.minimum(budget, available)).all()
            assert budget == 100 or counts.max() == budget
            before = both
    whole = samples.labelled(0, ("train",), None)
    assert [len(rows) for rows in whole] == [len(samples.part(0, part)) for part in ("train", "validation")]


def test_each_budget_has_its_models_and_the_largest_is_the_run() -> None:
    write_dataset(np.arange(COUNT) % 2)
    finetune("run", make_run(keys={"C": 0.1}, repeats=2, labels_per_class=["all", 4, 8]))
    finetune("plain", make_run(keys={"C": 0.1}, repeats=2))
    folder = Path("data/models/run")
    assert {p.name for p in folder.iterdir()} == {"labels-4", "labels-8", "repeat-0", "repeat-1", "run.json"}
    assert run_facts("run")["budgets"] == [4, 8, "all"]
    for repeat in ("repeat-0", "repeat-1"):
        assert contents(folder / repeat) == contents(Path("data/models/plain") / repeat)
        assert contents(folder / "labels-4" / repeat).keys() == {"model.json", "model.safetensors"}
    few, more = (read_model(folder / f"labels-{n}" / "repeat-0").predict_proba(make_activations()) for n in (4, 8))
    assert not np.allclose(few, more)
    assert run_facts("run")["fingerprint"] != run_facts("plain")["fingerprint"]


def test_a_class_that_training_lacks_is_named_with_the_repeat() -> None:
    write_dataset(labels=(np.arange(COUNT) // 5 % 4 == 2).astype(int))  # in training, then in validation
    message = "runs.probe, repeat 1: no sample of sound in the training part of cells"
    with pytest.raises(UserError, match=message):
        finetune("probe", make_run())
    assert not Path("data/models/probe").exists()


def test_images_without_features_are_counted_and_the_first_is_named() -> None:
    shutil.rmtree("data/features/lite0")
    some = [HASHES[i] for i in range(COUNT) if i not in (10, 11)]
    write_store(make_activations()[[i for i in range(COUNT) if i not in (10, 11)]], hashes=some)
    with pytest.raises(UserError, match=r"data/features/lite0 lacks 2 of 40 images of cells, the first is cell010.png"):
        finetune("probe", make_run())


def test_features_that_are_no_numbers_are_counted_and_the_first_is_named() -> None:
    activations = make_activations()
    activations[10, 1, 4] = np.nan
    activations[12, 0, 2:4] = np.inf
    shutil.rmtree("data/features/lite0")
    write_store(activations)
    message = "3 activations of 2 images are not finite, the first is number 4 of the view flip of cell010.png"
    with pytest.raises(UserError, match=message):
        finetune("probe", make_run())


def test_an_error_of_the_method_names_run_and_repeat() -> None:
    message = "runs.probe, repeat 0: class_weight names brokn, which is no class; did you mean broken"
    with pytest.raises(UserError, match=message):
        finetune("probe", make_run(keys={"class_weight": {"brokn": 2.0}}))


def test_a_data_set_without_groups_is_trained_on() -> None:
    write_dataset(group=None)
    finetune("svm", make_run("rbf_svm", repeats=1))
    assert run_facts("svm")["chosen"][0]["gamma"] == 1.0


def test_more_repeats_than_the_data_set_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"runs.probe.repeats is 5: cells has 4"):
        finetune("probe", make_run(repeats=5))


def test_a_model_of_an_unknown_kind_or_with_a_broken_file_is_one_line() -> None:
    finetune("probe", make_run(repeats=1))
    folder = Path("data/models/probe/repeat-0")
    (folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"model.safetensors cannot be read .*: run `dvc repro --force"):
        read_model(folder)
    facts = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**facts, "kind": "os"}))
    with pytest.raises(UserError, match="is of kind os, which is no file in stages/transfers/"):
        read_model(folder)
    with pytest.raises(UserError, match=r"model.json is not there"):
        read_model(Path("nowhere"))


def test_the_stage_imports_no_library_that_the_method_does_not_use() -> None:
    program = """
import sys
from stages.finetune import finetune
from stages.params import Run, kind_module
for kind in sys.argv[1:]:
    transfer = kind_module("transfers", kind).Params(kind=kind)
    finetune(kind, Run(dataset="cells", features="lite0", transfer=transfer, repeats=1))
print([name for name in ("torch", "sklearn", "matplotlib", "mlflow") if name in sys.modules])
"""
    root = Path(__file__).parents[1]
    for chosen, expected in ((["majority", "knn"], "[]"), (["logistic"], "['sklearn']")):
        command = [sys.executable, "-c", program, *chosen]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert result.stdout == f"{expected}\n"

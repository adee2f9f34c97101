"""evaluate on real cells: each repeat's model and its own test images, figures that follow from the predictions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import metrics as reference

from stages.cli import UserError
from stages.compare import compare
from stages.evaluate import evaluate, into_slices, look_up_order
from stages.files import write_json
from stages.params import Dataset, Label, Run, Split, Transfer
from stages.prepare import prepare
from stages.samples.table import Samples, read_samples
from stages.scoring import records
from stages.scoring.intervals import Replicates
from stages.scoring.metrics import Outcomes
from stages.scoring.records import read_plot, read_record
from stages.scoring.suspects import find_suspects
from stages.sources._raw import Found, write_images
from stages.store.activations import FeatureStore, write_checksums, write_features
from tests.scoring.made_up import make_params

ROOT = Path(__file__).parents[1]
CELLS = 120
RUN = Run(dataset="cells", features="plain", transfer=Transfer(kind="logistic"))
RUN_FACTS = {
    "classes": ["quality below 0.5", "quality at least 0.5"],
    "family": "feature",
    "kind": "logistic",
    "fingerprint": "f" * 64,
    "dataset": "d" * 64,
    "features": "e" * 64,
    "repeats": 4,
    "budgets": ["all"],
}


def write_data(files: list[Path]) -> None:
    """Fetch and prepare real cells: four cells a module, a quality that decides the class, and a camera."""
    folder = Path("data/raw/photos")
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    found = [
        Found(
            file.name,
            file,
            {"quality": float(random.random()), "module": f"module {i // 3:02d}", "camera": "ab"[i % 2], "lot": i % 40},
        )
        for i, file in enumerate(files)
    ]
    write_images(folder, found, source="folder", origin="photos", licence="none")
    entry = Dataset(
        images="photos",
        label=Label(column="quality", threshold=0.5),
        group="module",
        split=Split(test=0.25, validation=0.25, repeats=4),
    )
    prepare("cells", entry)


def write_plain_features(samples: Samples) -> dict[str, float]:
    """Write a feature per image that knows something of its class; returns it by image hash."""
    backbone = Path("data/raw/net")
    backbone.mkdir(parents=True)
    for name in ("weights.safetensors", "network.json"):
        (backbone / name).write_text("{}")
    random = np.random.default_rng(1)
    values = {h: label + random.normal() for h, label in zip(samples.image_hashes, samples.labels, strict=True)}
    hashes = sorted(values)
    facts = {"features": "plain", "images": "photos", "views": ["identity"], "shape": [1], "dtype": "float32"}
    rows = np.array([[[values[h]]] for h in hashes], dtype=np.float32)
    write_features(Path("data/features/plain"), {**facts, "operations": 390_000_000}, hashes, {}, [rows], [], backbone)
    return values


class OneFeature:
    """A model whose probability of the second class is a logistic function of the one feature, or a constant."""

    def __init__(self, slope: float, constant: float | None = None) -> None:
        self.slope, self.constant = slope, constant

    def predict_proba(self, activations: np.ndarray) -> np.ndarray:
        x = activations[:, 0, 0].astype(np.float64)
        p = 1 / (1 + np.exp(-self.slope * (x - 0.5))) if self.constant is None else np.full(len(x), self.constant)
        return np.stack([1 - p, p], axis=1)


def use_models(monkeypatch: pytest.MonkeyPatch, models: list[OneFeature]) -> None:
    monkeypatch.setattr("stages.evaluate.read_model", lambda folder: models[int(folder.name.removeprefix("repeat-"))])


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Samples:
    """A prepared data set with features, models and costs, in a folder of its own."""
    from importlib.util import find_spec

    spec = find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    monkeypatch.chdir(tmp_path)
    write_data(sorted((Path(spec.origin).parent / "data" / "images").glob("*.png"))[:CELLS])
    prepared = read_samples("cells")
    write_plain_features(prepared)
    use_models(monkeypatch, [OneFeature(1.0 + repeat) for repeat in range(4)])
    write_json(Path("data/models/svm/run.json"), RUN_FACTS)
    both = {"seconds": 2.5, "core_seconds": 4.0, "peak_memory_bytes": 10**8}
    extraction = {"images_per_second": 48.0, "bytes": 480, "images": 120, "operations": 390_000_000}
    write_json(Path("data/costs/extract/plain.json"), {**both, **extraction})
    counts = {"operations": 1000, "pass_operations": 1000, "training_operations": 9 * 10**9, "training_images": 60}
    write_json(Path("data/costs/finetune/svm.json"), {**both, **counts, "trained_parameters": 2})
    return prepared


def predictions() -> dict[str, Any]:
    columns: dict[str, Any] = pq.read_table("data/evaluations/svm/predictions.parquet").to_pydict()
    return columns


def test_each_repeat_s_model_predicts_that_repeat_s_test_images(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    constant = [0.1, 0.3, 0.6, 0.8]
    use_models(monkeypatch, [OneFeature(0.0, p) for p in constant])
    evaluate("svm", RUN)
    found = predictions()
    names = np.array(samples.table["sample"].to_pylist())
    for repeat, p in enumerate(constant):
        mine = np.array(found["repeat"]) == repeat
        tested = samples.part(repeat, "test")
        assert np.array(found["sample"])[mine].tolist() == names[tested].tolist()
        np.testing.assert_array_equal(np.array(found["p_quality at least 0.5"])[mine], np.float32(p))
        right = samples.labels[tested] == int(p > 0.5)
        record = read_record("svm").outcomes
        assert isinstance(record, Outcomes)
        assert np.mean(record.truth[record.repeats == repeat] == int(p > 0.5)) == np.mean(right)


def test_test_images_whose_features_are_no_numbers_are_counted_and_the_first_is_named(samples: Samples) -> None:
    path = Path("data/features/plain/activations-00000.npy")
    features = FeatureStore(path.parent)
    tested = samples.part(0, "test")[[3, 5]]
    rows = features.rows([samples.image_hashes[row] for row in tested])
    values = np.load(path)
    values[rows[0]], values[rows[1]] = np.nan, -np.inf
    np.save(path, values)
    write_checksums(path.parent)
    name = samples.table["sample"][int(tested[0])].as_py()
    message = f"data/features/plain: 2 activations of 2 images are not finite, .* of the view identity of {name}: look"
    with pytest.raises(UserError, match=message):
        evaluate("svm", RUN)
    assert not Path("data/evaluations/svm").exists()


def test_figures_are_means_over_repeats_of_what_scikit_learn_finds_in_the_predictions(samples: Samples) -> None:
    evaluate("svm", RUN)
    found = predictions()
    truth = np.array([RUN_FACTS["classes"].index(t) for t in found["truth"]])  # type: ignore[attr-defined]
    p, repeat = np.array(found["p_quality at least 0.5"], dtype=np.float64), np.array(found["repeat"])
    metrics = json.loads(Path("reports/runs/svm/metrics.json").read_text())
    for name, figure in {
        "accuracy": lambda t, p: reference.accuracy_score(t, p > 0.5),
        "auc": reference.roc_auc_score,
        "log_loss": reference.log_loss,
    }.items():
        each = [figure(truth[repeat == r], p[repeat == r]) for r in range(4)]
        assert metrics[name] == pytest.approx(np.mean(each), abs=2e-6)
        assert metrics[f"{name}_sd"] == pytest.approx(np.std(each, ddof=1), abs=2e-6)
        assert metrics[f"{name}_low"] < metrics[name] < metrics[f"{name}_high"]
    assert (metrics["repeats"], metrics["images"], metrics["groups"]) == (4, CELLS, 40)
    assert found["group"][0] == samples.table["group"][samples.part(0, "test")[0]].as_py()
    hashes = dict(zip(samples.table["sample"].to_pylist(), samples.image_hashes, strict=True))
    assert found["image_hash"] == [hashes[name] for name in found["sample"]]


def test_models_are_given_rows_of_the_test_part_alone(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[list[int]] = []
    whole = FeatureStore.read

    def watched(self: FeatureStore, rows: Any, views: Any = None) -> Any:
        read.append(np.asarray(rows).tolist())
        return whole(self, rows, views)

    monkeypatch.setattr(FeatureStore, "read", watched)
    evaluate("svm", RUN)
    store = FeatureStore(Path("data/features/plain"))
    hashes = samples.image_hashes
    assert read[:4] == [store.rows([hashes[row] for row in samples.part(r, "test")]).tolist() for r in range(4)]
    test, training = (set(store.rows([hashes[row] for row in samples.part(0, p)]).tolist()) for p in ("test", "train"))
    assert read[4:]
    for one, *others in read[4:]:  # what stands near and what is elsewhere: see samples/order.py
        assert one in test
        assert set(others) <= training


def write_features_along_the_order(samples: Samples) -> None:
    """Write features of which neighbours in the order of names have nearly the same."""
    shutil.rmtree("data/features/plain")
    place = {image_hash: row for row, image_hash in enumerate(samples.image_hashes)}
    hashes = sorted(place)
    angles = np.array([place[h] for h in hashes]) / len(hashes) * np.pi
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1)[:, np.newaxis].astype(np.float32)
    facts = {"features": "plain", "images": "photos", "views": ["identity"], "shape": [2], "dtype": "float32"}
    folder = Path("data/raw/net")
    write_features(Path("data/features/plain"), {**facts, "operations": 1}, hashes, {}, [rows], [], folder)


def test_features_that_tell_the_order_of_images_are_told_where_looks_do_not(
    samples: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("data/prepared/cells/dataset.json")
    write_json(file, {**samples.facts, "order": {"near": 15.0, "tested": 30}})
    capsys.readouterr()
    evaluate("svm", RUN)
    assert capsys.readouterr().err == ""
    write_features_along_the_order(samples)
    evaluate("svm", RUN)
    found = read_record("svm").details["order"]
    assert found["tested"] == len(samples.part(0, "test"))
    assert found["near"] > 0.9 * found["tested"]
    said = capsys.readouterr().err
    assert said.startswith("warning: cells: for ")
    assert "test images the training image that is by its features most like them stands near them" in said
    assert said.endswith("group: module does not keep it together\n")
    write_json(file, {**samples.facts, "order": found})
    evaluate("svm", RUN)
    assert capsys.readouterr().err == ""  # prepare has said so


def test_of_maps_no_order_is_looked_up(samples: Samples) -> None:
    store = SimpleNamespace(shape=(8, 4, 4), rows=lambda hashes: np.arange(len(hashes)))
    assert look_up_order(samples, cast("FeatureStore", store)) is None


def test_fewer_repeats_than_the_data_set_has_are_scored_alone(samples: Samples) -> None:
    write_json(Path("data/models/svm/run.json"), {**RUN_FACTS, "repeats": 1})
    evaluate("svm", RUN)
    record = read_record("svm")
    assert record.metrics["repeats"] == 1
    assert record.metrics["accuracy_sd"] is None
    assert record.metrics["images"] == len(samples.part(0, "test"))


def test_slices_are_the_images_with_a_value_and_what_has_no_slice_is_said(
    samples: Samples, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate("svm", RUN)
    details = read_record("svm").details
    assert Counter(entry["column"] for entry in details["slices"]) == {"camera": 2, "lot": 4, "quality": 4}
    assert details["not_sliced"] == [{"column": "module", "values": CELLS // 3}]
    assert "; no slice of their own: 40 values of module" in capsys.readouterr().out
    outcomes = read_record("svm").outcomes
    assert isinstance(outcomes, Outcomes)
    camera = dict(zip(samples.table["sample"].to_pylist(), samples.table["camera"].to_pylist(), strict=True))
    right = outcomes.probabilities.argmax(axis=1) == outcomes.truth
    for entry in (entry for entry in details["slices"] if entry["column"] == "camera"):
        mine = np.array([camera[name] == entry["value"] for name in outcomes.samples])
        each = [right[mine & (outcomes.repeats == r)].mean() for r in range(4)]
        assert entry["accuracy"] == pytest.approx(np.mean(each), abs=1e-6)
        assert entry["images"] == mine.sum()
        areas = [
            reference.roc_auc_score(outcomes.truth[m], outcomes.probabilities[m, 1]) for m in _each(mine, outcomes)
        ]
        assert entry["auc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert [entry["images"] for entry in details["classes"]] == np.bincount(outcomes.truth).tolist()


@pytest.mark.usefixtures("samples")
def test_each_budget_of_labels_is_scored_by_its_own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    slopes = {"": 2.0, "labels-10/": 1.0}
    monkeypatch.setattr(
        "stages.evaluate.read_model", lambda f: OneFeature(slopes["labels-10/" if "labels-10" in str(f) else ""])
    )
    write_json(Path("data/models/svm/run.json"), {**RUN_FACTS, "budgets": [10, "all"]})
    evaluate("svm", RUN)
    record = read_record("svm")
    labels = record.details["labels"]
    assert labels["all"]["log_loss"] == record.metrics["log_loss"]
    assert labels["10"]["accuracy"] == labels["all"]["accuracy"]  # the same side of one half
    assert labels["10"]["log_loss"] != labels["all"]["log_loss"]
    assert labels["10"]["labels"] == 20
    assert labels["all"]["labels"] == CELLS * 0.75


def test_many_numbers_are_sliced_in_quarters_and_of_many_words_the_frequent_ones_are() -> None:
    numbers = [None, *map(float, range(100)), 100.0, 100.0, float("nan")]
    of_each, shown, left = into_slices(numbers)
    assert shown == ["0 to 25.25", "25.25 to 50.5", "50.5 to 75.75", "75.75 to 100"]  # 102 numbers, two of them equal
    assert [of_each.count(name) for name in shown] == [26, 25, 25, 26]
    assert (of_each[0], of_each[-1], of_each[26], of_each[27], left) == (None, None, shown[0], shown[1], 0)

    words = ["often"] * 12 + ["ten"] * 10 + ["nine"] * 9 + [f"once {i}" for i in range(40)]
    of_each, shown, left = into_slices(words)
    assert (shown, left) == (["often", "ten"], 41)
    assert of_each == ["often"] * 12 + ["ten"] * 10 + [None] * 49
    assert into_slices(words[22:52])[1] == sorted(set(words[22:52]))  # few values: each has a slice


def _each(rows: np.ndarray, outcomes: Outcomes) -> list[np.ndarray]:
    """Return the rows of each repeat."""
    return [rows & (outcomes.repeats == repeat) for repeat in range(4)]


def test_costs_are_numbers_by_the_names_of_the_leaderboard(samples: Samples) -> None:
    assert len(samples) == CELLS
    evaluate("svm", RUN)
    cost = json.loads(Path("reports/runs/svm/cost.json").read_text())
    assert (cost["extract_seconds"], cost["train_core_seconds"], cost["operations_per_image"]) == (
        2.5,
        4.0,
        390_001_000,
    )
    assert all(isinstance(value, int | float) for value in cost.values())
    assert (cost["extract_operations"], cost["train_operations"]) == (120 * 390_000_000, 9 * 10**9)
    # An epoch of the whole network: 60 images, there and back.
    epoch = 3 * 60 * 390_001_000
    assert cost["end_to_end_epochs"] == pytest.approx((120 * 390_000_000 + 9 * 10**9) / epoch)


def test_curves_and_confusion_are_of_the_same_predictions(samples: Samples) -> None:
    evaluate("svm", RUN)
    counts = {(row["truth"], row["predicted"]): int(row["images"]) for row in read_plot("svm", "confusion")}
    assert sum(counts.values()) == len(samples)
    assert {row["repeat"] for row in read_plot("svm", "roc")} == {"0", "1", "2", "3"}


def test_mistakes_are_shown_from_the_data_set_s_own_small_pictures(samples: Samples) -> None:
    import shutil

    shutil.rmtree("data/raw")  # a fresh clone has not pulled the images
    evaluate("svm", RUN)
    pictures = Path("data/evaluations/svm/pictures")
    assert sorted(p.name for p in pictures.iterdir()) == [
        "confusion.png", "mistakes.png", "precision_recall.png", "reliability.png", "roc.png",
    ]  # fmt: skip
    with Image.open(pictures / "mistakes.png") as sheet:
        assert sheet.width > 6 * 192
        assert sheet.height > 192
        dark = np.asarray(sheet.convert("L")) < 128
    assert dark.mean() > 0.2  # photographs of cells, no blank paper
    assert len(samples) == CELLS


def test_a_run_without_a_mistake_has_no_such_picture(samples: Samples) -> None:
    values = {h: 20.0 * (label - 0.5) for h, label in zip(samples.image_hashes, samples.labels, strict=True)}
    facts = {"features": "plain", "images": "photos", "views": ["identity"], "shape": [1], "dtype": "float32"}
    rows = np.array([[[values[h] + 0.5]] for h in sorted(values)], dtype=np.float32)
    write_features(
        Path("data/features/plain"), {**facts, "operations": 1}, sorted(values), {}, [rows], [], Path("data/raw/net")
    )
    evaluate("svm", RUN)
    assert read_record("svm").metrics["accuracy"] == 1.0
    assert not Path("data/evaluations/svm/pictures/mistakes.png").exists()


def test_evaluating_again_gives_the_same_bytes(samples: Samples) -> None:
    content = []
    for _ in range(2):
        evaluate("svm", RUN)
        files = [
            p for folder in ("data/evaluations", "reports") for p in sorted(Path(folder).rglob("*")) if p.is_file()
        ]
        content.append({str(p): p.read_bytes() for p in files})
    assert len(content[0]) == 14
    assert content[0] == content[1]
    assert len(samples) == CELLS


def test_a_shallow_run_is_scored_without_the_libraries_that_trained_it(samples: Samples) -> None:
    from stages.finetune import finetune
    from stages.transfers.logistic import Params

    network = {"network": "net", "origin": "random", "licence": "none"}
    facts = json.loads(Path("data/features/plain/features.json").read_text())
    facts |= {"network": network, "entry": {"cut": "pooled"}, "content_hash": "c", "weights_hash": "w"}
    write_json(Path("data/features/plain/features.json"), {**facts, "preprocessing_version": 1})
    write_checksums(Path("data/features/plain"))
    finetune("svm", Run(dataset="cells", features="plain", transfer=Params(kind="logistic", C=[0.1, 1.0])))
    program = (
        "import sys\nfrom stages.evaluate import evaluate\nfrom stages.params import Run, Transfer\n"
        "evaluate('svm', Run(dataset='cells', features='plain', transfer=Transfer(kind='logistic')))\n"
        "heavy = {'torch', 'timm', 'sklearn', 'onnxruntime', 'mlflow', 'scipy.stats'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == ""
    assert read_record("svm").metrics["images"] == len(samples)


def test_an_image_without_features_is_told(samples: Samples) -> None:
    facts = {"features": "plain", "images": "photos", "views": ["identity"], "shape": [1], "dtype": "float32"}
    hashes = sorted(set(samples.image_hashes))[5:]
    write_features(
        Path("data/features/plain"),
        {**facts, "operations": 1},
        hashes,
        {},
        [np.zeros((len(hashes), 1, 1), np.float32)],
        [],
        Path("data/raw/net"),
    )
    with pytest.raises(UserError, match=r"data/features/plain has no row for \d test images of cells: run `dvc repro`"):
        evaluate("svm", RUN)
    assert not Path("reports").exists()
    assert not Path("data/evaluations/svm").exists()


@pytest.mark.usefixtures("samples")
def test_of_many_test_images_the_suspects_are_kept_and_compare_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate("svm", RUN)
    few = read_record("svm")
    assert isinstance(few.outcomes, Outcomes)
    assert "suspects" not in few.details
    expected = find_suspects([few.outcomes])
    monkeypatch.setattr(records, "MOST_ROWS", 50)
    monkeypatch.setattr("stages.evaluate.MOST_KEPT", 3)
    evaluate("svm", RUN)
    many = read_record("svm")
    assert isinstance(many.outcomes, Replicates)
    assert many.metrics == few.metrics
    assert many.details["suspects"].images == expected.images > 3
    assert [s.sample for s in many.details["suspects"].likeliest] == [s.sample for s in expected.likeliest[:3]]
    compare(make_params({"svm": ("cells", "lite0", "logistic")}))
    listed = Path("reports/suspects.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in listed[1:]] == [s.sample for s in expected.likeliest[:3]]
    text = Path("reports/report.html").read_text()
    assert f"{expected.images} of " in text
    assert "The likeliest 3 are in <code>reports/suspects.csv</code>" in text

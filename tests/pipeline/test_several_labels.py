"""Several labels of an image, from the table to the report, MLflow and prediction, in a whole project of real cells."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import metrics as reference

from tests.conftest import Project, make_project

pytestmark = pytest.mark.pipeline
LABELS = ["bright", "defective", "framed"]
PARAMS = """\
downloads:
  photos: {source: table, path: photos/cells.csv}
  lite0: {source: weights, path: requirements.lock, network: tf_efficientnet_lite0, origin: package}
datasets:
  tagged: {images: photos, label: {column: tags, separator: "|"}, split: {test: 0.25, validation: 0.25, repeats: 4}}
  columns: {images: photos, label: {column: [bright, defective, framed]}, split: {test: 0.25, validation: 0.25}}
features:
  lite0: {images: photos, backbone: raw/lite0, image_size: 64}
  maps: {images: photos, backbone: raw/lite0, image_size: 64, cut: blocks.5}
runs:
  probe: {dataset: tagged, features: lite0, transfer: {kind: logistic, C: [0.01, 0.1]}}
  shares: {dataset: tagged, features: lite0, transfer: {kind: majority}}
  tuned: {dataset: tagged, features: maps, repeats: 1, transfer: {kind: fine_tune, epochs: 3}}
  columns: {dataset: columns, features: lite0, transfer: {kind: ridge}}
compare: {}
"""


def tag(project: Project) -> None:
    """Write a table of the project's cells: defective or not, some made brighter, some with a white frame."""
    rows = []
    for number, path in enumerate(sorted(project.path("photos").glob("*/*.png"))):
        image = np.array(Image.open(path))
        has = {"bright": number % 3 == 0, "defective": path.parent.name == "defective", "framed": number % 4 == 0}
        if has["bright"]:
            image = np.minimum(image.astype(np.int64) + 90, 255).astype(np.uint8)
        if has["framed"]:
            image[:24], image[-24:], image[:, :24], image[:, -24:] = 255, 255, 255, 255
        Image.fromarray(image).save(path)
        tags = "|".join(name for name in LABELS if has[name])
        rows.append([f"{path.parent.name}/{path.name}", tags, *(int(has[name]) for name in LABELS)])
    with project.path("photos/cells.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "tags", *LABELS], *rows])


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("tagged") / "project", images_per_class=32)
    project.path("params.yaml").write_text(PARAMS)
    tag(project)
    project.output = project.repro()  # type: ignore[attr-defined]
    return project


def metrics(project: Project, run: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(project.path(f"reports/runs/{run}/metrics.json").read_text())
    return found


def predictions(project: Project, run: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return truth and probabilities (n, labels) of each repeat."""
    table = pq.read_table(project.path(f"data/evaluations/{run}/predictions.parquet"))
    truth = np.array([[name in tags for name in LABELS] for tags in table["truth"].to_pylist()])
    p = np.stack([table[f"p_{name}"].to_numpy() for name in LABELS], axis=1)
    repeats = table["repeat"].to_numpy()
    return {int(r): (truth[repeats == r], p[repeats == r]) for r in np.unique(repeats)}


def test_a_cell_without_labels_is_left_out_and_a_row_of_zeros_is_not(tagged: Project) -> None:
    by_tags, by_columns = (
        json.loads(tagged.path(f"data/prepared/{name}/dataset.json").read_text()) for name in ("tagged", "columns")
    )
    assert by_tags["classes"] == by_columns["classes"] == LABELS
    assert by_tags["counts"] == by_columns["counts"]  # those that have none do not count
    assert by_tags["samples"] + by_tags["rejected"] == by_columns["samples"] == 64
    rejected = pq.read_table(tagged.path("data/prepared/tagged/rejected.parquet"))["reason"].to_pylist()
    assert set(rejected) == {"no label: the column tags is empty"}


@pytest.mark.parametrize("run", ["probe", "tuned", "columns"])
def test_figures_are_those_of_scikit_learn_on_the_predictions(run: str, tagged: Project) -> None:
    found, repeats = metrics(tagged, run), predictions(tagged, run).values()
    for figure, of in (
        ("average_precision", lambda t, p: reference.average_precision_score(t, p, average="macro")),
        ("auc", lambda t, p: reference.roc_auc_score(t, p, average="macro")),
        ("micro_f1", lambda t, p: reference.f1_score(t, p >= 0.5, average="micro")),
        ("f1", lambda t, p: reference.f1_score(t, p >= 0.5, average="macro")),
        ("accuracy", lambda t, p: 1 - reference.hamming_loss(t, p >= 0.5)),
    ):
        assert found[figure] == pytest.approx(np.mean([of(t, p) for t, p in repeats]), abs=1e-5), figure


def test_labels_are_learned_and_the_comparison_is_by_mean_average_precision(tagged: Project) -> None:
    assert metrics(tagged, "probe")["average_precision"] > metrics(tagged, "shares")["average_precision"] + 0.2
    assert metrics(tagged, "tuned")["average_precision"] > metrics(tagged, "shares")["average_precision"] + 0.2
    compared = json.loads(tagged.path("reports/comparisons.json").read_text())["datasets"]["tagged"]
    assert compared["figure"] == "average_precision"
    assert "it has the highest mean average precision" in compared["recommendation"]
    assert compared["to_reference"]["shares"]["verdict"] == "worse"
    board = tagged.path("reports/leaderboard.md").read_text()
    assert "| run | mAP | 95 % interval | AUC | difference | cost |" in board
    rows = list(csv.DictReader(io.StringIO(tagged.path("reports/leaderboard.csv").read_text())))
    ordered = [float(row["average_precision"]) for row in rows if row["dataset"] == "tagged"]
    assert ordered == sorted(ordered, reverse=True)
    assert "Traceback" not in tagged.output  # type: ignore[attr-defined]


def test_the_report_tells_of_each_label(tagged: Project) -> None:
    page = tagged.path("reports/report.html").read_text()
    for text in ("with, found", "without, named", "micro F1", "Mean average precision against multiply-adds", "mAP"):
        assert text in page, text
    confusion = list(csv.DictReader(io.StringIO(tagged.path("reports/runs/probe/confusion.csv").read_text())))
    tested = sum(len(t) for t, _ in predictions(tagged, "probe").values())
    assert sum(int(row["images"]) for row in confusion) == tested * len(LABELS)
    for picture in ("confusion", "roc", "precision_recall", "reliability"):
        Image.open(tagged.path(f"data/evaluations/probe/pictures/{picture}.png")).verify()


@pytest.mark.parametrize("run", ["probe", "tuned"])
def test_predict_names_the_labels_of_each_image(run: str, tagged: Project) -> None:
    table = pq.read_table(tagged.path(f"data/evaluations/{run}/predictions.parquet")).to_pylist()
    stored = {row["sample"]: row for row in table if row["repeat"] == 0}
    result = tagged.run(f"python -m stages.predict --run {run} --format jsonl photos/defective", check=True)
    compared = 0
    for line in map(json.loads, result.stdout.splitlines()):
        p = line["probabilities"]
        assert line["classes"] == [name for name in LABELS if p[name] >= 0.5]
        sample = str(Path(line["path"]).relative_to("photos"))
        if sample in stored:
            np.testing.assert_allclose([p[n] for n in LABELS], [stored[sample][f"p_{n}"] for n in LABELS], atol=1e-5)
            compared += 1
    assert compared > 3
    rows = list(csv.reader(io.StringIO(tagged.run(f"python -m stages.predict --run {run} photos/sound").stdout)))
    assert rows[0] == ["path", "class", *(f"p_{name}" for name in LABELS)]
    for _, names, *p in rows[1:]:
        assert names == ";".join(n for n, value in zip(LABELS, p, strict=True) if float(value) >= 0.5)


def test_mlflow_holds_the_figures(tagged: Project) -> None:
    with sqlite3.connect(tagged.path("mlflow.db")) as store:
        found = {key for (key,) in store.execute("select distinct key from latest_metrics")}
    assert {"average_precision", "micro_f1", "repeat/average_precision"} <= found

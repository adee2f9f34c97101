"""The record of a run is what was written, and it holds all that a comparison needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.cli import UserError
from stages.scoring import records
from stages.scoring.intervals import Estimate, Replicates, differences, estimates
from stages.scoring.metrics import FIGURES, Outcomes
from stages.scoring.plots import plot_rows
from stages.scoring.records import Record, flat, outcomes_table, read_plot, read_record, write_record

FACTS = {
    "classes": ["intakt", "gerissen, ä"],
    "family": "feature",
    "kind": "logistic",
    "dataset": "d" * 64,
    "features": "e" * 64,
    "fingerprint": "f" * 64,
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_outcomes(seed: int = 0, images: int = 200, groups: bool = True) -> Outcomes:
    random = np.random.default_rng(seed)
    score = random.random(images).astype(np.float32).astype(np.float64)
    return Outcomes(
        classes=list(FACTS["classes"]),
        samples=[f"foto {i:05d}.png" for i in range(images)],
        repeats=np.arange(images) * 2 // images,
        groups=[f"modul {i // 5}" for i in range(images)] if groups else None,
        truth=np.arange(images) % 3 // 2,
        probabilities=np.stack([(1 - score).astype(np.float32).astype(np.float64), score], axis=1),
    )


def make_record(run: str, outcomes: Outcomes) -> Record:
    figures, classes = estimates(outcomes)
    return Record(
        run=run,
        facts=FACTS,
        metrics={**flat(figures), "repeats": 2, "images": 200, "groups": None},
        details={
            "classes": [{"class": c, "images": 9, **flat(classes[c])} for c in outcomes.classes],
            "slices": [
                {"column": "typ", "value": "mono", "images": 3, "accuracy": 0.5},
                {"column": "typ", "value": "poly", "images": 4, "accuracy": None},
            ],
            "not_sliced": [{"column": "modul", "values": 44}],
            "labels": {"10": {"labels": 20.0, "accuracy": 0.5}, "all": {"labels": 150.0, "accuracy": None}},
        },
        cost={"train_seconds": 1.5, "operations_per_image": None},
        outcomes=outcomes,
    )


@pytest.mark.parametrize("groups", [True, False])
def test_a_record_is_read_as_it_was_written(groups: bool) -> None:
    outcomes = make_outcomes(groups=groups)
    written = make_record("svm", outcomes)
    write_record(written, plot_rows(outcomes))
    read = read_record("svm")
    for name in ("run", "facts", "metrics", "details", "cost"):
        assert getattr(read, name) == getattr(written, name)
    assert isinstance(read.outcomes, Outcomes)
    assert (read.outcomes.samples, read.outcomes.groups) == (outcomes.samples, outcomes.groups)
    for name in ("repeats", "truth", "probabilities"):
        np.testing.assert_array_equal(getattr(read.outcomes, name), getattr(outcomes, name))


def test_all_figures_can_be_worked_out_again_from_the_outcomes() -> None:
    outcomes = make_outcomes()
    write_record(make_record("svm", outcomes), plot_rows(outcomes))
    read = read_record("svm")
    assert isinstance(read.outcomes, Outcomes)
    figures = flat(estimates(read.outcomes)[0])
    assert figures == {k: read.metrics[k] for k in figures}
    assert set(figures) == {f"{f}{end}" for f in FIGURES for end in ("", "_low", "_high", "_sd")}


def test_writing_again_gives_the_same_bytes() -> None:
    outcomes = make_outcomes()
    content: list[dict[str, bytes]] = []
    for _ in range(2):
        write_record(make_record("svm", outcomes), plot_rows(outcomes))
        content.append({p.name: p.read_bytes() for p in sorted(Path("reports/runs/svm").iterdir())})
    assert content[0] == content[1]
    assert sorted(content[0]) == [
        "confusion.csv", "cost.json", "details.json", "metrics.json", "outcomes.parquet", "precision_recall.csv",
        "reliability.csv", "roc.csv",
    ]  # fmt: skip


def test_metrics_are_flat_numbers_and_an_undefined_one_is_null() -> None:
    outcomes = make_outcomes(images=6)  # with so few groups there is no interval
    write_record(make_record("svm", outcomes), plot_rows(outcomes))
    text = Path("reports/runs/svm/metrics.json").read_text()
    metrics = json.loads(text)
    assert metrics["accuracy_low"] is None
    assert "NaN" not in text
    assert all(v is None or isinstance(v, int | float) for v in metrics.values())


def test_dvc_finds_no_list_in_the_details_that_it_would_draw_as_a_curve() -> None:
    outcomes = make_outcomes()
    write_record(make_record("svm", outcomes), plot_rows(outcomes))

    def lists(value: Any) -> int:
        inner = list(value.values()) if isinstance(value, dict) else []
        return isinstance(value, list) + sum(map(lists, inner))

    details = json.loads(Path("reports/runs/svm/details.json").read_text())
    assert lists(details) == 0
    assert details["slices"]["typ"]["poly"] == {"images": 4, "accuracy": None}


def test_outcomes_name_their_classes_and_the_run_for_whoever_opens_the_file() -> None:
    outcomes = make_outcomes()
    write_record(make_record("svm", outcomes), plot_rows(outcomes))
    table = pq.read_table("reports/runs/svm/outcomes.parquet")
    assert table.column_names == ["sample", "repeat", "group", "truth", "p_intakt", "p_gerissen, ä"]
    assert json.loads(table.schema.metadata[b"run"]) == FACTS
    assert table["truth"][2].as_py() == "gerissen, ä"
    assert table.slice(0, 1).to_pylist()[0]["group"] == "modul 0"
    assert table.replace_schema_metadata(None).equals(outcomes_table(outcomes))


@pytest.mark.parametrize(("limit", "most"), [("MOST_ROWS", 2999), ("MOST_NUMBERS", 5999)])
def test_of_many_images_a_comparison_is_kept_and_not_each_image(
    limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = {run: make_outcomes(seed, 3000, groups=False) for run, seed in (("a", 0), ("b", 1))}
    rows = differences(outcomes["a"], {"b": outcomes["b"]})["b"]
    monkeypatch.setattr(records, limit, most)
    for run, of in outcomes.items():
        write_record(make_record(run, of), plot_rows(of))
    kept = {run: read_record(run).outcomes for run in outcomes}
    assert isinstance(kept["a"], Replicates)
    assert pq.read_metadata("reports/runs/a/outcomes.parquet").num_rows == 2 * 257
    found = differences(kept["a"], {"b": kept["b"]})["b"]
    for figure in ("accuracy", "auc"):
        assert found[figure].value == rows[figure].value
        assert found[figure].by_repeat == rows[figure].by_repeat
        assert found[figure].low == pytest.approx(rows[figure].low, abs=0.01)
        assert found[figure].high == pytest.approx(rows[figure].high, abs=0.01)
    assert found == differences(kept["a"], {"b": outcomes["b"]})["b"]  # the other run may have its rows yet


def test_undefined_figures_of_left_out_buckets_stay_undefined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST_ROWS", 10)
    outcomes = make_outcomes()
    alone = Outcomes(
        outcomes.classes, outcomes.samples, outcomes.repeats, None, np.zeros(200, dtype=int), outcomes.probabilities
    )
    write_record(make_record("svm", alone), plot_rows(alone))
    kept = read_record("svm").outcomes
    assert isinstance(kept, Replicates)
    assert np.isnan(kept.whole["auc"]).all()
    assert not np.isnan(kept.whole["accuracy"]).any()


def test_a_run_that_was_not_evaluated_is_named() -> None:
    with pytest.raises(UserError, match=r"reports/runs/svn/outcomes\.parquet is not there: run `dvc repro`"):
        read_record("svn")


def test_plots_are_read_as_they_were_written() -> None:
    outcomes = make_outcomes()
    write_record(make_record("svm", outcomes), plot_rows(outcomes))
    for name, rows in plot_rows(outcomes).items():
        assert read_plot("svm", name) == [{k: str(v) for k, v in row.items()} for row in rows]


def test_figures_are_flattened_by_name() -> None:
    assert flat({"auc": Estimate(0.9, 0.8, None, 0.01)}) == {
        "auc": 0.9, "auc_low": 0.8, "auc_high": None, "auc_sd": 0.01
    }  # fmt: skip

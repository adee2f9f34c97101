"""Which labels are likely wrong: by hand, and where we know it because we have changed them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsClassifier

from stages.cli import UserError
from stages.compare import compare
from stages.params import read_params
from stages.scoring import suspects
from stages.scoring.comparison import compare_runs
from stages.scoring.intervals import left_out
from stages.scoring.judges import suspects_of
from stages.scoring.metrics import Outcomes
from stages.scoring.plots import plot_rows
from stages.scoring.records import read_record, write_record
from stages.scoring.suspects import Suspect, Suspects, find_suspects
from tests.scoring.made_up import make_params, make_record, write_made_up


def outcomes(probabilities: list[list[float]] | np.ndarray, truth: list[int] | np.ndarray, names: str = "") -> Outcomes:
    p = np.asarray(probabilities, float)
    samples = list(names) or [f"{i:04d}" for i in range(len(p))]
    classes = [f"class {c}" for c in range(p.shape[1])]
    return Outcomes(classes, samples, np.zeros(len(p), np.int64), None, np.asarray(truth, np.int64), p)


def test_an_image_counts_as_the_class_whose_mean_probability_it_reaches() -> None:
    # The mean probability of class 0 over its images is (0.9 + 0.8 + 0.1 + 0.4) / 4 = 0.55, that of class 1
    # (0.7 + 0.9 + 0.35) / 3 = 0.65. With 0.9 c reaches that of class 1, d does not with 0.6; g reaches that of class 0.
    p = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9], [0.65, 0.35]]
    found = find_suspects([outcomes(p, [0, 0, 0, 0, 1, 1, 1], "abcdefg")])
    assert found.images == 2
    assert found.likeliest == [
        Suspect("c", "class 0", "class 1", 0.1, 0.9),
        Suspect("g", "class 1", "class 0", 0.35, 0.65),
    ]
    assert found.likeliest[0].caption == "0.90 class 1\nis class 0"


def test_of_several_classes_that_are_reached_the_most_probable_counts() -> None:
    p = [[0.30, 0.32, 0.38], [0.9, 0.05, 0.05], [0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.3, 0.35, 0.35]]
    # The thresholds are 0.65, 0.36 and 0.35: d and e reach their own, c none; a, labelled 1, reaches class 2 alone.
    found = find_suspects([outcomes(p, [1, 0, 0, 1, 2], "abcde")])
    assert [(s.sample, s.suggested) for s in found.likeliest] == [("a", "class 2")]


def test_runs_and_repeats_are_averaged_by_image() -> None:
    sure = outcomes([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6]], [0, 0, 1], "abc")
    unsure = outcomes([[0.3, 0.7], [0.4, 0.6], [0.9, 0.1], [0.3, 0.7]], [0, 1, 0, 0], "acba")
    [found] = find_suspects([sure, unsure]).likeliest
    assert (found.sample, round(found.p_label, 6)) == ("a", round((0.2 + 0.3 + 0.3) / 3, 6))


def test_a_class_without_images_is_nobodys() -> None:
    assert find_suspects([outcomes([[0.1, 0.0, 0.9], [0.2, 0.7, 0.1]], [0, 1])]) == Suspects(0, 0, [])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_that_were_changed_are_found(seed: int) -> None:
    digits = load_digits()
    random = np.random.default_rng(seed)
    labels = digits.target.copy()
    changed = random.choice(len(labels), 54, replace=False)  # 3 %
    labels[changed] = (labels[changed] + random.integers(1, 10, len(changed))) % 10
    p = cross_val_predict(KNeighborsClassifier(10), digits.data, labels, cv=5, method="predict_proba")
    found = [int(s.sample) for s in find_suspects([outcomes(p, labels)]).likeliest]
    right = np.isin(found, changed)
    assert right[:40].mean() >= 0.9
    assert np.isin(changed, found).mean() >= 0.7


def test_cells_that_were_labelled_twice_are_found_where_the_labels_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    # The module of cells 1734 to 1783 was photographed again as cells 2276 to 2325 (docs/decisions/005).
    monkeypatch.chdir(Path(__file__).parents[2])
    params = read_params()
    records = {name: read_record(name) for name, run in params.runs.items() if run.dataset == "cells"}
    cells = params.model_copy(update={"runs": {name: params.runs[name] for name in records}})
    d = compare_runs(cells, records)
    found = {suspect.sample for suspect in suspects_of(d.datasets["cells"], records).likeliest}
    outcomes = records["probe"].outcomes
    assert isinstance(outcomes, Outcomes)
    label = dict(zip(outcomes.samples, outcomes.truth.tolist(), strict=True))
    pairs = [(f"images/cell{n}.png", f"images/cell{n + 542}.png") for n in range(1734, 1784)]
    disagree = [pair for pair in pairs if label[pair[0]] != label[pair[1]]]
    assert len(disagree) == 3
    assert all(found & set(pair) for pair in disagree)
    assert sum(bool(found & set(pair)) for pair in pairs) <= 5


def test_compare_lists_them_by_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    p = [[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.4, 0.6], [0.3, 0.7], [0.1, 0.9], [0.65, 0.35]] * 8
    truth = [0, 0, 0, 0, 1, 1, 1] * 8
    found = outcomes(p, truth)
    found.repeats[:] = np.arange(len(truth)) % 4
    write_made_up(make_record("probe", found))
    compare(make_params({"probe": ("cells", "lite0", "logistic")}))
    with Path("reports/suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert rows[0] == {
        "dataset": "cells",
        "sample": "0002",
        "label": "class 0",
        "suggested": "class 1",
        "p_label": "0.100000",
        "p_suggested": "0.900000",
    }
    page = Path("reports/report.html").read_text()
    assert "16 of 56 test images look as if they were of another class than they are labelled, to probe" in page


@pytest.mark.parametrize("several_labels", [False, True])
def test_of_many_the_likeliest_are_kept(several_labels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects, "ROWS", 7)
    random = np.random.default_rng(4)
    p = random.dirichlet(np.ones(3), 200).round(1)  # many are equal
    truth = random.integers(0, 2, (200, 3)) if several_labels else random.integers(0, 3, 200)
    runs = [outcomes(p, truth)]
    every = find_suspects(runs)
    assert every.images == len({s.sample for s in every.likeliest})
    assert every.labels == len(every.likeliest)
    assert len(every.likeliest) > 20
    for most in (0, 1, 20, 10_000):
        assert find_suspects(runs, most) == Suspects(every.images, every.labels, every.likeliest[:most])


@pytest.mark.parametrize("several_labels", [False, True])
def test_suspects_are_kept_where_rows_are_not(
    several_labels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(4)
    truth = random.integers(0, 2, (40, 2)) if several_labels else random.integers(0, 2, 40)
    found = outcomes(random.dirichlet(np.ones(2), 40), truth)
    record = make_record("probe", outcomes(found.probabilities, random.integers(0, 2, 40)))
    kept = find_suspects([found], 10)
    details = {**record.details, "suspects": kept}
    write_record(replace(record, outcomes=left_out(found), details=details), plot_rows(found))
    read = read_record("probe").details["suspects"]
    assert (read.images, read.labels) == (kept.images, kept.labels)
    assert len(read.likeliest) == 10
    for a, b in zip(read.likeliest, kept.likeliest, strict=True):
        assert (a.sample, a.label, a.suggested) == (b.sample, b.label, b.suggested)
        assert (a.p_label, a.p_suggested) == pytest.approx((b.p_label, b.p_suggested), abs=1e-6)


def test_a_record_from_before_suspects_were_kept_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = make_record("probe", outcomes(np.random.default_rng(0).dirichlet(np.ones(2), 40), np.arange(40) % 2))
    write_record(replace(record, outcomes=left_out(record.outcomes)), plot_rows(record.outcomes))
    with pytest.raises(
        UserError, match=r"^reports/runs/probe/details.json names no suspects: run `dvc repro evaluate`$"
    ):
        compare(make_params({"probe": ("cells", "lite0", "logistic")}))

"""The stage as a whole: what it reads, what it writes, and what it leaves alone."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.cli import UserError
from stages.compare import compare
from stages.params import Params
from tests.scoring.made_up import make_outcomes, make_params, make_record, write_made_up

ROOT = Path(__file__).parents[1]
WRITTEN = ("leaderboard.csv", "leaderboard.md", "labels.csv", "suspects.csv", "comparisons.json", "report.html")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params of two runs whose records lie in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, right in (("probe", 120), ("svm", 150)):
        write_made_up(make_record(name, make_outcomes(np.arange(160) < right)))
    return make_params({"probe": ("cells", "lite0", "logistic"), "svm": ("cells", "lite0", "rbf_svm")})


def test_compare_writes_leaderboard_comparisons_and_page(params: Params) -> None:
    compare(params)
    assert sorted(p.name for p in Path("reports").iterdir()) == sorted([*WRITTEN, "runs"])
    assert json.loads(Path("reports/comparisons.json").read_text())["datasets"]["cells"]["best"] == "svm"


def test_the_same_records_give_the_same_bytes(params: Params) -> None:
    compare(params)
    first = [Path("reports", name).read_bytes() for name in WRITTEN]
    compare(params)
    assert [Path("reports", name).read_bytes() for name in WRITTEN] == first


def test_run_that_params_no_longer_names_disappears_though_its_record_lies_there(params: Params) -> None:
    compare(params)
    fewer = params.model_copy(update={"runs": {"svm": params.runs["svm"]}})
    compare(fewer)
    assert Path("reports/runs/probe/metrics.json").exists()
    for name in WRITTEN:
        assert "probe" not in Path("reports", name).read_text().replace("linear probe", "")


def test_run_that_was_not_evaluated_is_one_line_and_what_was_written_stays(params: Params) -> None:
    compare(params)
    before = Path("reports/leaderboard.csv").read_bytes()
    shutil.rmtree("reports/runs/probe")
    with pytest.raises(UserError, match=r"reports/runs/probe/outcomes.parquet is not there: run `dvc repro`"):
        compare(params)
    assert Path("reports/leaderboard.csv").read_bytes() == before


def test_a_curve_over_labels_has_a_row_for_each_budget_and_a_line_in_the_report(params: Params) -> None:
    compare(params)
    assert Path("reports/labels.csv").read_text().count("\n") == 1  # the header: no run has several budgets
    assert "How accuracy grows with labels" not in Path("reports/report.html").read_text()
    record = make_record("svm", make_outcomes(np.arange(160) < 150))
    most = {k: v for k, v in record.metrics.items() if isinstance(v, float)}
    record.details["labels"] = {
        "all": {"labels": 120.0, **most},
        "10": {"labels": 20.0, **most, "accuracy": 0.75, "accuracy_low": 0.6, "accuracy_high": 0.8},
    }
    write_made_up(record)
    compare(params)
    with Path("reports/labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["labels_per_class"], float(row["labels"])) for row in rows] == [
        ("svm", "10", 20.0),
        ("svm", "all", 120.0),
    ]
    assert [float(row["accuracy"]) for row in rows] == [0.75, pytest.approx(150 / 160)]
    page = Path("reports/report.html").read_text()
    assert "How accuracy grows with labels" in page
    assert page.count("Accuracy over the number of labels for the runs on cells") == 2  # wide and narrow


def test_params_without_runs_are_told_so(params: Params) -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        compare(params.model_copy(update={"runs": {}}))


def test_compare_needs_neither_torch_nor_scikit_learn(params: Params) -> None:
    compare(params)
    code = (
        "import sys\n"
        "from stages.compare import compare\n"
        "from tests.scoring.made_up import make_params\n"
        "compare(make_params({'probe': ('cells', 'lite0', 'logistic'), 'svm': ('cells', 'lite0', 'rbf_svm')}))\n"
        "heavy = {'torch', 'timm', 'sklearn', 'matplotlib', 'mlflow', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr

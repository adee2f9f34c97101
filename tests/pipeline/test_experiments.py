"""DVC experiments, the MLflow store and prediction, in a whole project."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import Project

pytestmark = pytest.mark.pipeline


def parents(project: Project) -> dict[str, str]:
    """Return the finished parent runs in the project's store: name by fingerprint."""
    query = """
        select f.value, r.name from tags f join runs r on r.run_uuid = f.run_uuid
        where f.key = 'fingerprint' and r.status = 'FINISHED' and r.lifecycle_stage = 'active'
        and not exists (select 1 from tags p where p.run_uuid = r.run_uuid and p.key = 'mlflow.parentRunId')
    """
    with sqlite3.connect(project.path("mlflow.db")) as store:
        rows = store.execute(query).fetchall()
    assert len({fingerprint for fingerprint, _ in rows}) == len(rows), "a result was logged twice"
    return dict(rows)


def test_store_holds_one_run_per_result_and_publishing_again_adds_none(finished: Project) -> None:
    before = parents(finished)
    assert len(before) == 3
    finished.run("python -m stages.publish", check=True)
    assert parents(finished) == before


def test_deleted_store_is_filled_again(finished: Project) -> None:
    before = parents(finished)
    finished.path("mlflow.db").unlink()
    shutil.rmtree(finished.path("mlartifacts"))
    finished.repro()
    assert parents(finished) == before


def test_experiments_in_the_workspace_and_elsewhere_land_in_one_store(finished: Project) -> None:
    # A temporary workspace holds what git tracks; images elsewhere are found by their absolute path.
    finished.edit_params(lambda p: p["downloads"]["photos"].update(path=str(finished.path("photos"))))
    finished.repro()
    finished.commit()
    before = parents(finished)
    finished.run("dvc exp run -S runs.svm.transfer.C=0.5", check=True)
    assert len(parents(finished)) == len(before) + 1
    finished.run("git checkout -q . && dvc checkout -q", check=True)
    finished.run("dvc exp run --temp -S runs.svm.transfer.C=0.25", check=True)
    assert len(parents(finished)) == len(before) + 2
    finished.run("dvc exp run --queue -S runs.svm.transfer.C=0.125", check=True)
    finished.run("dvc exp run --run-all", check=True)
    assert len(parents(finished)) == len(before) + 3


def test_dead_server_costs_a_line_and_loses_nothing(finished: Project) -> None:
    finished.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(C=2.0))
    dead = "http://127.0.0.1:9"
    output = finished.repro(MLFLOW_TRACKING_URI=dead)
    assert len([line for line in output.splitlines() if line.startswith("warning: ")]) == 1
    assert "Traceback" not in output
    strict = finished.run("python -m stages.publish --strict", MLFLOW_TRACKING_URI=dead)
    assert strict.returncode == 1
    before = parents(finished)
    finished.run("python -m stages.publish --strict", check=True)
    assert len(parents(finished)) == len(before) + 1


def stored_predictions(project: Project, run: str, repeat: int = 0) -> dict[str, dict[str, float]]:
    import pyarrow.parquet as pq

    rows = pq.read_table(project.path(f"data/evaluations/{run}/predictions.parquet")).to_pylist()
    return {r["sample"]: {k: v for k, v in r.items() if k.startswith("p_")} for r in rows if r["repeat"] == repeat}


@pytest.mark.parametrize("run", ["probe", "svm"])
def test_predict_equals_what_evaluate_stored(run: str, finished: Project) -> None:
    stored = stored_predictions(finished, run)
    names = "\n".join(f"photos/{sample}" for sample in stored)
    result = subprocess.run(
        ["python", "-m", "stages.predict", "--run", run, "-"],
        cwd=finished.root, env=finished.environment(), input=names, text=True, capture_output=True, check=True,
    )  # fmt: skip
    rows = {row["path"].removeprefix("photos/"): row for row in csv.DictReader(io.StringIO(result.stdout))}
    assert set(rows) == set(stored)
    for sample, probabilities in stored.items():
        for column, value in probabilities.items():
            assert float(rows[sample][column]) == pytest.approx(value, abs=1e-5)


def test_mlflow_model_predicts_the_same_with_the_repository_deleted(finished: Project, tmp_path: Path) -> None:
    stored = stored_predictions(finished, "svm")
    images = {sample: finished.path(f"photos/{sample}").read_bytes() for sample in list(stored)[:5]}
    store = tmp_path / "store"
    store.mkdir()
    shutil.move(finished.path("mlartifacts"), store / "mlartifacts")
    shutil.rmtree(finished.root)
    folders = [p.parent for p in (store / "mlartifacts").rglob("MLmodel") if "kind: rbf_svm" in _model_facts(p.parent)]
    assert len(folders) == 1
    assert not list(folders[0].rglob("*.pkl"))
    (tmp_path / "images.json").write_text(json.dumps({k: v.hex() for k, v in images.items()}))
    script = f"""
import json, mlflow, pandas
images = {{k: bytes.fromhex(v) for k, v in json.load(open({str(tmp_path / "images.json")!r})).items()}}
model = mlflow.pyfunc.load_model({str(folders[0])!r})
result = model.predict(pandas.DataFrame({{"image": list(images.values())}}))
result.insert(0, "sample", list(images))
print(result.to_json(orient="records"))
"""
    result = subprocess.run(
        ["python", "-c", script], cwd=tmp_path, env=finished.environment(), text=True, capture_output=True, check=True
    )
    rows = json.loads(result.stdout.strip().splitlines()[-1])
    for row in rows:
        for column, value in stored[row["sample"]].items():
            assert row[column] == pytest.approx(value, abs=1e-5)


def _model_facts(folder: Path) -> str:
    found = [json.loads(p.read_text()) for p in folder.rglob("model.json")]
    return "".join(f"kind: {facts.get('kind')}" for facts in found)


def test_make_ui_answers_and_lists_the_runs(finished: Project) -> None:
    port = 5791
    process = subprocess.Popen(
        ["python", "-m", "stages.tracking.ui"], cwd=finished.root, env=finished.environment(PORT=str(port)),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                body = json.dumps({"max_results": 100}).encode()
                url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search"
                request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
                with urllib.request.urlopen(request, timeout=5) as answer:
                    names = {e["name"] for e in json.load(answer)["experiments"]}
                break
            except OSError:
                assert time.monotonic() < deadline, "the UI did not answer"
                time.sleep(0.5)
        assert "cells" in names
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as page:
            assert b"MLflow" in page.read()
    finally:
        subprocess.run(["kill", "--", f"-{process.pid}"], check=False)
        process.wait(timeout=30)

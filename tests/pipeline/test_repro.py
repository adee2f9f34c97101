"""Whole runs of the pipeline: what reruns, what is the same twice, and what a killed stage leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import Project

pytestmark = pytest.mark.pipeline


def stages_run(output: str) -> set[str]:
    """Return the names of the stages that DVC says it has run."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def leaderboard(project: Project) -> dict[str, dict[str, str]]:
    with project.path("reports/leaderboard.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


def bytes_written(project: Project) -> dict[str, str]:
    """Return a hash of every file that the stages have written, but for costs and what shows them."""
    exempt = re.compile(r"data/costs/|reports/(leaderboard|report|comparisons)|/cost\.json")
    files = [*project.path("data").rglob("*"), *project.path("reports").rglob("*")]
    names = {str(f.relative_to(project.root)): f for f in files if f.is_file()}
    return {n: hashlib.sha256(f.read_bytes()).hexdigest() for n, f in names.items() if not exempt.search(n)}


def within(folder: str, written: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in written.items() if name.startswith(folder)}


def test_second_repro_runs_nothing_but_publish(finished: Project) -> None:
    assert stages_run(finished.repro()) == {"publish"}


def test_same_project_in_two_places_gives_the_same_bytes(finished: Project, project: Project) -> None:
    project.repro(TRANSFER_CACHE=str(project.root.parent / "another-cache"))
    assert bytes_written(project) == bytes_written(finished)
    assert len(bytes_written(project)) > 50


def test_changed_run_reruns_only_what_depends_on_it(finished: Project) -> None:
    finished.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(C=3.0))
    before = leaderboard(finished)
    assert stages_run(finished.repro()) == {"finetune@svm", "evaluate@svm", "compare", "publish"}
    after = leaderboard(finished)
    assert after["probe"]["accuracy"] == before["probe"]["accuracy"]


def test_removed_run_leaves_the_leaderboard_and_nothing_is_computed(finished: Project) -> None:
    named = re.compile(r">\s*svm\s*<")
    assert named.search(finished.path("reports/report.html").read_text())
    finished.edit_params(lambda p: p["runs"].pop("svm"))
    assert stages_run(finished.repro()) == {"compare", "publish"}
    assert set(leaderboard(finished)) == {"majority", "probe"}
    assert not named.search(finished.path("reports/report.html").read_text())


def test_renamed_run_is_computed_under_its_new_name_with_the_same_figures(finished: Project) -> None:
    before = leaderboard(finished)["svm"]
    finished.rename_param("runs.svm", "kernel")
    assert stages_run(finished.repro()) == {"finetune@kernel", "evaluate@kernel", "compare", "publish"}
    after = leaderboard(finished)["kernel"]
    assert (after["accuracy"], after["auc"], after["ece"]) == (before["accuracy"], before["auc"], before["ece"])


def test_new_split_computes_no_features_again(finished: Project) -> None:
    finished.edit_params(lambda p: p["datasets"]["cells"]["split"].update(seed=1))
    assert not {s for s in stages_run(finished.repro()) if s.startswith(("fetch", "extract"))}


def test_new_photograph_is_noticed_and_only_it_is_computed(finished: Project) -> None:
    from tests.conftest import cell_classes

    shutil.copy2(cell_classes()["sound"][3], finished.path("photos/sound/one-more.png"))
    output = finished.repro()
    assert {"fetch@photos", "prepare@cells", "extract@lite0", "extract@layers"} <= stages_run(output)
    assert json.loads(finished.path("data/features/lite0/features.json").read_text())["count"] == 81
    cost = json.loads(finished.path("data/costs/extract/lite0.json").read_text())
    assert cost["images"] == 81


def test_typo_is_answered_by_the_nearest_key_and_nothing_is_written(project: Project) -> None:
    project.rename_param("features.lite0.image_size", "image_sise")
    result = project.run("python -m stages.extract lite0")
    assert result.returncode == 2
    assert "params.yaml: features.lite0.image_sise is not a key; did you mean image_size?\n" in result.stderr
    assert not project.path("data/features").exists()


def test_make_run_checks_params_before_dvc_reads_them(project: Project) -> None:
    project.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(kind="rbf_smv"))
    result = project.run("python -m stages.params && dvc repro")
    assert result.returncode == 2
    assert result.stderr == "params.yaml: runs.svm.transfer.kind is 'rbf_smv', which is none; did you mean rbf_svm?\n"


def test_fresh_clone_with_a_remote_computes_nothing_and_has_the_same_leaderboard(
    finished: Project, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    finished.run(f"dvc remote add -d shared '{remote}' && git add -A && git commit -qm remote", check=True)
    finished.run("dvc push -q --run-cache", check=True)
    before = leaderboard(finished)
    clone = finished.clone(tmp_path / "clone")
    output = clone.repro("--pull --allow-missing")
    assert stages_run(output) <= {"publish", "compare"}
    assert leaderboard(clone) == before
    assert not clone.path("data/features").exists()


def test_fresh_clone_with_a_remote_and_one_change_computes_only_that(finished: Project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    finished.run(f"dvc remote add -d shared '{remote}' && git add -A && git commit -qm remote", check=True)
    finished.run("dvc push -q --run-cache", check=True)
    clone = finished.clone(tmp_path / "clone")
    clone.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(C=3.0))
    assert stages_run(clone.repro("--pull --allow-missing")) == {"finetune@svm", "evaluate@svm", "compare", "publish"}
    assert set(leaderboard(clone)) == {"majority", "probe", "svm"}


def test_outputs_and_dvc_s_cache_are_the_same_bytes_on_the_disk(project: Project) -> None:
    probe = project.path("probe")
    probe.touch()
    try:
        os.link(probe, project.path(".dvc/probe"))
    except OSError:
        pytest.skip("this file system has no hard links")
    project.repro("prepare@cells extract@layers")
    kept = {path.stat().st_ino for path in project.path(".dvc/cache/files/md5").rglob("*") if path.is_file()}
    large = [
        path for path in project.path("data").rglob("*") if path.suffix in (".npy", ".tar", ".parquet", ".safetensors")
    ]
    assert len(large) > 5
    assert [str(path) for path in large if path.stat().st_ino not in kept] == []


OUTPUTS = {
    "fetch photos": ["data/raw/photos"],
    "prepare cells": ["data/prepared/cells"],
    "extract layers": ["data/features/layers"],
    "finetune svm": ["data/models/svm"],
    "evaluate svm": ["data/evaluations/svm", "reports/runs/svm"],
    "compare": [
        *("reports/report.html", "reports/leaderboard.csv", "reports/leaderboard.md"),
        *("reports/comparisons.json", "reports/labels.csv", "reports/suspects.csv"),
    ],
}
KILLS = int(os.environ.get("KILLS", "4"))
"""Of each stage; CI asks for 20."""


def files_of(project: Project, stage: str) -> dict[str, str]:
    """Return a hash of each file that a stage has written."""
    places = [project.path(output) for output in OUTPUTS[stage]]
    files = [f for place in places for f in (place.rglob("*") if place.is_dir() else [place]) if f.is_file()]
    return {str(f.relative_to(project.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def begin_anew(project: Project, stage: str) -> None:
    """Remove what a stage has written, and the private cache."""
    shutil.rmtree(project.path(".transfer/cache"), ignore_errors=True)
    for place in map(project.path, OUTPUTS[stage]):
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def ended_within(project: Project, stage: str, seconds: float) -> int:
    """Start a stage and kill it after some seconds, if it lives so long; returns its exit code."""
    command = ["python", "-m", *f"stages.{stage}".split()]
    process = subprocess.Popen(command, cwd=project.root, env=project.environment(), start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        return process.wait()


def ended_under_dvc(project: Project, stage: str, seconds: float) -> int:
    """Have DVC run a stage and kill the stage after some seconds; returns 0 where it ended before, else its signal."""
    command = ["dvc", "repro", "--force", "--single-item", stage.replace(" ", "@")]
    with subprocess.Popen(command, cwd=project.root, env=project.environment(), start_new_session=True) as process:
        while not (own := children(process.pid, f"stages.{stage.split()[0]}")):
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(seconds)
        killed = False
        for child in own:
            with suppress(psutil.NoSuchProcess):
                killed |= child.status() != psutil.STATUS_ZOMBIE
                child.kill()
        ended = process.wait()
    assert ended == 0 or (killed and ended == 255)  # DVC says that the stage has failed
    return -signal.SIGKILL if ended else 0


def children(pid: int, word: str) -> list[psutil.Process]:
    """Return the processes that another has started, and these in turn, with a word in their command."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if word in child.cmdline() else []
    return found


@pytest.mark.timeout(600 + 60 * KILLS)
def test_each_stage_killed_at_random_moments_leaves_nothing_that_is_taken_for_whole(finished: Project) -> None:
    lot, whole = random.Random(0), bytes_written(finished)
    for stage in OUTPUTS:
        begin_anew(finished, stage)
        began = time.monotonic()
        assert ended_within(finished, stage, 300) == 0
        seconds, undisturbed = time.monotonic() - began, files_of(finished, stage)
        killed = 0
        for _ in range(10 * KILLS):
            if lot.random() < 0.5:  # else what the last one has left is there, output and cache
                begin_anew(finished, stage)
            kill = ended_under_dvc if lot.random() < 0.5 else ended_within
            ended = kill(finished, stage, lot.uniform(0, seconds))
            assert ended in (0, -signal.SIGKILL)
            found = files_of(finished, stage)
            assert found.items() <= undisturbed.items()
            if finished.path(OUTPUTS[stage][0]).is_dir():  # it has come to its last renaming
                inside = f"{OUTPUTS[stage][0]}/"
                assert within(inside, found) == within(inside, undisturbed)
            killed += ended == -signal.SIGKILL
            if killed == KILLS:
                break
        assert killed == KILLS, stage
        finished.repro(f"--force --single-item {stage.replace(' ', '@')}")
        assert files_of(finished, stage) == undisturbed
        assert bytes_written(finished) == whole
    finished.repro()
    assert bytes_written(finished) == whole
    assert not [path for path in finished.root.rglob("*.tmp-*") if ".dvc" not in path.parts]


def with_network(params: dict[str, Any]) -> None:
    """Add a run that trains what lies above a cut, and features of the network that comes out of it."""
    maps = {
        "images": "photos",
        "backbone": "raw/lite0",
        "image_size": 64,
        "cut": "blocks.4",
        "views": ["identity", "flip"],
    }
    params["features"]["maps"] = maps
    tuned = {"dataset": "cells", "features": "maps", "repeats": 2, "labels_per_class": [8, "all"]}
    params["runs"]["tuned"] = {**tuned, "transfer": {"kind": "fine_tune", "epochs": 4}}
    params["features"]["own"] = {"images": "photos", "backbone": "models/tuned", "image_size": 64}
    on_tuned = {"dataset": "cells", "features": "own", "repeats": 1}  # in others it would know the test images
    params["runs"]["on-tuned"] = {**on_tuned, "transfer": {"kind": "logistic", "C": 0.1}}


def test_training_above_a_cut_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    finished: Project, tmp_path: Path
) -> None:
    finished.edit_params(with_network)
    twin = finished.copy(tmp_path / "twin")
    ran = stages_run(twin.repro())
    assert ran == {
        *("extract@maps", "finetune@tuned", "evaluate@tuned"),
        *("extract@own", "finetune@on-tuned", "evaluate@on-tuned", "compare", "publish"),
    }
    finished.repro("extract@maps")
    trainings = finished.path(".transfer/cache/trainings")
    process = subprocess.Popen(
        ["python", "-m", "stages.finetune", "tuned"],
        cwd=finished.root,
        env=finished.environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(trainings.glob("*/repeat-0-train-all-choice.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {path.name for path in trainings.glob("*/*.pt")}
    assert {"repeat-0-train-8-choice.pt", "repeat-1-train-8-choice.pt", "repeat-0-train-all-choice.pt"} <= kept
    [mark] = trainings.glob(f"*.used-by-{process.pid}")  # by which `make cache PRUNE=1` leaves alone what lives
    assert mark.with_name(mark.name.partition(".")[0]).is_dir()
    finished.repro()
    assert bytes_written(finished) == bytes_written(twin)
    assert not list(trainings.iterdir())
    with finished.path("reports/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["labels_per_class"], row["labels"]) for row in rows] == [
        ("tuned", "8", "16.0"),
        ("tuned", "all", "60.0"),
    ]

"""Faults, each injected into a whole project: docs/reliability.md has the table."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import Project, cell_files
from tests.pipeline.test_experiments import parents
from tests.pipeline.test_repro import bytes_written, within

pytestmark = pytest.mark.pipeline

MOUNTING = ["unshare", "--map-root-user", "--mount", "true"]


@pytest.fixture
def may_mount() -> None:
    """Skip where this process may not mount anything, even for itself."""
    if shutil.which("unshare") is None or subprocess.run(MOUNTING, check=False).returncode:
        pytest.skip("no right to mount a small or read-only file system here")


def mounted(project: Project, mount: str, folder: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command while a folder of the project is another file system, which nobody else sees."""
    project.path(folder).mkdir(parents=True, exist_ok=True)
    script = f"{mount} {shlex.quote(folder)} && {command}"
    return project.run(f"unshare --map-root-user --mount sh -c {shlex.quote(script)}")


def full(kilobytes: int) -> str:
    return f"mount -t tmpfs -o size={kilobytes}k tmpfs"


READ_ONLY = 'ro() { mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"; }; ro'


STAGES = [
    ("fetch photos", "data/raw"),
    ("prepare cells", "data/prepared"),
    ("extract layers", "data/features"),
    ("finetune svm", "data/models"),
    ("evaluate svm", "data/evaluations"),
]


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(("stage", "folder"), STAGES)
def test_a_full_disk_ends_a_stage_in_one_line_and_nothing_is_lost(stage: str, folder: str, finished: Project) -> None:
    whole = bytes_written(finished)
    # The stage writes beside its output: what it reads from the same folder lies elsewhere.
    module, name = stage.split()
    output = finished.path(f"{folder}/{name}")
    ended = mounted(finished, full(24), folder, f"python -m stages.{module} {name}")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "No space left on device" in ended.stderr.splitlines()[-1]
    assert within(f"{output.relative_to(finished.root)}/", bytes_written(finished)) == within(
        f"{folder}/{name}/", whole
    )
    finished.run(f"python -m stages.{module} {name}", check=True)
    assert bytes_written(finished) == whole


@pytest.mark.usefixtures("may_mount")
def test_a_full_cache_ends_extract_in_one_line_and_it_goes_on_from_there(finished: Project) -> None:
    whole = bytes_written(finished)
    shutil.rmtree(finished.path(".transfer/cache/activations"))
    ended = mounted(finished, full(40), ".transfer/cache/activations", "python -m stages.extract layers")
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "No space left on device" in ended.stderr.splitlines()[-1]
    finished.run("python -m stages.extract layers", check=True)
    assert bytes_written(finished) == whole


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(("stage", "folder"), STAGES)
def test_a_read_only_folder_ends_a_stage_in_one_line(stage: str, folder: str, finished: Project) -> None:
    whole = bytes_written(finished)
    ended = mounted(finished, READ_ONLY, folder, "python -m stages.{} {}".format(*stage.split()))
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "Read-only file system" in ended.stderr.splitlines()[-1]
    assert bytes_written(finished) == whole


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("mount", [full(16), READ_ONLY], ids=["full", "read-only"])
def test_where_mlflow_s_artifacts_cannot_be_written_results_wait(mount: str, finished: Project) -> None:
    before = parents(finished)
    finished.path("mlflow.db").unlink()
    shutil.rmtree(finished.path("mlartifacts"))
    ended = mounted(finished, mount, "mlartifacts", "python -m stages.publish")
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert "wait" in ended.stderr
    strict = mounted(finished, mount, "mlartifacts", "python -m stages.publish --strict")
    assert strict.returncode == 1
    finished.run("python -m stages.publish --strict", check=True)
    assert parents(finished) == before


def test_a_locked_store_costs_a_line_and_results_wait(finished: Project) -> None:
    before = parents(finished)
    finished.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(C=3.0))
    finished.repro("evaluate@svm")
    with sqlite3.connect(finished.path("mlflow.db")) as other:
        other.execute("begin exclusive")
        ended = finished.run("python -m stages.publish", timeout=300)
    other.close()
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert len([line for line in ended.stderr.splitlines() if line.startswith("warning: ")]) <= 2
    finished.run("python -m stages.publish --strict", check=True)
    assert len(parents(finished)) == len(before) + 1


def mend(project: Project) -> None:
    """Do what `make run` does before it starts DVC."""
    line = re.search(r"^MEND := (.*)$", project.path("Makefile").read_text(), re.M)
    assert line is not None
    project.run(line[1], check=True)


def test_dvc_killed_while_it_wrote_its_lock_is_mended_by_make_run(finished: Project) -> None:
    finished.path(".dvc/tmp/rwlock").write_text("")
    assert "RWLock-file '.dvc/tmp/rwlock'" in finished.run("dvc repro").stderr
    mend(finished)
    finished.repro()
    finished.path(".dvc/tmp/rwlock").write_text("{}")
    mend(finished)
    assert finished.path(".dvc/tmp/rwlock").exists()


def test_dvc_killed_twenty_times_while_its_stages_go_on_writing(project: Project, finished: Project) -> None:
    lot = random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.root,
            env=project.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(lot.uniform(1.0, 7.0))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # the stage that it has started goes on
            process.wait()
        mend(project)
    project.repro()
    assert bytes_written(project) == bytes_written(finished)
    assert not [path for path in project.path("data").rglob("*") if ".tmp-" in path.name]


def test_two_repros_at_once_in_one_clone(project: Project, finished: Project) -> None:
    begun = [
        subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.root,
            env=project.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    ended = [process.wait(300) for process in begun]
    assert 0 in ended  # DVC refuses the other, or it finds all done
    project.repro()
    assert bytes_written(project) == bytes_written(finished)


def test_two_clones_at_once_with_one_cache(project: Project, finished: Project, tmp_path: Path) -> None:
    twin = project.copy(tmp_path / "twin")
    shared = {"TRANSFER_CACHE": str(tmp_path / "shared-cache")}
    for clone in (project, twin):
        clone.run(f"dvc cache dir '{tmp_path / 'shared-dvc'}'", check=True)
    begun = [
        subprocess.Popen(
            ["dvc", "repro", "evaluate@svm"],
            cwd=clone.root,
            env=clone.environment(**shared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for clone in (project, twin)
    ]
    printed = [process.communicate(timeout=300)[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0], printed
    for clone in (project, twin):
        clone.repro(**shared)
        assert bytes_written(clone) == bytes_written(finished)


def test_a_remote_that_is_gone_is_told_and_what_is_here_stays(finished: Project, tmp_path: Path) -> None:
    whole = bytes_written(finished)
    finished.run(f"dvc remote add -d gone '{tmp_path / 'gone'}'", check=True)
    ended = finished.run("dvc repro --pull --allow-missing")
    assert ended.returncode == 0
    assert bytes_written(finished) == whole


ODD_NAMES = [
    "two words.png",
    "quotes \" and '.png",
    "new\nline.png",
    "e\u0301 in two letters.png",
    "\u00e9 in one.png",
    "<script>alert(1)</script>.png".replace("/", "\u2215"),
    "-rf.png",
    "$(touch owned).png",
    "%2e%2e.png",
    "ü" * 125 + "a.png",  # 255 bytes
]


def test_names_of_files_and_classes_are_only_names(project: Project) -> None:
    assert len(os.fsencode(ODD_NAMES[-1])) == 255
    shutil.rmtree(project.path("photos"))
    classes = ("<b>bold</b>".replace("/", "\u2215"), 'it\'s "quoted"; $(touch owned)')
    for number, path in enumerate(cell_files(48)):
        folder = project.path("photos") / classes[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        at = number // 2
        shutil.copy2(path, folder / (ODD_NAMES[at] if at < len(ODD_NAMES) else f"{at}.png"))
    project.edit_params(lambda p: p.update(runs={"majority": p["runs"]["majority"], "probe": p["runs"]["probe"]}))
    started = time.monotonic()
    project.repro()
    assert time.monotonic() - started < 600
    assert not list(project.root.rglob("owned"))
    page = project.path("reports/report.html").read_text()
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert len(parents(project)) == 2


def test_a_link_that_leads_back_is_followed_once(project: Project) -> None:
    (project.path("photos/sound") / "again").symlink_to(project.path("photos"))
    before = len(list(project.path("photos/sound").glob("*.png")))
    ended = project.run("python -m stages.fetch photos", timeout=60)
    assert ended.returncode == 0
    assert f"{2 * before}" not in ended.stderr

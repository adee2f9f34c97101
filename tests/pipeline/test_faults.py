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

from stages.files import hash_file
from tests.conftest import Project, cell_files
from tests.pipeline.test_experiments import parents
from tests.pipeline.test_repro import KILLS, bytes_written, ended_within, stages_run, with_network, within

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
    ("compare", "reports"),
]


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of each file in a folder."""
    return {str(f.relative_to(folder)): hash_file(f) for f in folder.rglob("*") if f.is_file()}


def assert_told(ended: subprocess.CompletedProcess[str], what: str) -> None:
    """Assert that a stage ended as one that a user can mend, and said so in its last line."""
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert what in ended.stderr.splitlines()[-1]


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(("stage", "folder"), STAGES)
def test_a_full_disk_ends_a_stage_in_one_line_and_nothing_is_lost(
    stage: str, folder: str, finished: Project, tmp_path: Path
) -> None:
    whole, (before, after) = bytes_written(finished), (tmp_path / "before", tmp_path / "after")
    own = stage.partition(" ")[2]
    shutil.copytree(finished.path(folder) / own, before / own, dirs_exist_ok=True)
    # The disk holds what the stage has written earlier, and a few pages more.
    pages = sum(-(-path.stat().st_size // 4096) for path in before.rglob("*") if path.is_file()) + 6
    copies = f"cp -r '{before}'/. {folder} && {{ python -m stages.{stage}; ended=$?; cp -r {folder} '{after}'; }}"
    ended = mounted(finished, full(4 * pages), folder, f"{copies} && exit $ended")
    assert_told(ended, "No space left on device")
    assert contents(after) == contents(before)
    finished.run(f"python -m stages.{stage}", check=True)
    assert bytes_written(finished) == whole


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("folder", ["activations", "networks"])
def test_a_full_cache_ends_extract_in_one_line_and_it_goes_on_from_there(folder: str, finished: Project) -> None:
    whole = bytes_written(finished)
    for of in ("activations", "networks"):
        shutil.rmtree(finished.path(f".transfer/cache/{of}"))
    ended = mounted(finished, full(40), f".transfer/cache/{folder}", "python -m stages.extract layers")
    assert_told(ended, "No space left on device")
    finished.run("python -m stages.extract layers", check=True)
    assert bytes_written(finished) == whole


@pytest.mark.usefixtures("may_mount")
def test_a_full_disk_under_checkpoints_ends_a_training_in_one_line_and_nothing_is_lost(finished: Project) -> None:
    finished.edit_params(with_network)
    finished.repro("finetune@tuned")
    models = finished.path("data/models")
    whole = contents(models)
    ended = mounted(finished, full(2048), ".transfer/cache/trainings", "python -m stages.finetune tuned")
    assert_told(ended, "No space left on device")
    assert contents(models) == whole
    assert sorted(path.name for path in models.glob(".*")) == []
    finished.run("python -m stages.finetune tuned", check=True)
    assert contents(models) == whole


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(("stage", "folder"), STAGES)
def test_a_read_only_folder_ends_a_stage_in_one_line(stage: str, folder: str, finished: Project) -> None:
    before = contents(finished.path("data")), contents(finished.path("reports"))
    ended = mounted(finished, READ_ONLY, folder, f"python -m stages.{stage}")
    assert_told(ended, "Read-only file system")
    assert (contents(finished.path("data")), contents(finished.path("reports"))) == before


@pytest.mark.usefixtures("may_mount")
def test_a_read_only_cache_is_read_and_what_it_lacks_ends_extract_in_one_line(finished: Project) -> None:
    features = contents(finished.path("data/features"))
    command = "python -m stages.extract layers"
    assert mounted(finished, READ_ONLY, ".transfer", command).returncode == 0
    assert contents(finished.path("data/features")) == features
    shutil.rmtree(finished.path(".transfer/cache/activations"))
    assert_told(mounted(finished, READ_ONLY, ".transfer", command), "Read-only file system")
    assert contents(finished.path("data/features")) == features


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


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize("known", [True, False], ids=["a store that is there", "a new one"])
def test_where_the_store_s_own_disk_is_full_results_wait(known: bool, finished: Project, tmp_path: Path) -> None:
    before = parents(finished)
    finished.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(C=3.0))
    finished.repro("evaluate@svm")
    store = finished.path("mlflow.db")
    room = store.stat().st_size // 1024 + 24 if known else 64  # for a few pages more; for hardly a table
    copied = f"cp {store} full/ &&" if known else ""
    publish = "MLFLOW_TRACKING_URI=sqlite:///full/mlflow.db python -m stages.publish"
    script = f"{copied} {{ {publish}; ended=$?; cp -r full '{tmp_path}/after'; exit $ended; }}"
    ended = mounted(finished, full(room), "full", script)
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "database or disk is full; " in line
    assert line.endswith(" for the next `dvc repro` or `make publish`")
    if known:  # nothing of what was there is harmed
        shutil.copy2(tmp_path / "after" / "mlflow.db", store)
    finished.run("python -m stages.publish --strict", check=True)
    assert len(parents(finished)) == len(before) + 1


@pytest.mark.usefixtures("may_mount")
@pytest.mark.parametrize(
    ("mount", "reason"),
    [(full(16), "No space left on device"), (READ_ONLY, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_where_the_outbox_cannot_be_written_publish_says_so_in_one_line(
    mount: str, reason: str, finished: Project
) -> None:
    before = parents(finished)
    finished.path("mlflow.db").unlink()
    shutil.rmtree(finished.path("mlartifacts"))
    for option, code in (("", 0), (" --strict", 1)):
        ended = mounted(finished, mount, ".transfer", f"python -m stages.publish{option}")
        assert ended.returncode == code
        (line,) = ended.stderr.splitlines()
        assert line.startswith("warning: not published: ")
        assert line.endswith(reason)
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
    (line,) = ended.stderr.splitlines()
    assert "database is locked; 3 results wait in" in line  # a store that cannot be asked may lack them all
    assert len(list(finished.path(".transfer/outbox").iterdir())) == 3
    finished.run("python -m stages.publish --strict", check=True)
    assert len(parents(finished)) == len(before) + 1


@pytest.mark.timeout(600 + 60 * KILLS)
def test_publish_killed_at_random_moments_is_completed_by_the_next(finished: Project) -> None:
    def empty_store() -> None:
        finished.path("mlflow.db").unlink()
        shutil.rmtree(finished.path("mlartifacts"))

    def stored() -> tuple[dict[str, str], int]:
        with sqlite3.connect(finished.path("mlflow.db")) as store:
            ((runs,),) = store.execute("select count(*) from runs where lifecycle_stage = 'active'")
        return parents(finished), runs

    lot, before, killed = random.Random(0), stored(), 0
    empty_store()
    began = time.monotonic()
    assert ended_within(finished, "publish --strict", 300) == 0
    seconds = time.monotonic() - began
    empty_store()
    for _ in range(10 * KILLS):
        ended = ended_within(finished, "publish --strict", lot.uniform(0, seconds))
        assert ended in (0, -signal.SIGKILL)
        killed += ended == -signal.SIGKILL
        if killed == KILLS:
            break
        if ended == 0:
            assert stored() == before
            empty_store()
    assert killed == KILLS
    finished.run("python -m stages.publish --strict", check=True)
    assert stored() == before
    assert not list(finished.path(".transfer/outbox").iterdir())
    assert not list(finished.root.glob(".mlflow.db*"))


def prepared(project: Project, what: str) -> None:
    """Do what `make run` does before it starts DVC."""
    line = re.search(rf"^{what} := (.*)$", project.path("Makefile").read_text(), re.M)
    assert line is not None
    project.run(line[1], check=True)


def mend(project: Project) -> None:
    prepared(project, "MEND")


def test_dvc_killed_while_it_wrote_its_lock_is_mended_by_make_run(finished: Project) -> None:
    finished.path(".dvc/tmp/rwlock").write_text("")
    assert "RWLock-file '.dvc/tmp/rwlock'" in finished.run("dvc repro").stderr
    mend(finished)
    finished.repro()
    finished.path(".dvc/tmp/rwlock").write_text("{}")
    mend(finished)
    assert finished.path(".dvc/tmp/rwlock").exists()


def test_dvc_killed_twenty_times_while_its_stages_go_on_writing(project: Project, finished: Project) -> None:
    lot, killed = random.Random(0), 0
    for _ in range(60):
        process = subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.root,
            env=project.environment(),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            ended = process.wait(lot.uniform(1.0, 7.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)  # the stage that it has started goes on
            ended = process.wait()
        mend(project)
        killed += ended == -signal.SIGKILL
        if killed == 20:
            break
        if ended == 0:  # all was done: from the beginning
            for folder in ("data", ".dvc/cache", ".transfer"):
                shutil.rmtree(project.path(folder))
            project.path("dvc.lock").unlink()
            project.run("git checkout -q -- data", check=True)
    assert killed == 20
    project.repro()
    assert bytes_written(project) == bytes_written(finished)
    assert not [path for path in project.path("data").rglob("*") if ".tmp-" in path.name]


def test_two_repros_at_once_in_one_clone(project: Project, finished: Project) -> None:
    begun = [
        subprocess.Popen(
            ["dvc", "repro"],
            cwd=project.root,
            env=project.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300)[0] for process in begun]
    ended = {process.returncode: said for process, said in zip(begun, printed, strict=True)}
    assert 0 in ended, printed  # DVC refuses the other, or it finds all done
    assert set(ended) <= {0, 255}
    if 255 in ended:
        assert re.search("is busy, it is being blocked by|Unable to acquire lock", ended[255])
    assert not any("Traceback" in said for said in printed)
    project.repro()
    assert bytes_written(project) == bytes_written(finished)


def test_two_clones_at_once_with_one_cache(project: Project, finished: Project, tmp_path: Path) -> None:
    twin = project.copy(tmp_path / "twin")
    shared = {"TRANSFER_CACHE": str(tmp_path / "shared-cache")}
    for clone in (project, twin):
        clone.run(f"dvc cache dir '{tmp_path / 'shared-dvc'}'", check=True)
        prepared(clone, "SHARE")
        assert clone.run("dvc config cache.type").stdout == "reflink,copy\n"
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
    assert not any("Traceback" in said for said in printed)
    for clone in (project, twin):
        clone.repro(**shared)
        assert bytes_written(clone) == bytes_written(finished)


def test_the_links_of_a_clone_with_a_cache_of_its_own_or_that_says_so_stay(project: Project, tmp_path: Path) -> None:
    prepared(project, "SHARE")
    assert project.run("dvc config cache.type").stdout == "hardlink,reflink,copy\n"
    project.run(f"dvc cache dir '{tmp_path / 'shared'}' && dvc config --local cache.type hardlink", check=True)
    prepared(project, "SHARE")
    assert project.run("dvc config cache.type").stdout == "hardlink\n"


def test_a_remote_that_is_gone_is_told_where_it_is_needed_and_what_is_here_goes_on(
    finished: Project, tmp_path: Path
) -> None:
    finished.run(f"dvc remote add -d gone '{tmp_path / 'gone'}' && git add -A && git commit -qm remote", check=True)
    clone = finished.clone(tmp_path / "clone")
    for own in (finished, clone):
        own.edit_params(lambda p: p["runs"]["svm"]["transfer"].update(C=3.0))
    here = finished.repro("--pull --allow-missing")
    assert stages_run(here) == {"finetune@svm", "evaluate@svm", "compare", "publish"}
    asked = clone.run("dvc repro --pull --allow-missing")
    assert asked.returncode == 255
    assert "failed to reproduce 'finetune@svm': Checkout failed for following targets:\n" in asked.stderr
    assert "data/prepared/cells" in asked.stderr
    computed = clone.repro("evaluate@svm")
    assert "Traceback" not in here + asked.stderr + computed
    for folder in ("data/features/layers/", "data/models/svm/", "data/evaluations/svm/"):
        assert within(folder, bytes_written(clone)) == within(folder, bytes_written(finished))


ODD_NAMES = [
    "two words.png",
    "quotes \" and '.png",
    "new\nline.png",
    "\x1b[2J.png",
    "e\u0301 in both normal forms.png",
    "\u00e9 in both normal forms.png",
    "<script>alert(1)</script>.png".replace("/", "\u2215"),
    "-rf.png",
    "$(touch owned).png",
    "%2e%2e.png",
    "ü" * 125 + "a.png",  # 255 bytes
]


def test_names_of_files_and_classes_are_only_names(project: Project) -> None:
    import pyarrow.parquet as pq

    assert len(os.fsencode(ODD_NAMES[-1])) == 255
    shutil.rmtree(project.path("photos"))
    classes = ("<b>bold</b>\n\x1b[2J".replace("/", "\u2215"), 'it\'s "quoted" $\\frac$; $(touch owned)')
    names = set()
    for number, path in enumerate(cell_files(48)):
        folder = project.path("photos") / classes[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        at = number // 2
        name = ODD_NAMES[at] if at < len(ODD_NAMES) else f"{at}.png"
        shutil.copy2(path, folder / name)
        names.add(f"{folder.name}/{name}")
    project.edit_params(lambda p: p.update(runs={"majority": p["runs"]["majority"], "probe": p["runs"]["probe"]}))
    printed = project.repro()
    assert "<b>bold<\u2215b>\\n\\x1b[2J" in printed
    assert "\x1b" not in printed
    assert "Traceback" not in printed
    samples = pq.read_table(project.path("data/prepared/cells/samples.parquet"))["sample"].to_pylist()
    assert len(samples) == len(names) == 48
    assert set(samples) == names
    assert not list(project.root.rglob("owned"))
    page = project.path("reports/report.html").read_text()
    assert "&lt;b&gt;bold" in page
    assert "<b>bold" not in page
    assert len(parents(project)) == 2


def test_an_output_that_is_cut_off_is_made_again_by_the_command_that_its_line_names(project: Project) -> None:
    project.repro("finetune@svm")
    whole = bytes_written(project)
    shard, images, checksums = "features/layers/activations-*.npy", "raw/photos/*.tar", "features/layers/SHA256SUMS"
    cut_off = [(pattern, None) for pattern in (shard, images, "prepared/cells/samples.parquet")]
    for pattern, flipped in [*cut_off, (images, 699), (shard, 5000), (checksums, 9)]:
        [path] = project.path("data").glob(pattern)
        path.chmod(0o644)  # DVC keeps what it has linked from being written to
        with path.open("r+b") as file:  # in place: DVC's own copy is the same file
            if flipped is None:
                file.truncate(path.stat().st_size // 2)
            else:
                file.seek(flipped)
                byte = file.read(1)[0]
                file.seek(flipped)
                file.write(bytes([byte ^ 1]))
        path.chmod(0o444)
        stage = "extract layers" if "raw" in pattern else "finetune svm"
        shutil.rmtree(project.path(".transfer/cache/activations"), ignore_errors=True)
        ended = project.run(f"python -m stages.{stage}")
        told = next(path.parent.glob("activations-*")) if pattern == checksums else path
        assert_told(ended, str(told.relative_to(project.root)))
        [command] = re.findall("`(dvc repro --force .*?)`", ended.stderr)
        project.run(command, check=True)
        project.repro("finetune@svm")
        assert bytes_written(project) == whole
        kept = [path for path in project.path(".dvc/cache/files/md5").glob("*/*") if path.suffix != ".dir"]
        assert [path for path in kept if hash_file(path, "md5") != path.parent.name + path.name] == []


def test_a_link_that_leads_back_is_followed_once(project: Project) -> None:
    import pyarrow.parquet as pq

    photos = sorted(f"{path.parent.name}/{path.name}" for path in project.path("photos").glob("*/*.png"))
    (project.path("photos/sound") / "again").symlink_to(project.path("photos"))
    ended = project.run("dvc repro fetch@photos", timeout=100, check=True)  # DVC reads the folder, too
    assert stages_run(ended.stdout) == {"fetch@photos"}
    assert "Traceback" not in ended.stderr
    images = pq.read_table(project.path("data/raw/photos/images.parquet"))
    assert images["sample"].to_pylist() == photos
    assert stages_run(project.run("dvc repro fetch@photos", timeout=100, check=True).stdout) == set()


@pytest.mark.parametrize(
    "what", ["a link to nothing", "a link to itself", "a name that is no UTF-8", "no right to read"]
)
def test_what_dvc_cannot_read_in_a_folder_that_it_watches_ends_in_a_line(what: str, finished: Project) -> None:
    """docs/reliability.md and docs/troubleshooting.md say that DVC stops there; they change if it ever goes on."""
    folder = finished.path("photos/sound")
    if what == "a link to nothing":
        (folder / "odd.png").symlink_to(folder / "nothing")
    elif what == "a link to itself":
        (folder / "odd.png").symlink_to(folder / "odd.png")
    elif what == "no right to read":
        (folder / "odd.png").write_bytes(b"x")
        (folder / "odd.png").chmod(0)
        if os.access(folder / "odd.png", os.R_OK):
            pytest.skip("this user may read everything")
    else:
        Path(os.fsdecode(os.fsencode(folder) + b"/odd\xff.png")).write_bytes(b"x")
    before = bytes_written(finished)
    ended = finished.run("dvc repro", timeout=100)
    assert ended.returncode == 255
    assert "failed to reproduce 'fetch@photos'" in ended.stderr
    assert ("odd.png" if what != "a name that is no UTF-8" else r"'\udcff'") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert bytes_written(finished) == before

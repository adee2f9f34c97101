"""What tests share: real cells, and a whole project (git, DVC, stages, a few real images) in a temporary folder."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def keep_to_one_core() -> None:
    """Give each process of a parallel run a core of its own: torch in two processes on the same cores crawls."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


keep_to_one_core()  # before another conftest.py imports torch, which counts the cores once


def cell_files(count: int | None = None) -> list[Path]:
    """Return files of real solar cells, in the order of their table."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "data" / "images").glob("*.png"))[:count]


def cell_classes() -> dict[str, list[Path]]:
    """Return the files of real cells by class: sound (probability 0) and defective (probability 1)."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    found: dict[str, list[Path]] = {"sound": [], "defective": []}
    for line in (folder / "labels.csv").read_text().splitlines():
        name, probability, _ = line.split()
        if float(probability) in (0.0, 1.0):
            found["defective" if float(probability) else "sound"].append(folder / name)
    return found


PARAMS = """\
downloads:
  photos: {source: folder, path: photos}
  lite0: {source: weights, path: requirements.lock, network: tf_efficientnet_lite0, origin: package}
datasets:
  cells:
    images: photos
    split: {test: 0.25, validation: 0.25, repeats: 4, seed: 0}
features:
  lite0: {images: photos, backbone: raw/lite0, image_size: 64}
  layers:
    {images: photos, backbone: raw/lite0, image_size: 64, layers: [blocks.3, pooled], views: [identity, flip]}
runs:
  majority: {dataset: cells, features: lite0, transfer: {kind: majority}}
  probe: {dataset: cells, features: lite0, transfer: {kind: logistic, C: [0.01, 0.1]}}
  svm: {dataset: cells, features: layers, transfer: {kind: rbf_svm, C: 10.0}}
compare:
  references: {cells: probe}
"""


class Project:
    """The project in a folder of its own, with its own git repository, DVC cache and MLflow store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name

    def run(
        self, command: str, check: bool = False, timeout: float = 600, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command in the project with this environment's programs and none of its settings."""
        result = subprocess.run(
            command,
            shell=True,
            cwd=self.root,
            env=self.environment(**env),
            text=True,
            capture_output=True,
            timeout=timeout,
        )
        assert not check or result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result

    def environment(self, **env: str) -> dict[str, str]:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("MLFLOW_", "TRANSFER_", "DVC_", "GIT_", "PYTHON", "MAKE", "MFLAGS"))
        }
        names = {f"GIT_{who}_{what}": "pipeline-test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "DVC_NO_ANALYTICS": "1"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**kept, **names, **settings, "GIT_CONFIG_GLOBAL": "/dev/null", "PATH": path, **env}

    def repro(self, targets: str = "", **env: str) -> str:
        """Run `dvc repro` and return what it printed; fails the test when it fails."""
        result = self.run(f"dvc repro {targets}", check=True, **env)
        return result.stdout + result.stderr

    def commit(self, message: str = "results") -> None:
        self.run(f"git add -A && git commit -qm '{message}'", check=True)

    def edit_params(self, edit: Callable[[dict[str, Any]], Any]) -> None:
        """Read params.yaml, let a function change it, and write it again."""
        from ruamel.yaml import YAML

        yaml = YAML()
        content = yaml.load(self.path("params.yaml").read_text())
        edit(content)
        with self.path("params.yaml").open("w") as file:
            yaml.dump(content, file)

    def rename_param(self, path: str, name: str) -> None:
        """Rename a key of params.yaml, given by its path with dots."""
        *parents, old = path.split(".")

        def rename(content: dict[str, Any]) -> None:
            for part in parents:
                content = content[part]
            content[name] = content.pop(old)

        self.edit_params(rename)

    def copy(self, root: Path) -> Project:
        """Return a copy in another folder, as fresh as if it had been made there."""
        shutil.copytree(self.root, root, symlinks=True)
        return Project(root)

    def clone(self, root: Path) -> Project:
        """Return a git clone in another folder: what is in git, nothing of what DVC or MLflow hold."""
        self.run(f"git clone -q . '{root}'", check=True)
        shutil.copytree(self.path("photos"), root / "photos")
        return Project(root)


def make_project(root: Path, images_per_class: int = 40) -> Project:
    """Make a project of its own with a few real cells in class folders."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        if name.startswith(("reports/", "tests/")) or name == "dvc.lock" or not (ROOT / name).is_file():
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, root / name)
    (root / "params.yaml").write_text(PARAMS)
    for name, paths in cell_classes().items():
        (root / "photos" / name).mkdir(parents=True)
        for path in paths[: images_per_class * 8 : 8]:
            shutil.copy2(path, root / "photos" / name)
    project = Project(root)
    (root / ".gitignore").open("a").write("/photos/\n")
    project.run("git init -q -b main && git add -A && git commit -qm 'a project'", check=True)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A new project in which no stage has run."""
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished_template(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One project in which everything has run, made once; tests get copies."""
    project = make_project(tmp_path_factory.mktemp("finished") / "project")
    project.repro()
    project.commit()
    return project


@pytest.fixture
def finished(finished_template: Project, tmp_path: Path) -> Project:
    """A project of its own in which everything has run and is committed."""
    return finished_template.copy(tmp_path / "finished")

"""How long `dvc repro` takes with nothing to do, as Markdown for docs/benchmarks.md.

    python -m tests.benchmarks.nothing_to_do        about a minute; needs a pipeline that has been run

Against two pipelines whose stages do nothing: one of the same shape, with the same dependencies, parameters and outputs
(what this one takes more is its own code, the look into MLflow's store); and one of as many stages with one dependency
and one output each (what this one takes more is also what DVC needs to read so much).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

from stages.cli import UserError, guard
from stages.threads import thread_count
from tests.conftest import ROOT

ROUNDS = 7


def timed(folder: Path) -> float:
    """Return the seconds of a `dvc repro` in a folder; refuses one that had work to do."""
    start = time.perf_counter()
    result = subprocess.run(["dvc", "repro"], cwd=folder, text=True, capture_output=True, check=True)
    seconds = time.perf_counter() - start
    ran = [line for line in result.stdout.splitlines() if line.startswith("Running stage") and "publish" not in line]
    if ran:
        raise UserError(f"{folder} had work to do ({ran[0]}): run `dvc repro` there first")
    return seconds


def empty_pipeline(folder: Path, stages: int) -> None:
    """Make a repository with a pipeline of stages that do nothing, and run it once."""
    (folder / "input").write_text("")
    pipeline = {f"s{i}": {"cmd": f"touch s{i}.out", "deps": ["input"], "outs": [f"s{i}.out"]} for i in range(stages)}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": pipeline}))
    for command in ("git init -q", "dvc init -q", "dvc repro -q"):
        subprocess.run(command.split(), cwd=folder, check=True)


def same_shape(folder: Path) -> None:
    """Copy this project, with the one stage that always runs doing nothing."""
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(".venv", ".transfer", "mlartifacts"))
    pipeline = folder / "dvc.yaml"
    pipeline.write_text(pipeline.read_text().replace("cmd: python -m stages.publish", "cmd: cd ."))
    subprocess.run(["dvc", "repro", "-q"], cwd=folder, check=True)


def main() -> None:
    """Time them in turn."""
    os.environ["DVC_NO_ANALYTICS"] = "1"
    stages = len(yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"])
    with tempfile.TemporaryDirectory() as name:
        shape, empty = Path(name, "shape"), Path(name, "empty")
        empty.mkdir()
        empty_pipeline(empty, stages)
        same_shape(shape)
        folders = (ROOT, shape, empty)
        for folder in folders:
            timed(folder)
        rounds = [[timed(folder) for folder in folders] for _ in range(ROUNDS)]
    print(f"{platform.processor() or platform.machine()}, {thread_count()} cores, Python {platform.python_version()}\n")
    print(f"| `dvc repro`, {stages} stages | the same, doing nothing | more | small stages, doing nothing | more |")
    print("|---|---|---|---|---|")
    for ours, shaped, small in rounds:
        print(f"| {ours:.2f} s | {shaped:.2f} s | {ours - shaped:+.2f} s | {small:.2f} s | {ours - small:+.2f} s |")
    more = [f"**{median(row[0] - row[other] for row in rounds):+.2f} s**" for other in (1, 2)]
    print(f"| median | | {more[0]} | | {more[1]} |\n")


if __name__ == "__main__":
    guard(main)

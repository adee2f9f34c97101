"""How long `dvc repro` takes with nothing to do, as Markdown for docs/benchmarks.md.

    python -m tests.benchmarks.nothing_to_do        about a minute; needs a pipeline that has been run

Against a pipeline of as many stages, each of which has one dependency and one output and does nothing: what is more is
what this pipeline's own stages, files and its look into MLflow's store cost.
"""

from __future__ import annotations

import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

from stages.cli import UserError, guard
from stages.threads import thread_count
from tests.conftest import ROOT

PAIRS = 7


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


def main() -> None:
    """Time both in turn."""
    os.environ["DVC_NO_ANALYTICS"] = "1"
    stages = len(yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"])
    with tempfile.TemporaryDirectory() as name:
        empty_pipeline(Path(name), stages)
        timed(ROOT)
        pairs = [(timed(ROOT), timed(Path(name))) for _ in range(PAIRS)]
    print(f"{platform.processor() or platform.machine()}, {thread_count()} cores, Python {platform.python_version()}\n")
    print(f"| `dvc repro`, {stages} stages | stages that do nothing | more |\n|---|---|---|")
    for ours, nothing in pairs:
        print(f"| {ours:.2f} s | {nothing:.2f} s | {ours - nothing:+.2f} s |")
    print(f"\nMedian: **{median(a - b for a, b in pairs):+.2f} s**.")


if __name__ == "__main__":
    guard(main)

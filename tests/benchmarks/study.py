"""The full study of the repository's cells: every cut, baselines and few labels, on every repeat of the split.

    make study

What is run stands in docs/study/params.yaml. DVC runs it, run by run, in a workspace of its own (.transfer/study) on
the project's caches. What a run has given is copied into docs/study/ at once, with dvc.lock: stopped at any moment the
study goes on where it was, in another clone with the next run. At the end docs/study/ has the leaderboard and the
curves. How long is left is told from the seconds that each run took last time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from stages.cli import UserError, guard
from stages.files import new_file, write_json
from stages.params import read_params
from stages.store.location import cache_root, shared_root

KEPT = Path("docs/study").absolute()
RESULTS = ("leaderboard.csv", "leaderboard.md", "labels.csv", "comparisons.json")
SECONDS = KEPT / "seconds.json"


def workspace() -> Path:
    """Make the folder in which DVC runs the study: this code, the study's params.yaml, what earlier runs have given."""
    folder = shared_root() / ".transfer" / "study"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "stages", ignore_errors=True)
    shutil.copytree("stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", "requirements.lock", ".dvcignore"):
        shutil.copy2(file, folder / file)
    shutil.copy2(KEPT / "params.yaml", folder / "params.yaml")
    if not (folder / ".dvc").is_dir():
        run(folder, "dvc", "init", "--no-scm", "--quiet")
        run(folder, "dvc", "cache", "dir", "--local", str(Path(".dvc/cache").absolute()))
    if not (folder / "dvc.lock").is_file() and (KEPT / "dvc.lock").is_file():
        shutil.copy2(KEPT / "dvc.lock", folder / "dvc.lock")
        shutil.copytree(KEPT / "runs", folder / "reports" / "runs", dirs_exist_ok=True)
    return folder


def run(folder: Path, *command: str) -> str:
    """Run a command in the workspace and return what it prints; raises UserError with the end of it when it fails."""
    environment = {**os.environ, "TRANSFER_CACHE": str(cache_root())}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed in {folder}:\n{done.stdout[-2000:]}")
    return done.stdout


def unfinished(folder: Path, runs: list[str]) -> list[str]:
    """Return the runs whose results are not there, or of other inputs, parameters or code."""
    would = run(folder, "dvc", "repro", "--dry", "--allow-missing", *(f"evaluate@{name}" for name in runs))
    return [name for name in runs if f"'finetune@{name}'" in would or f"'evaluate@{name}'" in would]


def keep(folder: Path, name: str, seconds: float) -> None:
    """Copy what a run has given into docs/study/."""
    target = KEPT / "runs" / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "reports" / "runs" / name, target)
    with new_file(KEPT / "dvc.lock") as path:
        shutil.copy2(folder / "dvc.lock", path)
    write_json(SECONDS, {**known_seconds(), name: round(seconds)})


def known_seconds() -> dict[str, int]:
    """Return how long each run took last time."""
    return dict(json.loads(SECONDS.read_text(encoding="utf-8"))) if SECONDS.is_file() else {}


def outlook(left: list[str], pace: float) -> str:
    """Say how long some runs will take; pace : seconds here for a second last time."""
    known = known_seconds()
    minutes = pace * sum(known.get(name, 0) for name in left) / 60
    unknown = sum(name not in known for name in left)
    text = f"{len(left)} runs left, about {minutes // 60:.0f} h {minutes % 60:.0f} min"
    return text + (f" and {unknown} that have never been timed" if unknown else "")


def main() -> None:
    """Run what is not yet there, then compare."""
    folder = workspace()
    os.environ["DVC_NO_ANALYTICS"] = "1"
    runs = list(read_params(KEPT / "params.yaml").runs)
    left = unfinished(folder, runs)
    print(f"{len(runs) - len(left)} of {len(runs)} runs are there; {outlook(left, 1.0)}", flush=True)
    took = expected = 0.0
    while left:
        name, start = left[0], time.monotonic()
        run(folder, "dvc", "repro", f"evaluate@{name}")
        seconds = time.monotonic() - start
        if name in known_seconds():
            took, expected = took + seconds, expected + known_seconds()[name]
        keep(folder, name, seconds)
        left = left[1:]
        print(f"{name}: {seconds / 60:.0f} min; {outlook(left, took / expected if expected else 1.0)}", flush=True)
    run(folder, sys.executable, "-m", "stages.compare")
    for file in RESULTS:
        shutil.copy2(folder / "reports" / file, KEPT / file)
    print(f"the leaderboard: docs/study/leaderboard.md; the report: {folder / 'reports' / 'report.html'}")


if __name__ == "__main__":
    guard(main)

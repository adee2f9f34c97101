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
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from stages.cli import UserError, guard
from stages.files import new_file, write_json
from stages.params import read_params
from stages.scoring.charts import stand_alone
from stages.store.location import cache_root, shared_root

KEPT = Path("docs/study").absolute()
CHARTS = {
    "cuts": "Accuracy against multiply-adds of extraction and training, one repeat",
    "labels": "Accuracy over the number of labels",
}
DVC = ("dvc", "--wait-for-lock")  # a stopped study leaves a stage that still ends what it does
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


def run(folder: Path, *command: str, shown: bool = False) -> str:
    """Run a command in the workspace and return what it prints; raises UserError with the end of it when it fails.

    shown : let it print to the terminal instead.
    """
    environment = {**os.environ, "TRANSFER_CACHE": str(cache_root()), "DVC_NO_ANALYTICS": "1"}
    prints = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=folder, env=environment, text=True, **prints)  # type: ignore[call-overload]
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed in {folder}:\n{(done.stdout or '')[-2000:]}".rstrip())
    return str(done.stdout or "")


def unfinished(folder: Path, runs: list[str]) -> list[str]:
    """Return the runs whose results are not there, or of other inputs, parameters or code."""
    left = []
    for name in runs:
        try:
            would = run(folder, *DVC, "repro", "--dry", "--allow-missing", f"evaluate@{name}")
        except UserError:  # what a stage reads is not there, and nothing is known of it
            would = f"Running stage 'evaluate@{name}'"
        if re.search(rf"Running stage '(finetune|evaluate)@{name}'", would):
            left.append(name)
    return left


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
    known = [known_seconds()[name] for name in left if name in known_seconds()]
    unknown = len(left) - len(known)
    minutes = round(pace * sum(known) / 60)
    parts = [f"{len(known)} of them about {minutes // 60} h {minutes % 60} min"] if known else []
    parts += [f"{unknown} never timed"] if unknown else []
    return ": ".join([f"{len(left)} left", ", ".join(parts)] if left else ["none left"])


def keep_comparison(folder: Path, datasets: Iterable[str]) -> None:
    """Copy the leaderboard and its like into docs/study/, with the charts of the report as pictures."""
    for file in RESULTS:
        shutil.copy2(folder / "reports" / file, KEPT / file)
    report = (folder / "reports" / "report.html").read_text(encoding="utf-8")
    for picture, title in CHARTS.items():
        for dataset in datasets:
            start = f' aria-label="{title} for the runs on {dataset};'
            svg = next((x for x in re.findall(r"<svg .*?</svg>", report, re.DOTALL) if start in x), None)
            if svg:
                (KEPT / f"{picture}-{dataset}.svg").write_text(stand_alone(svg), encoding="utf-8")


def main() -> None:
    """Run what is not yet there, then compare."""
    folder = workspace()
    params = read_params(KEPT / "params.yaml")
    left = unfinished(folder, list(params.runs))
    print(f"{len(params.runs) - len(left)} of {len(params.runs)} runs are there; {outlook(left, 1.0)}", flush=True)
    took = expected = 0.0  # s, of runs that have been timed before; 600 s of either keep short runs from telling much
    while left:
        name, start = left[0], time.monotonic()
        run(folder, *DVC, "repro", f"evaluate@{name}", shown=sys.stdout.isatty())
        seconds = time.monotonic() - start
        if name in known_seconds():
            took, expected = took + seconds, expected + known_seconds()[name]
        keep(folder, name, seconds)
        left = left[1:]
        print(f"{name}: {seconds / 60:.0f} min; {outlook(left, (took + 600) / (expected + 600))}", flush=True)
    run(folder, sys.executable, "-m", "stages.compare")
    keep_comparison(folder, params.datasets)
    print(f"the leaderboard: docs/study/leaderboard.md; the report: {folder / 'reports' / 'report.html'}")


if __name__ == "__main__":
    guard(main)

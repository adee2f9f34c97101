"""A study of many runs: hours of work that can be stopped and goes on.

    make study [STUDY=docs/study]

What is run stands in STUDY/params.yaml. DVC runs it, run by run, in a workspace of its own (.transfer/<name>) on the
project's caches. What a run has given is copied into STUDY at once, with dvc.lock, and the leaderboard and curves of
all runs so far, and how they differ from the reference in accuracy, AUC and log loss (differences.csv). Stopped at any
moment the study goes on where it was, in another clone with the next run. How long is left is told from the seconds
that each run's extraction and training took last time, on whatever machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from stages.cli import UserError, guard
from stages.files import new_file, write_text
from stages.params import read_params, read_yaml
from stages.scoring.charts import stand_alone
from stages.scoring.intervals import differences
from stages.scoring.records import read_record, write_csv
from stages.store.location import cache_root, shared_root

CHARTS = {
    "cuts": "Accuracy against multiply-adds of extraction and training, one repeat",
    "labels": "Accuracy over the number of labels",
}
DVC = ("dvc", "--wait-for-lock")
FIGURES = ("accuracy", "auc", "log_loss")
RESULTS = ("leaderboard.csv", "leaderboard.md", "labels.csv", "comparisons.json")


@dataclass(frozen=True)
class Study:
    """A folder with a params.yaml, in which results are kept; stages run elsewhere, in a workspace."""

    kept: Path

    @cached_property
    def runs(self) -> list[str]:
        """The runs in the order in which they are run."""
        return list(read_params(self.kept / "params.yaml").runs)

    @property
    def seconds(self) -> dict[str, float]:
        """How long runs took last time, also over several goes."""
        found = {}
        for name in self.runs:
            file = self.kept / "runs" / name / "cost.json"
            if file.is_file():
                cost = json.loads(file.read_text(encoding="utf-8"))
                found[name] = cost["extract_seconds"] + cost["train_seconds"]
        return found

    @cached_property
    def workspace(self) -> Path:
        """The folder in which DVC runs: this code, the study's params.yaml, what earlier runs have given."""
        folder = shared_root() / ".transfer" / self.kept.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder / "stages", ignore_errors=True)
        shutil.copytree("stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
        for file in ("dvc.yaml", "requirements.lock", ".dvcignore"):
            shutil.copy2(file, folder / file)
        shutil.copy2(self.kept / "params.yaml", folder / "params.yaml")
        if not (folder / ".dvc").is_dir():
            run(folder, "dvc", "init", "--no-scm", "--quiet")
            run(folder, "dvc", "cache", "dir", "--local", str(Path(".dvc/cache").absolute()))
        if not (folder / "dvc.lock").is_file() and (self.kept / "dvc.lock").is_file():
            shutil.copy2(self.kept / "dvc.lock", folder / "dvc.lock")
            shutil.copytree(self.kept / "runs", folder / "reports" / "runs", dirs_exist_ok=True)
        return folder

    def unfinished(self) -> list[str]:
        """Return the runs whose results are not kept, or of other inputs, parameters or code."""
        self._let_costs_differ()
        left = []
        for name in self.runs:
            try:
                would = run(self.workspace, *DVC, "repro", "--dry", "--allow-missing", f"evaluate@{name}")
            except UserError:  # what a stage reads is not there, and nothing is known of it
                would = f"Running stage 'evaluate@{name}'"
            if re.search(rf"Running stage '(finetune|evaluate)@{name}'", would) or not self._is_kept(name):
                left.append(name)
        return left

    def _let_costs_differ(self) -> None:
        """Write into the workspace's dvc.lock that evaluations read what extraction costs now.

        Features that another run needs are extracted anew where they are not kept: the same bytes in another time. No
        result hangs on that, and what a run has cost was right when it ran.
        """
        file = self.workspace / "dvc.lock"
        lock = read_yaml(file) if file.is_file() else {"stages": {}}
        costs = {out["path"]: out for stage in lock["stages"].values() for out in stage.get("outs", [])}
        stale = [
            (read, costs[read["path"]])
            for name, stage in lock["stages"].items()
            if name.startswith("evaluate@")
            for read in stage["deps"]
            if read["path"].startswith("data/costs/extract/") and read != costs.get(read["path"], read)
        ]
        for read, cost in stale:
            read.update(cost)
        if stale:
            with new_file(file) as path:
                YAML().dump(lock, path)  # as DVC does

    def _is_kept(self, name: str) -> bool:
        """Whether what a run has given was copied: the study may have been stopped between the two."""
        return _contents(self.kept / "runs" / name) == _contents(self.workspace / "reports" / "runs" / name)

    def keep(self, name: str) -> None:
        """Copy what a run has given."""
        target = self.kept / "runs" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.workspace / "reports" / "runs" / name, target)
        with new_file(self.kept / "dvc.lock") as path:
            shutil.copy2(self.workspace / "dvc.lock", path)

    def compare(self, left: list[str]) -> None:
        """Compare the runs that are there, and keep leaderboard, curves and the charts of the report."""
        folder = self.workspace
        content = yaml.safe_load((self.kept / "params.yaml").read_text(encoding="utf-8"))
        content["runs"] = {name: entry for name, entry in content["runs"].items() if name not in left}
        references = (content.get("compare") or {}).get("references", {})
        content["compare"] = {"references": {d: name for d, name in references.items() if name in content["runs"]}}
        write_text(folder / "params.yaml", yaml.safe_dump(content, sort_keys=False))
        try:
            run(folder, sys.executable, "-m", "stages.compare")
        finally:
            shutil.copy2(self.kept / "params.yaml", folder / "params.yaml")
        for file in RESULTS:
            shutil.copy2(folder / "reports" / file, self.kept / file)
        report = (folder / "reports" / "report.html").read_text(encoding="utf-8")
        drawn = re.findall(r"<svg .*?</svg>", report, re.DOTALL)
        for picture, title in CHARTS.items():
            for dataset in content["datasets"]:
                start = f' aria-label="{title} for the runs on {dataset};'
                svg = next((x for x in drawn if start in x), None)
                if svg:
                    write_text(self.kept / f"{picture}-{dataset}.svg", stand_alone(svg))
        self._tell_apart(content)

    def _tell_apart(self, content: dict[str, Any]) -> None:
        """Write how the runs differ from the reference of their data set, not in accuracy alone."""
        rows = []
        for dataset, reference in content["compare"]["references"].items():
            names = [name for name, entry in content["runs"].items() if entry["dataset"] == dataset]
            with chdir(self.workspace):
                runs = {name: read_record(name).outcomes for name in names}
            for name, of_run in differences(runs.pop(reference), runs, FIGURES).items():
                for figure, d in of_run.items():
                    about = {"dataset": dataset, "run": name, "figure": figure, "repeats": len(d.repeats)}
                    numbers = {"difference": d.value, "low": d.low, "high": d.high, "p_adjusted": d.p_adjusted}
                    rows.append({**about, **{k: v if v is None else round(v, 4) for k, v in numbers.items()}})
        if rows:
            write_csv(self.kept / "differences.csv", rows)

    def outlook(self, left: list[str], pace: float = 1.0) -> str:
        """Say how long some runs will take; pace : seconds here for a second last time."""
        known = [self.seconds[name] for name in left if name in self.seconds]
        unknown = len(left) - len(known)
        minutes = round(pace * sum(known) / 60)
        parts = [f"{len(known)} of them about {minutes // 60} h {minutes % 60} min"] if known else []
        parts += [f"{unknown} never timed"] if unknown else []
        return ": ".join([f"{len(left)} left", ", ".join(parts)] if left else ["none left"])


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def run(folder: Path, *command: str, shown: bool = False) -> str:
    """Run a command in the workspace and return what it prints; raises UserError with the end of it when it fails.

    shown : let it print to the terminal instead. Interrupted, it passes that on, and waits for stages to end.
    """
    environment = {**os.environ, "TRANSFER_CACHE": str(cache_root()), "DVC_NO_ANALYTICS": "1"}
    prints = {} if shown else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, start_new_session=True, **prints) as process:
        try:
            printed = process.communicate()[0] or ""
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed in {folder}:\n{printed[-2000:]}".rstrip())
    return str(printed)


def main() -> None:
    """Run what is not yet there, and compare."""
    study = Study(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/study").absolute())
    left = study.unfinished()
    print(f"{len(study.runs) - len(left)} of {len(study.runs)} runs are there; {study.outlook(left)}", flush=True)
    took = expected = 600.0  # s, of runs that have been timed before; the first 600 keep short runs from telling much
    while left:
        name, start = left[0], time.monotonic()
        run(study.workspace, *DVC, "repro", f"evaluate@{name}", shown=sys.stdout.isatty())
        seconds, before = time.monotonic() - start, study.seconds.get(name)
        if before is not None:
            took, expected = took + seconds, expected + before
        left = left[1:]
        study.keep(name)
        study.compare(left)
        print(f"{name}: {seconds / 60:.0f} min; {study.outlook(left, took / expected)}", flush=True)
    study.compare([])
    print(f"{study.kept / 'leaderboard.md'}; the report: {study.workspace / 'reports' / 'report.html'}")


if __name__ == "__main__":
    guard(main)

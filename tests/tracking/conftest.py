"""Results as the stages write them, small and made up, in a project folder of their own."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.params import Params
from stages.scoring.metrics import Outcomes
from stages.scoring.records import PLOTS, Record, write_record

REPEATS = 2
Answer = tuple[int, Any]
"""Status and body of an answer of a server."""


class Results:
    """A project folder with results in it, and the params that name them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.entries: dict[str, dict[str, Any]] = {}

    def add(self, name: str, fingerprint: str, dataset: str = "cells", **figures: float) -> None:
        """Write the folders of a run, as finetune and evaluate do."""
        self.entries[name] = {"dataset": dataset, "features": "lite0", "transfer": {"kind": "logistic"}}
        self._prepared(dataset)
        self._model(name, fingerprint, dataset)
        self._reports(name, fingerprint, dataset, figures)

    def rename(self, old: str, new: str) -> None:
        """Give a run another name, as a user who edits params.yaml and runs `dvc repro`."""
        self.entries[new] = self.entries.pop(old)
        for folder in ("data/models", "data/evaluations", "reports/runs"):
            (self.root / folder / old).rename(self.root / folder / new)

    def lose(self, name: str) -> None:
        """Leave of a run what git holds, as in a fresh clone."""
        for folder in ("data/models", "data/evaluations"):
            shutil.rmtree(self.root / folder / name)

    @property
    def params(self) -> Params:
        datasets = {entry["dataset"]: {"images": "elpv"} for entry in self.entries.values()}
        content = {"downloads": {}, "datasets": datasets, "features": {}, "runs": self.entries, "compare": {}}
        return Params.model_validate(content)

    def runs(self) -> list[dict[str, Any]]:
        """Return the runs in MLflow's database that are not deleted, each with its tags, metrics and params."""
        with sqlite3.connect(self.root / "mlflow.db") as database:
            database.row_factory = sqlite3.Row
            runs = [dict(r) for r in database.execute("select * from runs where lifecycle_stage = 'active'")]
            for run in runs:
                for table in ("tags", "latest_metrics", "params"):
                    query = f"select key, value from {table} where run_uuid = ?"
                    run[table] = dict(database.execute(query, (run["run_uuid"],)).fetchall())
        return runs

    def parents(self) -> list[dict[str, Any]]:
        return [run for run in self.runs() if "mlflow.parentRunId" not in run["tags"]]

    def children(self, parent: dict[str, Any]) -> list[dict[str, Any]]:
        return [run for run in self.runs() if run["tags"].get("mlflow.parentRunId") == parent["run_uuid"]]

    def _prepared(self, dataset: str) -> None:
        facts = {
            "dataset": dataset,
            "images": "elpv",
            "classes": ["defective", "sound"],
            "counts": {"defective": 3, "sound": 5},
            "groups": 4,
            "repeats": REPEATS,
            "entry": {"images": "elpv", "label": {"column": "class", "threshold": None}, "group": "module"},
            "content_hash": (dataset.encode().hex() * 64)[:64],
            "rejected": 0,
            "columns": ["type"],
        }
        self._write(f"data/prepared/{dataset}/dataset.json", facts)

    def _model(self, name: str, fingerprint: str, dataset: str) -> None:
        facts = {
            "family": "feature",
            "kind": "logistic",
            "fingerprint": fingerprint,
            "transfer": {"kind": "logistic", "C": [0.1, 1.0], "class_weights": None, "names": "x" * 7000},
            "dataset": (dataset.encode().hex() * 64)[:64],
            "features": "fe" * 32,
            "weights_hash": "ab" * 32,
            "network": "tf_efficientnet_lite0",
            "origin": "package",
            "licence": "Apache-2.0",
            "seed": 0,
            "repeats": REPEATS,
            "classes": ["defective", "sound"],
            "chosen": [{"C": 0.1}, {"C": 1.0}],
            "trained_parameters": 1281,
        }
        self._write(f"data/models/{name}/run.json", facts)
        for repeat in range(REPEATS):
            folder = f"data/models/{name}/repeat-{repeat}"
            entry = {"images": "elpv", "backbone": "raw/lite0", "image_size": [300], "cut": "pooled"}
            self._write(f"{folder}/features.json", {"entry": entry, "content_hash": "fe" * 32})
            (self.root / folder / "backbone.safetensors").write_bytes(b"weights" * 1000)
            (self.root / folder / "history.csv").write_text("epoch,train_loss\n1,0.7\n2,0.5\n")

    def _reports(self, name: str, fingerprint: str, dataset: str, figures: dict[str, float]) -> None:
        sound = np.array([0.2, 0.9, 0.8, 0.6, 0.7, 0.4, 0.1, 0.9])
        facts = {"classes": ["defective", "sound"], "family": "feature", "kind": "logistic", "dataset": dataset}
        metrics = {"accuracy": 0.75, "accuracy_low": 0.5, "accuracy_high": 0.9, "accuracy_sd": 0.1, "repeats": REPEATS}
        record = Record(
            run=name,
            facts=facts | {"features": "lite0", "fingerprint": fingerprint},
            metrics={**metrics, "groups": None, **figures},
            details={"classes": [{"class": "sound", "recall": 1.0}], "slices": [], "not_sliced": [], "labels": {}},
            cost={"train_seconds": 1.5, "trained_parameters": 1281, "extract_seconds": None},
            outcomes=Outcomes(
                classes=["defective", "sound"],
                samples=[f"{i}.png" for i in range(8)],
                repeats=np.array([0] * 4 + [1] * 4),
                groups=[str(i // 2) for i in range(8)],
                truth=np.array([0, 1, 1, 0, 1, 1, 0, 1]),
                probabilities=np.stack([1 - sound, sound], axis=1),
            ),
        )
        write_record(record, {plot: [{"class": "sound", "x": 0, "y": 0}] for plot in PLOTS})
        pictures = self.root / f"data/evaluations/{name}/pictures"
        pictures.mkdir(parents=True)
        (pictures / "confusion.png").write_bytes(b"picture")

    def _write(self, path: str, content: dict[str, Any]) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(json.dumps(content))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which MLflow has made its tables; making them takes seconds."""
    from stages.tracking.store import Store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    Store(f"sqlite:///{path}").connect()
    return path


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """An empty project folder, which is the current one; MLflow's store is not there yet."""
    for name in ("MLFLOW_TRACKING_URI", "TRANSFER_EXPERIMENT_PREFIX", "DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "a project"
    root.mkdir()
    monkeypatch.chdir(root)
    return Results(root)


@pytest.fixture
def publish(results: Results, empty_store: Path) -> Callable[[], bool]:
    """Publish the results, in this process, to a store that is empty at first."""
    shutil.copyfile(empty_store, results.root / "mlflow.db")

    def call() -> bool:
        from stages.publish import publish

        return publish(results.params)

    return call


@pytest.fixture
def stub() -> Iterator[Callable[[Callable[[str, Any], Answer]], str]]:
    """Start a server that answers requests (path, body) with a status and a body; returns its address."""
    servers: list[HTTPServer] = []

    def start(answer: Callable[[str, Any], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = answer(self.path, {**body, "auth": self.headers.get("Authorization")})
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()

"""A result as MLflow runs: a parent with its figures, and a child for each repeat.

The parent has `accuracy`, `accuracy_low` and so on, the children `repeat/accuracy`: sorting by accuracy never ranks a
lucky repeat first. A result is known by its fingerprint. The parent gets that tag last, when all else is there; until
then it has the tag `unfinished`, by which the next publish finds and deletes what a killed one has left.
"""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import warn
from stages.files import read_json
from stages.store.location import shared_root
from stages.tracking.logged_model import log_model
from stages.tracking.outbox import ARTIFACTS, RESULT
from stages.tracking.store import DATASET, FINGERPRINT, NAMES, Store, finished, join_names, split_names

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UNFINISHED = "unfinished"
PARENT = "mlflow.parentRunId"
HOURS_UNTIL_ABANDONED = 1


def log_result(store: Store, client: MlflowClient, entry: Path) -> bool:
    """Put an entry of the outbox into MLflow; returns False when the store had the result already.

    A result that the store has gets its new names, one that somebody deleted there is restored.
    """
    result = read_json(entry / RESULT)
    experiment = store.experiment(client, result["prefix"] + result["dataset"], result["dataset"])
    _delete_half_made(client, experiment, result["fingerprint"])
    if found := find(client, result["fingerprint"], result["prefix"]):
        give_names(client, found, split_names(result["names"]))
        return False
    tags = {**result["tags"], NAMES: result["names"], UNFINISHED: _mark(result["fingerprint"])}
    parent = _create(client, experiment, result["name"], tags)
    for repeat in result["repeats"]:
        _log_repeat(client, experiment, parent, repeat)
    _log_parent(client, experiment, parent, entry, result)
    client.set_terminated(parent)
    client.set_tag(parent, FINGERPRINT, result["fingerprint"])
    client.delete_tag(parent, UNFINISHED)
    return _keep_first(client, experiment, result["fingerprint"]) == parent


def names_in_store(client: MlflowClient, fingerprints: Iterable[str], prefix: str) -> dict[str, set[str]]:
    """Return which results the store has, each with its names there."""
    found = {fingerprint: find(client, fingerprint, prefix) for fingerprint in fingerprints}
    return {k: split_names(run.data.tags.get(NAMES, "")) for k, run in found.items() if run is not None}


def find(client: MlflowClient, fingerprint: str, prefix: str) -> Run | None:
    """Return the parent run of a result; one that was deleted in MLflow is restored with its repeats, and a warning."""
    from mlflow.entities import ViewType

    ours = client.search_experiments(filter_string=f"tags.`{DATASET}` LIKE '%'")
    experiments = [e.experiment_id for e in ours if e.name.startswith(prefix)]
    if not experiments:
        return None
    for run in client.search_runs(experiments, finished(fingerprint), ViewType.ACTIVE_ONLY, 1):
        return run
    for run in client.search_runs(experiments, finished(fingerprint), ViewType.DELETED_ONLY, 1):
        client.restore_run(run.info.run_id)
        for child in _children(client, run, deleted=True):
            client.restore_run(child.info.run_id)
        warn(f"the run {run.info.run_name} had been deleted in MLflow and is restored: params.yaml still names it")
        return run
    return None


def give_names(client: MlflowClient, run: Run, names: set[str]) -> None:
    """Give a result in the store names that it has not had; it is shown by its newest one."""
    known = split_names(run.data.tags.get(NAMES, ""))
    if new := sorted(names - known):
        client.set_tag(run.info.run_id, NAMES, join_names(known | names))
        if run.info.run_name not in names:
            client.update_run(run.info.run_id, name=new[0])


def _create(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    return str(client.create_run(experiment, run_name=name, tags=dict(tags)).info.run_id)


def _log_repeat(client: MlflowClient, experiment: str, parent: str, repeat: Mapping[str, Any]) -> None:
    run = _create(client, experiment, f"repeat {repeat['repeat']}", {PARENT: parent})
    metrics = [(f"repeat/{name}", value, 0) for name, value in repeat["metrics"].items()]
    for step, row in enumerate(repeat["history"]):
        at = int(row.get("epoch", step))
        metrics += [(f"curve/{name}", value, at) for name, value in row.items() if name != "epoch"]
    _log(client, run, metrics, {"repeat": str(repeat["repeat"]), **repeat["params"]})
    client.set_terminated(run)


def _log_parent(client: MlflowClient, experiment: str, run: str, entry: Path, result: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    about = result["input"]
    source, profile = json.dumps({"tags": about["source"]}), json.dumps(about["profile"])
    dataset = Dataset(about["name"], about["digest"], "code", source, profile=profile)
    client.log_inputs(run, [DatasetInput(dataset, [InputTag("mlflow.data.context", "all splits")])])
    client.log_artifacts(run, str(entry / ARTIFACTS))
    model = log_model(client, experiment, run, entry, result)
    metrics = [(name, value, 0) for name, value in result["metrics"].items()]
    _log(client, run, metrics, result["params"], model, (about["name"], about["digest"]))


def _log(
    client: MlflowClient,
    run: str,
    metrics: Sequence[tuple[str, float, int]],
    params: Mapping[str, str],
    model: str | None = None,
    dataset: tuple[str | None, str | None] = (None, None),
) -> None:
    """Log metrics (name, value, step) and params, as many in one request as MLflow takes."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    entities = [Metric(name, value, now, step, model, *dataset) for name, value, step in metrics]
    for start in range(0, len(entities), 1000):
        client.log_batch(run, metrics=entities[start : start + 1000])
    pairs = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(pairs), 100):
        client.log_batch(run, params=pairs[start : start + 100])


def _mark(fingerprint: str) -> str:
    """Return the tag of a run in the making: of what, and by which project on which machine."""
    maker = hashlib.sha256(f"{socket.gethostname()}:{shared_root()}".encode()).hexdigest()[:16]
    return f"{fingerprint} {maker}"


def _delete_half_made(client: MlflowClient, experiment: str, fingerprint: str) -> None:
    """Delete what a killed publish left of a result; another machine's work only when it must have been given up."""
    for run in client.search_runs([experiment], f"tags.{UNFINISHED} LIKE '{fingerprint}%'"):
        hours = (time.time() - run.info.start_time / 1000) / 3600
        if FINGERPRINT in run.data.tags:
            client.delete_tag(run.info.run_id, UNFINISHED)  # killed with all but this done
        elif run.data.tags[UNFINISHED] == _mark(fingerprint) or hours > HOURS_UNTIL_ABANDONED:
            _delete(client, run)


def _delete(client: MlflowClient, run: Run) -> None:
    for child in _children(client, run, deleted=False):
        client.delete_run(child.info.run_id)
    for model in run.outputs.model_outputs if run.outputs else ():
        client.delete_logged_model(model.model_id)
    client.delete_run(run.info.run_id)


def _children(client: MlflowClient, run: Run, deleted: bool) -> list[Run]:
    from mlflow.entities import ViewType

    view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
    return list(client.search_runs([run.info.experiment_id], f"tags.`{PARENT}` = '{run.info.run_id}'", view))


def _keep_first(client: MlflowClient, experiment: str, fingerprint: str) -> str:
    """Return the id of the first run of a result, and delete what other machines have put there beside it.

    The lock holds on one machine only. The first may end last, so whoever sees two of them deletes the later one.
    """
    found = client.search_runs([experiment], finished(fingerprint), order_by=["attributes.start_time ASC"])
    first, *others = sorted(found, key=lambda r: (r.info.start_time, r.info.run_id))
    for run in others:
        _delete(client, run)
    if others:
        give_names(client, first, set().union(*(split_names(run.data.tags[NAMES]) for run in others)))
    return str(first.info.run_id)

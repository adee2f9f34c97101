"""What a result is, read from the folders that the stages write, as an entry of the outbox will hold it.

data/models/<run>/, data/evaluations/<run>/, data/prepared/<dataset>/, reports/runs/<run>/  ->  result.json and files
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import UserError
from stages.files import EVALUATIONS, MODELS, PREPARED, REPORTS, damaged, read_json
from stages.params import Params
from stages.tracking.outbox import ARTIFACTS, CODE, MODEL
from stages.tracking.store import experiment_prefix, join_names

if TYPE_CHECKING:
    from stages.scoring.intervals import Replicates
    from stages.scoring.metrics import Outcomes

LONGEST_PARAM = 6000
"""Characters that MLflow keeps of a param's value."""

_PLAIN = re.compile(r"[\w.\- ]+")  # what MLflow takes in a name


def current_results(params: Params) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names of each result in reports/runs/, by fingerprint, and the runs of params.yaml that have none."""
    results: dict[str, list[str]] = {}
    without: list[str] = []
    for name in params.runs:
        fingerprint = _reported_fingerprint(name)
        if fingerprint is None:
            without.append(name)
        else:
            results.setdefault(fingerprint, []).append(name)
    return results, without


def _reported_fingerprint(name: str) -> str | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = REPORTS / "runs" / name / "outcomes.parquet"
    try:
        metadata = pq.read_schema(path).metadata
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    return str(json.loads(metadata[b"run"])["fingerprint"])


def missing_outputs(params: Params, name: str, fingerprint: str) -> list[Path]:
    """Return the outputs of DVC that publishing a run needs and that are not here, or are of another result."""
    prepared = PREPARED / params.runs[name].dataset
    missing = [folder for folder in (MODELS / name, EVALUATIONS / name, prepared) if not folder.is_dir()]
    facts = _read_run(name)
    if MODELS / name not in missing and facts.get("fingerprint") != fingerprint:
        missing.append(MODELS / name)
    if not missing and read_json(prepared / "dataset.json")["content_hash"] != facts["dataset"]:
        missing.append(prepared)  # split anew, and the run is still that of the old split
    return missing


def _read_run(name: str) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = read_json(MODELS / name / "run.json")
    except UserError:
        return {}
    return facts


def describe(params: Params, names: Sequence[str], fingerprint: str) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return what MLflow is told about a result, and the files that go with it, by their paths in the outbox.

    names : all that the result has in params.yaml; what is said about it is read in the folders of the first.
    """
    from stages.scoring.records import read_record

    name, run = names[0], params.runs[names[0]]
    facts = _read_run(name)
    dataset = read_json(PREPARED / run.dataset / "dataset.json")
    features = read_json(MODELS / name / "repeat-0" / "features.json")
    record = read_record(name)
    result = {
        "fingerprint": fingerprint,
        "name": name,
        "names": join_names(names),
        "dataset": run.dataset,
        "prefix": experiment_prefix(),
        "classes": facts["classes"],
        "params": _params(run.dataset, run.features, facts, dataset, features),
        "metrics": {k: float(v) for k, v in {**record.metrics, **record.cost}.items() if _is_number(v)},
        "tags": {**_tags(facts, dataset, features), **_revision(name, run.dataset)},
        "input": {
            "name": run.dataset,
            "digest": dataset["content_hash"][:36],  # MLflow takes no longer ones
            "source": {"dvc": f"data/prepared/{run.dataset}", "content_hash": dataset["content_hash"]},
            "profile": {k: dataset[k] for k in ("counts", "groups", "repeats", "rejected") if k in dataset},
        },
        "repeats": [
            {
                "repeat": k,
                "params": _flat("chosen", facts["chosen"][k]),
                "metrics": figures,
                "history": _history(name, k),
            }
            for k, figures in _figures_by_repeat(record.outcomes).items()
        ],
    }
    return result, dict(_files(name))


def _params(
    dataset_name: str,
    features_name: str,
    facts: Mapping[str, Any],
    dataset: Mapping[str, Any],
    features: Mapping[str, Any],
) -> dict[str, str]:
    own = ("network", "origin", "licence", "weights_hash", "seed", "repeats", "final", "classes")
    params = {
        "dataset": dataset_name,
        "features": features_name,
        **{key: _text(facts[key]) for key in own if key in facts},
        **_flat("transfer", facts["transfer"]),
        **_flat("dataset", dataset["entry"]),
        **_flat("images", facts.get("images", {})),
        **_flat("features", features["entry"]),
    }
    return {key: _shortened(value) for key, value in params.items()}


def _tags(facts: Mapping[str, Any], dataset: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, str]:
    return {
        "family": facts["family"],
        "kind": facts["kind"],
        "dataset_hash": dataset["content_hash"],
        "features_hash": features["content_hash"],
        "mlflow.source.name": "stages/publish.py",
        "mlflow.source.type": "LOCAL",
    }


def _flat(prefix: str, value: Any) -> dict[str, str]:
    """Return nested dictionaries as one: {"transfer.C": "0.1"}.

    A dictionary stays whole where its keys are no names of ours but of classes: MLflow takes few characters in a name.
    """
    if not isinstance(value, dict) or not all(_PLAIN.fullmatch(key) for key in value):
        return {prefix: _text(value)}
    return {k: v for key, inner in value.items() for k, v in _flat(f"{prefix}.{key}", inner).items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shortened(value: str) -> str:
    """Cut what is too long for MLflow so that different values stay different."""
    if len(value) <= LONGEST_PARAM:
        return value
    end = f"... (sha256 {hashlib.sha256(value.encode()).hexdigest()})"
    return value[: LONGEST_PARAM - len(end)] + end


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _figures_by_repeat(outcomes: Outcomes | Replicates) -> dict[int, dict[str, float]]:
    import numpy as np

    from stages.scoring.metrics import FIGURES, Outcomes

    if isinstance(outcomes, Outcomes):
        scores = [scores.figures(np.ones((1, len(rows)))) for rows, scores in outcomes.by_repeat()]
        values = {
            repeat: {f: s[f][0] for f in FIGURES} for repeat, s in zip(outcomes.repeat_numbers, scores, strict=True)
        }
    else:
        values = {repeat: {f: outcomes.whole[f][i] for f in FIGURES} for i, repeat in enumerate(outcomes.repeats)}
    return {repeat: {f: float(v) for f, v in figures.items() if math.isfinite(v)} for repeat, figures in values.items()}


def _history(name: str, repeat: int) -> list[dict[str, float]]:
    """Read the training curves of a repeat: a row for each epoch."""
    path = MODELS / name / f"repeat-{repeat}" / "history.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _files(name: str) -> Iterator[tuple[str, Path]]:
    reports, model = REPORTS / "runs" / name, MODELS / name
    for path in sorted(reports.glob("*.csv")):
        yield f"{ARTIFACTS}/plots/{path.name}", path
    for path in (*sorted(reports.glob("*.json")), model / "run.json"):
        yield f"{ARTIFACTS}/{path.name}", path
    for path in sorted((EVALUATIONS / name / "pictures").glob("*.png")):
        yield f"{ARTIFACTS}/pictures/{path.name}", path
    if (page := REPORTS / "report.html").is_file():
        yield f"{ARTIFACTS}/{page.name}", page  # as it was when this result came to it
    for path in sorted(p for p in (model / "repeat-0").rglob("*") if p.is_file()):
        yield f"{MODEL}/{path.relative_to(model / 'repeat-0')}", path
    yield f"{MODEL}/run.json", model / "run.json"
    stages = Path(__file__).parents[1]
    for path in sorted(stages.rglob("*.py")):
        yield f"{CODE}/stages/{path.relative_to(stages)}", path


def _revision(name: str, dataset: str) -> dict[str, str]:
    """Return tags that say which commit and which versions of DVC's outputs the result belongs to."""
    tags = {}
    if commit := _git("rev-parse", "HEAD"):
        tags["mlflow.source.git.commit"] = commit
        # Reports and dvc.lock were written just now: what counts is whether code and params are those of the commit.
        tags["mlflow.source.git.dirty"] = str(
            bool(_git("status", "--porcelain", "--", "stages", "params.yaml"))
        ).lower()
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = experiment
    hashes = _dvc_hashes()
    for tag, path in (("dvc.revision", f"data/models/{name}"), ("dvc.dataset", f"data/prepared/{dataset}")):
        if path in hashes:
            tags[tag] = hashes[path]
    return tags


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _dvc_hashes() -> dict[str, str]:
    """Return the md5 of every output in dvc.lock, by its path."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        lock = yaml.load(Path("dvc.lock").read_text(encoding="utf-8"), loader)
    except FileNotFoundError:
        return {}
    outputs = (out for stage in lock.get("stages", {}).values() for out in stage.get("outs", []))
    return {out["path"]: str(out["md5"]) for out in outputs if "md5" in out}

"""Train what lies above the cut, once for every repeat of the split.

    data/prepared/<dataset>/, data/features/<features>/  ->  data/models/<run>/, data/costs/finetune/<run>.json

Training and validation samples are read, those of the test part are not, but for `final: true`: its model learns from
all samples and is not scored. Each model's folder holds the frozen part too, so that it alone predicts.

    python -m stages.finetune probe
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError, run_stage
from stages.files import COSTS, MODELS, hash_json, link_or_copy, new_folder, write_json
from stages.params import kind_module
from stages.samples.table import read_samples
from stages.store.activations import read_features
from stages.store.cache import core_seconds, peak_memory_bytes
from stages.store.models import write_model
from stages.transfers import Part, TrainingData

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.params import Run
    from stages.samples.table import Samples
    from stages.store.activations import FeatureStore
    from stages.store.models import Model

FROZEN_PART = ("backbone.safetensors", "network.json", "features.json")


def finetune(name: str, run: Run) -> None:
    """Write data/models/<name>/ as its entry in params.yaml describes it, and what the training has cost."""
    start, used = time.monotonic(), core_seconds()
    samples, features = read_samples(run.dataset), read_features(run.features)
    repeats = run.repeats or samples.repeats
    if repeats > samples.repeats:
        raise UserError(f"params.yaml: runs.{name}.repeats is {repeats}: {run.dataset} has {samples.repeats}")
    with new_folder(MODELS / name) as folder:
        models = []
        for repeat in range(repeats):
            model = _train(name, run, samples, features, repeat, ("train",))
            _write(folder / f"repeat-{repeat}", model, features)
            models.append(model)
        if run.final:
            # All samples: values are chosen on the validation part of repeat 0, as its own model's were.
            refitted = (
                run.transfer.model_copy(update={"refit": True}) if hasattr(run.transfer, "refit") else run.transfer
            )
            everything = run.model_copy(update={"transfer": refitted})
            _write(folder / "final", _train(name, everything, samples, features, 0, ("train", "test")), features)
        write_json(folder / "run.json", _facts(run, samples, features, models))
    cost = {
        "seconds": round(time.monotonic() - start, 3),
        "core_seconds": round(core_seconds() - used, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "trained_parameters": models[0].trained_parameters,
    }
    write_json(COSTS / "finetune" / f"{name}.json", cost)


def _train(name: str, run: Run, samples: Samples, features: FeatureStore, repeat: int, parts: tuple[str, ...]) -> Model:
    """Train one model on some parts of a repeat and validate it on the validation part."""
    rows = np.sort(np.concatenate([samples.part(repeat, part) for part in parts]))
    missing = np.flatnonzero(np.bincount(samples.labels[rows], minlength=len(samples.classes)) == 0)
    if len(missing):
        absent = ", ".join(samples.classes[c] for c in missing)
        raise UserError(f"runs.{name}, repeat {repeat}: no sample of {absent} in the training part of {run.dataset}")
    views = ["identity"] if getattr(run.transfer, "views", None) == "identity" else None
    data = TrainingData(
        samples.classes,
        training=_read(samples, features, rows, views),
        validation=_read(samples, features, samples.part(repeat, "validation"), views),
    )
    try:
        model: Model = kind_module("transfers", run.transfer.kind).fit(run.transfer, data, run.seed)
    except UserError as error:
        raise UserError(f"runs.{name}, repeat {repeat}: {error}") from None
    return model


def _read(samples: Samples, features: FeatureStore, rows: NDArray[np.int64], views: list[str] | None) -> Part:
    """Read some samples; raises UserError for samples without features, or with features that are no numbers."""
    names, hashes, groups = samples.table["sample"].to_pylist(), samples.image_hashes, samples.groups
    at = features.rows([hashes[row] for row in rows])
    absent = np.flatnonzero(at < 0)
    if len(absent):
        raise UserError(
            f"{features.folder} lacks {len(absent)} of {len(rows)} images of {samples.name}, "
            f"the first is {names[rows[absent[0]]]}: run `dvc repro`, so that both are of the same images"
        )
    activations = features.read(at, views)
    _check_finite(activations, features.folder, [names[row] for row in rows], views or features.views)
    own = None if groups is None else [groups[row] for row in rows]
    return Part(activations, samples.labels[rows], samples.targets[rows], own)


def _check_finite(activations: NDArray[np.float32], folder: Path, samples: list[str], views: list[str]) -> None:
    finite = np.isfinite(activations)
    if finite.all():
        return
    bad = np.argwhere(~finite.reshape(*activations.shape[:2], -1))
    image, view, number = bad[0]
    raise UserError(
        f"{folder}: {len(bad)} activations of {len(np.unique(bad[:, 0]))} images are not finite, the first is number "
        f"{number} of the view {views[view]} of {samples[image]}: look at that image and at the weights, "
        "and with dtype: float16 use float32"
    )


def _write(folder: Path, model: Model, features: FeatureStore) -> None:
    write_model(folder, model)
    for file in FROZEN_PART:
        link_or_copy(features.folder / file, folder / file)


def _facts(run: Run, samples: Samples, features: FeatureStore, models: list[Model]) -> dict[str, Any]:
    """Return what run.json says. The names of run, data set and features are not in it: same inputs, same bytes."""
    network, module = features.facts["network"], kind_module("transfers", run.transfer.kind)
    # Random weights and pixels carry nothing over from another task, whatever is trained on them.
    untaught = network["origin"] == "random" or features.facts["entry"]["cut"] == "image"
    inputs = {
        "transfer": run.transfer.model_dump(mode="json"),
        "dataset": samples.facts["content_hash"],
        "features": features.facts["content_hash"],
        "weights_hash": features.facts["weights_hash"],
        "seed": run.seed,
        "repeats": len(models),
        "final": run.final,
    }
    versions = {"method": module.VERSION, "preprocessing": features.facts["preprocessing_version"]}
    return {
        "fingerprint": hash_json({**inputs, "versions": versions}),
        "family": "none" if untaught else module.FAMILY,
        "kind": run.transfer.kind,
        **inputs,
        "versions": versions,
        "network": network["network"],
        "origin": network["origin"],
        "licence": network["licence"],
        "images": samples.facts["origin"],
        "classes": samples.classes,
        "chosen": [model.chosen for model in models],
        "trained_parameters": models[0].trained_parameters,
    }


if __name__ == "__main__":
    run_stage(finetune, level="runs")

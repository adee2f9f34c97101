"""Train what lies above the cut, once for every repeat of the split.

    data/prepared/<dataset>/, data/features/<features>/  ->  data/models/<run>/, data/costs/finetune/<run>.json

Training and validation samples are read, those of the test part are not, but for `final: true`: its model learns from
all samples and is not scored. Each model's folder holds the frozen part too, so that it alone predicts.

    python -m stages.finetune probe
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from stages.backbones.engines import device
from stages.cli import UserError, run_stage, warn
from stages.files import (
    COSTS,
    LEARNED,
    MODELS,
    hash_file,
    hash_json,
    in_use,
    link_or_copy,
    new_folder,
    read_table,
    write_json,
    write_table,
)
from stages.memory import available_memory
from stages.params import kind_module
from stages.samples.table import read_samples
from stages.store.activations import check_finite, read_features
from stages.store.cache import clocks, peak_memory_bytes
from stages.store.location import cache_root
from stages.store.models import write_model
from stages.threads import thread_count
from stages.transfers import Part, TrainingData
from stages.transfers.shared.several import fit_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import nn

    from stages.params import Run
    from stages.samples.table import Samples
    from stages.store.activations import FeatureStore
    from stages.store.models import Model
    from stages.transfers.shared.above import Above

FROZEN_PART = ("backbone.safetensors", "network.json", "features.json")
COPIES, BYTES_OF_A_CLASS = 10, 50
"""How much memory fitting a head takes for a row of features: in rows, and beside that for each class, at most."""
SQUARES, LENGTHS = 11, 90
"""How much it takes where rows are read in pieces: in matrices of columns by columns, and of columns by classes."""
MANY_BYTES = 256 * 2**20
"""So much of what a head is fitted on lies in memory; of more, kinds that can read it piece by piece."""


def finetune(name: str, run: Run) -> None:
    """Write data/models/<name>/ as its entry in params.yaml describes it, and what the training has cost."""
    samples, features = read_samples(run.dataset), read_features(run.features)
    repeats = run.repeats or samples.repeats
    if repeats > samples.repeats:
        raise UserError(f"params.yaml: runs.{name}.repeats is {repeats}: {run.dataset} has {samples.repeats}")
    for file in FROZEN_PART:
        features.whole(file)
    learned = _learned(features)
    if learned:
        _check_unseen(name, run, samples, features, repeats, learned)
    if not _streams(run):
        _tell_memory(name, run, samples, features)
    marked = in_use(_checkpoints(run, samples, features)) if _streams(run) else nullcontext()
    with marked, new_folder(MODELS / name) as folder:
        *fewer, most = run.budgets
        for budget in fewer:
            for repeat in range(repeats):
                few = _train(name, run, samples, features, repeat, ("train",), budget)
                write_model(folder / f"labels-{budget}" / f"repeat-{repeat}", few)
        # What fewer labels cost is the price of the curve, not the run's.
        began = clocks()
        models: list[Model] = []
        for repeat in range(repeats):
            model = _train(name, run, samples, features, repeat, ("train",), most)
            _write(folder / f"repeat-{repeat}", model, features)
            models.append(model)
        finals: list[Model] = []
        if run.final:
            # All samples: values are chosen on the validation part of repeat 0, as its own model's were.
            finals.append(_train(name, run, samples, features, 0, ("train", "test")))
            _write(folder / "final", finals[0], features)
        if _streams(run):
            _write_learned(folder, run, samples, learned)
        write_json(folder / "run.json", _facts(run, samples, features, models))
    before_a_kill = sum(getattr(model, "earlier", 0.0) for model in (*models, *finals))
    seconds, core_seconds = (before_a_kill + clocks() - began).tolist()
    cost = {
        "seconds": round(seconds, 3),
        "core_seconds": round(core_seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "trained_parameters": models[0].trained_parameters,
        "operations": getattr(models[0], "operations", 0),
        "training_operations": round(mean(getattr(model, "training_operations", 0) for model in models)),
        "pass_operations": getattr(models[0], "pass_operations", 0),
        "training_images": len(samples.labelled(0, ("train",), most)[0]),
    }
    write_json(COSTS / "finetune" / f"{name}.json", cost)
    if _streams(run):
        shutil.rmtree(_checkpoints(run, samples, features), ignore_errors=True)  # last: a kill costs an epoch, no more


def _tell_memory(name: str, run: Run, samples: Samples, features: FeatureStore) -> None:
    """Warn where what a head is fitted on may not fit into memory: the system kills without a word what takes more."""
    rows, most = sum(len(samples.part(0, part)) for part in ("train", "validation")), run.budgets[-1]
    rows = rows if most is None else min(rows, most * len(samples.classes))
    rows = len(samples) if run.final else rows
    views = 1 if getattr(run.transfer, "views", None) == "identity" else len(features.views)
    numbers = prod(features.shape)
    used = views if getattr(run.transfer, "views", None) == "all" else 1
    held = rows * 4 * numbers * (views + COPIES * used)
    if _in_pieces(run, features, rows):
        squares = getattr(kind_module("transfers", run.transfer.kind), "SQUARES", SQUARES)
        held = 8 * numbers * (squares * numbers + LENGTHS * len(samples.classes))
    needed = held + rows * BYTES_OF_A_CLASS * len(samples.classes) * used
    if needed > (left := available_memory()):
        warn(
            f"runs.{name}: {rows:,} images of {views} x {numbers:,} numbers may take {needed / 1e9:.3g} GB to fit, "
            f"and {left / 1e9:.3g} GB of memory are left; docs/own-images.md says under Many images which kinds read "
            "them piece by piece, and what else takes less"
        )


def _write_learned(folder: Path, run: Run, samples: Samples, earlier: set[str]) -> None:
    """Write what images the model that `backbone: models/<run>` takes has learned from, its own backbone's included."""
    import pyarrow as pa

    rows = np.arange(len(samples))
    if not run.final:
        rows = np.concatenate(samples.labelled(0, ("train",), run.budgets[-1]))
    hashes = samples.table["pixel_hash"].to_pylist()
    learned = {hashes[row] for row in rows} | earlier
    write_table(folder / LEARNED, pa.table({"pixel_hash": sorted(learned)}))


def _learned(features: FeatureStore) -> set[str]:
    if LEARNED not in features.checksums:
        return set()
    return set(read_table(features.whole(LEARNED))["pixel_hash"].to_pylist())


def _check_unseen(
    name: str, run: Run, samples: Samples, features: FeatureStore, repeats: int, learned: set[str]
) -> None:
    """Raise UserError for a backbone that has learned from images which it would be tested on."""
    hashes = samples.table["pixel_hash"].to_pylist()
    for repeat in range(repeats):
        test = samples.part(repeat, "test")
        seen = sum(hashes[row] in learned for row in test)
        if seen:
            raise UserError(
                f"params.yaml: runs.{name}: {features.facts['entry']['backbone']}, which {run.features} are computed "
                f"with, has learned from {seen} of the {len(test)} images that {run.dataset} tests in repeat {repeat}: "
                "train it on other images; or test both on the same, with `repeats: 1` and without `final`"
            )


def _train(
    name: str,
    run: Run,
    samples: Samples,
    features: FeatureStore,
    repeat: int,
    parts: tuple[str, ...],
    budget: int | None = None,
) -> Model:
    """Train one model on some parts of a repeat, within a budget of labels, and validate it on the validation part.

    Where the test part is among them nothing is left out: what could be refitted on training and validation, is.
    """
    rows, validation = samples.labelled(repeat, parts, budget)
    if problem := _unlearnable(samples, rows):
        raise UserError(f"runs.{name}, repeat {repeat}: {problem} in the training part of {run.dataset}")
    method = kind_module("transfers", run.transfer.kind)
    streams = _streams(run)
    stored = streams or _in_pieces(run, features, len(rows) + len(validation))
    if stored and not streams:  # each piece lies together on the disk
        at = features.rows(samples.image_hashes)
        rows, validation = (own[np.argsort(at[own], kind="stable")] for own in (rows, validation))
    views = features.views[:1] if not streams and getattr(run.transfer, "views", None) == "identity" else None
    data = TrainingData(
        samples.classes,
        training=_read(samples, features, rows, views, stored),
        validation=_read(samples, features, validation, views, stored),
    )
    transfer = run.transfer
    if "test" in parts and hasattr(transfer, "refit"):
        transfer = transfer.model_copy(update={"refit": True})
    try:
        if streams:
            course = f"repeat-{repeat}-{'-'.join(parts)}-{budget or 'all'}"
            data = _with_network(data, samples, features, _checkpoints(run, samples, features) / course)
        fit = partial(fit_each, method.fit) if samples.multi_label and not streams else method.fit
        model: Model = fit(transfer, data, run.seed)
    except UserError as error:
        raise UserError(f"runs.{name}, repeat {repeat}: {error}") from None
    return model


def _unlearnable(samples: Samples, rows: NDArray[np.int64]) -> str | None:
    """Say why some samples do not tell the classes, or the labels, apart."""
    labels = samples.labels[rows]
    held = labels.sum(axis=0) if samples.multi_label else np.bincount(labels, minlength=len(samples.classes))
    if (held == 0).any():
        return f"no sample of {', '.join(samples.classes[c] for c in np.flatnonzero(held == 0))}"
    if samples.multi_label and (held == len(rows)).any():
        return f"no sample without {', '.join(samples.classes[c] for c in np.flatnonzero(held == len(rows)))}"
    return None


def _streams(run: Run) -> bool:
    return bool(getattr(kind_module("transfers", run.transfer.kind), "STREAMS", False))


def _in_pieces(run: Run, features: FeatureStore, rows: int) -> bool:
    """Whether a head is fitted on vectors that stay on disk: many, by a kind that can, and more than their columns."""
    fewest = int(getattr(kind_module("transfers", run.transfer.kind), "PIECES", False))
    if not fewest:
        return False
    rows *= len(features.views) if getattr(run.transfer, "views", None) == "all" else 1
    width = prod(features.shape)
    return rows > max(width, fewest) and 4 * width * rows > MANY_BYTES


def _with_network(data: TrainingData, samples: Samples, features: FeatureStore, checkpoint: Path) -> TrainingData:
    """Add what a training above the cut needs."""
    entry, network = features.facts["entry"], features.facts["network"]
    recipe = {"network": network, "cut": entry["cut"], "image_size": entry["image_size"][0]}

    def whole() -> nn.Module:
        from stages.backbones.backbone import load_backbone

        return load_backbone(features.folder, "backbone.safetensors").network

    def above() -> Above:
        from stages.transfers.shared.above import lying_above

        return lying_above(whole(), network, recipe["cut"], recipe["image_size"], len(samples.classes))

    def inner(layers: Sequence[str]) -> nn.Module:
        from stages.transfers.shared.above import inner_above

        return inner_above(whole(), network, recipe["cut"], layers, recipe["image_size"])

    return replace(data, above=above, inner=inner, facts=recipe, checkpoint=checkpoint)


def _checkpoints(run: Run, samples: Samples, features: FeatureStore) -> Path:
    """Where trainings keep how far they are: in the private cache, by all that they depend on, the code included."""
    here = Path(__file__).parent
    files = sorted(path for folder in ("backbones", "samples", "transfers") for path in here.glob(f"{folder}/**/*.py"))
    code = {str(path.relative_to(here)): hash_file(path) for path in files}
    machine = [version("torch"), device(), thread_count()]
    key = hash_json([_inputs(run, samples, features), features.facts["engine"], code, machine])
    return cache_root() / "trainings" / key


def _read(
    samples: Samples, features: FeatureStore, rows: NDArray[np.int64], views: list[str] | None, stays_stored: bool
) -> Part:
    """Read some samples; raises UserError for samples without features, or with features that are no numbers."""
    names, hashes, groups = samples.table["sample"].to_pylist(), samples.image_hashes, samples.groups
    at = features.rows([hashes[row] for row in rows])
    absent = np.flatnonzero(at < 0)
    if len(absent):
        raise UserError(
            f"{features.folder} lacks {len(absent)} of {len(rows)} images of {samples.name}, "
            f"the first is {names[rows[absent[0]]]}: run `dvc repro`, so that both are of the same images"
        )
    own = None if groups is None else [groups[row] for row in rows]
    weights = None if samples.weights is None else samples.weights[rows]
    targets = samples.targets[rows] if samples.soft else None
    own_names = [names[row] for row in rows]
    if stays_stored:
        for _ in features.checked(at, own_names, views):
            pass
        # It is read like an array by the kinds that are given it.
        stored = cast("NDArray[np.float32]", features.stored(at))
        return Part(stored, samples.labels[rows], targets, own, weights)
    activations = features.read(at, views)
    check_finite(activations, features.folder, own_names, views or features.views)
    return Part(activations, samples.labels[rows], targets, own, weights)


def _write(folder: Path, model: Model, features: FeatureStore) -> None:
    write_model(folder, model)
    for file in FROZEN_PART:
        link_or_copy(features.folder / file, folder / file)


def _inputs(run: Run, samples: Samples, features: FeatureStore) -> dict[str, Any]:
    return {
        "transfer": run.transfer.model_dump(mode="json"),
        "dataset": samples.facts["content_hash"],
        "features": features.facts["content_hash"],
        "weights_hash": features.facts["weights_hash"],
        "seed": run.seed,
    }


def _facts(run: Run, samples: Samples, features: FeatureStore, models: list[Model]) -> dict[str, Any]:
    """Return what run.json says. The names of run, data set and features are not in it: same inputs, same bytes."""
    network, module = features.facts["network"], kind_module("transfers", run.transfer.kind)
    # Random weights carry nothing over from another task, nor do pixels to a method that takes no weights.
    untaught = network["origin"] == "random" or (
        features.facts["entry"]["cut"] == "image" and module.FAMILY == "feature"
    )
    inputs = {**_inputs(run, samples, features), "repeats": len(models), "final": run.final}
    if run.budgets != [None]:
        inputs["labels_per_class"] = [budget or "all" for budget in run.budgets]
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
        **({"multi_label": True} if samples.multi_label else {}),
        "chosen": [model.chosen for model in models],
        "trained_parameters": models[0].trained_parameters,
        "budgets": [budget or "all" for budget in run.budgets],
    }


if __name__ == "__main__":
    run_stage(finetune, level="runs")

"""A run's trained network as a backbone: its frozen part and its trained part together, as one network.

So pretraining on one data set and fine-tuning on another are a few entries of params.yaml: features with
`backbone: models/<run>` are extracted by what that run has trained, the model of all samples where it has one
(`final: true`), else that of repeat 0. learned.parquet goes with it: the images that it has learned from, which nothing
that is built on it may be tested on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from stages.cli import UserError
from stages.files import (
    LEARNED,
    damaged,
    hash_file,
    hash_json,
    link_or_copy,
    missing,
    new_folder,
    read_json,
    write_json,
)
from stages.store.location import cache_root

T = TypeVar("T")


def backbone_folder(folder: Path) -> Path:
    """Return the folder with weights.safetensors and network.json: data/raw/<download>/, or one made of a run's model.

    The latter lies in the private cache. Raises UserError for a run whose model is no network.
    """
    if not (folder / "run.json").is_file():
        return folder
    from safetensors.numpy import load_file, save_file

    from stages.backbones.weights import hash_weights

    model = folder / "final" if (folder / "final").is_dir() else folder / "repeat-0"
    facts, network = read_json(model / "model.json"), read_json(model / "network.json")
    classifier = facts.get("above", {}).get("classifier")
    if classifier is None:
        why = f"of kind {facts['kind']} is no network"
        if "above" in facts:
            why = f"of {network['network']} has no linear layer of its own, where the trained head would go"
        raise UserError(f"{folder}: a model {why}, so it cannot be a backbone: name another run")
    if not (folder / LEARNED).is_file():
        raise missing(folder / LEARNED)
    trained = _whole(model / "model.safetensors", hash_weights)
    inputs = [network["weights_hash"], trained, facts["above"]["cut"], classifier, hash_file(folder / LEARNED)]
    target = cache_root() / "trained" / hash_json(inputs)
    if not (target / "network.json").is_file():
        tensors = _whole(model / "backbone.safetensors", load_file)
        for name, tensor in load_file(model / "model.safetensors").items():
            part, _, own = name.partition(".")
            if part == "head":
                tensors[f"{classifier}.{own}"] = tensor
            elif part == "body":
                tensors[own.removeprefix("network.")] = tensor
        with new_folder(target) as new:
            save_file(tensors, new / "weights.safetensors")
            whole = {
                **network,
                "origin": "run",
                "source": f"trained here, kind {facts['kind']}, from {network['source']}",
                "weights_hash": hash_weights(new / "weights.safetensors"),
                "classes": len(facts["classes"]),
                "parameters": sum(t.size for n, t in tensors.items() if "running_" not in n and "num_batches" not in n),
            }
            write_json(new / "network.json", whole)
            link_or_copy(folder / LEARNED, new / LEARNED)
    return target


def _whole(path: Path, read: Callable[[Path], T]) -> T:
    from safetensors import SafetensorError

    try:
        return read(path)
    except SafetensorError as error:
        raise damaged(path, error) from None

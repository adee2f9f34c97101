"""A run's trained network as a backbone: its frozen part and its trained part together, as one network.

So pretraining on one data set and fine-tuning on another are a few entries of params.yaml: features with
`backbone: models/<run>` are extracted by what that run has trained, the model of all samples where it has one
(`final: true`), else that of repeat 0.
"""

from __future__ import annotations

from pathlib import Path

from stages.cli import UserError
from stages.files import hash_json, new_folder, read_json, write_json
from stages.store.location import cache_root


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
        raise UserError(
            f"{folder}: a model of kind {facts['kind']} is no network, so it cannot be a backbone: name a run that "
            "trains one"
        )
    trained = hash_weights(model / "model.safetensors")
    target = cache_root() / "trained" / hash_json([network["weights_hash"], trained, facts["above"]["cut"], classifier])
    if not (target / "network.json").is_file():
        tensors = load_file(model / "backbone.safetensors")
        for name, tensor in load_file(model / "model.safetensors").items():
            if name.startswith("head."):
                own = classifier + name.removeprefix("head")
            else:
                own = name.removeprefix("body.").removeprefix("network.")
            tensors[own] = tensor
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
    return target

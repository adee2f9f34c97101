"""Real solar cells, and an empty folder to work in."""

from __future__ import annotations

import importlib.util
import urllib.request
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, as the project's root is for a stage."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be downloaded, where there is a network, too."""
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    # urllib reads the proxies once, at its first request, and would keep these for the tests that follow.
    monkeypatch.setattr(urllib.request, "_opener", None)


@pytest.fixture(scope="session")
def cells() -> list[Path]:
    """The files of real solar cells, in the order of their table."""
    spec = importlib.util.find_spec("elpv_dataset")
    assert spec is not None
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "data" / "images").glob("*.png"))

"""The stage: whole or not at all, and one line for what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stages.cli import UserError
from stages.fetch import fetch
from stages.sources import folder as source
from stages.sources._raw import read_images

ROOT = Path(__file__).parents[2]
PARAMS = "downloads: {photos: {source: folder, path: photos}}\ndatasets: {}\nfeatures: {}\nruns: {}\ncompare: {}\n"


def run(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.fetch", *arguments]
    return subprocess.run(command, cwd=work, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)


def photos(work: Path, *names: str) -> None:
    for name in names:
        (work / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "photos" / name).write_text(name)


def test_stage_writes_what_the_entry_names_and_replaces_what_was_there(work: Path) -> None:
    (work / "params.yaml").write_text(PARAMS)
    photos(work, "a/1.jpg", "b/1.jpg")
    for expected in (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "a/2.jpg", "b/1.jpg"]):
        result = run(work, "photos")
        assert (result.returncode, result.stderr) == (0, "")
        assert read_images("photos").table["sample"].to_pylist() == expected
        photos(work, "a/2.jpg")
    assert [path.name for path in (work / "data/raw").iterdir()] == ["photos"]


def test_a_failed_fetch_leaves_what_was_there(work: Path) -> None:
    photos(work, "a/1.jpg", "b/1.jpg")
    entry = source.Params(source="folder", path="photos")
    fetch("photos", entry)
    photos(work, "no-class.jpg", "no-class-2.jpg", "no-class-3.jpg")
    with pytest.raises(UserError):
        fetch("photos", entry)
    assert read_images("photos").table["sample"].to_pylist() == ["a/1.jpg", "b/1.jpg"]
    assert [path.name for path in (work / "data/raw").iterdir()] == ["photos"]


def test_a_wrong_name_is_answered_by_the_nearest_and_nothing_is_written(work: Path) -> None:
    (work / "params.yaml").write_text(PARAMS)
    result = run(work, "fotos")
    assert result.returncode == 2
    assert result.stderr == "params.yaml: downloads.fotos is not there; did you mean photos?\n"
    assert not (work / "data").exists()

"""The outbox: entries are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.tracking import outbox
from tests.tracking.conftest import Results

RESULT = {"fingerprint": "f", "names": "probe"}


def files(results: Results) -> dict[str, Path]:
    for path in (large := Path("data/models/large"), small := Path("reports/small.json")):
        (results.root / path).parent.mkdir(parents=True, exist_ok=True)
        (results.root / path).write_text("content")
    return {"model/large": large, "artifacts/small.json": small}


def test_entry_keeps_what_the_project_loses_and_large_files_take_no_space(results: Results) -> None:
    entry = outbox.put(RESULT, files(results))
    assert (entry / "model/large").stat().st_ino == (results.root / "data/models/large").stat().st_ino
    # git may write into a file in place.
    with (results.root / "reports/small.json").open("r+") as file:
        file.write("changed")
    (results.root / "data/models/large").unlink()
    assert (entry / "artifacts/small.json").read_text() == "content"
    assert (entry / "model/large").read_text() == "content"
    assert outbox.pending() == [entry]


def test_files_that_dvc_has_linked_are_kept_themselves(results: Results) -> None:
    kept = files(results)
    cached = results.root / "cache"
    (results.root / "data/models/large").rename(cached)
    (results.root / "data/models/large").symlink_to(cached)
    entry = outbox.put(RESULT, kept)
    cached.unlink()
    assert (entry / "model/large").read_text() == "content"


def test_result_that_waits_takes_further_names(results: Results) -> None:
    assert not outbox.add_names("f", ["svm"])
    entry = outbox.put(RESULT, files(results))
    assert outbox.add_names("f", ["svm"])
    assert json.loads((entry / "result.json").read_text())["names"] == "probe, svm"
    assert (entry / "model/large").is_file()


def test_entry_whose_making_fails_is_not_there(results: Results) -> None:
    with pytest.raises(FileNotFoundError):
        outbox.put(RESULT, {**files(results), "model/lost": Path("data/lost")})
    assert outbox.pending() == []
    assert list(outbox.outbox_folder().iterdir()) == []


def test_left_overs_of_killed_processes_are_no_entries_and_are_swept_up(results: Results) -> None:
    entry = outbox.put(RESULT, files(results))
    (outbox.outbox_folder() / ".g.tmp-123").mkdir()
    (outbox.outbox_folder() / ".h.sent").mkdir()
    assert outbox.pending() == [entry]
    outbox.sweep()
    assert list(outbox.outbox_folder().iterdir()) == [entry]
    outbox.remove(entry)
    assert list(outbox.outbox_folder().iterdir()) == []

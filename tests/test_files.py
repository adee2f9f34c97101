"""Files: whole or not there at all, whatever moment a writer was killed at, and the same bytes every time."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import files
from stages.cli import UserError
from stages.files import (
    hash_bytes,
    hash_file,
    hash_json,
    link_or_copy,
    made_again,
    new_file,
    new_files,
    new_folder,
    read_json,
    read_table,
    write_in_pieces,
    write_json,
    write_table,
    write_text,
)

ROOT = Path(__file__).parents[1]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path) -> None:
    path.write_text("half")
    raise InterruptedError


def run_and_kill(program: str, folder: Path) -> None:
    """Run a program that says when it has come half way, and kill it there with -9."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    env = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    with new_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # or the renaming would copy
    assert path.read_text() == "half"
    assert names(path.parent) == ["a.txt"]


def test_a_failed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(InterruptedError), new_file(path) as temporary:
        write_half(temporary)
    assert path.read_text() == "before"
    assert names(tmp_path) == ["a.txt"]


def test_a_killed_writer_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "before")
    program = """
        import time
        from pathlib import Path
        from stages.files import new_file
        with new_file(Path("a.txt")) as temporary:
            temporary.write_text("aft")
            print("half way", flush=True)
            time.sleep(60)
    """
    run_and_kill(program, tmp_path)
    assert (tmp_path / "a.txt").read_text() == "before"
    assert len(names(tmp_path)) == 2
    write_text(tmp_path / "a.txt", "after")
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_replaces_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for content in ("old", "new"):
        with new_folder(path) as temporary:
            (temporary / content).write_text(content)
            assert names(path) == ["old"] if content == "new" else not path.exists()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_failed_writer_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with new_folder(path) as temporary:
        (temporary / "old").touch()
    with pytest.raises(InterruptedError), new_folder(path) as temporary:
        write_half(temporary / "new")
    assert names(path) == ["old"]
    assert names(tmp_path) == ["out"]


def test_files_of_a_folder_are_replaced_when_all_are_written_and_what_else_lies_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a", "b", "notes"):
        (folder / name).write_text("old")
    with pytest.raises(InterruptedError), new_files(folder) as temporary:
        write_half(temporary / "a")
    assert {name: (folder / name).read_text() for name in names(folder)} == dict.fromkeys(("a", "b", "notes"), "old")
    with new_files(folder) as temporary:
        write_text(temporary / "a", "new")
        write_text(temporary / "b", "new")
    assert {n: (folder / n).read_text() for n in names(folder)} == {"a": "new", "b": "new", "notes": "old"}
    assert names(tmp_path) == ["out"]


def test_what_a_killed_writer_of_files_left_is_in_no_output(tmp_path: Path) -> None:
    program = """
        import time
        from pathlib import Path
        from stages.files import new_files, write_text
        with new_files(Path("out")) as temporary:
            write_text(temporary / "whole", "1")
            (temporary / "half").touch()
            print("half way", flush=True)
            time.sleep(60)
    """
    (tmp_path / "out").mkdir()
    run_and_kill(program, tmp_path)
    assert names(tmp_path / "out") == []
    with new_files(tmp_path / "out") as temporary:
        write_text(temporary / "whole", "1")
    assert (names(tmp_path), names(tmp_path / "out")) == (["out"], ["whole"])


def test_what_a_killed_process_of_our_own_number_left_is_removed(tmp_path: Path) -> None:
    # In a container numbers repeat: a stage that is started again often has that of the one that was killed.
    (tmp_path / f".out.tmp-{os.getpid()}").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("whole")
    assert names(tmp_path) == ["out"]


def test_what_a_killed_writer_left_is_no_output_and_is_removed_by_the_next(tmp_path: Path) -> None:
    program = """
        import time
        from pathlib import Path
        from stages.files import new_folder
        with new_folder(Path("out")) as temporary:
            (temporary / "half").touch()
            print("half way", flush=True)
            time.sleep(60)
    """
    run_and_kill(program, tmp_path)
    (left_over,) = names(tmp_path)
    assert left_over.startswith(".out.tmp-")
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as temporary:
        (temporary / "whole").touch()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["whole"]


def test_what_other_programs_named_alike_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp-notes").mkdir()
    (tmp_path / f".out.tmp-{10**30}").mkdir()  # no process has such a number
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == [".out.tmp-notes", "out"]


def test_what_another_running_writer_is_writing_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / f".out.tmp-{os.getppid()}"
    other.mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert other.is_dir()


def test_a_folder_is_never_there_with_files_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "one", "1")
    seen = []

    def remove(path: Path, ignore_errors: bool = False) -> None:
        seen.append(names(tmp_path / "out"))
        rmtree(path, ignore_errors)

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", remove)
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "two", "2")
    assert seen
    assert all(found == ["two"] for found in seen)


def test_a_folder_that_cannot_be_renamed_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So it is in a container whose image holds the folder: OverlayFS answers EXDEV.
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "one", "1")
    original = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self == tmp_path / "out":
            raise OSError(18, "Invalid cross-device link", str(self))
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with new_folder(tmp_path / "out") as folder:
        write_text(folder / "two", "2")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["two"]


@pytest.mark.parametrize("length", [200, 221, 255])
@pytest.mark.parametrize("letter", ["x", "\u00fc", "\U0001f31e"])
def test_names_as_long_as_file_systems_take_can_be_written(letter: str, length: int, tmp_path: Path) -> None:
    name = (letter * length).encode()[: length - 1].decode(errors="ignore")
    one, two = (tmp_path / f"{name}{end}" for end in "12")
    with new_file(one) as first, new_file(two) as second:
        first.write_text("1")
        second.write_text("2")
    assert (one.read_text(), two.read_text()) == ("1", "2")
    with new_folder(tmp_path / f"{name}f") as folder:
        pass
    folder.with_name(folder.name.replace(str(os.getpid()), "99999999")).mkdir()  # no system numbers so many processes
    with new_folder(tmp_path / f"{name}f") as folder:
        write_text(folder / "whole", "whole")
    assert names(tmp_path) == sorted([one.name, two.name, f"{name}f"])


@pytest.mark.parametrize("keep", [0, 1, 0.5, -1])
def test_a_file_that_was_cut_off_is_named_with_what_to_do(keep: float, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": "\u00fc" * 20})
    write_table(tmp_path / "a.parquet", pa.table({"a": [1, 2, 3]}))
    for path, read in ((tmp_path / "a.json", read_json), (tmp_path / "a.parquet", read_table)):
        content = path.read_bytes().rstrip()
        path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
        with pytest.raises(UserError, match=rf"^{path} cannot be read \(.+\): run `dvc repro --force`$"):
            read(path)


def test_json_keeps_its_order_and_every_letter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"b": 1, "a": [0.1, None, "ß\u2028"], "c": {"z": True}}
    write_json(path, value)
    assert read_json(path) == value
    assert list(read_json(path)) == ["b", "a", "c"]
    assert "ß" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused_and_nothing_is_written(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "a.json", {"a": value})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_equal_tables_give_equal_bytes_and_come_back(tmp_path: Path) -> None:
    for name in ("one", "two"):
        table = pa.table({"name": ["a", "é"], "value": [1.5, None]})
        write_table(tmp_path / name, table)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_table(tmp_path / "one").to_pylist() == [{"name": "a", "value": 1.5}, {"name": "é", "value": None}]
    assert read_table(tmp_path / "one", columns=["value"]).column_names == ["value"]


def test_what_is_not_there_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    for read in (read_json, read_table):
        with pytest.raises(UserError, match="gone is not there: run `dvc repro`, or `dvc pull`"):
            read(tmp_path / "gone")


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert hash_bytes(b"abc") == hash_file(path) == known
    assert hash_json({"a": [1, "é"]}) == hashlib.sha256(rb'{"a":[1,"\u00e9"]}').hexdigest()


@pytest.mark.parametrize("other", [{"b": 2, "a": 1.5}, {"a": 1, "b": "2"}, {"a": 1}])
def test_hash_of_json_tells_values_apart_and_not_the_order_of_keys(other: dict[str, Any]) -> None:
    assert hash_json({"a": 1, "b": 2}) == hash_json({"b": 2, "a": 1})
    assert hash_json({"a": 1, "b": 2}) != hash_json(other)


def test_a_link_costs_no_space_and_where_there_are_none_a_copy_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a"
    source.write_bytes(b"abc")
    link_or_copy(source, tmp_path / "link")
    assert (tmp_path / "link").samefile(source)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    link_or_copy(source, tmp_path / "copy")
    assert not (tmp_path / "copy").samefile(source)
    assert (tmp_path / "copy").read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("data/raw/photos/images.parquet", "fetch@photos"),
        ("/home/data/raw/net/data/features/lite0/activations-00000.npy", "extract@lite0"),
        ("data/models/svm/repeat-0/model.skops", "finetune@svm"),
        ("reports/runs/svm/outcomes.parquet", "evaluate@svm"),
    ],
)
def test_the_stage_that_makes_a_damaged_file_again_is_named(path: str, stage: str) -> None:
    assert made_again(Path(path)) == f"`dvc repro --force --single-item {stage}`"


def test_a_table_written_in_pieces_has_the_bytes_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    table = pa.table(
        {
            "name": [f"{n}.png" for n in range(20)],
            "label": random.integers(0, 2, 20),
            "target": pa.array(random.random((20, 2)).astype(np.float32).tolist(), pa.list_(pa.float32())),
        }
    )
    for rows in (100, 20, 7, 1):
        monkeypatch.setattr(files, "ROWS_IN_A_GROUP", rows)
        write_table(tmp_path / "whole.parquet", table)
        write_in_pieces(tmp_path / "pieces.parquet", 20, 2, lambda start, stop: table.slice(start, stop - start))
        assert (tmp_path / "pieces.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    write_in_pieces(tmp_path / "none.parquet", 0, 2, lambda start, stop: table.slice(start, stop - start))
    assert read_table(tmp_path / "none.parquet").equals(table.slice(0, 0))

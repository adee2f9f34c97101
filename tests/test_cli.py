"""The command line: one line for what a user can mend, a traceback for what is our fault, and progress for people."""

from __future__ import annotations

import errno
import io
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.cli import UserError, guard, printable, progress, run_stage, warn


def leave(function: Callable[[], Any]) -> int | str | None:
    """Return the exit code that a function ends with under guard."""
    with pytest.raises(SystemExit) as error:
        guard(function)
    return error.value.code


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_function_that_returns_ends_in_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_what_a_user_can_mend_ends_in_2_and_its_message_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(failing(UserError("params.yaml: a is missing", "params.yaml: b is missing"))) == 2
    assert capsys.readouterr() == ("", "params.yaml: a is missing\nparams.yaml: b is missing\n")


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guard(failing(ZeroDivisionError()))


def test_an_interrupted_stage_ends_in_130_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_reader_that_went_away_is_no_error_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert leave(failing(BrokenPipeError())) == 1


def test_a_file_name_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    leave(failing(UserError("photos/\x1b[2J\r.jpg cannot be read")))
    assert capsys.readouterr().err == "photos/\\x1b[2J\\r.jpg cannot be read\n"
    leave(failing(UserError("a\nerror: all is lost", "second")))  # a name is no line of its own, a message is
    assert capsys.readouterr().err == "a\\nerror: all is lost\nsecond\n"
    warn("a\nb\x07")
    assert capsys.readouterr().err == "warning: a\\nb\\x07\n"


@pytest.mark.parametrize("number", ["ENAMETOOLONG", "ELOOP", "EIO", "ENOTDIR", "EMFILE", "EISDIR", "ENOSPC", "EROFS"])
def test_what_the_system_says_of_a_file_ends_in_2_and_one_line(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = getattr(errno, number)
    assert leave(failing(OSError(code, os.strerror(code), "photos/a\nb\x1b[2J.png"))) == 2
    expected = f"photos/a\\nb\\x1b[2J.png cannot be written or read: {os.strerror(code)}\n"
    assert capsys.readouterr() == ("", expected)


def test_a_loop_of_links_and_a_name_that_is_too_long_end_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / ("x" * 300)):
        assert leave(path.read_bytes) == 2
        assert capsys.readouterr().err.startswith(f"{path} cannot be written or read: ")


def test_a_renaming_that_fails_names_what_was_to_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").write_text("file")
    (tmp_path / "old").mkdir()
    assert leave(lambda: (tmp_path / "new").rename(tmp_path / "old")) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'old'} cannot be written or read: Is a directory\n"


def test_an_error_of_the_system_that_is_about_no_file_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConnectionRefusedError):
        guard(failing(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")))
    assert leave(failing(OSError(errno.EIO, "Input/output error"))) == 2
    assert capsys.readouterr().err == "a file cannot be written or read: Input/output error\n"


def test_what_asks_for_more_memory_than_there_is_ends_in_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for ask in (
        lambda: np.empty(2**55),
        lambda: torch.empty(2**55),
        lambda: pa.allocate_buffer(2**55),
        lambda: mmap.mmap(-1, 2**55),
    ):
        assert leave(ask) == 2
        told = capsys.readouterr().err
        assert told.startswith("memory does not suffice: ")
        assert told.endswith("docs/own-images.md says under Many images what else\n")
        assert told.count("\n") == 1


def test_letters_of_all_languages_are_printable() -> None:
    assert printable("é 太陽 ß - ok") == "é 太陽 ß - ok"
    assert printable("a\u202eb\udce9") == "a\\u202eb\\udce9"


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_a_stage_without_a_name_says_how_it_is_used(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def extract() -> None:
        raise AssertionError("must not run")

    monkeypatch.setattr(sys, "argv", ["extract.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        run_stage(extract, level="features")
    message = "usage: python -m stages.extract NAME, where NAME is a key of features in params.yaml\n"
    assert capsys.readouterr().err == message


def test_a_stage_that_takes_no_name_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare() -> None:
        raise AssertionError("must not run")

    monkeypatch.setattr(sys, "argv", ["compare.py", "svm"])
    with pytest.raises(SystemExit, match="2"):
        run_stage(compare)
    assert capsys.readouterr().err == "python -m stages.compare takes no arguments, got: svm\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_yields_what_it_is_given_and_is_silent_where_nobody_looks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(progress(iter("abc"), total=3, unit="image")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_progress_tells_a_person_how_many_of_how_many_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    batches = [["a", "b"], ["c"]]
    assert list(progress(batches, total=3, unit="image", size=len)) == batches
    assert "3/3" in terminal.getvalue()
    assert "images/s" in terminal.getvalue()

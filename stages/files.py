"""Where the stages keep their files, and how they are written: under a temporary name first, then renamed.

A reader therefore finds a whole file or none, whatever moment a writer was killed at.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.cli import UserError, warn

if TYPE_CHECKING:
    import pyarrow as pa

DATA = Path("data")
RAW = DATA / "raw"
PREPARED = DATA / "prepared"
FEATURES = DATA / "features"
MODELS = DATA / "models"
EVALUATIONS = DATA / "evaluations"
COSTS = DATA / "costs"
REPORTS = Path("reports")
SECONDS_BEFORE_SAYING_SO = 2
LONGEST_NAME = 220
"""Bytes of a name that is written under a temporary one: file systems take 255, the number of a process included."""
ROWS_IN_A_GROUP = 2**16
NUMBERS_IN_A_GROUP = 2**23
"""Rows of a table that are encoded at a time; of wide ones so many numbers."""
LEARNED = "learned.parquet"
"""In a folder with a network that was trained here: what images it has learned from, by their pixels."""
_USED_BY = ".used-by-"
_STAGES = {
    "raw": "fetch",
    "prepared": "prepare",
    "features": "extract",
    "models": "finetune",
    "evaluations": "evaluate",
    "runs": "evaluate",
}


def hash_bytes(content: bytes) -> str:
    """Return the sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Return the sha256 of a file's bytes, or another hash, in hexadecimal, reading it piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def hash_json(value: Any) -> str:
    """Return the sha256 of a value as JSON; the order of keys does not matter."""
    return hash_bytes(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def _temporary(path: Path, pid: int | str) -> Path:
    """Return the name under which a process writes `path`: beside it, and no longer than file systems take."""
    name = os.fsencode(path.name)
    if len(name) > LONGEST_NAME:
        name = name[: LONGEST_NAME - 16].decode(errors="ignore").encode() + hash_bytes(name)[:16].encode()
    return path.with_name(f".{os.fsdecode(name)}.tmp-{pid}")


def _left_over(path: Path) -> Iterator[Path]:
    """Yield what killed processes left of writing `path`."""
    for temporary in path.parent.glob(glob.escape(_temporary(path, "").name) + "*"):
        process = writer_of(temporary)
        if process is not None and (process == os.getpid() or not is_running(process)):
            yield temporary


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and rename it to `path` when the block ends well.

    What a killed process left there under a temporary name is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in _left_over(path):
        left_over.unlink(missing_ok=True)
    temporary = _temporary(path, os.getpid())
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `path`, and put it in the place of `path` when the block ends well.

    What a killed process left there under a temporary name is removed first.
    """
    with _new_beside(path) as temporary:
        yield temporary
        before = _temporary(path, f"before-{os.getpid()}")
        try:
            if path.exists():
                try:
                    path.rename(before)  # removed where it is, it would for a moment be there and lack files
                except OSError:  # a container's lower layer cannot be renamed
                    shutil.rmtree(path)
            temporary.rename(path)
        finally:
            shutil.rmtree(before, ignore_errors=True)


@contextmanager
def new_files(folder: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside `folder`, and move its files there when the block ends well.

    For a folder whose files are outputs by themselves: what else lies in it stays, and what a killed process left is
    not in it, but beside it, and removed first.
    """
    with _new_beside(folder) as temporary:
        yield temporary
        folder.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)


@contextmanager
def _new_beside(path: Path) -> Iterator[Path]:
    """Make an empty folder under a temporary name beside `path`, and remove it, and what killed processes left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in _left_over(path):
        shutil.rmtree(left_over)
    temporary = _temporary(path, os.getpid())
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(path: Path, waits_for: str) -> Iterator[None]:
    """Hold a lock, a file, while the block runs; it ends with its process. Says what it waits for when it has to."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=SECONDS_BEFORE_SAYING_SO)
    except Timeout:
        warn(f"{waits_for}: waiting for it to end")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def writer_of(temporary: Path) -> int | None:
    """Return the number of the process that writes, or wrote, under a temporary name; None where it has none."""
    process = temporary.name.removesuffix("-journal").rpartition("-")[2]  # SQLite has a file of its own beside it
    return int(process) if process.isdecimal() else None


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Mark that this process works with what lies, or will lie, at a path, so that nobody takes it for given up."""
    mark = path.with_name(f"{path.name}{_USED_BY}{os.getpid()}")
    mark.parent.mkdir(parents=True, exist_ok=True)
    for of_killed in (found for found in _marks(path) if not is_in_use(found)):
        of_killed.unlink(missing_ok=True)
    mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def is_in_use(path: Path) -> bool:
    """Whether a process of this machine works with what lies at a path, or this is the mark of one that lives."""
    marks = [path] if _USED_BY in path.name else _marks(path)
    return any(is_running(pid) for pid in map(writer_of, marks) if pid is not None)


def _marks(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{glob.escape(path.name.removesuffix('.part'))}{_USED_BY}*"))


def is_running(pid: int) -> bool:
    """Whether a process of that number lives on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text file as UTF-8, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a dictionary as indented JSON in the order of its keys; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that a stage has written; raises UserError when it is not there or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except ValueError as error:
        raise damaged(path, error) from None


def missing(path: Path) -> UserError:
    """Return the error for a file of an earlier stage that is not there."""
    return UserError(f"{path} is not there: run `dvc repro`, or `dvc pull` what another clone has computed")


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a file of an earlier stage that is there and cannot be read."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    doubt_copy(path)
    return UserError(f"{path} cannot be read ({reason}): run {made_again(path)}")


def doubt_copy(path: Path) -> None:
    """Have DVC look at its copy of a damaged file of a stage, which may be the very same file.

    DVC takes a file of its cache for whole where it is read-only, as it makes them; others it reads, and replaces.
    """
    if any(room in ("data", "reports") for room in path.parts):
        with suppress(OSError):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def made_again(path: Path) -> str:
    """Return the command that makes a damaged file of a stage again; DVC's cache may hold the very same bytes."""
    parts = path.parts
    for at in reversed(range(1, len(parts) - 1)):
        if parts[at - 1] in ("data", "reports") and parts[at] in _STAGES:
            return f"`dvc repro --force --single-item {_STAGES[parts[at]]}@{parts[at + 1]}`"
    return "`dvc repro --force`"


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet; equal tables give equal bytes (with one version of pyarrow)."""
    import pyarrow.parquet as pq

    with new_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS_IN_A_GROUP)


def write_in_pieces(path: Path, rows: int, width: int, piece: Callable[[int, int], pa.Table]) -> None:
    """Write as Parquet what is not to be in memory at once; of narrow rows the bytes are those of `write_table`.

    width : how many numbers are in a row; piece : returns the table's rows from one number to before another
    """
    import pyarrow.parquet as pq

    step = min(ROWS_IN_A_GROUP, max(1, NUMBERS_IN_A_GROUP // width))
    with new_file(path) as temporary:
        first = piece(0, min(rows, step))
        with pq.ParquetWriter(temporary, first.schema, compression="zstd") as writer:
            writer.write_table(first, step)
            for start in range(step, rows, step):
                writer.write_table(piece(start, min(rows, start + step)), step)


def read_table(
    path: Path, columns: list[str] | None = None, without: Collection[str] = (), on_disk: Path | None = None
) -> pa.Table:
    """Read a Parquet file that a stage has written; raises UserError when it is not there or not whole.

    columns, without : the columns to read, and those of them, or of all, not to read
    on_disk : a folder in whose file system the table lies, where it is large for memory
    """
    import pyarrow as pa

    from stages.on_disk import table_of

    groups = _row_groups(path, columns, without)
    return pa.concat_tables(groups) if on_disk is None else table_of(groups, on_disk)


def _row_groups(path: Path, columns: list[str] | None, without: Collection[str]) -> Iterator[pa.Table]:
    """Yield the groups of rows of a Parquet file, one at least: of lists an array holds 2**31 numbers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:  # pq.read_table would import pandas: half a second for every stage
            names = [name for name in (file.schema_arrow.names if columns is None else columns) if name not in without]
            if not file.num_row_groups:
                yield file.read(columns=names)
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, columns=names)
    except FileNotFoundError:
        raise missing(path) from None
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file's bytes at `target` too: as a hard link where the file system can, else as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

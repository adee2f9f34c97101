"""What all stages share on the command line: errors of one line, warnings, progress, and how a stage is started."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
"""What the system also says of a file that is open already, without its name."""
_OUT_OF_MEMORY = ("can't allocate memory", "CUDA out of memory", "Failed to allocate memory")
"""What torch and ONNX Runtime say of it, in errors that are not MemoryError."""
_WITH_LESS = "a smaller batch_size or image_size takes less, docs/own-images.md says under Many images what else"


class UserError(Exception):
    """Something that a user can mend. The message, or each of several, says where, what was found and what to do.

    It ends a stage in that message and exit code 2. Every other exception is a fault of ours and keeps its traceback.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def warn(message: str) -> None:
    """Print one line of warning; control characters in it (from a file's name, say) are shown escaped."""
    print(f"warning: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """Return the text with line breaks and control characters escaped, so that it stays one harmless line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def is_of_a_file(error: OSError) -> bool:
    """Whether the system says something of a file that a user can mend."""
    return error.filename is not None or error.errno in _OF_THE_DISK


def told(error: OSError) -> str:
    """Say in one line what the system says about which file."""
    name = error.filename2 or error.filename
    name = os.fsdecode(name) if isinstance(name, str | bytes) else "a file"
    return f"{printable(name)} cannot be written or read: {printable(error.strerror or str(error))}"


def guard(function: Callable[[], Any]) -> NoReturn:
    """Call a function and leave the program: 0 when it returns, 2 and one line for what a user can mend."""
    try:
        function()
    except UserError as error:
        print("\n".join(printable(str(line)) for line in error.args), file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        line = _mendable(error)
        if line is None:
            raise
        print(line, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing half written was kept, run again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _mendable(error: Exception) -> str | None:
    """Return the line on an error of memory or of the disk; None for another, which is a fault of ours."""
    if isinstance(error, OSError):
        if error.errno == errno.ENOMEM:
            return _of_memory(error.strerror or "")
        return told(error) if is_of_a_file(error) else None
    if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
        return _of_memory(str(error))
    # What is written by a library in Rust or C++ tells of a full disk in an error of its own.
    full = os.strerror(errno.ENOSPC)
    return f"a file cannot be written: {full}" if full in str(error) else None


def _of_memory(reason: str) -> str:
    return f"memory does not suffice: {printable(reason) or 'all is taken'}; {_WITH_LESS}"


def run_stage(stage: Callable[..., None], level: str | None = None) -> NoReturn:
    """Run a stage as a program.

    With a level ("runs", say) the command line names one entry of params.yaml, and the stage is called with its name
    and entry; without one it is called with all of params.yaml.
    """

    def start() -> None:
        from stages.params import read_params

        command = f"python -m stages.{stage.__name__}"
        arguments = sys.argv[1:]
        if level is None:
            if arguments:
                raise UserError(f"{command} takes no arguments, got: {' '.join(arguments)}")
            stage(read_params())
            return
        if len(arguments) != 1:
            raise UserError(f"usage: {command} NAME, where NAME is a key of {level} in params.yaml")
        params = read_params()
        stage(arguments[0], params.entry(level, arguments[0]))

    guard(start)


def progress(items: Iterable[T], total: int | None, unit: str, size: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """Yield the items while a line on the terminal tells how many are done, how fast, and how long is left.

    Says nothing where standard error is no terminal. `total` is None where it is not known; `size` tells how many units
    an item counts for.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn(f"{{task.fields[rate]}} {unit}s/s")
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit}s"), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task, start, done = bar.add_task(unit, total=total, rate="?"), time.monotonic(), 0
        for item in items:
            yield item
            done += size(item)
            bar.update(task, completed=done, rate=f"{done / max(time.monotonic() - start, 1e-9):,.0f}")

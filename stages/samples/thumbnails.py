"""A small picture of every image that decodes, kept with the data set: thumbnails.parquet, its writer and its reader.

evaluate shows people the mistakes of a run. The images themselves lie in data/raw/, which a run does not depend on and
which a fresh clone need not have pulled: with the small pictures in the data set, what evaluate draws is made of what
it depends on, everywhere.

    sample  the image's name
    jpeg    its picture, the longer side at most 192 pixels; 3 to 10 KB
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from stages.cli import UserError
from stages.files import damaged, new_file
from stages.samples.decoding import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

SIDE = 192  # pixels
QUALITY = 85
_TOGETHER = 256
"""Rows of one group: what has to be read to see one picture, about two megabytes."""


def thumbnail(image: Image.Image) -> bytes:
    """Return an image as a small JPEG; one that is small already keeps its size."""
    small = image.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


@contextmanager
def new_thumbnails(path: Path) -> Iterator[Callable[[str, bytes], None]]:
    """Give a function that adds a sample's picture to a new file of them, few of which are in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("sample", pa.string()), ("jpeg", pa.binary())])
    waiting: list[tuple[str, bytes]] = []
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="none") as writer:

        def write() -> None:
            if waiting:
                writer.write_table(pa.table(list(zip(*waiting, strict=True)), schema=schema))
                waiting.clear()

        def add(sample: str, jpeg: bytes) -> None:
            waiting.append((sample, jpeg))
            if len(waiting) == _TOGETHER:
                write()

        yield add
        write()


def read_thumbnails(path: Path, samples: Sequence[str]) -> list[Image.Image]:
    """Read the pictures of some samples, in the order asked for; raises UserError where the file is not there whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise UserError(f"{path} is not there: run `dvc repro prepare`, or `dvc pull` what another clone has computed")
    try:
        with pq.ParquetFile(path) as file:
            names = file.read(["sample"])["sample"].to_pylist()
            place = {name: row for row, name in enumerate(names)}
            rows = [place[sample] for sample in samples]
            groups = sorted({row // _TOGETHER for row in rows})
            jpegs = {group: file.read_row_group(group, ["jpeg"])["jpeg"] for group in groups}
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None
    contents = [jpegs[row // _TOGETHER][row % _TOGETHER].as_py() for row in rows]
    return [decode(content) for content in contents]

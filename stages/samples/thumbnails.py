"""A small picture of every sample, kept with the data set: thumbnails.parquet, its writer and its reader.

evaluate shows people the mistakes of a run. The images themselves lie in data/raw/, which a run does not depend on and
which a fresh clone need not have pulled: with the small pictures in the data set, what evaluate draws is made of what
it depends on, everywhere.

    sample  the sample's name
    jpeg    its picture, the longer side at most 192 pixels; 3 to 10 KB
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from stages.cli import UserError
from stages.files import new_file
from stages.samples.decoding import decode
from stages.threads import in_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.sources._raw import Images

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


def write_thumbnails(path: Path, images: Images, rows: NDArray[np.int64]) -> None:
    """Write the pictures of some rows of the images, several at a time and few in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def make(row: int) -> bytes:
        return thumbnail(decode(images.read(row), at_least=2 * SIDE))

    schema = pa.schema([("sample", pa.string()), ("jpeg", pa.binary())])
    names, made = images.table["sample"].take(pa.array(rows)), in_threads(make, rows.tolist())
    with new_file(path) as temporary, pq.ParquetWriter(temporary, schema, compression="none") as writer:
        for start in range(0, len(rows), _TOGETHER):
            samples = names.slice(start, _TOGETHER).combine_chunks()
            pictures = pa.array([next(made) for _ in range(len(samples))], pa.binary())
            writer.write_table(pa.table([samples, pictures], schema=schema))


def read_thumbnails(path: Path, samples: Sequence[str]) -> list[Image.Image]:
    """Read the pictures of some samples, in the order asked for; raises UserError where the file is not there."""
    import pyarrow.parquet as pq

    if not path.exists():
        raise UserError(f"{path} is not there: run `dvc repro prepare`, or `dvc pull` what another clone has computed")
    with pq.ParquetFile(path) as file:
        names = file.read(["sample"])["sample"].to_pylist()
        place = {name: row for row, name in enumerate(names)}
        rows = [place[sample] for sample in samples]
        groups = sorted({row // _TOGETHER for row in rows})
        jpegs = {group: file.read_row_group(group, ["jpeg"])["jpeg"] for group in groups}
    contents = [jpegs[row // _TOGETHER][row % _TOGETHER].as_py() for row in rows]
    return [decode(content) for content in contents]

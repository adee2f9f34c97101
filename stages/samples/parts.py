"""The split that a source brings, read from a column: what it says, and where it leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.cli import UserError
from stages.samples.splitting import PARTS
from stages.sources._raw import SPLIT_WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


def read_parts(column: pa.ChunkedArray, name: str, where: str) -> tuple[Ints, dict[int, str]]:
    """Return the part of each image (0 train, 1 validation, 2 test; -1 for none), and of rows that name none, why.

    The words are those that folders of a split may be called, val and testing among them, in any case.

    Raises UserError when there is no training or no test part, with a word that names no part if there is one.
    """
    values = [SPLIT_WORDS.get(str(value).lower(), value) if value else None for value in column.to_pylist()]
    place = f"params.yaml: {where}.split.column: the column {name}"
    unknown = {row: value for row, value in enumerate(values) if value not in (None, *PARTS)}
    if unknown and not {"train", "test"} <= set(values):
        value = next(iter(unknown.values()))
        raise UserError(f"{place} holds {value!r}; it may hold train, validation and test")
    for needed in ("train", "test"):
        if needed not in values:
            raise UserError(f"{place} brings no {needed} part: leave split.column out, and the samples are split here")
    parts = np.array([PARTS.index(value) if value in PARTS else -1 for value in values], np.int64)
    return parts, {row: f"in no part: the column {name} holds {value!r}" for row, value in unknown.items()}


def leaks(parts: Ints, pixel_hashes: Sequence[str], samples: Sequence[str]) -> list[str | None]:
    """Return for each sample None, or why it must be left out: its pixels are in a part that comes before its own.

    The test part stays as the source brings it, then validation; so a figure stays comparable with those of others.
    """
    highest: dict[str, int] = {}
    for row, pixels in enumerate(pixel_hashes):
        if pixels not in highest or parts[row] > parts[highest[pixels]]:
            highest[pixels] = row
    rows = [highest[pixels] for pixels in pixel_hashes]
    return [
        f"same pixels as {samples[other]} in the {PARTS[parts[other]]} part" if parts[other] > parts[row] else None
        for row, other in enumerate(rows)
    ]


def check_groups(parts: Ints, groups: Sequence[str | None], samples: Sequence[str], group: str, where: str) -> None:
    """Raise UserError when the split that the source brings tears a group apart, naming group, parts and samples."""
    first: dict[str, int] = {}
    for row, name in enumerate(groups):
        if name is None:
            continue
        other = first.setdefault(name, row)
        if parts[other] != parts[row]:
            raise UserError(
                f"params.yaml: {where}: the {group} {name} is on two sides of the split that the source brings "
                f"({samples[other]} in {PARTS[parts[other]]}, {samples[row]} in {PARTS[parts[row]]}): leave out "
                "split.column, and groups are kept whole; or leave out group"
            )

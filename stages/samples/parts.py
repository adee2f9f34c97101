"""The split that a source brings, read from a column: what it says, and where it leaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.cli import UserError
from stages.samples.splitting import PARTS, first_alike
from stages.sources._raw import SPLIT_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

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


def leaks(parts: Ints, picture: Ints, sample: Callable[[int], str]) -> dict[int, str]:
    """Return of the rows that must be left out why: their pixels are in a part that comes before their own.

    The test part stays as the source brings it, then validation; so a figure stays comparable with those of others.
    picture : (samples,) the same number where pixels are the same; sample : the name of a row
    """
    order = np.argsort(-parts, kind="stable")  # of one picture the first in it stays
    first = np.empty_like(order)
    first[order] = order[first_alike(picture[order])]
    torn = np.flatnonzero(parts[first] > parts)
    return {
        int(row): f"same pixels as {sample(int(first[row]))} in the {PARTS[parts[first[row]]]} part" for row in torn
    }


def check_groups(
    parts: Ints, groups: Ints, name: Callable[[int], str], sample: Callable[[int], str], group: str, where: str
) -> None:
    """Raise UserError when the split that the source brings tears a group apart, naming group, parts and samples.

    groups : (samples,) the same number in the same group; name, sample : the names of a row's group and of the row
    """
    first = first_alike(groups)
    for row in np.flatnonzero(parts[first] != parts).tolist():
        other = int(first[row])
        raise UserError(
            f"params.yaml: {where}: the {group} {name(row)} is on two sides of the split that the source brings "
            f"({sample(other)} in {PARTS[parts[other]]}, {sample(row)} in {PARTS[parts[row]]}): leave out "
            "split.column, and groups are kept whole; or leave out group"
        )

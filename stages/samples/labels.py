"""Classes from a column of the source: words or numbers as they are, or a number cut in two by a threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from stages.params import Label


@dataclass(frozen=True)
class Labels:
    """The classes in order, and each image's.

    classes : sorted names; for numbers ascending; of two the last is the positive one.
    index : (images,) int64, a class of each image; -1 where the source gives none.
    soft : (images,) the probability of the second of two classes, NaN where the source gives none; None without any
    """

    classes: list[str]
    index: NDArray[np.int64]
    soft: NDArray[np.float32] | None = None

    def take(self, rows: NDArray[np.int64]) -> Labels:
        """Return the labels of some images."""
        return Labels(self.classes, self.index[rows], None if self.soft is None else self.soft[rows])

    def targets(self) -> NDArray[np.float32]:
        """Return the labels as (images, classes): 1 for the image's class, else 0; or its probability of each."""
        hard = np.eye(len(self.classes), dtype=np.float32)[self.index]
        if self.soft is None:
            return hard
        return np.where(np.isnan(self.soft)[:, None], hard, np.stack([1 - self.soft, self.soft], axis=1))


def make_labels(column: pa.ChunkedArray, label: Label, where: str, soft: pa.ChunkedArray | None = None) -> Labels:
    """Make classes of a column's values.

    where : the entry in params.yaml, for messages ("datasets.cells"). soft : the column of probabilities.
    Raises UserError when a threshold meets words, when fewer than two classes come out, and for probabilities that are
    none or of more than two classes.
    """
    labels = _make_labels(column, label, where)
    if soft is None:
        return labels
    if len(labels.classes) != 2:
        raise UserError(f"params.yaml: {where}.label.soft needs two classes, here are {len(labels.classes)}")
    values = [math.nan if _is_absent(value) else value for value in soft.to_pylist()]
    wrong = next((v for v in values if not isinstance(v, int | float) or not (math.isnan(v) or 0 <= v <= 1)), None)
    if wrong is not None:
        raise UserError(
            f"params.yaml: {where}.label.soft: the column {label.soft} holds {wrong!r}, which is no probability"
        )
    return Labels(labels.classes, labels.index, np.array(values, np.float32))


def _make_labels(column: pa.ChunkedArray, label: Label, where: str) -> Labels:
    values = [None if _is_absent(value) else value for value in column.to_pylist()]
    if label.threshold is not None:
        labels = _cut(values, label.column, label.threshold, where)
    else:
        present = sorted({value for value in values if value is not None})
        place = {value: index for index, value in enumerate(present)}
        labels = Labels(names(present), np.array([place.get(value, -1) for value in values], np.int64))
    if len(labels.classes) < 2:
        found = f"only the class {labels.classes[0]}" if labels.classes else "no class"
        raise UserError(f"params.yaml: {where}.label: the column {label.column} makes {found}; it takes two")
    return labels


def _is_absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _cut(values: Sequence[Any], column: str, threshold: float, where: str) -> Labels:
    """Make two classes, below the threshold and at least the threshold; a side without an image is no class."""
    words = next((value for value in values if not isinstance(value, int | float | None)), None)
    if words is not None:
        raise UserError(
            f"params.yaml: {where}.label.threshold is {threshold:g}, but the column {column} holds words such as "
            f"{words!r}: leave the threshold out, or name a column of numbers"
        )
    index = np.array([-1 if value is None else int(value >= threshold) for value in values], np.int64)
    sides = np.unique(index[index >= 0]).tolist()
    classes = [f"{column} {('below', 'at least')[side]} {threshold:g}" for side in sides]
    return Labels(classes, index)


def names(values: Sequence[Any]) -> list[str]:
    """Return a name for each of some different values; numbers are shortened as long as they stay different.

    >>> names([0.0, 1 / 3, 1.0])
    ['0', '0.333333', '1']
    """
    short = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return short if len(set(short)) == len(short) else [str(value) for value in values]

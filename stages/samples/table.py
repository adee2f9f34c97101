"""A prepared data set on disk: data/prepared/<dataset>/, its writer and its reader.

samples.parquet    a row per usable image, sorted by `sample`: hashes, size, group, label (null where an image may
                   have several), target, sample_weight (where weights are named), table_row (where a table lists
                   them in another order), the part it belongs to in each repeat (split_0, split_1, ...), and the
                   columns of the source
rejected.parquet   the images that were left out, each with the reason
dataset.json       the classes in order, counts, the entry in params.yaml, and a hash of all that matters to a result
pictures/          a contact sheet per class; dataset.json names them
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.files import PREPARED, hash_bytes, read_json, read_table, write_in_pieces, write_json, write_table
from stages.samples.decoding import MODES, PREPROCESSING_VERSION
from stages.samples.splitting import PARTS, SPLITTING_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

    from stages.params import Dataset
    from stages.samples.checking import Checked
    from stages.samples.labels import Labels

FILE = "samples.parquet"
ROWS_AT_ONCE = 4096
"""Rows that are Python's own values at a time."""
OWN_COLUMNS = (
    *("sample", "image_hash", "pixel_hash", "width", "height", "mode", "group", "label", "target", "sample_weight"),
    "table_row",
)


@dataclass(frozen=True)
class Samples:
    """A prepared data set; all arrays have a row per sample, sorted by sample.

    table : the columns of samples.parquet but `target`, which is large where there are many classes
    """

    name: str
    facts: dict[str, Any]
    table: pa.Table
    _parts: list[NDArray[Any]] = field(repr=False)

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self.table.num_rows)

    @property
    def classes(self) -> list[str]:
        """The classes in order; of two the last is the positive one."""
        return list(self.facts["classes"])

    @property
    def repeats(self) -> int:
        """How many splits there are."""
        return int(self.facts["repeats"])

    @property
    def multi_label(self) -> bool:
        """Whether a sample may have several labels, or none."""
        return bool(self.facts.get("multi_label", False))

    @property
    def soft(self) -> bool:
        """Whether the targets say more than the labels do."""
        return self.multi_label or self.facts["entry"]["label"]["soft"] is not None

    @property
    def labels(self) -> NDArray[np.int64]:
        """(samples,) the class of each, as an index; of several labels (samples, classes), 1 for those that it has."""
        if self.multi_label:
            return self.targets.astype(np.int64)
        return np.asarray(self.table["label"].to_numpy(), np.int64)

    @cached_property
    def targets(self) -> NDArray[np.float32]:
        """(samples, classes) how much each belongs to each class; read from the file when it is first asked for."""
        column = read_table(PREPARED / self.name / FILE, ["target"])["target"]
        flat = [chunk.flatten().to_numpy() for chunk in column.chunks]
        return np.concatenate([*flat, np.empty(0, np.float32)]).reshape(len(self), len(self.classes))

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """(samples,) how much each counts in training, or None where all count alike."""
        if "sample_weight" not in self.table.column_names:
            return None
        return np.asarray(self.table["sample_weight"].to_numpy(), np.float64)

    @property
    def groups(self) -> list[str] | None:
        """The group of each sample, or None when the data set has no groups."""
        return None if self.facts["groups"] is None else self.table["group"].to_pylist()

    @property
    def image_hashes(self) -> list[str]:
        """The sha256 of each image's bytes."""
        hashes: list[str] = self.table["image_hash"].to_pylist()
        return hashes

    def part(self, repeat: int, part: str) -> NDArray[np.int64]:
        """Return the rows of one part ("train", "validation" or "test") in one repeat, ascending."""
        if part not in PARTS:
            raise ValueError(f"{part} is none of {', '.join(PARTS)}")
        return np.flatnonzero(self._parts[repeat] == part)

    def labelled(
        self, repeat: int, parts: Sequence[str], budget: int | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of some parts and those to validate on, of each class as many together as a budget allows.

        Fewer labels are a part of more, and the same for all runs: images come in the order of a hash of their hash.
        Their share that validates is that of the split, one of each class at least.
        """
        rows = np.sort(np.concatenate([self.part(repeat, part) for part in parts]))
        validation = self.part(repeat, "validation")
        if budget is None:
            return rows, validation
        held_out = max(1, round(budget * len(validation) / (len(rows) + len(validation))))
        return self._first(rows, repeat, budget - held_out), self._first(validation, repeat, held_out)

    def _first(self, rows: NDArray[np.int64], repeat: int, count: int) -> NDArray[np.int64]:
        hashes, labels = self.image_hashes, self.labels
        order = sorted(rows.tolist(), key=lambda row: hash_bytes(f"{repeat} {hashes[row]}".encode()))
        chosen, left = [], dict.fromkeys(range(len(self.classes)), count)
        for row, label in zip(order, labels[order].tolist(), strict=True):
            if left[label] > 0:
                chosen.append(row)
                left[label] -= 1
        return np.array(sorted(chosen), np.int64)


def read_samples(name: str) -> Samples:
    """Read a prepared data set; raises UserError when it is not there."""
    facts = read_json(PREPARED / name / "dataset.json")
    table = read_table(PREPARED / name / FILE, without=["target"])
    parts = [table[f"split_{repeat}"].to_numpy() for repeat in range(facts["repeats"])]
    return Samples(name, facts, table, parts)


def samples_table(
    source: pa.Table,
    checked: Checked,
    labels: Labels,
    groups: pa.ChunkedArray,
    parts: Sequence[NDArray[np.int8]],
    weights: NDArray[np.float64] | None = None,
    table_row: NDArray[np.int64] | None = None,
) -> pa.Table:
    """Return the rows of samples.parquet, but for their targets, which may take more room than all the rest.

    To take little room the modes and parts are dictionaries here, and the pixels' hashes bytes: see `_as_written`.

    source : sample, image_hash and the source's columns of the images that are used, sorted by sample; the other
    arguments follow its order. groups : names, or nulls; parts : one array (samples,) per repeat, 0 train,
    1 validation, 2 test.
    """
    import pyarrow as pa

    columns: dict[str, Any] = {
        "sample": source["sample"],
        "image_hash": source["image_hash"],
        "pixel_hash": _bytes(checked.pixel_hash),
        "width": pa.array(checked.size[:, 0]),
        "height": pa.array(checked.size[:, 1]),
        "mode": pa.DictionaryArray.from_arrays(checked.mode.astype(np.int8), list(MODES)),
        "group": groups,
        "label": pa.array(labels.index, pa.int64()) if labels.several is None else pa.nulls(len(checked), pa.int64()),
    }
    columns |= {} if weights is None else {"sample_weight": weights}
    columns |= {} if table_row is None else {"table_row": table_row}
    columns |= {
        f"split_{repeat}": pa.DictionaryArray.from_arrays(part, list(PARTS)) for repeat, part in enumerate(parts)
    }
    columns |= {name: source[name] for name in source.column_names if name not in columns}
    return pa.table(columns)


def _bytes(rows: NDArray[np.uint8]) -> pa.Array:
    """Return bytes (n, width) as a column that shares them."""
    import pyarrow as pa

    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(rows)])


def _as_written(rows: pa.Table) -> pa.Table:
    """Return some rows of `samples_table` as they are written: dictionaries as their words, bytes in hexadecimal."""
    import pyarrow as pa

    for place, (name, column) in enumerate(zip(rows.column_names, rows.columns, strict=True)):
        if pa.types.is_dictionary(column.type):
            rows = rows.set_column(place, name, column.cast(pa.string()))
        elif pa.types.is_fixed_size_binary(column.type):
            rows = rows.set_column(place, name, pa.array([value.hex() for value in column.to_pylist()], pa.string()))
    return rows


def _lists(rows: NDArray[np.float32]) -> pa.Array:
    """Return rows (n, width) as lists, without an object of each; of a piece of the table, which one array can hold."""
    import pyarrow as pa

    places = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(places), pa.array(rows.reshape(-1)))


def write_samples(
    folder: Path, name: str, entry: Dataset, labels: Labels, table: pa.Table, rejected: pa.Table, **more: Any
) -> None:
    """Write samples.parquet, rejected.parquet and dataset.json; `more` are further facts for the latter."""
    place = table.column_names.index("label") + 1

    def piece(start: int, stop: int) -> pa.Table:
        targets = _lists(labels.targets(slice(start, stop)))
        return _as_written(table.slice(start, stop - start)).add_column(place, "target", targets)

    write_in_pieces(folder / FILE, table.num_rows, len(labels.classes), piece)
    write_table(folder / "rejected.parquet", rejected)
    groups = None if entry.group is None else len(table["group"].unique())
    facts = {
        "dataset": name,
        "images": entry.images,
        "classes": list(labels.classes),
        **({} if labels.several is None else {"multi_label": True}),
        "counts": dict(zip(labels.classes, labels.counts, strict=True)),
        "samples": table.num_rows,
        "rejected": rejected.num_rows,
        "groups": groups,
        "repeats": entry.split.repeats,
        "columns": _slices(table),
        "entry": entry.model_dump(),
        "versions": {"preprocessing": PREPROCESSING_VERSION, "splitting": SPLITTING_VERSION},
        "content_hash": content_hash(table, labels),
    }
    write_json(folder / "dataset.json", facts | more)


def _slices(table: pa.Table) -> list[str]:
    """Return the columns to slice results by: the source's and the file's, but none whose values are all the same."""
    own = set(OWN_COLUMNS) - {"width", "height", "mode"}
    names = [c for c in table.column_names if c not in own and not c.startswith("split_")]
    return [name for name in names if len(table[name].unique()) > 1]


def content_hash(table: pa.Table, labels: Labels) -> str:
    """Return the sha256 of what a result depends on: classes, each image's hash, group, target, parts and weight.

    Each image as JSON: [image_hash, group, target, part of each repeat ..., weight, where there are any].
    """
    parts = [name for name in table.column_names if name.startswith("split_")]
    digest = hashlib.sha256(json.dumps(labels.classes).encode())
    weight = [name for name in ("sample_weight",) if name in table.column_names]
    hashed = table.select(["image_hash", "group", *parts, *weight])
    start = 0
    for batch in hashed.to_batches(max_chunksize=ROWS_AT_ONCE):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        targets = _as_json(labels, slice(start, start + len(batch)))
        for (image_hash, group, *more), target in zip(rows, targets, strict=True):
            digest.update(f"{json.dumps([image_hash, group])[:-1]}, {target}, {json.dumps(more)[1:]}".encode())
        start += len(batch)
    return digest.hexdigest()


def _as_json(labels: Labels, rows: slice) -> list[str]:
    """Return the targets of some images as JSON; of one class each that of a class is written once."""
    if labels.soft is not None or labels.several is not None:
        return [json.dumps(target) for target in labels.targets(rows).tolist()]
    of_class = {
        label: json.dumps(np.eye(1, len(labels.classes), label)[0].tolist()) for label in set(labels.index[rows])
    }
    return [of_class[label] for label in labels.index[rows]]

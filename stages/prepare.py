"""Make samples of images: check each, give it a label and a group, and divide them for training and test.

    data/raw/<images>/  ->  data/prepared/<name>/

Every image is decoded once; what cannot be is listed with the reason and left out. Images with the same pixels, and
images of one group, stay on one side of every split.

    python -m stages.prepare cells
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.cli import UserError, printable, run_stage, warn
from stages.files import DATA, PREPARED, new_folder, write_table
from stages.memory import give_back_freed_memory, give_back_large_blocks
from stages.on_disk import rows_of
from stages.params import Dataset, suggest
from stages.samples.checking import Checked, check_images
from stages.samples.decoding import decode
from stages.samples.describing import Contradiction, contradictions, describe, leakage
from stages.samples.duplicates import clusters, near_duplicates
from stages.samples.labels import Labels, make_labels, read_weights
from stages.samples.order import Order, look_up_order
from stages.samples.parts import check_groups, leaks, read_parts
from stages.samples.pictures import contact_sheet, file_names, fitted, write_picture
from stages.samples.splitting import check_units, join, make_strata, split, split_as_brought
from stages.samples.table import OWN_COLUMNS, samples_table, write_samples
from stages.sources._raw import Images, free_name, read_images
from stages.threads import in_threads

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray
    from PIL import Image

    Ints = NDArray[np.int64]
    Part = NDArray[np.int8]

ON_A_SHEET = 40  # images


def prepare(name: str, entry: Dataset) -> None:
    """Write data/prepared/<name>/ as its entry in params.yaml describes it."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())  # Arrow's own keeps of what it frees more than the tables are
    where = f"datasets.{name}"
    images = read_images(entry.images, on_disk=PREPARED if PREPARED.is_dir() else DATA)
    check_columns(images, entry, where)
    labels = make_labels(images.table, entry.label, where)
    weights, no_weight = read_weights(images.table, entry.weight, where) if entry.weight else (None, {})
    column = entry.split.column
    brought, no_part = read_parts(images.table[column], column, where) if column else (None, {})
    unusable = {**no_part, **no_weight, **labels.wrong}
    # All of them are decoded only if it is worth it.
    check_usable(images, unusable, entry.max_unreadable, where)
    if brought is None:
        check_classes(labels, group_names(images.samples, entry.group), entry, where)
    with new_folder(PREPARED / name) as folder:
        every = check_images(images, folder / "thumbnails.parquet")
        give_back_large_blocks()
        unusable |= every.wrong
        check_usable(images, unusable, entry.max_unreadable, where)
        reasons = why_left_out(images, every, unusable, labels, brought, entry)
        rows = others(reasons, len(images))
        if not len(rows):
            raise UserError(f"data/raw/{entry.images}: no image can be used; the first of {len(images)}: {reasons[0]}")
        rejected = rejected_table(images, reasons)
        source, checked = images.samples, every
        if len(rows) < len(images):  # all of a million rows stay where they are
            source, checked = rows_of(source, rows, folder), every.take(rows, folder)
        pairs = near_duplicates(checked.appearance)
        differing = list(find_contradictions(images, every, labels, rows, pairs))
        labels = labels.take(rows) if len(rows) < len(images) else labels
        groups = group_names(source, entry.group)
        give_back_freed_memory()  # of small arrays that came and went
        brought = None if brought is None else brought[rows]
        parts = divide(source, stay_together(groups, checked, pairs, entry), labels, groups, brought, entry, where)
        weights = None if weights is None else weights[rows]
        placed = images.table_row
        placed = None if placed is None else placed[rows]
        table = samples_table(beside_ours(source), checked, labels, groups, parts, weights, placed)
        order = look_up_order(checked.appearance, labels.index, parts[0], placed)
        write_table(folder / "contradictions.parquet", contradictions_table(differing))
        write_samples(
            folder,
            name,
            entry,
            labels,
            table,
            rejected,
            origin={key: images.facts[key] for key in ("source", "origin", "licence")},
            duplicates=len(rows) - len(np.unique(checked.picture)),
            near_duplicates=len(np.unique(pairs)),
            contradictions=len(differing),
            order=order.facts,
            leakage=leakage(pairs, parts[0], rejected),
            described=describe(checked, labels, parts[0], rejected),
            pictures=write_sheets(folder / "pictures", images, rows, labels),
        )
    tell(name, table, labels, rejected)
    tell_contradictions(name, differing)
    tell_near_duplicates(table, parts[0], pairs, entry)
    tell_order(name, order, entry.group)


def check_columns(images: Images, entry: Dataset, where: str) -> None:
    """Raise UserError for a column that the images do not have."""
    several = isinstance(entry.label.column, list)
    named: dict[str, str | None] = {
        f"label.column{f'.{i}' if several else ''}": column for i, column in enumerate(entry.label.columns)
    }
    named |= {"group": entry.group, "weight": entry.weight, "split.column": entry.split.column}
    soft = entry.label.soft
    named |= {f"label.soft.{name}": column for name, column in soft.items()} if isinstance(soft, dict) else {}
    named |= {"label.soft": soft} if isinstance(soft, str) else {}
    named |= {f"split.stratify.{number}": column for number, column in enumerate(entry.split.stratify)}
    wrong = [
        f"params.yaml: {where}.{key}: {entry.images} brings no column {column}; {suggest(column, images.columns)}"
        for key, column in named.items()
        if column is not None and column not in images.columns
    ]
    if wrong:
        raise UserError(*wrong)


def check_usable(images: Images, unusable: Mapping[int, str], limit: float, where: str) -> None:
    """Raise UserError when more than a share of the images is missing, broken or wrongly labelled.

    One is always allowed, unless the share is 0: of nine images it would be more than a tenth.

    unusable : why images that were fetched cannot be used, by their row
    """
    lost = [(images.table["sample"][row].as_py(), unusable[row]) for row in sorted(unusable)[:1]] + images.rejected
    count, total = len(unusable) + len(images.rejected), len(images) + len(images.rejected)
    if count > max(1 if limit else 0, limit * total):
        name, reason = lost[0]
        raise UserError(
            f"params.yaml: {where}: {count:,} of {total:,} images cannot be used, more than max_unreadable ({limit:g}) "
            f"allows; the first: {name}: {reason}"
        )


def check_classes(labels: Labels, groups: pa.ChunkedArray, entry: Dataset, where: str) -> None:
    """Raise UserError for a class that cannot be in every part, however many of its images can be used."""
    labelled = np.flatnonzero(labels.index >= 0)
    units = labelled if entry.group is None else numbered(groups)[labelled]
    check_units(units, labels.take(labelled).array, labels.classes, entry.split, where)


def why_left_out(
    images: Images,
    checked: Checked,
    unusable: Mapping[int, str],
    labels: Labels,
    brought: Ints | None,
    entry: Dataset,
) -> dict[int, str]:
    """Return of each image that is no sample, by its row, the reason why."""
    no_label = f"no label: the column {', '.join(entry.label.columns)} is empty"
    reasons = dict.fromkeys(np.flatnonzero(labels.index < 0).tolist(), no_label)
    if brought is not None:
        no_part = f"in no part: the column {entry.split.column} is empty"
        reasons = dict.fromkeys(np.flatnonzero(brought < 0).tolist(), no_part) | reasons
    reasons |= unusable
    if brought is not None:
        rows = others(reasons, len(images))
        found = leaks(brought[rows], checked.picture[rows], lambda at: images.sample(int(rows[at])))
        reasons |= {int(rows[at]): reason for at, reason in found.items()}
    return reasons


def find_contradictions(
    images: Images, checked: Checked, labels: Labels, rows: Ints, pairs: Ints
) -> Iterator[Contradiction]:
    """Yield images that look the same and are labelled otherwise, copies that a brought split leaves out among them.

    rows : the images that are samples; pairs : (k, 2), which of these look nearly the same
    """
    readable = labels.index >= 0
    readable[list(checked.wrong)] = False
    rows = np.concatenate([rows, np.setdiff1d(np.flatnonzero(readable), rows)])  # samples first: pairs number them
    return contradictions(lambda at: images.sample(int(rows[at])), labels.take(rows), checked.picture[rows], pairs)


def group_names(source: pa.Table, column: str | None) -> pa.ChunkedArray:
    """Return the group of each sample, nulls without groups. Where the column is empty a sample is its own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column is None:
        return pa.chunked_array([pa.nulls(source.num_rows, pa.string())])
    values = source[column].unique()
    names = pa.array([None if value in (None, "") else str(value) for value in values.to_pylist()], pa.string())
    return pc.coalesce(names.take(pc.index_in(source[column], value_set=values)), source["sample"])


def others(rows: Collection[int], count: int) -> Ints:
    """Return those of so many rows that are none of these."""
    left = np.ones(count, np.bool_)
    left[list(rows)] = False
    return np.flatnonzero(left)


def stay_together(groups: pa.ChunkedArray, checked: Checked, pairs: Ints, entry: Dataset) -> Ints:
    """Return the unit of each sample: what has the same group or pixels, or looks nearly the same, is one."""
    keys = [] if entry.group is None else [numbered(groups)]
    keys += [checked.picture]
    keys += [clusters(pairs, len(checked))] if entry.near_duplicates else []
    return join(*keys)


def divide(
    source: pa.Table,
    units: Ints,
    labels: Labels,
    groups: pa.ChunkedArray,
    brought: Ints | None,
    entry: Dataset,
    where: str,
) -> list[Part]:
    """Return for each repeat the part (0 train, 1 validation, 2 test) of each sample; units stay together."""
    strata = make_strata([numbered(source[column]) for column in entry.split.stratify], labels.array)
    if brought is None:
        return split(units, strata, labels.array, labels.classes, entry.split, where)
    if entry.group is not None:
        names = source["sample"]
        group, sample = (lambda row: groups[row].as_py()), (lambda row: names[row].as_py())
        check_groups(brought, numbered(groups), group, sample, entry.group, where)
    return split_as_brought(brought, units, strata, labels.array, labels.classes, entry.split, where)


def numbered(column: pa.ChunkedArray) -> Ints:
    """Number the distinct values of a column, in order of appearance; an empty one counts as a value, NaN as one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        column = pc.add(column, 0.0)  # where -0.0 is 0.0
    return np.asarray(pc.index_in(column, value_set=column.unique()), np.int64)


def beside_ours(source: pa.Table) -> pa.Table:
    """Rename those of the source's columns whose names samples.parquet needs: `label` becomes `source_label`."""
    ours, theirs = source.column_names[:2], source.column_names[2:]
    taken = {*OWN_COLUMNS, *(name for name in theirs if name.startswith("split_"))}
    return source.rename_columns([*ours, *(free_name(name, taken) for name in theirs)])


def rejected_table(images: Images, reasons: Mapping[int, str]) -> pa.Table:
    """Return the rows of rejected.parquet: sample, image_hash (none of what the source could not bring), reason."""
    import pyarrow as pa

    each = pa.array(map(reasons.get, range(len(images))), pa.string(), size=len(images))
    table = images.table.select(["sample", "image_hash"]).append_column("reason", each)
    absent = [{"sample": sample, "image_hash": None, "reason": reason} for sample, reason in images.rejected]
    return pa.concat_tables([table.filter(table["reason"].is_valid()), pa.Table.from_pylist(absent, table.schema)])


def write_sheets(folder: Path, images: Images, rows: Ints, labels: Labels) -> dict[str, str]:
    """Write a contact sheet for each class and return its file's name, from the data set's folder.

    The images are those with the lowest hashes: drawn as if by lot, and the same ones every time.
    """
    folder.mkdir()
    files = file_names(labels.classes)
    # Sorted by the first eight bytes, which tell hashes apart; as texts they lie on disk, all over which a sort jumps.
    hashes = (bytes.fromhex("".join(chunk.to_pylist())) for chunk in images.table["image_hash"].chunks)
    firsts = [np.frombuffer(digests, ">u8")[::4].astype(np.uint64) for digests in hashes]
    by_hash = np.argsort(np.concatenate(firsts), kind="stable")

    def sheets() -> Iterator[tuple[str, Image.Image]]:
        for index, name in enumerate(labels.classes):
            mine = np.zeros(len(images), np.bool_)
            mine[rows[labels.having(index)]] = True
            drawn = by_hash[mine[by_hash]][:ON_A_SHEET].tolist()
            shown = in_threads(lambda read: fitted(decode(read())), images.readers(drawn))
            yield files[name], contact_sheet(list(shown))

    for _ in in_threads(lambda sheet: write_picture(folder / sheet[0], sheet[1]), sheets()):
        pass  # of a thousand classes, to pack the pictures takes as long as all checks
    return {name: f"{folder.name}/{file}" for name, file in files.items()}


def tell(name: str, table: pa.Table, labels: Labels, rejected: pa.Table) -> None:
    """Say in a line what was prepared, and in a line of warning each what a person should look at."""
    counts = labels.counts
    classes = ", ".join(f"{count:,} {name}" for name, count in zip(labels.classes, counts, strict=True))
    classes = classes if len(counts) <= 10 else f"{len(counts)} classes"
    print(printable(f"{name}: {table.num_rows:,} samples: {classes}"))
    if rejected.num_rows:
        first = rejected.slice(0, 1).to_pylist()[0]
        warn(
            f"{rejected.num_rows:,} of {table.num_rows + rejected.num_rows:,} images are left out, see "
            f"{PREPARED / name}/rejected.parquet; the first: {first['sample']}: {first['reason']}"
        )


def tell_contradictions(name: str, differing: Sequence[Contradiction]) -> None:
    """Say of how many images others look the same and are labelled otherwise."""
    if differing:
        first, second, same, *_ = differing[0]
        warn(
            f"{len(differing):,} pairs of images have the same pixels or nearly the same looks, but different labels, "
            f"see {PREPARED / name}/contradictions.parquet; the first: {first} and {second} (the same {same})"
        )


def tell_near_duplicates(table: pa.Table, part: Part, pairs: Ints, entry: Dataset) -> None:
    """Say where images that look nearly the same are of different groups, or in different parts of a source's split."""
    kept = "" if entry.near_duplicates else "; with near_duplicates: true they are kept on one side"
    told: dict[str, Ints | Part] = {"groups": numbered(table["group"])} if entry.group else {}
    told |= {"parts": part} if entry.split.column else {}
    for what, values in told.items():
        apart = pairs[values[pairs[:, 0]] != values[pairs[:, 1]]]
        if len(apart):
            first, second = (table["sample"][int(row)].as_py() for row in apart[0])
            warn(
                f"{len(np.unique(apart)):,} images look nearly the same as one of other {what}, as {first} and {second}"
                f"{kept if what == 'groups' else ''}"
            )


def tell_order(name: str, order: Order, group: str | None) -> None:
    """Say where the order of the images tells which look alike across training and test."""
    if order.tells:
        warn(f"{name}: {order.hint('looks', group)}")


def contradictions_table(differing: Sequence[Contradiction]) -> pa.Table:
    """Return the rows of contradictions.parquet: sample, other, what is the same (pixels or looks), and both labels."""
    import pyarrow as pa

    schema = pa.schema([(name, pa.string()) for name in Contradiction._fields])
    return pa.Table.from_pylist([pair._asdict() for pair in differing], schema)


if __name__ == "__main__":
    run_stage(prepare, level="datasets")

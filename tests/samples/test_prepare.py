"""The stage: from fetched images to samples, and what is told about those that are none."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.cli import UserError
from stages.fetch import fetch
from stages.files import RAW, read_table
from stages.params import Dataset
from stages.prepare import prepare
from stages.samples.order import Order
from stages.samples.table import Samples, read_samples
from stages.sources import folder as source
from stages.sources import table
from stages.sources._raw import Found, write_images

PLAIN = {"test": 0.25, "validation": 0.25, "repeats": 4}


def run(images: str = "photos", name: str = "cells", **keys: Any) -> Samples:
    keys.setdefault("split", PLAIN)
    prepare(name, Dataset.model_validate({"images": images, **keys}))
    return read_samples(name)


def photos(cells: list[Path], per_class: int = 12, **keys: Any) -> None:
    """Fetch real cells from class folders: sound and defective, not truly so."""
    for number, path in enumerate(cells[: 2 * per_class]):
        target = Path("photos") / ("sound", "defective")[number % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    refetch(**keys)


def refetch(**keys: Any) -> None:
    fetch("photos", source.Params(source="folder", path="photos", **keys))


def table_source(cells: list[Path], **columns: list[Any]) -> None:
    """Fetch real cells with columns of one's own."""
    count = len(next(iter(columns.values())))
    rows = [{name: values[row] for name, values in columns.items()} for row in range(count)]
    folder = RAW / "photos"
    folder.mkdir(parents=True)
    found = [Found(path.name, path, row) for path, row in zip(cells, rows, strict=False)]
    write_images(folder, found, source="test", origin="a test", licence="none")


def test_a_row_per_image_with_what_is_known_about_it(cells: list[Path]) -> None:
    photos(cells)
    run()
    table = read_table(Path("data/prepared/cells/samples.parquet"))
    assert table.column_names == [
        *("sample", "image_hash", "pixel_hash", "width", "height", "mode", "group", "label", "target"),
        *("split_0", "split_1", "split_2", "split_3", "class"),
    ]
    assert table["sample"].to_pylist() == sorted(table["sample"].to_pylist())
    assert set(zip(*(table[name].to_pylist() for name in ("width", "height", "mode")), strict=True)) == {
        (300, 300, "L")
    }
    for row in table.to_pylist():
        assert row["class"] == row["sample"].split("/")[0]
        assert row["label"] == ["defective", "sound"].index(row["class"])
        assert row["target"] == [1 - row["label"], row["label"]]
        assert row["group"] is None


def test_a_class_s_name_cannot_steer_the_terminal(cells: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    photos(cells)
    Path("photos/sound").rename("photos/sound\n\x1b[2J")
    refetch()
    capsys.readouterr()
    run()
    assert capsys.readouterr().out == "cells: 24 samples: 12 defective, 12 sound\\n\\x1b[2J\n"


def test_reader_gives_what_the_table_holds(cells: list[Path]) -> None:
    photos(cells)
    samples = run()
    assert samples.classes == ["defective", "sound"]
    assert samples.repeats == 4
    assert len(samples) == 24
    assert samples.groups is None
    assert samples.labels.tolist() == [0] * 12 + [1] * 12
    assert samples.targets.dtype == np.float32
    assert samples.targets.tolist() == [[1, 0]] * 12 + [[0, 1]] * 12
    assert samples.image_hashes == samples.table["image_hash"].to_pylist()
    for repeat in range(4):
        rows = [samples.part(repeat, part) for part in ("train", "validation", "test")]
        assert [len(part) for part in rows] == [12, 6, 6]
        assert sorted(np.concatenate(rows).tolist()) == list(range(24))
    assert sorted(np.concatenate([samples.part(repeat, "test") for repeat in range(4)]).tolist()) == list(range(24))
    with pytest.raises(ValueError, match="tests is none of train, validation, test"):
        samples.part(0, "tests")


def test_what_is_written_in_pieces_is_read_as_a_whole(cells: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    photos(cells)
    whole = run()
    monkeypatch.setattr("stages.files.ROWS_IN_A_GROUP", 7)
    in_groups = run(name="groups")
    assert pq.read_metadata("data/prepared/groups/samples.parquet").num_row_groups == 4
    assert in_groups.table.equals(whole.table)
    np.testing.assert_array_equal(in_groups.targets, whole.targets)
    assert in_groups.facts["content_hash"] == whole.facts["content_hash"]
    monkeypatch.setattr("stages.files.NUMBERS_IN_A_GROUP", 10)  # of two classes: five rows
    of_many = run(name="many-classes")
    assert pq.read_metadata("data/prepared/many-classes/samples.parquet").num_row_groups == 5
    np.testing.assert_array_equal(of_many.targets, whole.targets)
    assert of_many.facts["content_hash"] == whole.facts["content_hash"]


@pytest.mark.parametrize("kind", ["one class", "probabilities", "several labels"])
def test_the_content_hash_is_that_of_each_image_as_json(kind: str, cells: list[Path]) -> None:
    half = ["0.5", "1"] * 12
    table_source(
        cells, **{"class": ["b", "a"] * 12, "a": half, "x": [0, 1, 1] * 8, "y": [1, 0, 0] * 8, "w": [2.5] * 24}
    )
    keys: dict[str, Any] = {
        "one class": {"group": None},
        "probabilities": {"label": {"column": "class", "soft": "a"}, "weight": "w"},
        "several labels": {"label": {"column": ["x", "y"]}, "split": {"test": 0.25, "repeats": 4}},
    }[kind]
    samples = run(**keys)
    rows = read_table(Path("data/prepared/cells/samples.parquet"))
    parts = [name for name in rows.column_names if name.startswith("split_")]
    columns = ["image_hash", "group", "target", *parts, *(["sample_weight"] if "weight" in keys else [])]
    digest = hashlib.sha256(json.dumps(samples.classes).encode())
    for row in rows.select(columns).to_pylist():
        digest.update(json.dumps([row[name] for name in columns]).encode())
    assert samples.facts["content_hash"] == digest.hexdigest()


def test_facts_tell_classes_counts_and_the_entry(cells: list[Path]) -> None:
    photos(cells)
    facts = run().facts
    assert facts["counts"] == {"defective": 12, "sound": 12}
    assert (facts["images"], facts["samples"], facts["rejected"], facts["duplicates"]) == ("photos", 24, 0, 0)
    assert (facts["groups"], facts["repeats"], facts["columns"]) == (None, 4, ["class"])
    assert facts["entry"]["split"]["validation"] == 0.25
    assert len(facts["content_hash"]) == 64


def test_same_inputs_give_the_same_bytes(cells: list[Path], work: Path) -> None:
    photos(cells)
    run()
    first = {path: path.read_bytes() for path in (work / "data/prepared").rglob("*") if path.is_file()}
    assert len(first) == 7
    run()
    assert {path: path.read_bytes() for path in (work / "data/prepared").rglob("*") if path.is_file()} == first


def test_content_hash_changes_with_what_a_result_depends_on_and_with_nothing_else(cells: list[Path]) -> None:
    photos(cells)
    first = run().facts["content_hash"]
    assert run(name="same").facts["content_hash"] == first
    assert run(split={**PLAIN, "seed": 1}).facts["content_hash"] != first
    Path("photos/sound").rename("photos/whole")  # a class by another name
    refetch()
    assert run().facts["content_hash"] != first


def test_images_that_cannot_be_decoded_are_listed_with_the_reason_and_left_out(
    cells: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos(cells)
    Path("photos/sound/broken.png").write_bytes(cells[0].read_bytes()[:9000])
    Path("photos/sound/empty.jpg").touch()
    refetch()
    samples = run()
    assert len(samples) == 24
    rejected = pq.read_table("data/prepared/cells/rejected.parquet").to_pylist()
    assert [(row["sample"], row["reason"]) for row in rejected] == [
        ("sound/broken.png", "image file is truncated"),
        ("sound/empty.jpg", "the file is empty"),
    ]
    assert capsys.readouterr().err == (
        "warning: 2 of 26 images are left out, see data/prepared/cells/rejected.parquet; the first: sound/broken.png: "
        "image file is truncated\n"
    )


def test_images_without_label_are_left_out(cells: list[Path]) -> None:
    table_source(cells, kind=["a", "b", None, "a", "b", ""] * 8)
    samples = run(label={"column": "kind"})
    assert len(samples) == 32
    reasons = set(pq.read_table("data/prepared/cells/rejected.parquet")["reason"].to_pylist())
    assert reasons == {"no label: the column kind is empty"}


def test_an_image_saved_again_stays_on_its_side(cells: list[Path]) -> None:
    photos(cells)
    for path in list(Path("photos/sound").iterdir())[:6]:
        Image.open(path).convert("RGB").save(path.with_name(f"again-{path.stem}.bmp"))
    refetch()
    samples = run()
    assert samples.facts["duplicates"] == 6
    pixels = samples.table["pixel_hash"].to_pylist()
    for repeat in range(4):
        parts = samples.table[f"split_{repeat}"].to_pylist()
        assert len(set(zip(pixels, parts, strict=True))) == len(set(pixels)) == 24


def test_same_pixels_with_different_labels_are_told(cells: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    photos(cells)
    shutil.copyfile(cells[0], "photos/defective/x.png")  # cells[0] lies in sound
    refetch()
    run()
    assert capsys.readouterr().err == (
        "warning: 1 pairs of images have the same pixels or nearly the same looks, but different labels, see "
        "data/prepared/cells/contradictions.parquet; the first: defective/x.png and sound/cell0001.png (the same "
        "pixels)\n"
    )
    [row] = pq.read_table("data/prepared/cells/contradictions.parquet").to_pylist()
    assert row == {
        "sample": "defective/x.png",
        "other": "sound/cell0001.png",
        "same": "pixels",
        "label": "defective",
        "other_label": "sound",
    }


def test_the_data_set_is_described(cells: list[Path]) -> None:
    photos(cells)
    Image.new("RGB", (40, 30), (255, 0, 0)).save("photos/sound/red.png")
    Path("photos/sound/empty.png").touch()
    refetch()
    samples = run()
    found = samples.facts["described"]
    assert found["sizes"] == {"300 x 300": 24, "40 x 30": 1}
    assert found["modes"] == {"L": 24, "RGB": 1}
    assert found["reasons"] == {"the file is empty": 1}
    assert {name: sum(parts.values()) for name, parts in found["parts"].items()} == samples.facts["counts"]
    assert sum(parts["test"] for parts in found["parts"].values()) == len(samples.part(0, "test"))
    greys = [np.asarray(Image.open(path)).mean() for path in Path("photos/defective").iterdir()]
    assert found["brightness"]["defective"][1] == pytest.approx(np.median(greys), abs=0.051)
    assert samples.facts["order"] == {"near": 0.0, "tested": 0}  # all stand near each other


def test_groups_stay_whole_and_are_counted(cells: list[Path]) -> None:
    table_source(cells, kind=["a", "b"] * 24, patient=[number // 4 for number in range(48)])
    samples = run(label={"column": "kind"}, group="patient")
    groups = samples.groups
    assert groups is not None
    assert samples.facts["groups"] == 12
    assert groups[:5] == ["0", "0", "0", "0", "1"]
    for repeat in range(4):
        assert len(set(zip(groups, samples.table[f"split_{repeat}"].to_pylist(), strict=True))) == 12


def test_an_image_without_group_is_a_group_by_itself(cells: list[Path]) -> None:
    table_source(cells, kind=["a", "b"] * 24, day=["x", "x", None, ""] * 4 + [None] * 32)
    samples = run(label={"column": "kind"}, group="day")
    names = samples.table["sample"].to_pylist()
    assert samples.groups == ["x" if row < 16 and row % 4 < 2 else name for row, name in enumerate(names)]
    assert samples.facts["groups"] == 1 + 48 - 8


def test_groups_may_be_numbers_and_those_that_are_no_number_are_one(cells: list[Path]) -> None:
    numbers = [float(number // 2) for number in range(36)] + [math.nan] * 3 + [None]
    table_source(cells, grade=[0, 1] * 20, patient=numbers)
    samples = run(label={"column": "grade"}, group="patient")
    names = samples.table["sample"].to_pylist()
    assert samples.groups == [str(number // 2) + ".0" for number in range(36)] + ["nan"] * 3 + [names[39]]


def test_thresholds_and_strata_of_numbers(cells: list[Path]) -> None:
    table_source(cells, probability=[0.0, 1 / 3, 2 / 3, 1.0] * 12)
    samples = run(label={"column": "probability", "threshold": 0.5}, split={**PLAIN, "stratify": ["probability"]})
    assert samples.classes == ["probability below 0.5", "probability at least 0.5"]
    values = np.array(samples.table["probability"].to_pylist())
    for repeat in range(4):
        assert np.unique(values[samples.part(repeat, "test")], return_counts=True)[1].tolist() == [3] * 4


def photos_with_a_split(cells: list[Path]) -> None:
    """Lay 24, 8 and 8 real cells into class folders of train, val and test."""
    for number, path in enumerate(cells[:40]):
        part = ("train", "train", "train", "val", "test")[number % 5]
        target = Path("photos") / part / ("a", "b")[number % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def test_a_brought_split_is_used_and_copies_of_test_images_are_not_trained_on(cells: list[Path]) -> None:
    photos_with_a_split(cells)
    shutil.copyfile("photos/test/a/cell0005.png", "photos/train/a/copy.png")
    refetch()
    samples = run(split={"column": "split"})
    assert samples.repeats == 1
    assert [len(samples.part(0, part)) for part in ("train", "validation", "test")] == [24, 8, 8]
    parts = {
        name.split("/")[0]: part
        for name, part in zip(*(samples.table[c].to_pylist() for c in ("sample", "split_0")), strict=True)
    }
    assert parts == {"train": "train", "val": "validation", "test": "test"}
    rejected = pq.read_table("data/prepared/cells/rejected.parquet").to_pylist()
    assert [(row["sample"], row["reason"]) for row in rejected] == [
        ("train/a/copy.png", "same pixels as test/a/cell0005.png in the test part")
    ]
    assert samples.facts["leakage"] == {"same_pixels": 1, "near_duplicates": 0, "test_images": 0}


def test_a_copy_with_another_label_is_told_though_a_brought_split_leaves_it_out(
    cells: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos_with_a_split(cells)
    shutil.copyfile("photos/test/a/cell0005.png", "photos/train/b/copy.png")
    refetch()
    samples = run(split={"column": "split"})
    assert "train/b/copy.png" not in samples.table["sample"].to_pylist()
    assert pq.read_table("data/prepared/cells/contradictions.parquet").to_pylist() == [
        {
            "sample": "test/a/cell0005.png",
            "other": "train/b/copy.png",
            "same": "pixels",
            "label": "a",
            "other_label": "b",
        }
    ]
    assert samples.facts["contradictions"] == 1
    assert "the first: test/a/cell0005.png and train/b/copy.png (the same pixels)" in capsys.readouterr().err


def test_near_duplicates_on_both_sides_of_a_brought_split_are_counted_and_told(
    cells: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    photos_with_a_split(cells)
    # In all eight images of which four are tested: three of train again in test, one of test in val.
    for name, again in (
        ("train/a/cell0001", "test/a/x"),
        ("train/b/cell0002", "test/b/x"),
        ("train/a/cell0003", "test/a/y"),
        ("test/b/cell0010", "val/b/x"),
    ):
        Image.open(f"photos/{name}.png").resize((200, 200)).save(f"photos/{again}.png")
    refetch()
    samples = run(split={"column": "split"})
    assert samples.facts["leakage"] == {"same_pixels": 0, "near_duplicates": 8, "test_images": 4}
    told = capsys.readouterr().err
    assert (
        "warning: 8 images look nearly the same as one of other parts, as test/a/x.png and train/a/cell0001.png\n"
        in told
    )


def test_a_split_made_here_lets_near_duplicates_apart_only_when_told_to(cells: list[Path]) -> None:
    photos(cells)
    for path in list(Path("photos/sound").iterdir())[:8]:
        Image.open(path).resize((200, 200)).save(path.with_name(f"again-{path.name}"))
    refetch()
    assert run().facts["leakage"] == {"same_pixels": 0, "near_duplicates": 0, "test_images": 0}
    apart = run(near_duplicates=False)
    part = dict(zip(apart.table["sample"].to_pylist(), apart.table["split_0"].to_pylist(), strict=True))
    torn = [name for name in part if "again-" in name and part[name] != part[name.replace("again-", "")]]
    assert apart.facts["leakage"]["near_duplicates"] == 2 * len(torn) > 0


@pytest.mark.parametrize("group", [None, "batch"])
def test_series_that_lie_on_both_sides_are_told_with_what_to_do(
    cells: list[Path], capsys: pytest.CaptureFixture[str], group: str | None
) -> None:
    Path("series").mkdir()
    files, random = [], np.random.default_rng(0)
    for number, path in enumerate(cells[:2400:60]):  # 40 cells, each photographed six times
        for shot in range(6):
            pixels = np.asarray(Image.open(path), float) + random.normal(0, 40, (300, 300))
            files.append(Path("series") / f"{number:02d}-{shot}.png")
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(files[-1])
    table_source(files, **{"class": ["a", "b"] * 120, "batch": [f"b{n}" for n in range(240)]})
    run(group=group, near_duplicates=False)
    what = "group: batch does not keep it together" if group else "name what it shares as group"
    assert (
        "warning: cells: for 100% of 60 test images the training image that looks most like them stands near them in "
        f"the order of names, and 50% is chance: what stands together may belong together; {what}\n"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("listed", ["as they were taken", "by lot"])
def test_series_under_names_by_lot_are_told_by_the_order_of_their_table(
    listed: str, cells: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, random = Path("series"), np.random.default_rng(0)
    folder.mkdir()
    names = [f"{n:06d}.png" for n in random.permutation(240)]
    for at, name in enumerate(names):  # 40 cells, each photographed six times
        pixels = np.asarray(Image.open(cells[at // 6 * 60]), float) + random.normal(0, 40, (300, 300))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
    lines = [f"{name},{'ab'[at % 2]}" for at, name in enumerate(names)]
    if listed == "by lot":
        random.shuffle(lines)
    Path("series.csv").write_text("\n".join(["file,class", *lines]))
    fetch("photos", table.Params(source="table", path="series.csv", root="series"))
    samples = run(near_duplicates=False)
    rows = dict(zip(samples.table["sample"].to_pylist(), samples.table["table_row"].to_pylist(), strict=True))
    assert [rows[line.split(",")[0]] for line in lines] == list(range(240))
    assert "table_row" not in samples.facts["columns"]
    told = "stands near them in the order of the table, and 50% is chance" in capsys.readouterr().err
    order = Order(**samples.facts["order"])
    if listed == "by lot":
        assert not told
        assert not order.tells
    else:
        assert told
        assert order.by == "table"
        assert order.share > 0.9


def test_a_table_in_the_order_of_names_has_no_rows_of_its_own(cells: list[Path]) -> None:
    lines = [f"{path},{'ab'[at % 2]}" for at, path in enumerate(cells[:24])]
    Path("scans.csv").write_text("\n".join(["file,class", *lines]))
    fetch("photos", table.Params(source="table", path="scans.csv", root="/"))
    assert "table_row" not in run().table.column_names


def test_the_order_is_not_told_where_it_tells_nothing(cells: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    photos(cells)
    run()
    assert "order of names" not in capsys.readouterr().err


@pytest.mark.parametrize("link", [False, True])
def test_a_contact_sheet_shows_each_class(cells: list[Path], link: bool) -> None:
    photos(cells, link=link)
    samples = run()
    assert samples.facts["pictures"] == {"defective": "pictures/defective.png", "sound": "pictures/sound.png"}
    for name, file in samples.facts["pictures"].items():
        sheet = Image.open(Path("data/prepared/cells") / file)
        assert sheet.size == (8 * 124 + 4, 2 * 124 + 4)  # 12 images in rows of 8
        first = min(
            (row for row in samples.table.to_pylist() if row["class"] == name), key=lambda row: row["image_hash"]
        )
        expected = Image.open(Path("photos") / first["sample"]).resize((120, 120), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(np.asarray(sheet)[4:124, 4:124], np.asarray(expected))


def test_unknown_columns_are_told_all_at_once_with_the_nearest(cells: list[Path]) -> None:
    photos(cells)
    with pytest.raises(UserError) as error:
        run(label={"column": "clas"}, group="patient", split={**PLAIN, "stratify": ["class", "Class"]})
    assert str(error.value).splitlines() == [
        "params.yaml: datasets.cells.label.column: photos brings no column clas; did you mean class?",
        "params.yaml: datasets.cells.group: photos brings no column patient; known: class",
        "params.yaml: datasets.cells.split.stratify.1: photos brings no column Class; did you mean class?",
    ]
    assert not Path("data/prepared").exists()


def test_columns_with_names_of_our_own_are_used_and_kept_beside_ours(cells: list[Path]) -> None:
    words = {"label": ["a", "b"] * 8, "group": [f"g{n // 2}" for n in range(16)], "split_a": list(range(16))}
    table_source(cells, **words)
    samples = run(label={"column": "label"}, group="group")
    assert samples.classes == ["a", "b"]
    assert samples.groups == samples.table["source_group"].to_pylist() == sorted(words["group"])
    assert samples.table["source_label"].to_pylist() == words["label"]
    assert samples.table["source_split_a"].to_pylist() == words["split_a"]
    assert samples.repeats == 4


def test_images_that_look_nearly_the_same_stay_together_also_across_groups(
    cells: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    # ELPV has these twenty cells twice, once out of focus.
    twice = [*cells[1740:1760], *cells[2282:2302]]
    modules = [f"m{row // 5}" for row in range(40)]  # that of a cell is four further than that of its like
    table_source(twice, **{"class": ["a", "b"] * 20, "module": modules})
    samples = run(group="module")
    for repeat in range(4):
        part = samples.table[f"split_{repeat}"].to_pylist()
        assert [part[row] for row in range(0, 20, 5)] == [part[row] for row in range(20, 40, 5)]
    assert samples.facts["near_duplicates"] >= 30
    told = capsys.readouterr().err
    assert "images look nearly the same as one of other groups, as cell17" in told
    assert "near_duplicates: true" not in told
    apart = run(group="module", near_duplicates=False)
    parts = [apart.table[f"split_{repeat}"].to_pylist() for repeat in range(4)]
    assert any(part[row] != part[row + 20] for part in parts for row in range(0, 20, 5))
    assert "with near_duplicates: true they are kept on one side" in capsys.readouterr().err


def test_what_the_source_could_not_bring_is_rejected_too(cells: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    names = [path.name for path in cells[:16]]
    Path("photos").mkdir()
    for path in cells[:16]:
        shutil.copyfile(path, Path("photos") / path.name)
    (Path("photos") / names[0]).write_bytes(b"no image")
    lines = [f"{name},{'ab'[at % 2]}" for at, name in enumerate([*names, "lost.png"])]
    Path("scans.csv").write_text("\n".join(["file,class", *lines]))
    fetch("photos", table.Params(source="table", path="scans.csv", root="photos"))
    with pytest.raises(UserError) as error:
        run()
    assert str(error.value) == (
        "params.yaml: datasets.cells: 2 of 17 images cannot be used, more than max_unreadable (0.1) allows; "
        f"the first: {names[0]}: not an image that can be read"
    )
    assert not Path("data/prepared/cells").exists()
    with pytest.raises(UserError, match=r"more than max_unreadable \(0\) allows"):
        run(max_unreadable=0)
    samples = run(max_unreadable=0.12)
    assert len(samples) == 15
    rejected = pq.read_table("data/prepared/cells/rejected.parquet").to_pylist()
    assert [(row["sample"], row["reason"]) for row in rejected] == [
        (names[0], "not an image that can be read"),
        ("lost.png", "it is not there, in photos"),
    ]
    assert rejected[0]["image_hash"] is not None
    assert rejected[1]["image_hash"] is None
    assert samples.facts["rejected"] == 2
    assert "2 of 17 images are left out" in capsys.readouterr().err


def test_rows_whose_cells_say_nothing_known_are_rejected_and_count_as_unreadable(
    cells: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    score = ["0.1", "0.9"] * 12
    weight, part = ["1", "2"] * 12, ["train", "train", "train", "train", "test", "test"] * 4
    score[3], weight[5], part[9] = "high", "-1", "dev"
    table_source(cells, score=score, weight=weight, part=part)
    keys = {"label": {"column": "score", "threshold": 0.5}, "weight": "weight", "split": {"column": "part"}}
    samples = run(**keys, max_unreadable=0.125)
    rejected = pq.read_table("data/prepared/cells/rejected.parquet").to_pylist()
    assert [(row["sample"], row["reason"]) for row in rejected] == [
        (cells[3].name, "unknown label: the column score holds 'high', which is no number"),
        (cells[5].name, "the column weight holds '-1', which is no weight"),
        (cells[9].name, "in no part: the column part holds 'dev'"),
    ]
    assert len(samples) == 21
    assert samples.weights is not None
    assert set(samples.weights.tolist()) == {1.0, 2.0}
    assert samples.facts["described"]["reasons"] == {
        "in no part: the column part holds 'dev'": 1,
        "the column weight holds '-1', which is no weight": 1,
        "unknown label": 1,
    }
    monkeypatch.setattr("stages.prepare.check_images", None)  # it is found out before the images are decoded
    with pytest.raises(UserError) as error:
        run(**keys)
    assert str(error.value) == (
        "params.yaml: datasets.cells: 3 of 24 images cannot be used, more than max_unreadable (0.1) allows; the first: "
        f"{cells[3].name}: unknown label: the column score holds 'high', which is no number"
    )


def test_images_none_of_which_can_be_used_are_an_error_that_says_why(cells: list[Path]) -> None:
    for name in (f"{label}/{number}.png" for label in "ab" for number in range(4)):
        (Path("photos") / name).parent.mkdir(parents=True, exist_ok=True)
        (Path("photos") / name).write_bytes(cells[0].read_bytes()[:100])
    refetch()
    with pytest.raises(UserError, match="data/raw/photos: no image can be used; the first of 8: image file is truncat"):
        run(max_unreadable=1.0)


def test_a_class_of_too_few_images_is_refused_before_any_is_decoded(
    cells: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(cells)
    for path in sorted(Path("photos/sound").iterdir())[2:]:
        path.unlink()
    refetch()
    monkeypatch.setattr("stages.samples.checking.decode", lambda _: pytest.fail("decoded"))
    with pytest.raises(UserError, match="the class sound has 2 samples; to have some in every part it takes 4"):
        run()


def test_a_class_whose_images_are_all_broken_is_an_error(cells: list[Path]) -> None:
    photos(cells)
    for name in "12345":
        (Path("photos/sound") / f"{name}.png").parent.mkdir(exist_ok=True)
        Path("photos/odd").mkdir(exist_ok=True)
        (Path("photos/odd") / f"{name}.png").write_bytes(b"no image")
    refetch()
    with pytest.raises(UserError, match=r"datasets\.cells: the class odd has 0 samples; to have some in every part it"):
        run(max_unreadable=0.5)


def test_a_linked_image_that_changed_is_an_error_and_the_data_set_stays_as_it_was(cells: list[Path]) -> None:
    photos(cells, link=True)
    before = run().facts
    shutil.copyfile(cells[100], "photos/sound/cell0001.png")
    with pytest.raises(UserError, match=r"^photos/sound/cell0001\.png has changed since it was fetched"):
        run()
    assert json.loads(Path("data/prepared/cells/dataset.json").read_text()) == before


def test_weights_are_kept_beside_the_labels_and_belong_to_what_a_result_depends_on(cells: list[Path]) -> None:
    table_source(cells, **{"class": ["a", "b"] * 12, "weight": [1.0, 3.0, 0.5, 2.0] * 6})
    plain, weighted = run(), run(name="weighted", weight="weight")
    assert plain.weights is None
    order = [cells.index(next(c for c in cells if c.name == name)) for name in weighted.table["sample"].to_pylist()]
    assert weighted.weights is not None
    assert weighted.weights.tolist() == [[1.0, 3.0, 0.5, 2.0][i % 4] for i in order]
    assert weighted.facts["content_hash"] != plain.facts["content_hash"]
    assert weighted.table["weight"].to_pylist() == weighted.weights.tolist()  # the source's own column stays


def test_several_labels_are_prepared_with_counts_sheets_and_parts(cells: list[Path]) -> None:
    tags = ["crack", "dust", "crack;dust", "", "dust", "crack"] * 6
    table_source(cells, tags=tags)
    found = run(label={"column": "tags", "separator": ";"}, split={"test": 0.5, "validation": 0.25, "repeats": 2})
    assert found.multi_label
    assert found.facts["counts"] == {"crack": 18, "dust": 18}
    assert (found.facts["samples"], found.facts["rejected"]) == (30, 6)
    assert found.table["label"].to_pylist() == [None] * 30
    assert found.labels.tolist() == found.targets.tolist()
    assert found.labels.sum(axis=0).tolist() == [18, 18]
    assert set(found.facts["pictures"]) == {"crack", "dust"}
    described = found.facts["described"]
    assert sum(described["parts"]["crack"].values()) == 18
    assert list(described["brightness"]) == ["crack", "dust"]

"""Tables of images: what becomes a column of what type, where paths lead, and everything odd that a table can hold."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.cli import UserError
from stages.files import RAW
from stages.sources import table as source
from stages.sources._raw import Images, read_images
from tests.sources.test_folder import lay_out, rows


def fetch(path: str = "scans.csv", **keys: Any) -> Images:
    folder = RAW / "scans"
    folder.mkdir(parents=True)
    source.fetch(source.Params(source="table", path=path, **keys), folder)
    return read_images("scans")


def listing(*lines: str, name: str = "scans.csv", encoding: str = "utf-8") -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("\n".join(lines) + "\n", encoding=encoding)


@pytest.mark.parametrize("link", [False, True])
def test_a_row_is_an_image_and_its_other_fields_are_columns(work: Path, link: bool) -> None:
    lay_out(work, "ct/2.png", "ct/zwei ü.png")
    listing("file,label,patient", "ct/zwei ü.png,sound,p1", "./ct/../ct/2.png,ill,")
    images = fetch(link=link)
    assert rows(images, "label", "patient") == [("ct/2.png", "ill", None), ("ct/zwei ü.png", "sound", "p1")]
    assert [images.read(row).decode() for row in range(2)] == ["ct/2.png", "ct/zwei ü.png"]
    assert images.rejected == []


def test_a_field_is_a_number_only_where_all_of_its_column_are_written_as_one(work: Path) -> None:
    lay_out(work, "1.png", "2.png", "3.png")
    listing(
        "path,count,share,ward,mixed,size,huge",
        "1.png,-7,.5,007,1,1e3,12345678901234567890",
        "2.png,0,1,8,one,2.5,1",
        "3.png,,,,,-0.25,",
    )
    images = fetch()
    assert rows(images, "count", "ward", "mixed", "size", "huge") == [
        ("1.png", -7, "007", "1", 1000.0, "12345678901234567890"),
        ("2.png", 0, "8", "one", 2.5, "1"),
        ("3.png", None, None, None, -0.25, None),
    ]
    assert images.table["share"].to_pylist() == [0.5, 1.0, None]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_fields_may_be_divided_by_commas_semicolons_or_tabs(work: Path, delimiter: str) -> None:
    lay_out(work, "a b.png", "c.png")
    lines = [["", "path", "class"], ["0", "a b.png", 'say ""hi""'], ["1", "c.png", f"x{delimiter}y\nz"]]
    quoted = [
        delimiter.join(f'"{field}"' if " " in field or "\n" in field else field for field in row) for row in lines
    ]
    listing("\ufeff" + quoted[0], *quoted[1:])
    assert rows(fetch(), "class") == [("a b.png", 'say "hi"'), ("c.png", f"x{delimiter}y\nz")]


def test_parquet_keeps_its_types(work: Path) -> None:
    lay_out(work, "images/1.png", "images/2.png")
    table = pa.table(
        {
            "uri": ["1.png", "2.png"],
            "class": pa.array(["b", "a"]).dictionary_encode(),
            "code": ["007", "008"],
            "__index_level_0__": [0, 1],
        }
    )
    pq.write_table(table, "scans.parquet")
    images = fetch("scans.parquet", column="uri", root="images")
    assert rows(images, "class", "code") == [("1.png", "b", "007"), ("2.png", "a", "008")]
    assert images.columns == ["class", "code"]


def test_rows_without_an_image_are_left_out_with_the_reason(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(work, "data/in/1.png", "data/out.png")
    Path("data/in/folder").mkdir()
    names = ["1.png", "2.png", "../out.png", str(work / "data/out.png"), "folder", "", "a\0b", "x" * 300, "."]
    pq.write_table(pa.table({"path": names, "class": ["a"] * len(names)}), "data/scans.parquet")
    images = fetch("data/scans.parquet", root="data/in")
    assert images.samples["sample"].to_pylist() == ["1.png"]
    reasons = dict(images.rejected)
    assert reasons == {
        "2.png": "it is not there, in data/in",
        "../out.png": "it lies outside data/in",
        str(work / "data/out.png"): "it lies outside data/in",
        "folder": "it is no file",
        "": "no path: the field is empty",
        "a\0b": "it cannot be read: embedded null byte",
        "x" * 300: "it cannot be read: File name too long",
        ".": "it lies outside data/in",
    }
    told = capsys.readouterr().err
    assert told == (
        "warning: data/scans.parquet: 8 of 9 images are left out; the first: 2.png: it is not there, in data/in\n"
    )


@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_name_is_found_in_the_other_normal_form_of_unicode(work: Path, written: Literal["NFC", "NFD"]) -> None:
    on_disk = unicodedata.normalize("NFD" if written == "NFC" else "NFC", "é/ü.png")
    lay_out(work, on_disk, "a/1.png")
    listing("path,class", unicodedata.normalize(written, "é/ü.png") + ",a", "a/1.png,b")
    images = fetch()
    assert images.rejected == []
    assert rows(images, "class") == [("a/1.png", "b"), (on_disk, "a")]


def test_of_two_names_that_differ_in_their_normal_form_alone_each_is_its_own(work: Path) -> None:
    names = [unicodedata.normalize(form, "ü.png") for form in ("NFC", "NFD")]
    lay_out(work, *names)
    listing("path,class", *(f"{name},a" for name in names))
    assert fetch().table["sample"].to_pylist() == sorted(names)


def test_a_link_that_leads_out_of_the_root_is_left_out(work: Path) -> None:
    lay_out(work, "secret/1.png", "data/in/1.png", "cache/files/md5/ab/cdef")
    links = {"file.png": "secret/1.png", "folder": "secret", "own.png": "data/in/1.png", "dvc.png": "cache/files/md5/"}
    links["dvc.png"] += "ab/cdef"  # where DVC keeps a file, and may put a link to it
    for name, target in links.items():
        (work / "data/in" / name).symlink_to(work / target)
    (work / "root").symlink_to(work / "data/in")
    listing("path,class", "1.png,a", "file.png,a", "folder/1.png,a", "own.png,b", "dvc.png,b")
    images = fetch(root="root")
    assert images.table["sample"].to_pylist() == ["1.png", "dvc.png", "own.png"]
    outside = "it lies outside root, where a link leads"
    assert images.rejected == [("file.png", outside), ("folder/1.png", outside)]


def test_an_absolute_path_below_the_root_is_one_from_the_root(work: Path) -> None:
    lay_out(work, "in/1.png")
    listing("path", str(work / "in/1.png"))
    images = fetch(root="in", link=True)
    assert rows(images) == [("1.png",)]
    assert images.read(0) == b"in/1.png"


def test_columns_with_names_of_our_own_are_kept_beside_ours(work: Path) -> None:
    lay_out(work, "1.png")
    listing("path,file,sample,length", "1.png,f,s,7")
    images = fetch(column="path")
    assert rows(images, "source_file", "source_sample", "source_length") == [("1.png", "f", "s", 7)]
    assert images.read(0) == b"1.png"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "scans.csv lists no images: it takes a line of column names, and a line for each image"),
        (["path,class"], "scans.csv lists no images: it takes a line of column names"),
        (["path,class", "1.png,a,b"], "scans.csv, line 2: 3 fields where the first line has 2; what holds a ',' needs"),
        (["path,class", '1.png,"a'], "scans.csv, line 2: unexpected end of data"),
        (["path,class,class", "1.png,a,b"], "scans.csv has two columns class: rename one"),
        (["name,class", "1.png,a"], "scans.csv: of its columns name, class none is known to be that of the images'"),
        (["path,file", "1.png,a"], "scans.csv: of its columns path, file path and file may be that of the images'"),
        (
            ["path,class", "1.png,a", "./1.png,b"],
            "scans.csv: no image of its 2 rows can be used; the first: 1.png: it is listed twice, with other values",
        ),
        (["path,class", "2.png,a"], "scans.csv: no image of its 1 rows can be used; the first: 2.png: it is not ther"),
    ],
)
def test_a_table_that_is_wrong_is_told_in_one_line(work: Path, lines: list[str], message: str) -> None:
    lay_out(work, "1.png")
    listing(*lines)
    with pytest.raises(UserError) as error:
        fetch()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_what_is_no_table_is_told(work: Path) -> None:
    lay_out(work, "1.png", "a.parquet")
    listing("path,class", "1.png,Müll", name="latin.csv", encoding="latin-1")
    for path, keys, message in (
        ("b.csv", {}, "params.yaml: the table b.csv is not there"),
        (".", {}, "params.yaml: the table . is a folder; name a CSV or Parquet file"),
        ("a.parquet", {}, "params.yaml: the table a.parquet is no Parquet file"),
        ("latin.csv", {}, "latin.csv is no UTF-8 text (invalid start byte at byte 18): save it as UTF-8"),
    ):
        with pytest.raises(UserError) as error:
            source.fetch(source.Params(source="table", path=path, **keys), work)
        assert str(error.value).startswith(message)
    listing("path,class", "1.png,a")
    for keys, message in (
        ({"column": "paths"}, "params.yaml: column: scans.csv has no paths; did you mean path?"),
        ({"root": "photos"}, "params.yaml: root: photos is not there"),
        ({"root": "1.png"}, "params.yaml: root: 1.png is no folder"),
    ):
        with pytest.raises(UserError, match=message):
            source.fetch(source.Params(source="table", path="scans.csv", **keys), work)


def test_an_image_that_is_listed_twice_counts_once_and_with_other_values_not_at_all(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(work, "1.png", "2.png", "3.png")
    listing("path,class", "1.png,a", "2.png,a", "./1.png,a", "3.png,b", "2.png,b", "1.png,a")
    images = fetch()
    assert rows(images, "class") == [("1.png", "a"), ("3.png", "b")]
    assert images.rejected == [("2.png", "it is listed twice, with other values")] * 2
    assert capsys.readouterr().err.startswith(
        "warning: scans.csv: 2 rows list an image again with the same values; each image counts once\n"
    )


def test_numbers_that_are_none_make_no_other_values(work: Path) -> None:
    lay_out(work, "1.png", "2.png")
    number = [float("nan"), 1.0, float("nan")]
    pq.write_table(pa.table({"path": ["1.png", "2.png", "1.png"], "number": number}), "scans.parquet")
    assert [name for name, *_ in rows(fetch("scans.parquet"), "number")] == ["1.png", "2.png"]


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["2.png", "1.png"]])
def test_a_column_may_have_the_name_of_ours(names: list[str], work: Path) -> None:
    lay_out(work, "1.png", "2.png")
    listing("path,table_row", f"{names[0]},a", f"{names[1]},")
    images = fetch()
    assert images.columns == ["source_table_row"]
    assert (images.table_row is None) == (names == sorted(names))

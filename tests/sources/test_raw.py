"""Fetched images on disk: what goes in comes out, in the same bytes every time, and changes are noticed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.cli import UserError
from stages.files import RAW
from stages.sources import _raw
from stages.sources._raw import Found, Images, read_images, write_images
from stages.sources.shared.remote import OUTAGE, UnreadableError

FACTS = {"source": "test", "origin": "a test", "licence": "none"}


def write(found: list[Found], root: str | None = None, name: str = "images") -> Images:
    folder = RAW / name
    folder.mkdir(parents=True)
    write_images(folder, found, **FACTS, root=root)
    return read_images(name)


def some(cells: list[Path], count: int = 5) -> list[Found]:
    return [Found(f"{path.parent.name}/{path.name}", path, {"size": path.stat().st_size}) for path in cells[:count]]


def test_packed_images_are_read_as_their_files_hold_them(cells: list[Path]) -> None:
    images = write(some(cells)[::-1])
    assert images.table["sample"].to_pylist() == [f"images/{path.name}" for path in cells[:5]]
    assert [images.read(row) for row in range(len(images))] == [path.read_bytes() for path in cells[:5]]
    assert images.image_hashes == [hashlib.sha256(path.read_bytes()).hexdigest() for path in cells[:5]]
    assert images.table["size"].to_pylist() == [path.stat().st_size for path in cells[:5]]
    assert images.columns == ["size"]
    assert images.facts == {**FACTS, "images": 5, "linked": False, "root": None}


def test_a_shard_is_a_tar_that_other_programs_read(work: Path, cells: list[Path]) -> None:
    write(some(cells))
    with tarfile.open(work / "data/raw/images/images-00000.tar") as shard:
        members = shard.getmembers()
        contents = [shard.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    assert [member.name for member in members] == [f"images/{path.name}" for path in cells[:5]]
    assert contents == [path.read_bytes() for path in cells[:5]]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_same_images_give_the_same_bytes_whatever_their_order_and_times(work: Path, cells: list[Path]) -> None:
    copies = []
    for path in cells[:5]:
        copies.append(work / path.name)
        copies[-1].write_bytes(path.read_bytes())
        os.utime(copies[-1], (1, 1))
    write(some(cells), name="first")
    again = [Found(f"images/{path.name}", path, {"size": path.stat().st_size}) for path in reversed(copies)]
    write(again, name="again")
    names = sorted(path.name for path in (RAW / "first").iterdir())
    assert names == ["download.json", "images-00000.tar", "images.parquet"]
    for name in names:
        assert (RAW / "first" / name).read_bytes() == (RAW / "again" / name).read_bytes()


def test_a_full_shard_is_followed_by_another(cells: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_raw, "SHARD_BYTES", 60_000)  # two to three cells
    images = write(some(cells, 9))
    shards = sorted((RAW / "images").glob("*.tar"))
    assert len(shards) >= 3
    assert [path.name for path in shards] == [f"images-{number:05d}.tar" for number in range(len(shards))]
    names = []
    for path in shards:
        with tarfile.open(path) as shard:
            names += shard.getnames()
    assert names == images.table["sample"].to_pylist()
    assert [images.read(row) for row in range(9)] == [path.read_bytes() for path in cells[:9]]


def test_names_may_hold_anything_that_a_file_system_allows(cells: list[Path]) -> None:
    names = ["Zelle Nr. 5.png", "太陽電池/é ü.png", "two\nlines.png", "x" * 200 + "/" + "y" * 200 + ".png", "-rf.png"]
    images = write([Found(name, path, {}) for name, path in zip(names, cells, strict=False)])
    assert images.table["sample"].to_pylist() == sorted(names)
    content = dict(zip(names, (path.read_bytes() for path in cells), strict=False))
    assert [images.read(row) for row in range(5)] == [content[name] for name in sorted(names)]
    with tarfile.open(RAW / "images" / "images-00000.tar") as shard:
        assert shard.getnames() == sorted(names)


def test_many_threads_may_read_at_once(cells: list[Path]) -> None:
    images = write(some(cells, 40))
    rows = [row for _ in range(20) for row in range(40)]
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(lambda row: hashlib.sha256(images.read(row)).hexdigest(), rows))
    assert hashes == images.image_hashes * 20


def test_linked_images_stay_where_they_are(work: Path, cells: list[Path]) -> None:
    (work / "photos").mkdir()
    for path in cells[:3]:
        (work / "photos" / path.name).write_bytes(path.read_bytes())
    found = [Found(path.name, Path("photos") / path.name, {}) for path in cells[:3]]
    images = write(found, root="photos")
    assert sorted(path.name for path in (RAW / "images").iterdir()) == ["download.json", "images.parquet"]
    assert images.facts["root"] == "photos"
    assert [images.read(row) for row in range(3)] == [path.read_bytes() for path in cells[:3]]


def test_a_linked_file_that_changed_is_an_error_that_names_it(work: Path) -> None:
    file = work / "photos" / "a.png"
    file.parent.mkdir()
    file.write_bytes(b"before")
    images = write([Found("a.png", Path("photos/a.png"), {})], root="photos")
    file.write_bytes(b"behind")  # as long as before
    with pytest.raises(UserError, match=r"^photos/a\.png has changed since it was fetched: run `dvc repro`"):
        images.read(0)
    file.unlink()
    with pytest.raises(UserError, match=r"^photos/a\.png cannot be read: No such file"):
        images.read(0)


def test_a_shard_that_ends_too_early_is_an_error_that_names_it(cells: list[Path]) -> None:
    images = write(some(cells))
    shard = RAW / "images" / "images-00000.tar"
    shard.write_bytes(shard.read_bytes()[: 512 + 100])
    with pytest.raises(
        UserError,
        match=r"data/raw/images/images-00000\.tar ends too early: run `dvc repro --force --single-item fetch@images`$",
    ):
        images.read(0)


@pytest.mark.parametrize("bit", [0, 7, 4321])
def test_a_bit_that_flipped_in_a_shard_is_an_error_that_names_the_image(cells: list[Path], bit: int) -> None:
    images = write(some(cells))
    shard = RAW / "images" / "images-00000.tar"
    content, first = bytearray(shard.read_bytes()), images.table["offset"][1].as_py()
    content[first + bit // 8] ^= 1 << bit % 8
    shard.write_bytes(content)
    assert images.read(0)
    sample = images.sample(1)
    with pytest.raises(
        UserError, match=rf"images-00000\.tar is damaged, the bytes of {re.escape(sample)} are not those"
    ):
        images.read(1)


def test_images_that_were_not_fetched_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match=r"^data/raw/photos/download\.json is not there: run `dvc repro`"):
        read_images("photos")


def test_no_images_and_double_names_are_refused(cells: list[Path]) -> None:
    with pytest.raises(UserError, match="a test holds no images"):
        write([], name="none")
    with pytest.raises(UserError, match=r"names an image twice: a$"):
        write([Found("a", cells[0], {}), Found("b", cells[1], {}), Found("a", cells[2], {})], name="twice")


def test_a_name_that_is_no_utf8_is_left_out_and_listed_in_words_that_can_be_printed(
    cells: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    images = write([*some(cells, 2), Found(os.fsdecode(b"caf\xe9.png"), cells[2], {"size": 1})])
    assert len(images) == 2
    assert images.rejected == [("caf\\xe9.png", "its name is no UTF-8")]
    assert "1 of 3 images are left out; the first: caf" in capsys.readouterr().err


@pytest.mark.parametrize("root", [None, ""])
def test_a_file_that_cannot_be_read_is_left_out_and_listed(
    cells: list[Path], monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    gone = [Found(f"gone-{number:02}.png", Path("gone.png"), {"size": 1}) for number in range(30)]
    forbidden = Found("forbidden.png", Path("forbidden.png"), {"size": 1})
    read = Path.read_bytes

    def refused(path: Path) -> bytes:  # who runs the tests may be allowed to read everything
        if path.name == "forbidden.png":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    images = write([*some(cells, 2), forbidden, *gone], root=root)
    assert len(images) == 2
    assert images.rejected[0] == ("forbidden.png", "it cannot be read: Permission denied")
    assert images.rejected[1:] == [(image.sample, "it cannot be read: No such file or directory") for image in gone]
    with pytest.raises(
        UserError, match=r"^a test: none of its 31 images can be used; the first: forbidden\.png: it ca"
    ):
        write([*gone, forbidden], name="none")


def test_a_disk_that_fails_is_one_error(cells: list[Path]) -> None:
    def broken() -> bytes:
        raise UnreadableError("it cannot be read: Input/output error")

    lost = [Found(f"lost-{number}", broken, {"size": 1}) for number in range(OUTAGE)]
    assert len(write([*some(cells, 2), *lost[1:]]).rejected) == OUTAGE - 1
    with pytest.raises(
        UserError,
        match=r"^a test: 10 images one after the other cannot be read, the last of them lost-9: it cannot be read",
    ):
        write([*some(cells, 2), *lost], name="again")

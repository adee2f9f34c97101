"""Archives: what is read from them, what is not let out of them, and downloads that break off."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import threading
import unicodedata
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from stages.cli import UserError
from stages.files import RAW
from stages.sources import archive as source
from stages.sources._raw import Images, read_images
from tests.sources.test_folder import rows


def fetch(path: str, **keys: Any) -> Images:
    folder = RAW / "photos"
    folder.mkdir(parents=True, exist_ok=True)
    source.fetch(source.Params(source="archive", path=path, **keys), folder)
    return read_images("photos")


def make(path: str, *names: str, **contents: bytes) -> None:
    """Make an archive of files that hold their own name, the kind by its suffix."""
    files = {name: name.encode() for name in names} | contents
    if path.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, f"w:{path.rpartition('.tar')[2].lstrip('.')}") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("path", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tar.bz2", "photos.tar.xz"])
def test_class_folders_are_read_whatever_lies_around_them(path: str) -> None:
    junk = ["set/readme.md", "__MACOSX/set/dog/._1.jpg", "set/.git/x.png"]
    make(path, "set/v1/dog/1.jpg", "set/v1/cat/zwei ü.png", "./set/v1/cat/../cat/1.jpg", *junk)
    images = fetch(path)
    assert rows(images, "class") == [("cat/1.jpg", "cat"), ("cat/zwei ü.png", "cat"), ("dog/1.jpg", "dog")]
    assert images.read(1).decode() == "set/v1/cat/zwei ü.png"
    assert images.facts["origin"] == path
    assert sorted(file.name for file in (RAW / "photos").iterdir()) == [
        *("download.json", "images-00000.tar", "images.parquet")
    ]


def test_parts_of_a_split_are_read_as_from_folders() -> None:
    make("photos.zip", *(f"set/{part}/{name}/1.jpg" for part in ("train", "val", "test") for name in "ab"))
    assert {row[1:] for row in rows(fetch("photos.zip"), "class", "split")} == {
        (name, part) for part in ("train", "validation", "test") for name in "ab"
    }


def test_a_table_in_the_archive_lists_its_images() -> None:
    table = b"file,label\nimages/1.png,a\nimages/2.png,b\nimages/3.png,a\n../../x,b\n"
    make("scans.tar.gz", "set/images/1.png", "set/images/2.png", "set/other.png", **{"set/labels.csv": table})
    images = fetch("scans.tar.gz", table="set/labels.csv")
    assert rows(images, "label") == [("set/images/1.png", "a"), ("set/images/2.png", "b")]
    assert images.rejected == [
        ("../../x", "it lies outside scans.tar.gz"),
        ("images/3.png", "it is not there, in scans.tar.gz"),
    ]
    with pytest.raises(UserError, match=r"params.yaml: table: scans.tar.gz holds no labels.csv"):
        fetch("scans.tar.gz", table="labels.csv")


def test_of_a_name_that_comes_twice_the_last_counts_and_no_other_file_suffers() -> None:
    with tarfile.open("photos.tar", "w") as archive:
        for name, content in (("a/1.png", b"old"), ("b/1.png", b"b"), ("a/1.png", b"new"), ("b/2.png", b"b2")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    images = fetch("photos.tar")
    assert {row[0]: images.read(at) for at, row in enumerate(rows(images))} == {
        "a/1.png": b"new",
        "b/1.png": b"b",
        "b/2.png": b"b2",
    }


@pytest.mark.parametrize("path", ["evil.zip", "evil.tar"])
def test_nothing_leaves_the_archive(work: Path, path: str) -> None:
    (work / "secret.png").write_text("secret")
    bad = {"../../out.png", "/out.png", "a/../../out.png"}
    make(path, "a/1.png", "b/1.png", *bad)
    if path.endswith(".zip"):
        with zipfile.ZipFile(path, "a") as archive:
            info = zipfile.ZipInfo("a/link.png")
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, str(work / "secret.png"))
    else:
        with tarfile.open(path, "a") as archive:
            for name, kind in (
                ("a/link.png", tarfile.SYMTYPE),
                ("a/hard.png", tarfile.LNKTYPE),
                ("a/fifo", tarfile.FIFOTYPE),
            ):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, str(work / "secret.png")
                archive.addfile(member)
    images = fetch(path)
    assert rows(images, "class") == [("a/1.png", "a"), ("b/1.png", "b")]
    reasons = dict(images.rejected)
    assert {name: reasons.pop(name) for name in bad} == dict.fromkeys(bad, "its name leads out of the archive")
    assert set(reasons.values()) == {"it is a link or a device, no file"}
    assert len(reasons) == (1 if path.endswith(".zip") else 3)
    found = {str(file.relative_to(work)) for file in work.rglob("*") if file.is_file()}
    assert found == {path, "secret.png", *(str(file) for file in (RAW / "photos").iterdir())}
    assert not (work.parent / "out.png").exists()


def test_too_much_is_not_unpacked() -> None:
    make("bomb.zip", **{f"a/{n}.png": bytes(2_000_000) for n in range(3)})
    with pytest.raises(UserError, match=r"^bomb.zip unpacks to more than 0.005 GB: raise max_gigabytes, if it should$"):
        fetch("bomb.zip", max_gigabytes=0.005)
    with pytest.raises(UserError, match=r"^bomb.zip holds more than 2 files: raise max_files, if it should$"):
        fetch("bomb.zip", max_files=2)
    assert list((RAW / "photos").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a/1.png", tarfile.REGTYPE),
        ("a/1.png", tarfile.SYMTYPE),
        ("../x", b"0"),
        ("a/.hidden", tarfile.REGTYPE),
        ("a", tarfile.DIRTYPE),
    ],
)
def test_every_entry_counts_as_a_file_also_of_one_name_or_rejected(name: str, kind: bytes) -> None:
    with tarfile.open("many.tar", "w") as archive:
        for _ in range(50):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    with pytest.raises(UserError, match=r"^many.tar holds more than 3 files: raise max_files, if it should$"):
        fetch("many.tar", max_files=3)


def test_an_image_in_no_class_is_left_out_and_listed_whatever_lies_around_the_classes() -> None:
    names = [f"set/v1/{name}/{number}.jpg" for name in ("cat", "dog") for number in range(3)]
    make("photos.zip", *names, "1.jpg", "set/2.jpg", "set/v1/3.jpg")
    images = fetch("photos.zip")
    assert [row[0] for row in rows(images)] == [name.removeprefix("set/v1/") for name in names]
    assert images.rejected == [(name, "it lies in no class") for name in ("1.jpg", "set/2.jpg", "set/v1/3.jpg")]


@pytest.mark.parametrize(("listed", "packed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_listed_name_is_found_in_the_other_normal_form_of_unicode(listed: Any, packed: Any) -> None:
    inside = unicodedata.normalize(packed, "ü.png")
    make("scans.zip", inside, **{"labels.csv": f"file,label\n{unicodedata.normalize(listed, 'ü.png')},a\n".encode()})
    assert rows(fetch("scans.zip", table="labels.csv"), "label") == [(inside, "a")]


@pytest.mark.parametrize("path", ["photos.zip", "photos.tar.gz", "photos.tar.xz", "photos.tar"])
def test_an_archive_cut_off_or_changed_anywhere_is_one_line(path: str) -> None:
    make(path, **{f"{name}/{n}.png": os.urandom(3000) for n in range(4) for name in "ab"})
    whole = Path(path).read_bytes()
    for end in (0, 3, 100, len(whole) // 2, len(whole) - 3):
        Path(path).write_bytes(whole[:end])
        if path == "photos.tar" and end >= len(whole) - 1024:
            continue  # only padding is missing
        with pytest.raises(
            UserError, match=rf"^{path} is (damaged: [^\n]+; get it again|no zip or tar archive, or a damaged one)$"
        ):
            fetch(path)
    if path != "photos.tar":  # which has no checksum of what is in it
        Path(path).write_bytes(whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:])
        with pytest.raises(UserError, match=rf"^{path} is .*damaged"):
            fetch(path)


def test_what_is_wrong_with_an_archive_is_told() -> None:
    Path("text.zip").write_text("no archive")
    make("empty.zip", "a/readme.md")
    make("flat.zip", "1.png", "2.png")
    for path, message in (
        ("lost.zip", "params.yaml: the file lost.zip is not there"),
        ("data", "params.yaml: the file data is no"),
        ("text.zip", "text.zip is no zip or tar archive"),
        ("empty.zip", "empty.zip holds no images"),
        ("flat.zip", "flat.zip/1.png lies in no class: move it into a sub-folder of flat.zip"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            fetch(path)
    make("photos.zip", "a/1.png")
    with pytest.raises(
        UserError, match=f"photos.zip has the sha256 [0-9a-f]{{64}}, and params.yaml asks for {'0' * 64}"
    ):
        fetch("photos.zip", sha256="0" * 64)
    for keys, message in (
        ({"url": "http://localhost/x.zip"}, "give its sha256, too"),
        ({"column": "path"}, "column names a column of the table"),
    ):
        with pytest.raises(ValueError, match=message):
            source.Params(source="archive", path="requirements.lock", **keys)


# ---- downloads


@contextmanager
def serving(content: bytes, ranges: bool, breaks_after: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve a file; what is asked for is noted. The first answer may break off after so many bytes."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Range", "all"))
            start = int(asked[-1][6:-1]) if ranges and asked[-1] != "all" else 0
            if start >= len(content) or self.path != "/photos.zip":
                self.send_error(416 if start else 404)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : breaks_after if len(asked) == 1 and breaks_after else None])

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/photos.zip", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def packed(work: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setenv("TRANSFER_CACHE", str(work / "cache"))
    make("photos.zip", **{f"{name}/1.png": os.urandom(3_000_000) for name in "ab"})
    return Path("photos.zip").read_bytes()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(packed: bytes, ranges: bool) -> None:
    keys = {"sha256": hashlib.sha256(packed).hexdigest()}
    with serving(packed, ranges, breaks_after=4_000_000) as (url, asked):
        with pytest.raises(UserError, match=rf"^{url} cannot be downloaded: \w+; what has come is kept, run it again$"):
            fetch("requirements.lock", url=url, **keys)
        images = fetch("requirements.lock", url=url, **keys)
    assert len(images) == 2
    assert images.facts["origin"] == url
    assert asked[0] == "all"
    start = int(asked[1].removeprefix("bytes=").removesuffix("-"))
    assert 3_000_000 < start <= 4_000_000
    assert list(Path("cache/downloads").iterdir()) == []


def test_the_beginning_of_another_version_is_not_gone_on_with(packed: bytes) -> None:
    sha256 = hashlib.sha256(packed).hexdigest()
    Path("cache/downloads").mkdir(parents=True)
    (Path("cache/downloads") / f"{sha256}.part").write_bytes(b"x" * 1000)
    with serving(packed, ranges=True) as (url, asked):
        assert len(fetch("requirements.lock", url=url, sha256=sha256)) == 2
    assert asked == ["bytes=1000-", "all"]


def test_what_was_kept_and_is_damaged_is_downloaded_again(packed: bytes) -> None:
    sha256 = hashlib.sha256(packed).hexdigest()
    Path("cache/downloads").mkdir(parents=True)
    (Path("cache/downloads") / sha256).write_bytes(packed[:-1] + bytes([packed[-1] ^ 1]))
    with serving(packed, ranges=True) as (url, asked):
        assert len(fetch("requirements.lock", url=url, sha256=sha256)) == 2
    assert asked == ["all"]


def test_what_was_whole_is_not_asked_for_again(packed: bytes) -> None:
    sha256 = hashlib.sha256(packed).hexdigest()
    Path("cache/downloads").mkdir(parents=True)
    (Path("cache/downloads") / f"{sha256}.part").write_bytes(packed)
    with serving(packed, ranges=True) as (url, asked):
        assert len(fetch("requirements.lock", url=url, sha256=sha256)) == 2
    assert asked == [f"bytes={len(packed)}-"]


def test_another_file_than_was_asked_for_is_not_used(packed: bytes) -> None:
    with serving(packed, ranges=True) as (url, _):
        with pytest.raises(UserError, match=f"{url} has the sha256 {hashlib.sha256(packed).hexdigest()}, and not 0000"):
            fetch("requirements.lock", url=url, sha256="0" * 64)
        with pytest.raises(UserError, match=f"^{url}x cannot be downloaded: 404 Not Found; what has come is kept"):
            fetch("requirements.lock", url=f"{url}x", sha256="0" * 64)
    assert list(Path("cache/downloads").iterdir()) == []
    with pytest.raises(UserError, match=f"^{url} cannot be downloaded: ConnectionError"):
        fetch("requirements.lock", url=url, sha256="0" * 64)

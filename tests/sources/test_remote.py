"""Buckets and other URLs, on a real S3 server and a real web server: what is there, read where it lies or packed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from stages.cli import UserError
from stages.files import RAW, hash_bytes
from stages.params import Dataset
from stages.prepare import prepare
from stages.samples.table import read_samples
from stages.sources import folder as folders
from stages.sources import table as tables
from stages.sources._raw import Images, read_images
from stages.sources.shared import remote
from tests.sources.test_folder import lay_out, rows
from tests.sources.test_table import listing

ODD = "zwei ü + 100%#a&b=c.png"


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an S3 server."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """An empty bucket."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    found = boto3.resource("s3").Bucket(f"photos-{hash_bytes(request.node.nodeid.encode())[:16]}")
    found.create()
    return found


def put(bucket: Any, *names: str) -> None:
    for name in names:
        bucket.put_object(Key=name, Body=name.encode())


def fetch(name: str, source: str, **keys: Any) -> Images:
    module = {"folder": folders, "table": tables}[source]
    folder = RAW / name
    folder.mkdir(parents=True)
    module.fetch(module.Params(source=source, **keys), folder)
    return read_images(name)


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_in_a_bucket_is_read_as_one_on_the_disk(work: Path, bucket: Any, link: bool) -> None:
    names = ["photos/cat/1.png", f"photos/cat/{ODD}", "photos/dog/2.png", "photos/dog/deep/3.png"]
    put(bucket, *names, "photos/.hidden/4.png", "photos/dog/notes.txt", "photos/", "other/5.png")
    lay_out(work, *names, "photos/dog/notes.txt")
    here = fetch("here", "folder", path="photos", link=link)
    there = fetch("there", "folder", path=".", root=f"s3://{bucket.name}/photos/", link=link)
    assert there.samples.drop_columns("image_hash").equals(here.samples.drop_columns("image_hash"))
    read = dict(zip(there.samples["sample"].to_pylist(), [r() for r in there.readers(range(4))], strict=True))
    assert read == {name.removeprefix("photos/"): name.encode() for name in names}
    assert there.image_hashes == [hash_bytes(content) for content in read.values()]
    assert list((RAW / "there").glob("*.tar")) == ([] if link else [RAW / "there" / "images-00000.tar"])


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_a_folder_is_read_from_whatever_fsspec_knows(work: Path, protocol: str, link: bool) -> None:
    import fsspec

    names = ["photos/cat/1.png", f"photos/cat/{ODD}", "photos/dog/2.png"]
    lay_out(work, *names)
    held, root = fsspec.filesystem(protocol), work.absolute() / "photos"
    if protocol == "memory":
        held.pipe({str(work.absolute() / name): name.encode() for name in names})
    images = fetch("there", "folder", path=".", root=f"{protocol}://{root}", link=link)
    assert rows(images, "class") == [("cat/1.png", "cat"), (f"cat/{ODD}", "cat"), ("dog/2.png", "dog")]
    assert [read() for read in images.readers(range(3))] == [name.encode() for name in names]


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_that_a_web_server_lists_is_read_as_one_on_the_disk(work: Path, link: bool) -> None:
    names = [f"my photos/{name}" for name in ("cat/1.png", "cat/zwei ü #?.png", "a dog/deep/3.png", "a dog/+;.png")]
    odd = ("100%.png", "two%20words.png")
    lay_out(work, *names, *(f"my photos/a dog/{name}" for name in odd), "other/5.png")
    here = fetch("here", "folder", path="my photos", link=link)
    if sys.platform == "linux":  # others refuse such a name
        (work / "my photos" / "a dog" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"no UTF-8")
    running = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(work)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{running.server_address[1]}/my%20photos"
        there = fetch("there", "folder", path=".", root=root, link=link)
        read = {sample: there.read(row) for row, sample in enumerate(there.table["sample"].to_pylist())}
    finally:
        running.shutdown()
        running.server_close()
    # Where a % would be taken for the beginning of what is quoted, a name stays quoted.
    quoted = {f"a dog/{name}": f"a dog/{quote(name)}" for name in odd}
    assert read.pop("a dog/caf%ED%B3%A9.png", b"no UTF-8") == b"no UTF-8"  # as this server writes the byte E9
    assert len(read) == 6
    assert read == {quoted.get(name, name): here.read(row) for row, (name, _) in enumerate(rows(here, "class"))}
    labels = {quoted.get(name, name): label for name, label in rows(here, "class")}
    assert {name: label for name, label in rows(there, "class") if name in read} == labels


def test_what_is_held_elsewhere_is_not_fetched_ahead(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, *(f"photos/cat/{number}.png" for number in range(4)))
    there = fetch("there", "folder", path=".", root=f"s3://{bucket.name}/photos/", link=True)
    asked, read = [], Images.read
    monkeypatch.setattr(Images, "read", lambda self, row: asked.append(row) or read(self, row))
    readers = list(there.readers(range(4), [True, False, True, False]))
    assert [readers[row]() for row in (1, 3)] == [b"photos/cat/1.png", b"photos/cat/3.png"]
    assert sorted(asked) == [1, 3]
    assert readers[2]() == b"photos/cat/2.png"
    assert sorted(asked) == [1, 2, 3]


@pytest.mark.parametrize("link", [False, True])
def test_a_table_lists_what_lies_in_a_bucket(bucket: Any, link: bool, capsys: pytest.CaptureFixture[str]) -> None:
    put(bucket, "scans/ct/1.png", f"scans/{ODD}", "outside.png")
    root = f"s3://{bucket.name}/scans"
    listing(
        "path,label",
        "ct/1.png,sound",
        f'"{ODD}",ill',
        "ct/2.png,ill",
        "../outside.png,ill",
        "s3://other/3.png,ill",
        "ct,ill",
    )
    images = fetch("scans", "table", path="scans.csv", root=root, link=link)
    assert rows(images, "label") == [("ct/1.png", "sound"), (ODD, "ill")]
    assert images.read(1) == f"scans/{ODD}".encode()
    assert dict(images.rejected) == {
        "../outside.png": f"it lies outside {root}",
        "s3://other/3.png": f"it lies outside {root}",
        "ct": f"it is not there, in {root}",
        "ct/2.png": f"it is not there, in {root}",
    }
    assert (
        "scans.csv: 4 of 6 images are left out; the first: ../outside.png: it lies outside" in capsys.readouterr().err
    )


def test_a_bucket_that_may_not_be_listed_refuses_what_is_not_there_and_the_other_form_is_found(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.core import url_to_fs

    put(bucket, "cafe\u0301.png")
    listing("path,label", "caf\u00e9.png,sound", "\u00fc.png,ill")
    system = url_to_fs(f"s3://{bucket.name}")[0]  # fsspec keeps one of a kind
    read = system.cat_file

    def refused(path: str) -> bytes:
        try:
            return bytes(read(path))
        except FileNotFoundError:
            raise PermissionError("Access Denied") from None

    monkeypatch.setattr(system, "cat_file", refused)
    images = fetch("scans", "table", path="scans.csv", root=f"s3://{bucket.name}")
    assert images.read(0) == "cafe\u0301.png".encode()
    assert images.rejected == [("\u00fc.png", "it cannot be read: Access Denied")]


@pytest.mark.parametrize("link", [False, True])
def test_a_name_is_found_in_either_normal_form_of_unicode(bucket: Any, link: bool) -> None:
    composed, decomposed = "caf\u00e9.png", "cafe\u0301.png"
    put(bucket, f"as-macos/{decomposed}", f"as-linux/{composed}")
    listing("path,label", f"as-macos/{composed},sound", f"as-linux/{decomposed},ill")
    images = fetch("scans", "table", path="scans.csv", root=f"s3://{bucket.name}", link=link)
    assert [images.read(row).decode() for row in range(2)] == [f"as-linux/{composed}", f"as-macos/{decomposed}"]
    assert not images.rejected


def test_rows_may_name_whole_urls(bucket: Any) -> None:
    put(bucket, "scans/1.png")
    listing("uri,label", f"s3://{bucket.name}/scans/1.png,sound")
    images = fetch("scans", "table", path="scans.csv", column="uri", root=f"s3://{bucket.name}/scans/")
    assert rows(images, "label") == [("1.png", "sound")]


def test_what_changed_in_the_bucket_behind_our_back_is_an_error(bucket: Any) -> None:
    put(bucket, "a/1.png", "b/2.png")
    images = fetch("photos", "folder", path=".", root=f"s3://{bucket.name}", link=True)
    bucket.put_object(Key="a/1.png", Body=b"other bytes")
    bucket.Object("b/2.png").delete()
    for row, name in enumerate(("a/1.png", "b/2.png")):
        with pytest.raises(UserError, match=f"^s3://{bucket.name}/{name} has changed .* --force fetch@photos"):
            images.read(row)


def test_a_data_set_is_prepared_from_a_bucket_as_from_the_disk(cells: list[Path], bucket: Any) -> None:
    for number, path in enumerate(cells[:24]):
        bucket.put_object(Key=f"{'ab'[number % 2]}/{path.name}", Body=path.read_bytes())
    fetch("cells", "folder", path=".", root=f"s3://{bucket.name}", link=True)
    prepare("cells", Dataset.model_validate({"images": "cells"}))
    assert len(read_samples("cells")) == 24


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("s3://there-is-no-such-bucket/photos", "there-is-no-such-bucket/photos (cannot be listed|holds no images)"),
        ("gs://photos/2026", r"gs://photos/2026: what reads gs:// is not installed: pip install gcsfs$"),
        ("s5://photos", "params.yaml: root: s5://photos: "),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_a_root_that_cannot_be_read_is_told_in_a_line(root: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch("photos", "folder", path=".", root=root)
    assert "\n" not in str(caught.value)


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, int]]]:
    """A web server's address; how often it will answer 500 to a path before it gives the file."""
    failures: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = failures.get(self.path, 0)
            failures[self.path] = left - 1
            code = 500 if left > 0 else 404 if "missing" in self.path else 200
            content = self.path.encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_address[1]}", failures
    running.shutdown()


def test_what_fails_on_the_way_is_tried_again(web: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    url, failures = web
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))
    failures |= {"/scans/1.png": 2}
    listing("path,label", "1.png,a", "more/two%20words.png,b", "more/two words.png,b", "missing.png,b")
    images = fetch("scans", "table", path="scans.csv", root=f"{url}/scans", link=True)
    asked = [images.read(row).decode() for row in range(3)]
    assert asked == ["/scans/1.png", "/scans/more/two%20words.png", "/scans/more/two%20words.png"]
    assert [name for name, _ in images.rejected] == ["missing.png"]
    failures |= {"/scans/1.png": 3}
    with pytest.raises(UserError, match=r"scans/1\.png: it cannot be read: 500"):
        images.read(0)


@pytest.mark.parametrize("link", [False, True])
def test_what_cannot_be_read_from_afar_is_left_out_and_listed(
    web: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch, link: bool
) -> None:
    url, failures = web
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    failures |= {"/scans/00.png": 99, "/scans/07.png": 99}
    listing("path,label", *(f"{number:02}.png,a" for number in range(20)))
    images = fetch("scans", "table", path="scans.csv", root=f"{url}/scans", link=link)
    assert len(images) == 18
    assert [name for name, _ in images.rejected] == ["00.png", "07.png"]
    assert images.rejected[0][1].startswith("it cannot be read: 500")


def test_a_file_in_a_bucket_that_may_not_be_read_is_left_out_and_listed(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.core import url_to_fs

    put(bucket, *(f"a/{number:02}.png" for number in range(20)))
    system = url_to_fs(f"s3://{bucket.name}")[0]  # fsspec keeps one of a kind
    read = system.cat_file

    def refused(path: str) -> bytes:
        if path.endswith("5.png"):
            raise PermissionError("Access Denied")
        return bytes(read(path))

    monkeypatch.setattr(system, "cat_file", refused)
    images = fetch("photos", "folder", path=".", root=f"s3://{bucket.name}")
    assert len(images) == 18
    assert images.rejected == [(name, "it cannot be read: Access Denied") for name in ("a/05.png", "a/15.png")]


def test_a_service_that_fails_is_one_error_and_not_a_thousand(
    web: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, failures = web
    monkeypatch.setattr(remote, "WAITS", (0.0,))
    failures |= {f"/scans/{number:04}.png": 99 for number in range(500, 1000)}
    listing("path,label", *(f"{number:04}.png,a" for number in range(1000)))
    with pytest.raises(
        UserError,
        match=r"^scans\.csv: 10 images one after the other cannot be read, the last of them 0509\.png: it cannot be",
    ):
        fetch("scans", "table", path="scans.csv", root=f"{url}/scans")
    assert failures["/scans/0999.png"] == 99  # what was not yet asked for was given up
    dead = "http://127.0.0.1:9/scans"
    with pytest.raises(
        UserError,
        match=r"^scans\.csv: 10 images one after the other cannot be read, the last of them 0009\.png: it cannot be",
    ):
        fetch("dead", "table", path="scans.csv", root=dead)

"""data/features/<name>/: what is written is what is read, row by row, view by view."""

import hashlib
import json
import random
import subprocess
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.cli import UserError
from stages.files import LEARNED
from stages.store import activations
from stages.store.activations import CHECKSUMS, read_features, write_features


@pytest.fixture
def backbone(tmp_path):
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "network.json").write_text('{"network": "some"}\n')
    return folder


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(7, 2, 3, 2)).astype(np.float32)  # (images, views, *shape)


HASHES = sorted(hashlib.sha256(bytes([n])).hexdigest() for n in range(7))
LOGITS = np.arange(35, dtype=np.float32).reshape(7, 5)


def write(folder, backbone, rows, dtype="float32", pieces=(3, 1, 3), rejected=None, **facts):
    facts = {"features": "some", "views": ["identity", "flip"], "shape": [3, 2], "dtype": dtype, **facts}
    starts = np.cumsum([0, *pieces])
    parts = [slice(a, b) for a, b in pairwise(starts)]
    write_features(
        folder, facts, HASHES, rejected or {}, (rows[p] for p in parts), (LOGITS[p] for p in parts), backbone
    )
    return read_features(folder)


@pytest.fixture(params=[256_000_000, 100], ids=["one file", "two rows a file"])
def file_size(request, monkeypatch):
    monkeypatch.setattr(activations, "SHARD_BYTES", request.param)
    return request.param


def test_rows_and_views_come_back_in_the_order_asked_for(tmp_path, backbone, rows, file_size):
    store = write(tmp_path / "f", backbone, rows)
    assert len(list((tmp_path / "f").glob("activations-*.npy"))) == (1 if file_size > 1000 else 4)
    assert (len(store), store.views, store.shape) == (7, ["identity", "flip"], (3, 2))
    np.testing.assert_array_equal(store.read(range(7)), rows)
    np.testing.assert_array_equal(store.read([6, 0, 3, 3]), rows[[6, 0, 3, 3]])
    np.testing.assert_array_equal(store.read([5, 1], ["flip"]), rows[[5, 1]][:, [1]])
    np.testing.assert_array_equal(store.read([5, 1], ["flip", "identity"]), rows[[5, 1]][:, [1, 0]])
    assert store.read([]).shape == (0, 2, 3, 2)


@pytest.mark.usefixtures("file_size")
def test_the_files_are_plain_npy_files_that_numpy_reads(tmp_path, backbone, rows):
    write(tmp_path / "f", backbone, rows)
    files = sorted((tmp_path / "f").glob("activations-*.npy"))
    np.testing.assert_array_equal(np.concatenate([np.load(f, allow_pickle=False) for f in files]), rows)


@pytest.mark.usefixtures("file_size")
def test_the_bytes_do_not_depend_on_the_pieces_they_came_in(tmp_path, backbone, rows):
    for name, pieces in (("a", (7,)), ("b", (1,) * 7), ("c", (2, 5))):
        write(tmp_path / name, backbone, rows, pieces=pieces, logits=5)
    contents = [{f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in "abc"]
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.usefixtures("file_size")
def test_half_precision_is_rounded_once_and_read_as_float32(tmp_path, backbone, rows):
    store = write(tmp_path / "f", backbone, rows, dtype="float16")
    assert store.read([2]).dtype == np.float32
    np.testing.assert_array_equal(store.read(range(7)), rows.astype(np.float16).astype(np.float32))
    assert store.facts["bytes_per_image"] == 2 * 3 * 2 * 2


def test_an_image_is_found_by_its_hash_and_a_stranger_has_no_row(tmp_path, backbone, rows):
    store = write(tmp_path / "f", backbone, rows)
    assert store.rows([HASHES[4], "0" * 64, HASHES[0]]).tolist() == [4, -1, 0]
    assert store.rows([]).tolist() == []
    assert store.image_hashes == HASHES
    with pytest.raises(IndexError, match="rows go from 0 to 6"):
        store.read(store.rows(["0" * 64]))


@pytest.mark.usefixtures("file_size")
def test_logits_are_read_where_they_are_stored_and_asked_for_where_not(tmp_path, backbone, rows):
    store = write(tmp_path / "with", backbone, rows, logits=5)
    np.testing.assert_array_equal(store.logits([6, 2]), LOGITS[[6, 2]])
    assert store.facts["bytes_per_image"] == 2 * 3 * 2 * 4 + 5 * 4
    with pytest.raises(UserError, match="set logits: true"):
        write(tmp_path / "without", backbone, rows).logits([0])


def test_the_folder_says_what_it_holds(tmp_path, backbone, rows):
    store = write(tmp_path / "f", backbone, rows, rejected={"b" * 64: "truncated", "a" * 64: "no image"})
    facts = json.loads((tmp_path / "f" / "features.json").read_text())
    assert (facts["features"], facts["count"], facts["rejected"]) == ("some", 7, 2)
    assert (tmp_path / "f" / "backbone.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "f" / "network.json").read_bytes() == (backbone / "network.json").read_bytes()
    assert pq.read_table(tmp_path / "f" / "index.parquet").to_pydict() == {"image_hash": HASHES, "row": [*range(7)]}
    assert store.rejected == {"a" * 64: "no image", "b" * 64: "truncated"}


def test_a_view_that_is_not_stored_is_named_with_those_that_are(tmp_path, backbone, rows):
    with pytest.raises(UserError, match="the view turn90 is not stored; stored: identity, flip"):
        write(tmp_path / "f", backbone, rows).read([0], ["turn90"])


@pytest.mark.parametrize("pieces", [(3, 1), (3, 3, 1, 3)])
def test_too_few_or_too_many_rows_leave_no_folder(tmp_path, backbone, rows, pieces):
    with pytest.raises(ValueError, match="rows"):
        write(tmp_path / "f", backbone, np.concatenate([rows, rows]), pieces=pieces)
    assert [p.name for p in tmp_path.iterdir()] == ["backbone"]


def test_a_folder_or_a_file_that_is_not_there_is_named_with_what_to_do(tmp_path, backbone, rows):
    with pytest.raises(UserError, match=r"gone/features.json is not there: run `dvc repro`"):
        read_features(tmp_path / "gone")
    store = write(tmp_path / "f", backbone, rows)
    (tmp_path / "f" / "activations-00000.npy").unlink()
    with pytest.raises(UserError, match=r"activations-00000.npy is not there: run `dvc repro`"):
        store.read([0])


@pytest.mark.parametrize("keep", [0, 1, 100, 0.9])
def test_a_file_that_was_cut_off_is_named_with_what_to_do(tmp_path, backbone, rows, keep):
    store = write(tmp_path / "f", backbone, rows)
    path = tmp_path / "f" / "activations-00000.npy"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=rf"^{path} cannot be read \(.+\): run `dvc repro --force`$"):
        store.read([0])


@pytest.mark.usefixtures("file_size")
def test_a_bit_that_flipped_in_any_file_is_an_error_that_names_it(tmp_path, backbone, rows):
    pq.write_table(pa.table({"pixel_hash": ["a", "b"]}), backbone / LEARNED)
    write(tmp_path / "f", backbone, rows, logits=5, rejected={"a" * 64: "truncated"})
    files = sorted(path for path in (tmp_path / "f").iterdir() if path.name != CHECKSUMS)
    assert len(files) >= 8
    lot = random.Random(0)
    for path in files:
        whole = path.read_bytes()
        for at in [*range(0, 8 * len(whole), 97), *(lot.randrange(8 * len(whole)) for _ in range(20))]:
            content = bytearray(whole)
            content[at // 8] ^= 1 << at % 8
            path.write_bytes(content)
            with pytest.raises(UserError, match=rf"^{path} cannot be read \(.+\): run `dvc repro"):
                read_all(tmp_path / "f")
        path.write_bytes(whole)
    np.testing.assert_array_equal(read_all(tmp_path / "f"), rows)


def read_all(folder):
    store = read_features(folder)
    store.logits(range(7))
    assert store.rejected == {"a" * 64: "truncated"}
    for name in ("backbone.safetensors", "network.json", LEARNED):
        assert store.whole(name) == folder / name
    return store.read(range(7))


@pytest.mark.parametrize("at", [3, 64, 70])
def test_checksums_that_are_damaged_themselves_are_an_error(tmp_path, backbone, rows, at):
    write(tmp_path / "f", backbone, rows)
    path = tmp_path / "f" / CHECKSUMS
    content = bytearray(path.read_bytes())  # its first line is that of the first rows
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read \(.+\): run `dvc repro"):
        read_features(tmp_path / "f").read([0])
    path.unlink()
    with pytest.raises(UserError, match=rf"{CHECKSUMS} is not there: run `dvc repro`"):
        read_features(tmp_path / "f")


def test_the_checksums_are_those_that_sha256sum_reads(tmp_path, backbone, rows):
    write(tmp_path / "f", backbone, rows, logits=5)
    names = {path.name for path in (tmp_path / "f").iterdir()} - {CHECKSUMS}
    ended = subprocess.run(
        ["sha256sum", "--check", "--strict", CHECKSUMS], cwd=tmp_path / "f", capture_output=True, text=True, check=True
    )
    assert sorted(ended.stdout.splitlines()) == sorted(f"{name}: OK" for name in names)


def test_a_name_stands_for_its_folder_in_data_features(tmp_path, backbone, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "features" / "some", backbone, rows)
    np.testing.assert_array_equal(read_features("some").read([1]), rows[[1]])


def test_every_half_becomes_the_single_that_it_is():
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for own in (halves, halves[np.isfinite(halves)], halves[::3], halves.reshape(256, 256).T, halves[:0]):
        found, expected = activations.to_singles(own), own.astype(np.float32)
        assert found.dtype == np.float32
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(found[numbers].view(np.uint32), expected[numbers].view(np.uint32))
        assert np.isnan(found[~numbers]).all()

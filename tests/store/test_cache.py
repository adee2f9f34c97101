"""The private cache: what was put in is found by image and column, and damage is never taken for a number."""

import hashlib
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stages.store import cache as cache_module
from stages.store.activations import to_digests
from stages.store.cache import ActivationCache, Column, DamagedShardError

ROOT = Path(__file__).parents[2]
HASHES = sorted(hashlib.sha256(bytes([n])).hexdigest() for n in range(40))
A, B = Column(64, "identity", "pooled"), Column(96, "flip", "blocks.1")
SHAPES = {A: (5,), B: (2, 3)}


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def value(image_hash, column):
    """What a network would compute: something that tells image and column."""
    seed = int(image_hash[:12], 16) + column.size
    return np.random.default_rng(seed).normal(size=SHAPES[column]).astype(np.float32)


def fill(cache, hashes, columns=(A, B), channels=1, batch=4):
    with cache.writer() as writer:
        for start in range(0, len(hashes), batch):
            some = hashes[start : start + batch]
            writer.add(some, channels, {c: np.stack([value(h, c) for h in some]) for c in columns})


def assert_right(stored, positions, hashes, columns):
    expected = {c: np.stack([value(hashes[p], c) for p in positions]) for c in columns}
    found = {c: np.full_like(expected[c], np.nan) for c in columns}
    for column, at, rows in stored.read(np.array(positions), columns):
        found[column][at] = rows
    for column in columns:
        np.testing.assert_array_equal(found[column], expected[column])


def shards(root):
    return sorted(root.rglob("*.safetensors"))


def test_what_was_added_in_any_order_is_found_and_the_rest_is_lacking():
    cache = ActivationCache({"network": "some"})
    assert not cache.find(to_digests(HASHES), [A, B]).complete  # nothing there yet, not even the folder
    fill(cache, random.Random(0).sample(HASHES[:30], 30))
    fill(cache, HASHES[30:36], columns=[B])
    stored = cache.find(to_digests(HASHES), [A, B])
    lacking = {tuple(columns): positions.tolist() for columns, positions in stored.lacking()}
    assert lacking == {(A,): [*range(30, 36)], (A, B): [*range(36, 40)]}
    assert_right(stored, [*range(30)], HASHES, [A, B])
    assert_right(stored, [3, 29, 31, 35], HASHES, [B])
    assert (stored.shape(A), stored.shape(B)) == ((5,), (2, 3))


def test_a_few_images_among_those_of_many_shards_are_found(root, monkeypatch):
    monkeypatch.setattr(cache_module, "FLUSH_IMAGES", 4)
    cache = ActivationCache({})
    fill(cache, random.Random(1).sample(HASHES, 40))
    assert len(shards(root)) == 10
    few = HASHES[5:33:3]
    stored = cache.find(to_digests(few), [B, A])
    assert stored.complete
    assert_right(stored, [0, 4, 8], few, [A, B])


def test_another_context_shares_nothing():
    fill(ActivationCache({"weights": "a"}), HASHES)
    assert ActivationCache({"weights": "a"}).find(to_digests(HASHES), [A]).complete
    assert (ActivationCache({"weights": "b"}).find(to_digests(HASHES), [A]).shard_of == -1).all()


def test_the_folder_says_what_its_context_is(root):
    fill(ActivationCache({"weights": "a", "size": 3}), HASHES)
    (written,) = root.rglob("context.json")
    assert re.sub(r"\s", "", written.read_text()) == '{"weights":"a","size":3}'


@pytest.mark.parametrize(("limit", "at"), [("FLUSH_IMAGES", 8), ("FLUSH_BYTES", 300), ("FLUSH_SECONDS", 0.0)])
def test_a_shard_is_written_as_soon_as_enough_has_come_together(limit, at, root, monkeypatch):
    monkeypatch.setattr(cache_module, limit, at)
    writer = ActivationCache({}).writer()
    for n in range(0, 12, 4):  # 4 images of A and B: 4 * (5 + 6) * 4 = 176 bytes
        writer.add(HASHES[n : n + 4], 1, {c: np.stack([value(h, c) for h in HASHES[n : n + 4]]) for c in SHAPES})
    assert len(shards(root)) == (3 if limit == "FLUSH_SECONDS" else 1)
    assert ActivationCache({}).find(to_digests(HASHES[:8]), [A, B]).complete


def test_what_was_computed_before_an_error_is_kept():
    def fail(cache):
        with cache.writer() as writer:
            writer.add(HASHES[:2], 1, {A: np.stack([value(h, A) for h in HASHES[:2]])})
            raise KeyboardInterrupt

    cache = ActivationCache({})
    with pytest.raises(KeyboardInterrupt):
        fail(cache)
    assert cache.find(to_digests(HASHES[:2]), [A]).complete


@pytest.mark.parametrize("clock", [lambda _: 10**18, lambda n: 10**18 - n * 10**12], ids=["stands", "jumps back"])
def test_a_clock_that_is_wrong_loses_nothing(clock, monkeypatch):
    times = itertools.count()
    monkeypatch.setattr(time, "time_ns", lambda: clock(next(times)))
    monkeypatch.setattr(time, "time", lambda: clock(next(times)) / 1e9)
    monkeypatch.setattr(cache_module, "FLUSH_IMAGES", 4)
    cache = ActivationCache({})
    fill(cache, HASHES[:20])
    fill(cache, HASHES[20:])
    stored = cache.find(to_digests(HASHES), [A, B])
    assert stored.complete
    assert_right(stored, range(40), HASHES, [A, B])


def test_grey_and_colour_images_lie_apart_and_tell_their_channels(root):
    pixels = Column(2, "identity", "image")
    cache = ActivationCache({})
    with cache.writer() as writer:
        writer.add(HASHES[:3], 1, {pixels: np.zeros((3, 1, 2, 2), np.uint8)})
        writer.add(HASHES[3:5], 3, {pixels: np.ones((2, 3, 2, 2), np.uint8)})
    assert len(shards(root)) == 2
    for hashes, channels in ((HASHES[:3], 1), (HASHES[3:5], 3), (HASHES[:5], 3)):
        stored = cache.find(to_digests(hashes), [pixels])
        assert stored.complete
        assert (stored.channels, stored.shape(pixels)) == (channels, (channels, 2, 2))


def read_all(cache):
    """Read what is found, as extract does; a shard that turns out damaged is looked past."""
    for _ in range(10):
        stored = cache.find(to_digests(HASHES), [A, B])
        found = np.nonzero((stored.shard_of >= 0).all(axis=0))[0].tolist()
        try:
            if found:
                assert_right(stored, found, HASHES, [A, B])
        except DamagedShardError:
            continue
        return found
    raise AssertionError("damage is found again and again")


def test_a_flipped_bit_anywhere_is_found_and_never_read_as_a_number(root, capsys):
    cache = ActivationCache({})
    fill(cache, HASHES)
    (shard,) = shards(root)
    whole = shard.read_bytes()
    for position in [0, 7, 8, 9, *random.Random(2).sample(range(10, len(whole)), 150)]:
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        shard.write_bytes(broken)
        found = read_all(cache)  # asserts that every number it reads is right
        assert found in ([], [*range(40)])
        if not found:
            assert not shard.exists()
    assert "was damaged: what it held is computed again" in capsys.readouterr().err


@pytest.fixture
def small(root):
    """A cache of two images, in one shard."""
    cache = ActivationCache({})
    fill(cache, HASHES[:2])
    (shard,) = shards(root)
    return cache, shard


def test_a_shard_cut_off_at_any_byte_is_found_and_never_read_as_a_number(small, capsys):
    cache, shard = small
    whole = shard.read_bytes()
    for length in range(len(whole)):
        shard.write_bytes(whole[:length])
        assert read_all(cache) == []
        assert not shard.exists()
    assert capsys.readouterr().err.count("was damaged: what it held is computed again") == len(whole)


def test_a_shard_with_any_bit_flipped_gives_the_right_numbers_or_is_found(small):
    cache, shard = small
    whole = shard.read_bytes()
    for position, bit in itertools.product(range(len(whole)), range(8)):
        broken = bytearray(whole)
        broken[position] ^= 1 << bit
        shard.write_bytes(broken)
        found = read_all(cache)  # asserts that every number it reads is right
        assert found == ([0, 1] if shard.exists() else [])


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 8, b"no shard at all", None], ids=["empty", "zeros", "text", "half"]
)
def test_a_file_that_is_no_whole_shard_is_deleted_with_a_warning(content, root, capsys):
    cache = ActivationCache({})
    fill(cache, HASHES)
    (shard,) = shards(root)
    shard.write_bytes(shard.read_bytes()[:-700] if content is None else content)
    assert read_all(cache) == []
    assert capsys.readouterr().err.startswith(f"warning: {shard} was damaged")
    assert not shard.exists()
    fill(cache, HASHES)
    assert read_all(cache) == [*range(40)]


def test_a_shard_that_another_process_deletes_meanwhile_is_looked_up_again(root):
    cache = ActivationCache({})
    fill(cache, HASHES)
    stored = cache.find(to_digests(HASHES), [A, B])
    shards(root)[0].unlink()
    with pytest.raises(DamagedShardError):
        list(stored.read(np.arange(40), [A]))
    assert read_all(cache) == []


def test_what_a_killed_writer_left_is_not_read_and_is_swept_after_a_day(root):
    cache = ActivationCache({})
    fill(cache, HASHES)
    (shard,) = shards(root)
    ended = subprocess.Popen(["true"])
    ended.wait()
    young, old = (shard.with_name(f".{n}.safetensors.tmp-{ended.pid}") for n in (1, 2))
    for path in (young, old):
        shutil.copy(shard, path)
    shard.unlink()
    os.utime(old, (time.time() - 100_000,) * 2)
    assert read_all(cache) == []
    cache.writer()
    assert (young.exists(), old.exists()) == (True, False)


def test_a_clock_that_jumps_forward_takes_no_file_from_a_process_that_writes_it(root, monkeypatch):
    cache = ActivationCache({})
    fill(cache, HASHES)
    (shard,) = shards(root)
    in_use = shard.with_name(f".1.safetensors.tmp-{os.getppid()}")
    in_use.write_bytes(b"half a shard")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * cache_module.OLD_SECONDS)
    cache.writer()
    assert in_use.exists()


def test_the_cost_is_remembered_and_shared_out_by_images_and_pixels(monkeypatch):
    clock = SimpleNamespace(monotonic=iter([100.0, 110.0, 110.0]).__next__, time=time.time, time_ns=time.time_ns)
    monkeypatch.setattr(cache_module, "time", clock)
    monkeypatch.setattr(cache_module, "core_seconds", iter([5.0, 23.0]).__next__)
    monkeypatch.setattr(cache_module, "peak_memory_bytes", lambda: 7000)
    monkeypatch.setattr(cache_module, "FLUSH_IMAGES", 40)
    cache = ActivationCache({})
    small, large = Column(30, "identity", "pooled"), Column(60, "identity", "pooled")
    cache.writer().add(HASHES, 1, {c: np.zeros((40, 5), np.float32) for c in (small, large)})
    everything = cache.find(to_digests(HASHES), [small, large]).cost()
    assert everything == {"seconds": 10.0, "core_seconds": 18.0, "peak_memory_bytes": 7000}
    quarter = cache.find(to_digests(HASHES[:10]), [small, large]).cost()
    assert quarter == {"seconds": 2.5, "core_seconds": 4.5, "peak_memory_bytes": 7000}
    only_small = cache.find(to_digests(HASHES), [small]).cost()  # 30 * 30 of 30 * 30 + 60 * 60 pixels: a fifth
    assert only_small["seconds"] == pytest.approx(2.0)
    assert only_small["core_seconds"] == pytest.approx(3.6)


WRITER = """
import hashlib, sys, time
import numpy as np
from stages.store import cache
from stages.store.cache import ActivationCache, Column

cache.FLUSH_IMAGES = 2
column = Column(64, "identity", "pooled")
with ActivationCache({}).writer() as writer:
    for n in range(int(sys.argv[1]), int(sys.argv[2])):
        image_hash = hashlib.sha256(bytes([n])).hexdigest()
        writer.add([image_hash], 1, {column: np.full((1, 5), n, np.float32)})
"""


def test_processes_that_write_at_once_keep_out_of_each_other_s_way(root):
    ranges = [(0, 30), (10, 40), (0, 40)]
    running = [subprocess.Popen([sys.executable, "-c", WRITER, *map(str, r)], cwd=ROOT) for r in ranges]
    assert [process.wait() for process in running] == [0, 0, 0]
    hashes = {hashlib.sha256(bytes([n])).hexdigest(): n for n in range(40)}
    stored = ActivationCache({}).find(to_digests(sorted(hashes)), [A])
    assert stored.complete
    found = np.empty((40, 5), np.float32)
    for _, at, rows in stored.read(np.arange(40), [A]):
        found[at] = rows
    np.testing.assert_array_equal(found, np.array([[hashes[h]] * 5 for h in sorted(hashes)], np.float32))
    assert not list(root.rglob("*.tmp-*"))

"""extract: every image, size and view once; the same bytes whatever was computed when, and by whom."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from stages import extract as extract_module
from stages.backbones import passes
from stages.cache import held, uses
from stages.cli import UserError
from stages.extract import extract
from stages.params import Features
from stages.samples.decoding import INTERPOLATIONS, BadImage, apply_view, to_arrays, to_arrays_of_each
from stages.sources._raw import Found, Images, read_images, write_images
from stages.store import cache
from stages.store.activations import read_features
from tests.conftest import cell_files

ROOT = Path(__file__).parents[1]
CELLS = 14
LAYERS = {"blocks.0": 3, "blocks.1": 2, "pooled": 4, "logits": 5}


class Network:
    """Stands for an engine: a function of each image's pixels alone, different for every output; it counts."""

    batch_size, calls = 4, 2

    def __init__(self, features):
        self.names = (*features.all_layers, *(["logits"] if features.logits else []))
        self.identity = {"engine": "test"}
        self.seen = Counter()

    def __call__(self, images):
        assert images.flags.c_contiguous
        assert len(images) <= self.batch_size
        self.seen.update(self.names * len(images))
        return {name: self.output(name, images) for name in self.names}

    @staticmethod
    def output(name, images):
        if name == "maps":
            return images[:, :1, ::2, ::2].astype(np.float32) / 7
        grey = images.astype(np.float32).mean(1)
        places = np.random.default_rng(len(name) + ord(name[-1])).integers(0, 2**31, (2, LAYERS[name]))
        side = images.shape[-1]
        return grey[:, places[0] % side, places[1] % side] / 3 + grey.mean((1, 2))[:, None]

    def operations(self, size, channels):
        return size * size * channels * len(self.names)


@pytest.fixture
def engines(monkeypatch):
    """Every engine that was opened while the test ran; the pixels' own engine stays as it is."""
    opened = []
    real = passes.open_engine

    def open_engine(backbone, features):
        if features.cut == "image":
            return real(backbone, features)
        opened.append(Network(features))
        return opened[-1]

    monkeypatch.setattr(passes, "open_engine", open_engine)
    monkeypatch.setattr(extract_module, "open_engine", open_engine)
    return opened


def passed(engines):
    """How often an image went through for each output, and forget it."""
    total = sum((engine.seen for engine in engines), Counter())
    engines.clear()
    return dict(total)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Files of 14 real cells (one twice), of the same cells in colour, and of what cannot be decoded."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, path in enumerate(cell_files(CELLS)):
        shutil.copy(path, folder / f"grey-{number:02}.png")
    shutil.copy(folder / "grey-03.png", folder / "again.png")
    grey = [Image.open(path) for path in cell_files(3)]
    Image.merge("RGB", grey).save(folder / "colour-0.png")
    Image.merge("RGB", grey[::-1]).resize((500, 400)).save(folder / "colour-1.jpg", quality=90)
    (folder / "broken-0.png").write_bytes((folder / "grey-00.png").read_bytes()[:5000])
    (folder / "broken-1.txt").write_text("this is no image")
    (folder / "broken-2.png").touch()
    return folder


def put(name, files, **columns):
    """Make a download of files in the project one stands in; columns : a value for all of them each."""
    folder = Path("data/raw") / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = [Found(path.name, path, {"size": path.stat().st_size, **columns}) for path in files]
    write_images(folder, found, source="test", origin="a test", licence="none")


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch, pictures):
    """A project with the downloads grey (with a duplicate), mixed (with colour) and all, and a backbone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DVC_ROOT", raising=False)
    put("grey", [*pictures.glob("grey-*"), pictures / "again.png"])
    put("mixed", [*pictures.glob("grey-*"), *pictures.glob("colour-*")])
    put("all", list(pictures.iterdir()))
    make_backbone(tmp_path / "data/raw/network")
    return tmp_path


def make_backbone(folder):
    """Write weights that stand for a network's; the engine of these tests reads none."""
    from safetensors.numpy import save_file

    from stages.backbones.weights import hash_weights

    folder.mkdir(parents=True)
    save_file({"weight": np.arange(6, dtype=np.float32)}, folder / "weights.safetensors")
    facts = {"network": "some", "library": "timm", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    facts["weights_hash"] = hash_weights(folder / "weights.safetensors")
    (folder / "network.json").write_text(json.dumps(facts))


def entry(**keys):
    return Features(**{"images": "grey", "backbone": "raw/network", "image_size": 32, **keys})


def contents(name):
    return {path.name: path.read_bytes() for path in sorted((Path("data/features") / name).iterdir())}


def expected(images, sizes, views, layers, interpolation="bilinear"):
    """The same features by a plain loop over the images, in the order of their hashes: (n, views, sum of D)."""
    rows = {}
    for row, image_hash in enumerate(images.image_hashes):
        pixels = to_arrays(images.read(row), sizes, "crop", interpolation)
        parts = [
            np.concatenate([Network.output(n, apply_view(pixels[s], v)[None])[0] for s in sizes for n in layers])
            for v in views
        ]
        rows[image_hash] = np.stack(parts)
    return np.stack([rows[image_hash] for image_hash in sorted(rows)])


# ---- what is stored


def test_sizes_layers_and_views_stand_in_the_order_that_the_entry_names(engines):
    views, layers = ["identity", "flip", "turn90"], ["pooled", "blocks.1"]
    extract("f", entry(image_size=[32, 48], layers=layers, views=views))
    store = read_features("f")
    np.testing.assert_array_equal(store.read(np.arange(CELLS)), expected(read_images("grey"), [32, 48], views, layers))
    assert store.facts["blocks"] == [
        {"size": 32, "layer": "pooled", "start": 0, "stop": 4},
        {"size": 32, "layer": "blocks.1", "start": 4, "stop": 6},
        {"size": 48, "layer": "pooled", "start": 6, "stop": 10},
        {"size": 48, "layer": "blocks.1", "start": 10, "stop": 12},
    ]
    assert (store.views, store.shape, store.facts["count"]) == (views, (12,), CELLS)
    assert store.facts["operations"] == 3 * 2 * (32 * 32 + 48 * 48)
    assert passed(engines) == {"pooled": 3 * 2 * CELLS, "blocks.1": 3 * 2 * CELLS}  # the duplicate went through once


def test_logits_are_those_of_the_first_size_and_the_image_as_it_is(engines):
    extract("f", entry(image_size=[48, 32], views=["identity", "flip"], logits=True))
    logits = read_features("f").logits(np.arange(CELLS))
    np.testing.assert_array_equal(logits, expected(read_images("grey"), [48], ["identity"], ["logits"])[:, 0])
    assert passed(engines) == {"pooled": 4 * CELLS, "logits": CELLS}


@pytest.mark.usefixtures("engines")
def test_a_cut_inside_the_network_keeps_the_shape_of_its_output():
    extract("f", entry(cut="maps", views=["identity", "transpose"]))
    store, images = read_features("f"), read_images("grey")
    assert store.shape == (1, 16, 16)
    (row,) = store.rows([images.image_hashes[5]])
    pixels = to_arrays(images.read(5), [32])[32]
    np.testing.assert_array_equal(store.read([row])[0, 0], pixels[:, ::2, ::2].astype(np.float32) / 7)
    np.testing.assert_array_equal(store.read([row])[0, 1], pixels.swapaxes(1, 2)[:, ::2, ::2].astype(np.float32) / 7)


@pytest.mark.parametrize(("images", "channels"), [("grey", 1), ("mixed", 3)])
def test_pixels_are_stored_in_one_channel_unless_some_image_is_in_colour(images, channels, engines):
    extract("f", entry(images=images, cut="image", image_size=24, views=["identity", "flip"]))
    store, raw = read_features("f"), read_images(images)
    assert (store.shape, store.facts["dtype"], store.facts["operations"]) == ((channels, 24, 24), "uint8", 0)
    for row, image_hash in enumerate(raw.image_hashes):
        pixels = np.broadcast_to(to_arrays(raw.read(row), [24])[24], store.shape)
        np.testing.assert_array_equal(store.read(store.rows([image_hash]))[0], [pixels, pixels[..., ::-1]])
    assert engines == []


@pytest.mark.usefixtures("engines")
def test_half_precision_is_rounded_from_single():
    extract("single", entry())
    extract("half", entry(dtype="float16"))
    single, half = (read_features(name).read(np.arange(CELLS)) for name in ("single", "half"))
    np.testing.assert_array_equal(half, single.astype(np.float16).astype(np.float32))
    assert read_features("half").facts["bytes_per_image"] == 8


@pytest.mark.usefixtures("engines")
def test_what_cannot_be_decoded_is_listed_with_the_reason():
    extract("f", entry(images="all"))
    store, raw = read_features("f"), read_images("all")
    assert len(store) == CELLS + 2
    by_name = dict(zip(raw.table["sample"].to_pylist(), raw.image_hashes, strict=True))
    broken = {name: store.rejected[by_name[name]] for name in by_name if name.startswith("broken")}
    assert broken["broken-1.txt"] == "not an image that can be read"
    assert broken["broken-2.png"] == "the file is empty"
    assert "truncated" in broken["broken-0.png"]
    assert len(store.rejected) == 3
    assert (store.rows([by_name[name] for name in broken]) == -1).all()


@pytest.mark.usefixtures("engines")
def test_images_of_which_none_can_be_decoded_are_refused_and_nothing_is_written(pictures):
    put("broken", list(pictures.glob("broken-1*")))
    with pytest.raises(UserError, match=r"data/raw/broken: none of 1 images can be decoded \(not an image"):
        extract("f", entry(images="broken"))
    assert not Path("data/features").exists()


@pytest.mark.usefixtures("engines")
def test_the_folder_holds_the_backbone_and_says_what_the_numbers_mean():
    extract("f", entry(layers=["pooled", "blocks.0"]))
    facts, network = read_features("f").facts, json.loads(Path("data/raw/network/network.json").read_text())
    assert Path("data/features/f/backbone.safetensors").read_bytes() == b"".join(
        [Path("data/raw/network/weights.safetensors").read_bytes()]
    )
    assert (facts["network"], facts["weights_hash"]) == (network, network["weights_hash"])
    assert facts["entry"]["layers"] == ["pooled", "blocks.0"]
    assert facts["engine"] == {"engine": "test"}


@pytest.mark.usefixtures("engines")
def test_the_content_hash_tells_settings_apart_but_not_names():
    def content_hash(**keys):
        extract("f", entry(**keys))
        return read_features("f").facts["content_hash"]

    plain = content_hash()
    shutil.copytree("data/raw/network", "data/raw/same-network")
    assert content_hash(backbone="raw/same-network") == plain
    assert content_hash(images="mixed") == plain
    assert content_hash(layers=["pooled"]) == plain  # written out, it is what stands there by default
    others = [
        content_hash(**keys)
        for keys in ({"image_size": 48}, {"resize": "stretch"}, {"views": ["identity", "flip"]}, {"dtype": "float16"})
    ]
    assert len({plain, *others}) == 5


# ---- what is computed


def test_of_a_new_view_size_layer_or_image_only_that_is_computed(engines, pictures):
    extract("f", entry())
    assert passed(engines) == {"pooled": CELLS}
    extract("f", entry())
    assert passed(engines) == {}
    extract("f", entry(views=["identity", "flip"]))
    assert passed(engines) == {"pooled": CELLS}
    extract("f", entry(views=["identity", "flip"], image_size=[32, 48]))
    assert passed(engines) == {"pooled": 2 * CELLS}
    extract("f", entry(layers=["blocks.0", "pooled"]))
    assert passed(engines) == {"blocks.0": CELLS}
    extract("f", entry(logits=True))
    assert passed(engines)["logits"] == CELLS
    put("grey", [*pictures.glob("grey-*"), *pictures.glob("colour-*")])
    extract("f", entry(layers=["blocks.0", "pooled"]))
    assert passed(engines) == {"blocks.0": 2, "pooled": 2}
    put("grey", list(pictures.glob("grey-0*")))
    extract("f", entry())
    assert passed(engines) == {}
    assert len(read_features("f")) == 10


def test_of_images_that_are_labelled_otherwise_nothing_is_computed_and_the_features_stay_the_same(engines, pictures):
    extract("f", entry())
    before = contents("f")
    passed(engines)
    put("grey", [*pictures.glob("grey-*"), pictures / "again.png"], label="another")
    extract("f", entry())
    assert passed(engines) == {}
    assert contents("f") == before


@pytest.mark.parametrize("change", [{"resize": "stretch"}, {"dtype": "float16"}])
def test_another_preparation_of_the_image_is_never_taken_from_the_cache(change, engines):
    extract("f", entry(images="mixed"))
    passed(engines)
    extract("f", entry(images="mixed", **change))
    assert passed(engines) == {"pooled": CELLS + 2}


def test_other_weights_are_never_taken_from_the_cache(engines):
    from safetensors.numpy import save_file

    from stages.backbones.weights import hash_weights

    extract("f", entry())
    passed(engines)
    folder = Path("data/raw/network")
    save_file({"weight": np.ones(6, np.float32)}, folder / "weights.safetensors")
    facts = json.loads((folder / "network.json").read_text())
    facts["weights_hash"] = hash_weights(folder / "weights.safetensors")
    (folder / "network.json").write_text(json.dumps(facts))
    extract("f", entry())
    assert passed(engines) == {"pooled": CELLS}


@pytest.mark.usefixtures("engines")
def test_an_image_is_decoded_once_for_all_sizes_and_views(monkeypatch):
    decoded = []

    def count(content, *arguments):
        decoded.append(content)
        return to_arrays_of_each(content, *arguments)

    monkeypatch.setattr("stages.store.pixels.to_arrays_of_each", count)
    extract("f", entry(image_size=[32, 48], views=["symmetries"], layers=["blocks.0", "pooled"], logits=True))
    assert len(decoded) == len(set(decoded)) == CELLS


@pytest.mark.usefixtures("engines")
def test_no_more_images_are_held_than_a_few_batches(monkeypatch):
    decoding, finished, most = [0], [0], [0]

    def count(content, *arguments):
        decoding[0] += 1
        most[0] = max(most[0], decoding[0] - finished[0])
        return to_arrays_of_each(content, *arguments)

    original = cache.CacheWriter.add

    def add(self, image_hashes, channels, rows):
        finished[0] += len(image_hashes)
        original(self, image_hashes, channels, rows)

    monkeypatch.setattr("stages.store.pixels.to_arrays_of_each", count)
    monkeypatch.setattr(cache.CacheWriter, "add", add)
    monkeypatch.setattr(Network, "batch_size", 1)
    monkeypatch.setenv("TRANSFER_THREADS", "1")
    put("many", cell_files(60))
    extract("f", entry(images="many"))
    assert most[0] <= 14  # 4 decoded ahead by one thread, 2 batches of 1 ahead for each of 2 calls, and those in work


# ---- the same bytes


SETTINGS = {"image_size": [32, 48], "views": ["identity", "flip", "turn90"], "layers": ["blocks.0", "pooled"]}


@pytest.fixture
def undisturbed(engines):
    """What one run in one go writes, and its cache taken away again."""
    extract("f", entry(images="all", logits=True, **SETTINGS))
    result = contents("f")
    shutil.rmtree("cache")
    shutil.rmtree("data/features")
    passed(engines)
    return result


def test_the_bytes_do_not_tell_what_was_cached(undisturbed, engines, monkeypatch):
    monkeypatch.setattr(cache, "FLUSH_IMAGES", 5)
    extract("part", entry(images="grey", image_size=48, views=["identity", "turn90"], logits=True))
    extract("layer", entry(images="mixed", layers=["blocks.0"], views=["identity", "flip"]))
    extract("f", entry(images="all", logits=True, **SETTINGS))
    assert contents("f") == undisturbed
    passed(engines)
    extract("f", entry(images="all", logits=True, **SETTINGS))
    assert contents("f") == undisturbed
    assert passed(engines) == {}


@pytest.mark.usefixtures("engines")
def test_the_bytes_do_not_tell_in_which_order_and_batches_images_came(undisturbed, monkeypatch):
    order = np.random.default_rng(0).permutation(40).tolist()
    monkeypatch.setattr(np, "sort", lambda rows: np.array(sorted(rows.tolist(), key=order.__getitem__)))
    monkeypatch.setattr(Network, "batch_size", 3)
    monkeypatch.setattr(extract_module, "PIECE_BYTES", 100)
    extract("f", entry(images="all", logits=True, **SETTINGS))
    assert contents("f") == undisturbed


def test_a_damaged_cache_is_computed_again_into_the_same_bytes(undisturbed, engines, monkeypatch, capsys):
    monkeypatch.setattr(cache, "FLUSH_IMAGES", 5)
    extract("f", entry(images="all", logits=True, **SETTINGS))
    passed(engines)
    shards = sorted(Path("cache").rglob("*.safetensors"))
    assert len(shards) >= 3
    broken = bytearray(shards[1].read_bytes())
    broken[-100] ^= 4
    shards[1].write_bytes(broken)
    shards[2].write_bytes(shards[2].read_bytes()[:1000])
    extract("f", entry(images="all", logits=True, **SETTINGS))
    assert contents("f") == undisturbed
    assert 0 < passed(engines)["logits"] < CELLS
    assert capsys.readouterr().err.count("was damaged: what it held is computed again") == 2


@pytest.mark.usefixtures("engines")
def test_a_cache_that_keeps_nothing_ends_in_an_error(monkeypatch):
    monkeypatch.setattr(cache.CacheWriter, "flush", lambda _: None)
    with pytest.raises(RuntimeError, match="does not keep what is written"):
        extract("f", entry())


# ---- costs


@pytest.mark.usefixtures("engines")
def test_the_cost_is_what_it_was_when_it_was_really_computed():
    extract("first", entry())
    cost = json.loads(Path("data/costs/extract/first.json").read_text())
    assert cost["images"] == CELLS
    assert cost["bytes"] == CELLS * 4 * 4
    assert cost["operations"] == 32 * 32
    assert cost["images_per_second"] == pytest.approx(CELLS / cost["seconds"], rel=0.1)
    assert cost["core_seconds"] > 0
    assert cost["peak_memory_bytes"] > 30e6
    extract("again", entry())
    assert Path("data/costs/extract/again.json").read_bytes() == Path("data/costs/extract/first.json").read_bytes()


# ---- processes of their own, on pixels: no network is needed to be killed

PIXELS = """
import os, signal, sys
from stages.backbones import passes
from stages.extract import extract
from stages.params import Features
from stages.store import cache

open_engine = passes.open_engine
def small_batches(*arguments):
    engine = open_engine(*arguments)
    engine.batch_size = 2
    return engine
passes.open_engine = small_batches
cache.FLUSH_IMAGES = 2
kill_after, shards, write = int(sys.argv[1]), [], cache.CacheWriter._write

def counted(*arguments):
    if len(shards) == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)
    shards.append(1)

cache.CacheWriter._write = counted
views = ["identity", "flip", "turn90"]
extract("f", Features(images="mixed", backbone="raw/network", image_size=40, cut="image", views=views))
print(len(shards), "torch" in sys.modules, "onnxruntime" in sys.modules, "pandas" in sys.modules)
"""


def start(kill_after=-1):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PIXELS, str(kill_after)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_it_goes_on_from_there_to_the_bytes_of_an_undisturbed_run():
    undisturbed = start()
    assert undisturbed.communicate()[0].split() == ["8", "False", "False", "False"]
    whole = contents("f")
    shutil.rmtree("cache")
    shutil.rmtree("data/features")
    killed = start(kill_after=3)
    killed.communicate()
    assert killed.returncode == -9
    assert not Path("data/features/f").exists()
    again = start()
    shards, *imported = again.communicate()[0].split()
    assert 3 <= int(shards) < 8  # those that were written are not computed again
    assert imported == ["False"] * 3
    assert contents("f") == whole


def test_two_processes_at_once_write_the_same_bytes_and_do_the_work_once():
    extract("alone", Features(images="mixed", backbone="raw/network", image_size=40, cut="image"))
    running = [start(), start()]
    shards = [int(process.communicate()[0].split()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(shards)[0] == 0
    whole = contents("f")
    again = start()
    assert again.communicate()[0].split()[0] == "0"
    assert contents("f") == whole
    store = read_features("f")
    np.testing.assert_array_equal(
        store.read(np.arange(len(store)), ["identity"]), read_features("alone").read(range(16))
    )


# ---- a real network


@pytest.fixture
def resnet():
    """A small network of timm's with random weights, as the download `resnet`."""
    from stages.fetch import fetch
    from stages.params import kind_module

    keys = {"source": "weights", "path": "x", "network": "test_resnet", "origin": "random", "library": "timm"}
    fetch("resnet", kind_module("sources", "weights").Params(**keys))
    return {"backbone": "raw/resnet", "image_size": 64}


def test_features_are_what_the_network_gives_in_the_obvious_loop(resnet):
    import torch

    from stages.backbones.backbone import load_backbone

    extract("f", entry(images="mixed", logits=True, **resnet))
    store, raw = read_features("f"), read_images("mixed")
    network, facts = load_backbone(Path("data/raw/resnet")).network, store.facts["network"]
    for row in (0, 4, len(raw) - 1):
        image = Image.open(io.BytesIO(raw.read(row))).convert("RGB")
        side = min(image.size)
        left, top = ((length - side) / 2 for length in image.size)
        image = image.resize((64, 64), INTERPOLATIONS[facts["interpolation"]], (left, top, left + side, top + side))
        pixels = (np.asarray(image) / 255 - facts["mean"]) / facts["std"]
        with torch.no_grad():
            features = network.forward_features(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])
            pooled, logits = network.forward_head(features, pre_logits=True), network.forward_head(features)
        at = store.rows([raw.image_hashes[row]])
        np.testing.assert_allclose(store.read(at)[0], pooled.numpy(), atol=1e-4 * float(pooled.abs().max()))
        np.testing.assert_allclose(store.logits(at), logits.numpy(), atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("first", ["layer1", "conv1.0"])  # bn1 is folded into conv1.6, and conv1.1 into conv1.0
def test_a_layer_has_the_same_bits_whatever_is_taken_beside_it(resnet, first):
    together = {"layers": [first, "layer3", "pooled"], "views": ["identity", "flip"], "logits": True, **resnet}
    extract("f", entry(**together))
    whole = contents("f")
    shutil.rmtree("cache/activations")
    extract("f", entry(**resnet))
    extract("f", entry(layers=["layer3"], views=["identity", "flip"], **resnet))
    extract("f", entry(**together))
    assert contents("f") == whole


# ---- several features of the same images

TWO = """\
downloads:
  large: {source: folder, path: large}
  network: {source: weights, path: params.yaml, network: tf_efficientnet_lite0, origin: package}
  another: {source: weights, path: params.yaml, network: tf_efficientnet_lite0, origin: package}
datasets: {}
features:
  one: {images: large, backbone: raw/network, image_size: 32}
  two: {images: large, backbone: raw/another, image_size: 48}
runs: {}
compare: {}
"""


@pytest.fixture
def large(work, monkeypatch):
    """Two features of six large photographs, one of them broken; returns how often any of them is decoded."""
    folder = work / "large"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, path in enumerate(cell_files(5)):
        pixels = np.asarray(Image.open(path).resize((600, 500))).astype(np.int64) + random.integers(0, 40, (500, 600))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    Image.open(folder / "4.png").convert("RGB").save(folder / "4.jpg", quality=95)
    (folder / "5.png").write_bytes((folder / "0.png").read_bytes()[:90_000])
    put("large", list(folder.iterdir()))
    make_backbone(work / "data/raw/another")
    facts = json.loads((work / "data/raw/another/network.json").read_text())
    (work / "data/raw/another/network.json").write_text(json.dumps({**facts, "network": "another"}))
    (work / "params.yaml").write_text(TWO)
    decoded = Counter()

    def counting(content, *wanted):
        decoded[content] += 1
        return to_arrays_of_each(content, *wanted)

    monkeypatch.setattr("stages.store.pixels.to_arrays_of_each", counting)
    return decoded


def both():
    """Extract both features; returns their files."""
    extract("one", entry(images="large"))
    extract("two", entry(images="large", backbone="raw/another", image_size=48))
    return contents("one"), contents("two")


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_second_network_does_not_decode_large_images_again(interpolation, large, work, monkeypatch):
    network = work / "data/raw/another/network.json"
    network.write_text(json.dumps({**json.loads(network.read_text()), "interpolation": interpolation}))
    together = both()
    rejected = 1
    assert sorted(large.values()) == [1] * 6 + [1 + 1] * rejected  # a broken file is tried by each
    np.testing.assert_array_equal(
        read_features("two").read(np.arange(6)),
        expected_of_decodable("large", 48, interpolation),
    )
    shutil.rmtree("cache")
    monkeypatch.setattr("stages.store.pixels.LARGEST_SHARE", 0.0)
    large.clear()
    assert both() == together  # what was kept changes no byte
    assert set(large.values()) == {2}


def expected_of_decodable(name, size, interpolation):
    images = read_images(name)
    rows = {}
    for row, image_hash in enumerate(images.image_hashes):
        with suppress(BadImage):
            pixels = to_arrays(images.read(row), [size], interpolation=interpolation)[size]
            rows[image_hash] = Network.output("pooled", pixels[None])
    return np.stack([rows[image_hash] for image_hash in sorted(rows)])


@pytest.mark.usefixtures("engines", "large")
def test_images_whose_pixels_are_kept_are_not_asked_for_ahead(monkeypatch):
    told, real = [], Images.readers
    monkeypatch.setattr(Images, "readers", lambda self, rows, held: told.append(held) or real(self, rows, held))
    both()
    assert [(len(held), sum(held)) for held in told] == [(7, 0), (7, 6)]  # a broken one is tried by each


@pytest.mark.usefixtures("engines", "large")
def test_pixels_that_are_kept_count_as_used(work):
    both()
    [pixels] = [row for row in held(list(uses(Path()))) if row.what == "images as pixels"]
    assert (pixels.features, pixels.unused) == (["one", "two"], [])
    (work / "params.yaml").write_text(TWO.replace("  two:", "  # two:"))
    [pixels] = [row for row in held(list(uses(Path()))) if row.what == "images as pixels"]
    assert (pixels.features, len(pixels.unused)) == ([], 2)  # one of grey images, one of colour images


@pytest.mark.usefixtures("engines", "large")
def test_what_was_kept_and_is_damaged_is_decoded_again(capfd):
    together = both()
    shutil.rmtree("data/features")
    contexts = {json.loads(path.read_text()).get("network"): path for path in Path("cache").rglob("context.json")}
    shutil.rmtree(contexts["another"].parent)
    for shard in contexts[None].parent.glob("*.safetensors"):  # the pixels
        damaged = bytearray(shard.read_bytes())
        damaged[-1] ^= 1
        shard.write_bytes(damaged)
    assert both() == together
    assert "was damaged: what it held is computed again" in capfd.readouterr().err


@pytest.mark.usefixtures("engines", "large")
def test_pixels_are_kept_for_others_alone_of_large_files_alone_and_where_there_is_room(work, monkeypatch):
    def pixels():
        written = [json.loads(path.read_text()) for path in Path("cache").rglob("context.json")]
        return sum("network" not in context for context in written)

    (work / "params.yaml").write_text(TWO.replace("  two:", "  # two:"))
    extract("one", entry(images="large"))
    assert pixels() == 0
    (work / "params.yaml").write_text(TWO.replace("image_size: 48", "image_size: 800"))
    shutil.rmtree("cache")
    extract("one", entry(images="large"))
    assert pixels() == 0  # at 800 x 800 they would take several times the room of the files
    largest = max(path.stat().st_size for path in (work / "large").iterdir())
    for share, kept in ((4.2, 0), (3.8, 1)):
        size = int((share * largest / 3 - 32 * 32) ** 0.5)
        (work / "params.yaml").write_text(TWO.replace("image_size: 48", f"image_size: {size}"))
        shutil.rmtree("cache")
        extract("one", entry(images="large"))
        assert pixels() == kept
    (work / "params.yaml").write_text(TWO)
    shutil.rmtree("cache")
    free = 2 * 3 * (32 * 32 + 48 * 48)  # half of it is what one coloured image takes
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    extract("one", entry(images="large"))
    assert pixels() == 1
    [kept] = [row for row in held(list(uses(Path()))) if row.what == "images as pixels"]
    assert len(kept.images) == 1

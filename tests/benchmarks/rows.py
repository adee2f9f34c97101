"""How prepare's time and memory grow with the number of images, as Markdown for docs/benchmarks.md.

    python -m tests.benchmarks.rows [COUNT ...]        10,000, 100,000 and 1,000,000 where none is named: 15 minutes

The images are 32 x 32 grey waves, each another, in ten classes and groups of about twenty, split four times. Small, for
what is asked is what a row costs, whatever the picture: decoding photographs takes longer, and the same for each.
Memory is what the process takes for itself. What it has on disk and maps comes beside it, as long as there is room: the
system gives it up where others need that.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np

from stages.cli import guard
from stages.sources._raw import Found, write_images
from stages.threads import thread_count
from tests.benchmarks.extract import ROOT, project, table

COUNTS = (10_000, 100_000, 1_000_000)
PARAMS = """\
downloads:
  cells: {source: elpv, path: .}
  lite0: {source: weights, path: ., network: tf_efficientnet_lite0, origin: package}
  many: {source: folder, path: many}
datasets:
  many: {images: many, group: batch, split: {test: 0.25, validation: 0.15, repeats: 4}}
features: {}
runs: {}
compare: {}
"""


def found(count: int) -> Iterator[Found]:
    """Yield so many images with a class and a batch each."""
    for number in range(count):
        columns = {"class": f"class {number % 10}", "batch": f"batch {number // 20}"}
        yield Found(f"{number:07}.png", partial(content, number), columns)


def content(number: int) -> bytes:
    """Return a PNG of waves that no other number gives."""
    from PIL import Image

    random = np.random.default_rng(number)
    at = np.arange(32) / 32 * 2 * np.pi
    waves = sum(
        np.outer(np.sin(random.integers(1, 8) * at + random.random() * 6), np.sin(random.integers(1, 8) * at))
        for _ in range(4)
    )
    pixels = np.clip(128 + 30 * np.asarray(waves) + random.normal(0, 4, (32, 32)), 0, 255).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def prepare() -> tuple[float, float, float]:
    """Prepare the images, and return the seconds, and how many MiB it took at most, without and with mapped files."""
    began, own, whole = time.perf_counter(), 0, 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "stages.prepare", "many"], env=environment) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
            own, whole = (
                max(peak, int(facts.get(fact, "0").split()[0])) for peak, fact in ((own, "RssAnon"), (whole, "VmHWM"))
            )
            time.sleep(0.01)
    if process.returncode:
        raise SystemExit("prepare has failed")
    return time.perf_counter() - began, own / 1024, whole / 1024


def main() -> None:
    """Print a row for each number of images."""
    counts = [int(text.replace(",", "")) for text in sys.argv[1:]] or COUNTS
    print(f"{platform.processor() or platform.machine()}, {thread_count()} cores, Python {platform.python_version()}\n")
    rows = []
    with project():
        Path("params.yaml").write_text(PARAMS)
        for count in counts:
            raw = Path("data/raw/many")
            raw.mkdir(parents=True, exist_ok=True)
            for old in raw.iterdir():
                old.unlink()
            write_images(raw, found(count), source="folder", origin="many", licence="none")
            seconds, own, whole = prepare()
            each = f"{seconds / count * 1e6:.0f} µs"
            rows.append((f"{count:,}", f"{seconds:.0f} s", each, f"{own:,.0f} MiB", f"{whole:,.0f} MiB"))
    table(("images", "time", "of an image", "peak memory", "with what is mapped"), *rows)


if __name__ == "__main__":
    guard(main)

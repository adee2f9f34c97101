"""How fast an epoch above a cut is, against the same epoch of the whole network, as Markdown for docs/benchmarks.md.

    python -m tests.benchmarks.training [SIZE]        about 15 minutes at 224 pixels

The same images, batch, threads and optimiser, EfficientNet-Lite0 at 224 pixels or another size, four ways in turn:

stored     what `fine_tune` does: an epoch above the cut on stored activations, reading them included
bfloat16   the same with `precision: bfloat16`
frozen     the whole network at each step, the same layers frozen and without gradients: a usual way to fine-tune;
           where the cut is `image`, none are
whole      the whole network at each step, all of it trained

The two latter run in a process of their own, as torch is without our settings of memory. On a GPU, where there is one.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stages.backbones.backbone import load_backbone
from stages.backbones.cut import IMAGE, split
from stages.backbones.engines import device
from stages.cli import guard
from stages.memory import keep_freed_memory
from stages.store.activations import read_features
from stages.threads import thread_count
from stages.transfers import Part, TrainingData
from stages.transfers.fine_tune import Params
from stages.transfers.shared import training
from stages.transfers.shared.above import lying_above
from stages.transfers.shared.layout import train_channels_last
from tests.benchmarks.extract import run, table

CUTS = (IMAGE, "blocks.2", "blocks.3", "blocks.4", "blocks.5")
IMAGES, BATCH, ROUNDS = 320, 32, 3
SIZE = int(sys.argv[1]) if sys.argv[1:] else 224
PARAMS = """\
downloads:
  cells: {source: elpv, path: .}
  lite0: {source: weights, path: ., network: tf_efficientnet_lite0, origin: package}
datasets: {}
features:
%s
runs: {}
compare: {}
"""


def stored(cut: str, precision: Literal["float32", "bfloat16"]) -> Callable[[], float]:
    """Return what runs an epoch above a cut on stored activations, and gives images/s."""
    where = torch.device(device())
    store = read_features(cut.replace(".", "-"))
    backbone = load_backbone(store.folder, "backbone.safetensors")
    rows = np.arange(IMAGES)
    labels = rows % 2
    part = Part(store.stored(rows), labels, np.eye(2, dtype=np.float32)[labels], None)  # type: ignore[arg-type]
    params = Params(kind="fine_tune", batch_size=BATCH, precision=precision)
    network = lying_above(backbone.network, backbone.facts, cut, SIZE, 2).to(where)
    if where.type == "cpu":
        train_channels_last(network)
    course = training.Course(
        network, training._optimizer(params, network), {n: t.clone() for n, t in network.state_dict().items()}
    )
    images = training._Images(params, [part], TrainingData(["a", "b"], part, part))

    def epoch() -> float:
        start = time.perf_counter()
        training._epoch(params, course, images, IMAGES // BATCH, None, where)
        return IMAGES / (time.perf_counter() - start)

    return epoch


def obvious(cut: str) -> Callable[[], float]:
    """Return the same of the whole network from pixels; what lies below the cut is frozen, or nothing is."""
    store = read_features(IMAGE)
    network = load_backbone(store.folder, "backbone.safetensors").network
    pixels = torch.from_numpy(store.read(np.arange(IMAGES), ["identity"])[:, 0]).expand(-1, 3, -1, -1)
    pixels = ((pixels / 255 - 0.5) / 0.5).contiguous(memory_format=torch.channels_last)
    labels, where = torch.arange(IMAGES) % 2, device()
    network.classifier = nn.Linear(network.classifier.in_features, 2)  # type: ignore[union-attr, arg-type]
    parts = split(network, cut, SIZE) if cut != IMAGE else None
    network.to(where)
    trained = (parts.above if parts else network).to(where).requires_grad_(True)
    if parts is not None:
        parts.below.to(where)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-4, fused=True)

    def logits(batch: torch.Tensor) -> torch.Tensor:
        if parts is None:
            return network(batch)
        with torch.no_grad():
            below = parts.below(batch)
        return parts.above(below)

    def epoch() -> float:
        network.train()
        if parts is not None:
            parts.below.eval()
            parts.above.train()
        start = time.perf_counter()
        for at in torch.randperm(IMAGES).split(BATCH):
            batch = pixels[at].contiguous(memory_format=torch.channels_last).to(where)
            loss = cross_entropy(logits(batch), labels[at].to(where))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()  # a GPU answers before it has done
        return IMAGES / (time.perf_counter() - start)

    return epoch


@contextmanager
def elsewhere(cut: str) -> Iterator[Callable[[], float]]:
    """Give `obvious` in a process of its own, which sleeps while others work."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs, cut), daemon=True)
    process.start()

    def epoch() -> float:
        ours.send(None)
        return float(ours.recv())

    try:
        yield epoch
    finally:
        process.terminate()
        process.join()


def _serve(pipe: Connection, cut: str) -> None:
    torch.set_num_threads(thread_count())
    epoch = obvious(cut)
    while True:
        pipe.recv()
        pipe.send(epoch())


def main() -> None:
    """Time the three ways in turn at each cut."""
    where = torch.cuda.get_device_name() if device() == "cuda" else platform.processor() or platform.machine()
    print(f"{where}, {thread_count()} cores, torch {torch.__version__}, {SIZE} pixels\n")
    torch.set_num_threads(thread_count())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TRANSFER_CACHE"] = str(Path(folder) / "cache")
        entry = "  {0}: {{images: cells, backbone: raw/lite0, image_size: {2}, cut: {1}}}"
        Path("params.yaml").write_text(
            PARAMS.replace("SIZE", str(SIZE)) % "\n".join(entry.format(c.replace(".", "-"), c, SIZE) for c in CUTS)
        )
        for download in ("cells", "lite0"):
            run("stages.fetch", download)
        for cut in CUTS:
            run("stages.extract", cut.replace(".", "-"))
        keep_freed_memory()
        rows = []
        with elsewhere(IMAGE) as of_whole:
            for cut in CUTS:
                with elsewhere(cut) as of_frozen:
                    ways = [stored(cut, "float32"), stored(cut, "bfloat16"), of_frozen, of_whole]
                    rates = [[way() for way in ways] for _ in range(ROUNDS)]
                per_second = [f"{median(column):.0f}" for column in zip(*rates, strict=True)]
                ratios = [median(r[0] / r[other] for r in rates) for other in (2, 3)]
                rows.append((cut, *per_second, f"{ratios[0]:.1f}", f"**{ratios[1]:.1f}**"))
        head = ("cut", "stored, images/s", "in bfloat16", "frozen", "whole", "stored to frozen", "stored to whole")
        table(head, *rows)
        os.chdir("/")


if __name__ == "__main__":
    guard(main)

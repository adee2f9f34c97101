"""Augmentations keep what an image shows, and draw anew for each image."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from stages.transfers.shared.augmentation import Augmentation, augmentation
from tests.backbones.conftest import cells


@pytest.mark.parametrize("name", get_args(Augmentation))
def test_each_image_is_changed_by_itself_and_keeps_shape_and_range(name: Augmentation) -> None:
    torch.manual_seed(0)
    pixels = torch.from_numpy(cells(1, 64, 1)).float().repeat(24, 1, 1, 1)
    changed = augmentation([name], 64)(pixels)
    assert (changed.shape, changed.dtype) == (pixels.shape, pixels.dtype)
    assert 0 <= changed.min() <= changed.max() <= 255
    assert len(torch.unique(changed, dim=0)) > 1
    torch.manual_seed(0)
    assert torch.equal(augmentation([name], 64)(pixels), changed)


def test_flips_and_turns_are_those_of_numpy() -> None:
    pixels = torch.from_numpy(cells(1, 32, 3)).float()
    image = pixels[0].numpy()
    symmetries = {
        "flip": [image, image[:, :, ::-1]],
        "flip_vertical": [image, image[:, ::-1]],
        "turns": [np.rot90(image, k, (1, 2)) for k in range(4)],
    }
    torch.manual_seed(0)
    for name, possible in symmetries.items():
        found = augmentation([name], 32)(pixels.repeat(40, 1, 1, 1)).numpy()
        which = [[np.array_equal(one, other) for other in possible] for one in found]
        assert np.array(which).sum(axis=1).tolist() == [1] * 40
        assert np.array(which).any(axis=0).all()

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


def differences(names: list[Augmentation], image: np.ndarray) -> np.ndarray:
    """Return how much each of 200 changed copies (200, C, S, S) of an image differs from it."""
    torch.manual_seed(0)
    pixels = torch.from_numpy(image).float()
    return (augmentation(names, image.shape[-1])(pixels.repeat(200, 1, 1, 1)) - pixels).numpy()


def test_a_crop_keeps_three_fifths_of_the_image_at_least() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[:, None] * 4, (1, 64, 64)).copy()
    heights = ramp[0, :, 0] + differences(["crop"], ramp)[:, 0, :, 32]  # what was cut out, from row to row
    kept = (heights[:, -1] - heights[:, 0] + 4) / 256
    # The area is 60 to 100 %, and at most a third wider than high: 0.6 / (4 / 3) of the height is the square of 0.67.
    assert 0.63 < kept.min() < 0.75
    assert kept.max() > 0.95


def test_rotations_are_by_ten_degrees_at_most_either_way() -> None:
    line = np.zeros((1, 101, 101), np.float32)
    line[0, 50] = 200
    turned = line + differences(["rotate"], line)
    rows = (turned[:, 0, :, 90] * np.arange(101)).sum(1) / turned[:, 0, :, 90].sum(1)  # 40 pixels from the centre
    degrees = np.degrees(np.arctan((rows - 50) / 40))
    assert -10.5 < degrees.min() < -9
    assert 9 < degrees.max() < 10.5


def test_light_changes_by_a_fifth_at_most() -> None:
    half = np.full((1, 8, 8), 100, np.float32)  # contrast does nothing to it
    change = differences(["light"], half)[:, 0, 0, 0]
    assert -20 <= change.min() < -17
    assert 17 < change.max() <= 20


def test_rand_augment_makes_two_changes_of_those_of_its_paper() -> None:
    grey = np.full((1, 32, 32), 100, np.float32)
    grey[0, 8:24, 8:24] = 160
    found = differences(["rand_augment"], grey)
    unchanged = np.abs(found).max(axis=(1, 2, 3)) == 0
    moved = np.abs(found).mean(axis=(1, 2, 3)) > 2
    assert 0 < unchanged.mean() < 0.5  # of fourteen changes some leave such an image as it is
    assert moved.mean() > 0.4


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

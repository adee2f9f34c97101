"""Training above a cut, on real cells: what moves and what does not, from where, and what a kill costs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from stages.backbones.cut import counting, split
from stages.cli import UserError
from stages.params import Dataset, Features, Label
from stages.transfers import Part, TrainingData
from stages.transfers.fine_tune import Params, fit, problem
from stages.transfers.shared import starting, training
from stages.transfers.shared.above import Above, built_above, lying_above
from stages.transfers.shared.mixing import cut_and_paste, mixed
from stages.transfers.shared.network import outputs
from stages.transfers.shared.starting import COSTS
from stages.transfers.shared.training import fit_temperature, rate
from tests.backbones.conftest import cells, network

CUT, SIZE = "layer2", 64
FACTS = {"library": "timm", "network": "test_resnet", "classes": 1000, "mean": [0.5] * 3, "std": [0.5] * 3}
QUICK: dict[str, Any] = {"kind": "fine_tune", "epochs": 3, "batch_size": 16, "min_steps": 0}


def params(**keys: Any) -> Params:
    return Params.model_validate({**QUICK, **keys})


def a_network() -> nn.Module:
    return copy.deepcopy(network("timm", "test_resnet"))


@pytest.fixture(scope="module")
def data() -> TrainingData:
    """Real cells, some turned upside down: which, is the class. Two views, the second mirrored."""
    below = split(a_network(), CUT, SIZE).below
    pixels = (torch.from_numpy(cells(72, SIZE, 3)).float() / 255 - 0.5) / 0.5
    labels = np.arange(len(pixels)) % 2
    pixels[labels == 1] = pixels[labels == 1].flip(2) * 0.5
    with torch.no_grad():
        activations = torch.stack([below(pixels), below(pixels.flip(3))], 1).numpy()

    def part(rows: slice) -> Part:
        own = labels[rows]
        soft = np.stack([1 - 0.6 * own, 0.6 * own], 1).astype(np.float32)
        return Part(activations[rows], own.astype(np.int64), soft, None)

    return TrainingData(
        ["sound", "broken"],
        part(slice(0, 48)),
        part(slice(48, None)),
        lambda: lying_above(a_network(), FACTS, CUT, SIZE, 2),
        {"network": FACTS, "cut": CUT, "image_size": SIZE},
    )


def test_what_lies_below_the_cut_is_unchanged_and_what_lies_above_is_trained(data: TrainingData) -> None:
    whole = a_network()
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    above = {name for name, _ in split(whole, CUT, SIZE).above.named_parameters()}
    shared = lying_above(whole, FACTS, CUT, SIZE, 2)
    given = TrainingData(data.classes, data.training, data.validation, lambda: shared, data.facts)
    fit(params(), given, 0)
    after = whole.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    statistics = {n for n in after if "running" in n or "num_batches" in n}
    classifier = {"fc.weight", "fc.bias"}  # its place has the new head
    assert above - classifier <= moved
    assert {n for n in moved if not n.startswith(("layer3", "layer4"))} == set()
    assert {n for n in statistics if n.startswith(("layer3", "layer4"))} <= moved


def test_named_modules_alone_are_trained_and_frozen_batch_norms_keep_their_statistics(data: TrainingData) -> None:
    whole = a_network()
    shared = lying_above(whole, FACTS, CUT, SIZE, 2)
    before = {name: tensor.clone() for name, tensor in shared.state_dict().items()}
    given = TrainingData(data.classes, data.training, data.validation, lambda: shared, data.facts)
    model = fit(params(train=["layer4"]), given, 0)
    moved = {name for name, tensor in shared.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] if name.startswith("body") else "head" for name in moved} == {"layer4", "head"}
    trained = [p.numel() for n, p in shared.named_parameters() if "layer4" in n or n.startswith("head")]
    assert model.trained_parameters == sum(trained)


def test_norms_alone_are_trained(data: TrainingData) -> None:
    shared = lying_above(a_network(), FACTS, CUT, SIZE, 2)
    before = {name: tensor.clone() for name, tensor in shared.named_parameters()}
    given = TrainingData(data.classes, data.training, data.validation, lambda: shared, data.facts)
    fit(params(train=["norms"], epochs=1), given, 0)
    moved = {name for name, tensor in shared.named_parameters() if not torch.equal(tensor, before[name])}
    norms = {f"{n}.{p}" for n, m in shared.named_modules() if isinstance(m, nn.BatchNorm2d) for p in ("weight", "bias")}
    assert moved == norms | {"head.weight", "head.bias"}


def test_a_module_that_is_not_there_is_answered_by_the_nearest(data: TrainingData) -> None:
    with pytest.raises(UserError, match="train names layr4, which is no module above the cut; did you mean layer4"):
        fit(params(train=["layr4"]), data, 0)


def test_steps_are_those_of_the_whole_network_with_the_same_layers_frozen(data: TrainingData) -> None:
    """The obvious way: run everything at each step, and let only what lies above learn."""
    keys = {"start": "zero", "average": 0, "clip": 0, "views": "identity", "optimizer": "sgd", "layer_decay": 1.0}
    keys |= {"weight_decay": 0.0, "warmup": 0.0, "batch_size": 48, "learning_rate": 0.01, "average_views": False}
    model = fit(params(**keys, epochs=2), data, 0)

    whole = a_network()
    parts = split(whole, CUT, SIZE)
    whole.fc = nn.Linear(whole.fc.in_features, 2)
    nn.init.zeros_(whole.fc.weight)
    nn.init.zeros_(whole.fc.bias)
    trained = [p.requires_grad_(True) for n, p in whole.named_parameters() if n.startswith(("layer3", "layer4", "fc"))]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, nesterov=True)
    x, y = torch.from_numpy(data.training.activations[:, 0]), torch.from_numpy(data.training.labels)
    for step in range(2):
        optimizer.param_groups[0]["lr"] = rate(params(**keys, epochs=2), step, 1)
        whole.eval()
        whole.layer3.train()
        whole.layer4.train()
        pooled = whole.global_pool(whole.layer4(whole.layer3(x)))
        optimizer.zero_grad()
        cross_entropy(whole.fc(pooled), y).backward()
        optimizer.step()
    assert parts.shape == tuple(x.shape[1:])
    assert model.chosen == {"epoch": 2}
    own = {f"body.{n}": t for n, t in whole.state_dict().items() if n.startswith(("layer3", "layer4"))}
    own |= {"head.weight": whole.fc.weight, "head.bias": whole.fc.bias}
    assert own.keys() == model.arrays.keys()
    for name, tensor in own.items():
        np.testing.assert_allclose(model.arrays[name], tensor.detach().numpy(), rtol=2e-3, atol=2e-5, err_msg=name)


def test_the_head_starts_as_a_linear_probe(data: TrainingData) -> None:
    model = fit(params(learning_rate=1e-9, epochs=1, train=["head"]), data, 0)
    vectors = outputs(model.network.body, data.training.activations, 0)
    scale = np.sqrt(vectors.var(axis=0).mean())
    found = (model.arrays["head.weight"][1] - model.arrays["head.weight"][0]) * scale
    probes = [
        LogisticRegression(C=cost, tol=1e-6, max_iter=10_000).fit((vectors / scale).astype(float), data.training.labels)
        for cost in COSTS
    ]
    nearest = min(np.linalg.norm(probe.coef_[0] - found) / np.linalg.norm(probe.coef_[0]) for probe in probes)
    assert nearest < 0.01


def test_of_many_images_the_probe_is_fitted_on_some_and_on_each_class_with_the_weights_that_are_theirs(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "MOST_IMAGES", 20)
    labels = np.zeros(48, np.int64)
    labels[[7, 31]] = 1  # 20 of 48 drawn by lot may hold neither
    watched = Watched(data.training.activations)
    part = replace(data.training, activations=watched, labels=labels, weights=np.arange(1.0, 49.0))
    for seed in range(5):
        drawn = starting._drawn(part, seed)
        assert 20 <= len(drawn.labels) <= 22
        assert set(drawn.labels) == {0, 1}
        np.testing.assert_array_equal(drawn.labels, labels[(drawn.weights - 1).astype(int)])
        rows, views = np.array([3, 0]), np.array([1, 0])
        own = (drawn.weights[rows] - 1).astype(int)
        np.testing.assert_array_equal(drawn.activations[rows, views], data.training.activations[own, views])
    watched.rows.clear()
    model = fit(params(epochs=1, train=["head"]), replace(data, training=part), 0)
    assert len(watched.rows) <= 48 + 22  # an epoch, and those of the probe
    assert np.isfinite(model.arrays["head.weight"]).all()


def test_of_many_images_with_several_labels_some_have_each_label_and_some_have_not(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "MOST_IMAGES", 8)
    labels = np.zeros((48, 3), np.int64)
    labels[5, 0] = labels[:, 1] = labels[::2, 2] = 1
    labels[40, 1] = 0
    for seed in range(5):
        drawn = starting._drawn(replace(data.training, labels=labels, targets=labels.astype(np.float32)), seed)
        assert (drawn.labels.min(axis=0) == 0).all()
        assert (drawn.labels.max(axis=0) == 1).all()


def test_a_training_that_is_killed_goes_on_and_ends_with_the_same_bits(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = params(epochs=4, mixup=0.2, dropout=0.2, refit=True, jitter=0.1)
    whole = fit(keys, data, 3)
    kept = training._keep
    for killed_after in (1, 3, 5):

        def killed(course: Any, path: Path, after: int = killed_after) -> None:
            kept(course, path)
            if sum(1 for _ in open(tmp_path / "log")) == after:  # noqa: PTH123, SIM115
                raise KeyboardInterrupt
            with (tmp_path / "log").open("a") as file:
                file.write("epoch\n")

        (tmp_path / "log").write_text("epoch\n")
        monkeypatch.setattr(training, "_keep", killed)
        given = TrainingData(**{**vars(data), "checkpoint": tmp_path / f"course-{killed_after}"})
        with pytest.raises(KeyboardInterrupt):
            fit(keys, given, 3)
        monkeypatch.setattr(training, "_keep", kept)
        again = fit(keys, given, 3)
        assert min(again.earlier) > 0 == max(whole.earlier)  # what the killed process took is not forgotten
        assert again.history == whole.history
        assert all(np.array_equal(again.arrays[name], array) for name, array in whole.arrays.items())


def test_the_epoch_of_lowest_validation_loss_is_kept(data: TrainingData) -> None:
    model = fit(params(epochs=6, learning_rate=0.01, average_views=False), data, 0)
    losses = [row["validation_log_loss"] for row in model.history]
    assert model.chosen == {"epoch": int(np.argmin(losses)) + 1}
    p = model.predict_proba(data.validation.activations)[np.arange(24), data.validation.labels]
    assert -np.log(p).mean() == pytest.approx(min(losses), rel=1e-5)


class Watched:
    """Activations that note which rows are read in which views, in the order in which they are asked for."""

    def __init__(self, activations: np.ndarray) -> None:
        self.activations, self.shape = activations, activations.shape
        self.rows, self.views = list[int](), list[int]()

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, where: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        self.rows.extend(where[0].tolist())
        self.views.extend(where[1].tolist())
        return np.asarray(self.activations[where])


def test_each_epoch_draws_a_view_of_each_image_anew(data: TrainingData) -> None:
    watched = Watched(data.training.activations)
    given = replace(data, training=replace(data.training, activations=watched))
    fit(params(start="zero", epochs=6), given, 0)  # a probe would read views as well
    rows, views = (np.reshape(noted, (6, 48)) for noted in (watched.rows, watched.views))
    assert (np.sort(rows, axis=1) == np.arange(48)).all()
    assert not (rows[0] == rows[1]).all()
    drawn = np.take_along_axis(views, np.argsort(rows, axis=1), axis=1)  # of each epoch the view of each image
    assert (np.abs(drawn.mean(axis=1) - 0.5) < 0.25).all()  # both in each epoch: 3.5 times the counting error
    assert np.abs((drawn[1:] == drawn[:-1]).mean(axis=1) - 0.5).max() < 0.25  # an image's next view is another draw
    assert (drawn == drawn[0]).all(axis=0).sum() < 8  # 48 / 2^5 are the same all along by chance


def test_images_as_they_are_have_the_first_view_alone(data: TrainingData) -> None:
    watched = Watched(data.training.activations)
    fit(params(views="identity"), replace(data, training=replace(data.training, activations=watched)), 0)
    assert set(watched.views) == {0}


def test_a_prediction_is_the_mean_of_the_probabilities_of_all_views(data: TrainingData) -> None:
    """By the undivided network with the trained weights; the mean of the logits would be something else."""
    first, second = data.validation.activations[:, 0], data.validation.activations[:, 1]
    stored = np.stack([first, second, 3 * first[::-1]], axis=1)
    model = fit(params(epochs=2, learning_rate=0.003), data, 0)
    whole, head = a_network(), nn.Linear(96, 2)
    trained = {name: torch.from_numpy(array) for name, array in model.arrays.items()}
    whole.load_state_dict(
        {n.removeprefix("body."): t for n, t in trained.items() if n.startswith("body")}, strict=False
    )
    head.load_state_dict({n.removeprefix("head."): t for n, t in trained.items() if n.startswith("head")})
    with torch.no_grad():
        maps = [whole.layer4(whole.layer3(torch.from_numpy(stored[:, view].copy()))) for view in range(3)]
        logits = torch.stack([head(whole.global_pool(m)) for m in maps]).double() / model.facts["temperature"]
    expected = logits.softmax(2).mean(0).numpy()
    assert model.facts["temperature"] != pytest.approx(1, abs=0.01)
    assert np.abs(logits.mean(0).softmax(1).numpy() - expected).max() > 0.01
    np.testing.assert_allclose(model.predict_proba(stored), expected, rtol=1e-4, atol=1e-6)
    one = fit(params(epochs=2, learning_rate=0.003, average_views=False), data, 0)
    np.testing.assert_allclose(one.predict_proba(stored), logits[0].softmax(1).numpy(), rtol=1e-4, atol=1e-6)


def test_soft_labels_and_smoothing_are_what_the_loss_falls_to(data: TrainingData) -> None:
    """Where a head can fit everything, its probabilities become the targets."""
    long = {"epochs": 40, "learning_rate": 0.01, "weight_decay": 0.0, "views": "identity", "average_views": False}
    soft = fit(params(**long, soft_labels=True), data, 0)
    assert soft.history[-1]["training_log_loss"] == pytest.approx(
        0.5 * 0.673, abs=0.08
    )  # entropy of 0.6, half the time
    smooth = fit(params(**long, label_smoothing=0.2), data, 0)
    assert smooth.history[-1]["training_log_loss"] == pytest.approx(0.325, abs=0.08)  # entropy of 0.1


def test_temperature_makes_logits_as_sure_as_they_are_right() -> None:
    """Of logits +-a with a share r right the best probability is r itself: a / T = log(r / (1 - r))."""
    labels = np.tile([0] * 8 + [1] * 2, 10_000)
    loss, temperature = fit_temperature(np.tile([6.0, 0.0], (len(labels), 1)), labels, np.ones(len(labels)))
    assert temperature == pytest.approx(6 / np.log(4), rel=1e-4)
    assert loss == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2), rel=1e-6)


def test_two_images_that_lie_apart_do_not_make_everything_sure() -> None:
    """The temperature is the likeliest one where its logarithm is standard normal beforehand."""
    labels, logits = np.array([0, 1]), np.array([[2.0, 0.0], [0.0, 2.0]])
    loss, temperature = fit_temperature(logits, labels, np.ones(2))
    tried = np.exp(np.linspace(-3, 3, 60_001))
    likelihood = -2 * np.log1p(np.exp(-2 / tried)) - np.log(tried) ** 2 / 2
    assert temperature == pytest.approx(tried[np.argmax(likelihood)], rel=1e-3)
    assert loss == pytest.approx(np.log1p(np.exp(-2 / temperature)))


def test_the_rate_rises_and_falls_along_a_half_cosine() -> None:
    keys = params(epochs=5, warmup=1.0, learning_rate=0.1)
    found = [rate(keys, step, 4) for step in range(20)]
    assert found[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert found[4] == pytest.approx(0.1)
    assert found[12] == pytest.approx(0.05)  # half way
    assert found[19] == pytest.approx(0.1 * 0.5 * (1 + np.cos(np.pi * 15 / 16)))


def test_few_images_are_passed_over_several_times_an_epoch(data: TrainingData) -> None:
    """48 images in batches of 16 are 3 steps a pass; 3 epochs of them are 9, of 20 wanted."""
    assert [params(min_steps=steps).rounds(48) for steps in (0, 9, 10, 20, 27, 28)] == [1, 1, 2, 3, 3, 4]
    read: list[int] = []
    images = training._Images(params(), [data.training], data)
    whole, images.read = images.read, lambda drawn: (read.extend(drawn[0]), whole(drawn))[1]  # type: ignore[method-assign]
    assert data.above is not None
    network = data.above()
    state = {n: t.clone() for n, t in network.state_dict().items()}
    keys = params(min_steps=20)
    course = training.Course(network, training._optimizer(keys, network), state)
    training._epoch(keys, course, images, 9, None, torch.device("cpu"))
    assert (course.steps, len(read)) == (9, 3 * 48)
    assert all(sorted(read[at : at + 48]) == list(range(48)) for at in (0, 48, 96))


def test_lower_layers_learn_slower_and_norms_and_biases_do_not_decay(data: TrainingData) -> None:
    assert data.above is not None
    above = data.above()
    optimizer = training._optimizer(params(layer_decay=0.5, weight_decay=0.3), above)
    names = {id(p): n for n, p in above.named_parameters()}
    found = {names[id(p)]: (g["scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == len(names)
    layers = list(above.groups())
    assert layers[-1] == "head"
    assert found["head.weight"] == (1.0, 0.3)
    assert found["head.bias"] == (1.0, 0.0)
    lowest = above.groups()[layers[0]][0]
    assert found[lowest][0] == 0.5 ** (len(layers) - 2)
    assert all(decay == 0 for name, (_, decay) in found.items() if "bn" in name)


@pytest.mark.parametrize(
    ("library", "name", "cut", "size", "layers"),
    [
        ("torchvision", "densenet121", "features.denseblock3", 64, ["transition3", "denseblock4", "norm5"]),
        ("torchvision", "regnet_y_400mf", "trunk_output.block2", 64, ["block3", "block4"]),
        ("torchvision", "googlenet", "inception4d", 64, ["inception4e", "inception5a", "inception5b"]),
        ("torchvision", "resnet18", "layer3.0", 64, ["layer3.1", "layer4.0", "layer4.1"]),
        ("timm", "test_vit", "blocks.2", 160, ["blocks.3", "blocks.4", "blocks.5", "norm"]),
        ("timm", "test_efficientnet", "blocks.2", 64, ["blocks.3", "blocks.4", "conv_head", "bn2"]),
    ],
)
def test_layers_are_what_the_builder_of_a_network_counts(
    library: str, name: str, cut: str, size: int, layers: list[str]
) -> None:
    """Each learns at 0.8 times the rate of the one above it: were every convolution a layer, the lowest would rest."""
    facts = {**FACTS, "library": library, "network": name}
    found = list(built_above(facts, cut, size, 2).groups())
    assert [layer.removeprefix("body.").split("features.")[-1].split("trunk_output.")[-1] for layer in found] == [
        *layers,
        "head",
    ]


def test_weights_that_count_are_a_running_average(data: TrainingData) -> None:
    """EMA: a <- s a + (1 - s) w after each step, with s at most (1 + steps) / (10 + steps); batch norm's, too."""
    assert data.above is not None
    network = data.above()
    state = {n: t.detach().clone() for n, t in network.state_dict().items()}
    course = training.Course(network, training._optimizer(params(), network), state)
    name = "body.layer4.0.bn1.running_mean"
    expected = state[name].numpy().copy()
    for step, value in enumerate((1.0, -2.0, 5.0)):
        with torch.no_grad():
            network.state_dict()[name].fill_(value)
        course.steps = step + 1
        training._average(course, 0.25)
        keep = min(0.25, (2 + step) / (11 + step))
        expected = keep * expected + (1 - keep) * value
        np.testing.assert_allclose(course.average[name], expected, rtol=1e-6)


def test_batch_norms_start_with_the_statistics_of_the_training_images(data: TrainingData) -> None:
    assert data.above is not None
    network, seen = data.above(), []
    norm = next(m for m in network.body.modules() if isinstance(m, nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    starting._settle(network, starting.settling(network), data.training, 48)
    (maps,) = seen
    np.testing.assert_allclose(norm.running_mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.running_var, maps.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1


def test_biases_alone_are_trained(data: TrainingData) -> None:
    shared = lying_above(a_network(), FACTS, CUT, SIZE, 2)
    before = {name: tensor.clone() for name, tensor in shared.named_parameters()}
    fit(params(train=["biases"], epochs=1), replace(data, above=lambda: shared), 0)
    moved = {name for name, tensor in shared.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if name.endswith("bias")} | {"head.weight"}


def test_a_gradient_is_never_longer_than_was_said(data: TrainingData) -> None:
    """Plain SGD without momentum's first step is (1 + 0.9) times rate times gradient, here of length 0.01."""
    keys = {"start": "zero", "epochs": 1, "batch_size": 48, "optimizer": "sgd", "learning_rate": 1.0, "warmup": 0.0}
    keys |= {"weight_decay": 0.0, "average": 0.0, "layer_decay": 1.0, "clip": 0.01}
    trained = training.train(params(**keys), data, 0)
    moved = [trained.chosen[n] - w for n, w in trained.start.items() if "running" not in n and "num_batches" not in n]
    length = float(sum(np.square(step, dtype=np.float64).sum() for step in moved) ** 0.5)
    assert length == pytest.approx(1.9 * 0.01, rel=1e-3)


def test_bfloat16_comes_to_what_float32_comes_to(data: TrainingData) -> None:
    keys = {"start": "zero", "epochs": 2, "learning_rate": 0.002}
    found = [fit(params(**keys, precision=precision), data, 0) for precision in ("float32", "bfloat16")]
    losses = [[row["training_log_loss"] for row in model.history] for model in found]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert {array.dtype for array in found[1].arrays.values()} == {array.dtype for array in found[0].arrays.values()}


def test_bfloat16_predicts_the_classes_that_float32_predicts(data: TrainingData) -> None:
    keys = {"epochs": 6, "learning_rate": 0.002, "average": 0.9}
    images, labels = data.validation.activations, data.validation.labels
    found = [fit(params(**keys, precision=precision), data, 0) for precision in ("float32", "bfloat16")]
    full, half = (model.predict_proba(images) for model in found)
    assert (full.argmax(1) == labels).mean() == 1
    assert (half.argmax(1) == labels).mean() == 1
    assert not np.array_equal(full, half)
    assert np.abs(full - half).max() < 0.05


def test_mixup_mixes_images_and_labels_by_the_same_share() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 2, 3, 3), torch.eye(8)
    images, labels, weights = mixed(inputs, targets, torch.ones(8), 0.4, 0.0, 0.0)
    assert torch.allclose(images[:, 0, 0, 0], labels @ torch.arange(8.0), atol=1e-5)
    assert torch.allclose(labels.sum(1), torch.ones(8))
    assert torch.allclose(weights, torch.ones(8))


def test_cutmix_takes_labels_by_the_area_that_is_left() -> None:
    torch.manual_seed(1)
    inputs = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 2, 9, 9)
    other = torch.tensor([1, 2, 3, 0])
    pasted, share = cut_and_paste(inputs, other, 0.6)
    own = (pasted == inputs).float().mean((1, 2, 3))
    assert torch.allclose(own, torch.full((4,), share))
    assert 0.4 < share < 1
    with pytest.raises(UserError, match="cutmix needs maps at the cut"):
        cut_and_paste(torch.zeros(4, 7, 5), other, 0.6)


def test_cutmix_mixes_labels_by_the_area_that_was_pasted_and_not_by_the_share_that_was_drawn() -> None:
    """Where the rectangle reaches over the edge less is pasted than was drawn."""
    alpha, apart = 1.0, []
    inputs = torch.eye(8)[:, :, None, None].expand(8, 8, 7, 7).contiguous()  # each image has a channel of its own
    for seed in range(30):
        torch.manual_seed(seed)
        drawn = float(torch.distributions.Beta(alpha, alpha).sample())
        torch.manual_seed(seed)
        images, labels, weights = mixed(inputs, torch.eye(8), torch.ones(8), 0.0, alpha, 0.0)
        assert torch.allclose(labels, images.mean((2, 3)), atol=1e-6)
        assert torch.allclose(weights, torch.ones(8))
        apart.append(abs(float(labels.diagonal().min()) - drawn))
    assert max(apart) > 0.1


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.7, 0.0), (0.0, 0.7)])
def test_images_of_unequal_weight_are_mixed_with_their_weights(mixup: float, cutmix: float) -> None:
    """The loss of a mixed image is that of each of the two labels, by its image's share and its image's weight."""
    own = torch.tensor([0.25, 4.0, 1.0, 0.5, 2.0, 1.0])
    logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    each = torch.stack([cross_entropy(logits, torch.full((6,), k), reduction="none") for k in range(6)], dim=1)
    for seed in range(5):
        torch.manual_seed(seed)
        inputs = torch.eye(6)[:, :, None, None].expand(6, 6, 8, 8).contiguous()
        images, labels, weights = mixed(inputs, torch.eye(6), own, mixup, cutmix, 0.0)
        shares = images.mean((2, 3))  # of each image in each mixed one
        loss = weights * training._lost(logits, labels, False)
        torch.testing.assert_close(loss, (shares * own * each).sum(1))
        torch.testing.assert_close(labels.sum(1), torch.ones(6))


@pytest.mark.parametrize("key", ["mixup", "cutmix", "jitter", "dropout"])
def test_what_is_for_few_labels_changes_a_training_and_is_drawn_from_the_seed(key: str, data: TrainingData) -> None:
    plain, one, again, other = (fit(params(**{key: v}), data, s) for v, s in ((0.0, 0), (0.5, 0), (0.5, 0), (0.5, 1)))
    assert one.history == again.history
    assert one.history[0] != plain.history[0]
    assert one.history[0] != other.history[0]
    assert all(np.isfinite(array).all() for array in one.arrays.values())


def test_cutmix_of_what_are_no_maps_is_an_error_of_one_line(data: TrainingData) -> None:
    vectors = [replace(part, activations=part.activations.mean((3, 4))) for part in (data.training, data.validation)]
    pooled = replace(data, training=vectors[0], validation=vectors[1], above=lambda: Above(nn.Identity(), 48, 2, "fc"))
    with pytest.raises(UserError, match="cutmix needs maps at the cut; what is stored there is none: use mixup"):
        fit(params(cutmix=0.5, start="zero"), pooled, 0)


def test_dropout_leaves_out_what_the_head_reads_while_it_trains_and_nothing_when_it_predicts(
    data: TrainingData,
) -> None:
    """Inverted dropout: what is kept grows by as much as is left out."""
    assert data.above is not None
    network, read = data.above(), dict[str, list[tuple[torch.Tensor, torch.Tensor]]](trained=[], predicted=[])

    def note(head: nn.Module, given: tuple[torch.Tensor]) -> None:
        read["trained" if head.training else "predicted"].append((vectors[-1], given[0].detach().clone()))

    vectors: list[torch.Tensor] = []
    network.body.register_forward_hook(lambda *given: vectors.append(given[-1].detach().clone()))
    network.head.register_forward_pre_hook(note)
    model = fit(params(dropout=0.75, start="zero"), replace(data, above=lambda: network), 0)
    given, kept = (torch.cat(parts) for parts in zip(*read["trained"], strict=True))
    assert len(given) == 3 * 48
    left_out = (kept == 0) & (given != 0)
    assert float(left_out[given != 0].float().mean()) == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(kept, torch.where(left_out, 0, given * 4))
    assert len(read["predicted"]) >= 3
    assert all(torch.equal(given, kept) for given, kept in read["predicted"])
    images = data.validation.activations
    assert np.array_equal(model.predict_proba(images), model.predict_proba(images))
    assert model.network.dropout.training is False


def test_jitter_shifts_whole_channels_within_their_range() -> None:
    torch.manual_seed(0)
    inputs = torch.rand(3, 4, 5, 5)
    shifted, *_ = mixed(inputs, torch.eye(3), torch.ones(3), 0.0, 0.0, 0.1)
    span = inputs.amax((2, 3)) - inputs.amin((2, 3))
    assert not torch.equal(shifted, inputs)
    assert ((shifted - inputs).abs().amax((2, 3)) <= 0.1 * span + 1e-6).all()
    assert torch.equal(shifted.clamp(inputs.amin((2, 3), True), inputs.amax((2, 3), True)), shifted)


def test_jitter_shifts_each_channel_of_tokens_by_a_number_of_its_own_and_refuses_vectors() -> None:
    torch.manual_seed(0)
    tokens = torch.rand(3, 50, 4) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    shifted, *_ = mixed(tokens, torch.eye(3), torch.ones(3), 0.0, 0.0, 0.1)
    shifts = (shifted - tokens).median(dim=1).values  # of a channel all the same, but where the range ends
    assert ((shifts.unsqueeze(1) - (shifted - tokens)).abs() < 1e-6).float().mean() > 0.8
    assert len({round(float(shift), 6) for shift in shifts.flatten()}) == 12
    with pytest.raises(UserError, match="jitter needs maps or tokens at the cut"):
        mixed(torch.rand(3, 7), torch.eye(3), torch.ones(3), 0.0, 0.0, 0.1)


SMALL = {"library": "textbook", "network": "small_cnn", "classes": 10, "mean": [0.5] * 3, "std": [0.5] * 3}


def test_from_the_image_up_all_is_trained_and_the_small_network_learns_what_is_plain_to_see() -> None:
    """Which half of a cell is dark; grey images, stored as they are."""
    images = cells(96, 32, 1)
    labels = np.arange(len(images)) % 2
    images[labels == 1, :, :16] //= 3
    images[labels == 0, :, 16:] //= 3
    stored = images[:, np.newaxis].astype(np.float32)

    def part(rows: slice) -> Part:
        return Part(stored[rows], labels[rows], np.eye(2, dtype=np.float32)[labels[rows]], None)

    def above() -> Above:
        torch.manual_seed(1)
        return built_above(SMALL, "image", 32, 2)

    facts = {"network": SMALL, "cut": "image", "image_size": 32}
    data = TrainingData(["upper", "lower"], part(slice(0, 48)), part(slice(48, 72)), above, facts)
    keys = {"start": "zero", "epochs": 12, "learning_rate": 0.003, "augment": ["flip", "light"], "layer_decay": 1.0}
    model = fit(params(**keys), data, 0)
    found = model.predict_proba(stored[72:])
    assert (found.argmax(axis=1) == labels[72:]).mean() > 0.9  # chance: 0.5
    weights = 3 * 32 * 9 + 32 + 32 * 64 * 9 + 64 + 64 * 49 * 1024 + 1024 + 1024 * 2 + 2
    assert model.trained_parameters == weights
    assert model.operations == 32**2 * 3 * 32 * 9 + 16**2 * 32 * 64 * 9 + 64 * 49 * 1024 + 1024 * 2


def test_what_training_takes_is_counted_there_and_back(data: TrainingData) -> None:
    """48 images to train on, 24 to validate with; back through what is trained costs twice the way there."""
    below, whole = split(a_network(), CUT, SIZE), a_network()
    with torch.no_grad(), counting() as counted:
        below.above(torch.from_numpy(data.training.activations[:1, 0]))
    one = counted() - whole.fc.weight.numel() + 2 * whole.fc.in_features
    model = fit(params(epochs=2, min_steps=7), data, 0)  # two passes an epoch
    assert model.pass_operations == one
    assert model.operations == 2 * one  # two views
    assert model.training_operations == one * (2 * 48 + 24 + 2 * (2 * 3 * 48 + 24))
    zero = fit(params(epochs=2, start="zero", refit=True), data, 0)
    assert zero.training_operations == one * (2 * (3 * 48 + 24) + zero.chosen["epoch"] * 3 * 72)
    again = fit(params(epochs=2, refit=True), data, 0)  # it starts twice as a probe
    assert again.training_operations == one * (2 * (3 * 48 + 24) + again.chosen["epoch"] * 3 * 72 + 2 * (2 * 48 + 24))
    head = fit(params(epochs=2, start="zero", train=["head"]), data, 0)
    assert head.training_operations == one * 2 * (48 + 24) + 2 * 2 * 48 * 2 * whole.fc.in_features
    settled = fit(params(epochs=2, train=["head"]), data, 0)  # no batch norm's statistics move before the start
    assert settled.training_operations == head.training_operations + one * (48 + 24)


def test_lower_layers_alone_can_be_tuned(data: TrainingData) -> None:
    """Surgical fine-tuning: from the image up, the first block alone."""
    shared = lying_above(a_network(), FACTS, "image", SIZE, 2)
    before = {name: tensor.clone() for name, tensor in shared.named_parameters()}
    pixels = cells(24, SIZE, 3)[:, np.newaxis].astype(np.float32)
    part = Part(pixels, np.arange(24) % 2, np.eye(2, dtype=np.float32)[np.arange(24) % 2], None)
    given = TrainingData(data.classes, part, part, lambda: shared, {**data.facts, "cut": "image"})
    fit(params(train=["layer1"], epochs=1, augment=["turns"]), given, 0)
    moved = {name for name, tensor in shared.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved == {n for n in before if ".layer1." in n or n.startswith("head")}


def test_settings_that_do_not_go_together_are_said() -> None:
    plain = Features(images="elpv", backbone="raw/lite0", image_size=224, cut="blocks.3")
    dataset = Dataset(images="elpv", label=Label(column="probability", threshold=0.5))
    assert problem(params(), plain, dataset) is None
    layered = Features(images="elpv", backbone="raw/lite0", image_size=224, layers=["blocks.3", "pooled"])
    assert "no layers" in str(problem(params(), layered, dataset))
    assert "only features with cut: image hold" in str(problem(params(augment=["flip"]), plain, dataset))
    assert "name their column as label.soft" in str(problem(params(soft_labels=True), plain, dataset))
    with pytest.raises(ValueError, match="mixup and cutmix cannot both be on"):
        params(mixup=0.1, cutmix=0.1)


@pytest.mark.parametrize(("name", "cut", "blocks"), [("test_efficientnet", "blocks.1", 3), ("test_vit", "blocks.2", 6)])
def test_blocks_are_skipped_for_as_many_images_as_was_said_and_none_in_a_prediction(
    name: str, cut: str, blocks: int
) -> None:
    facts = {**FACTS, "network": name}
    size = 160 if name == "test_vit" else SIZE
    above = lying_above(copy.deepcopy(network("timm", name)), facts, cut, size, 2)
    training._set_dropout(above, params(stochastic_depth=0.5))
    found = [m for m in above.body.modules() if type(m).__name__ == "DropPath"]
    assert [m.drop_prob for m in found] == pytest.approx([0.5 * (at + 1) / blocks for at in range(blocks)])
    uppermost = found[-1].train()
    kept = uppermost(torch.ones(4000, 2, 1, 1)).flatten(1).amax(1) > 0
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(found[-1].eval()(torch.ones(4)), torch.ones(4))


def test_blocks_of_torchvisions_networks_are_skipped_as_often_and_none_in_a_prediction() -> None:
    """Two blocks of a small ConvNeXt lie above the cut; it is made with a share of 0."""
    torch.manual_seed(0)
    whole = ConvNeXt([CNBlockConfig(16, 32, 2), CNBlockConfig(32, None, 2)], num_classes=10)
    above = lying_above(whole, FACTS, "features.1", 32, 2)
    training._set_dropout(above, params(stochastic_depth=0.6))
    skipping = [m for m in above.body.modules() if type(m).__name__ == "StochasticDepth"]
    branches: dict[nn.Module, list[torch.Tensor]] = {module: [] for module in skipping}
    for module in skipping:
        module.register_forward_hook(lambda own, _, out: branches[own].append(out.detach().flatten(1).abs().amax(1)))
    activations = torch.randn(1000, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        above.training_mode()
        above(activations)
        shares = [float((torch.cat(rows) == 0).float().mean()) for rows in branches.values()]
        assert shares == pytest.approx([0.3, 0.6], abs=0.05)  # 3 times the counting error
        for rows in branches.values():
            rows.clear()
        above.eval()(activations)
        assert all((torch.cat(rows) > 0).all() for rows in branches.values())


def test_blocks_that_cannot_be_skipped_are_an_error_of_one_line(data: TrainingData) -> None:
    with pytest.raises(UserError, match="stochastic_depth: the network has no blocks"):
        fit(params(stochastic_depth=0.1), data, 0)


def test_a_loss_that_is_no_longer_finite_names_epoch_and_rate(data: TrainingData) -> None:
    with pytest.raises(UserError, match="no longer finite in epoch 1: lower learning_rate 1e\\+30"):
        fit(params(learning_rate=1e30, clip=0, optimizer="sgd", warmup=0.0), data, 0)

"""Training above the cut, in torch, on stored activations: what all kinds that train a network share.

1. The head starts as the linear probe on what the untrained part gives (LP-FT: a random head's first steps would
   distort what was transferred). Kumar et al., ICLR 2022, arXiv:2202.10054.
2. AdamW, the rate rising in the first epoch and then falling to zero along a half cosine; lower layers learn slower.
3. The weights that count are a running average of those that are trained (EMA), batch norm's statistics included.
4. The epoch of lowest validation log loss is kept. Networks grow too sure of themselves long before they stop getting
   better, so the loss is that of logits divided by the temperature that suits them best, one number fitted on
   validation, which the model keeps. Guo et al., ICML 2017, arXiv:1706.04599, section 4.2.
5. `refit: true` then trains once more on training and validation together, along the same course, up to that epoch.

An epoch draws each image once, in one of its stored views (of few images, several times: `min_steps`). A batch norm of
which nothing is trained keeps its statistics; the others' move. After each epoch all that the rest depends on is kept
in a checkpoint: a training that was killed goes on there, and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from stages.cli import UserError, progress, warn
from stages.files import new_file
from stages.params import Transfer, suggest
from stages.store.cache import clocks
from stages.threads import in_threads
from stages.transfers import Part, TrainingData
from stages.transfers.shared.augmentation import Augmentation, augmentation
from stages.transfers.shared.mixing import mixed
from stages.transfers.shared.network import NetworkModel, outputs
from stages.transfers.shared.shallow import (
    ClassWeight,
    class_weights,
    counts,
    log_loss,
    sigmoid,
    softmax,
)
from stages.transfers.shared.starting import start_as_probe

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

    from stages.params import Dataset, Features
    from stages.transfers.shared.above import Above

    Floats = NDArray[np.float64]
    Indices = NDArray[np.int64]
    Arrays = dict[str, NDArray[Any]]
    Penalty = Callable[[], torch.Tensor]
    Begin = Callable[[Above], Penalty | None]

MOMENTUM = 0.9
CHECKSUM = 32
"""Bytes of the sha256 that a checkpoint begins with."""


class TrainingParams(Transfer):
    """Keys of every training above the cut."""

    epochs: int = Field(12, ge=1, description="passes over the training images")
    min_steps: int = Field(
        100, ge=0, description="fewest steps of a training: with few images an epoch is several passes over them"
    )
    batch_size: int = Field(32, ge=2, description="images in a training step")
    learning_rate: float = Field(0.0005, gt=0, description="highest step size, of the head and the uppermost layer")
    layer_decay: float = Field(
        0.8, gt=0, le=1, description="a layer's step size as a share of that of the layer above it"
    )
    warmup: float = Field(1.0, ge=0, description="epochs over which the step size rises from 0")
    weight_decay: float = Field(0.05, ge=0, description="pull of the weights to zero, those of norms and biases apart")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has a momentum of 0.9")
    start: Literal["probe", "zero"] = Field(
        "probe", description="the head at the start: a linear probe fitted on what is transferred, or zeros"
    )
    average: float = Field(
        0.99, ge=0, lt=1, description="share of the running average of weights that a step keeps; 0: no average"
    )
    train: list[str] = Field(
        ["all"],
        min_length=1,
        description="what is trained: modules by name, or all, norms, biases, head (alone); the head always is",
    )
    views: Literal["all", "identity"] = Field(
        "all", description="train on any of the stored views, drawn anew in each epoch, or on the images as they are"
    )
    average_views: bool = Field(True, description="average predictions over all stored views")
    soft_labels: bool = Field(False, description="train on the data set's soft labels (label.soft)")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label that is spread over all classes")
    class_weight: ClassWeight = "none"
    mixup: float = Field(0.0, ge=0, description="alpha of the Beta distribution by which two images are mixed; 0: off")
    cutmix: float = Field(
        0.0, ge=0, description="alpha of the Beta distribution of the area that comes from another image; 0: off"
    )
    jitter: float = Field(
        0.0, ge=0, le=1, description="largest shift of a channel's activations, as a share of their range (FroFA)"
    )
    augment: list[Augmentation] = Field(
        [], description="with cut image: changes drawn for each image in each epoch, one after the other"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of the head's inputs that a training step leaves out")
    stochastic_depth: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of images for which the uppermost residual block is skipped; lower blocks less often",
    )
    clip: float = Field(1.0, ge=0, description="largest length of the gradient; 0: no limit")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="number format of the training's products")
    refit: bool = Field(
        False, description="train again on training and validation together, once the epoch is chosen: twice the time"
    )

    def rounds(self, images: int) -> int:
        """Return how many passes over so many images an epoch is."""
        return max(1, math.ceil(self.min_steps / (self.epochs * math.ceil(images / self.batch_size))))

    def averaged(self, part: Part) -> int:
        """Return over how many views of an image predictions are averaged."""
        return part.activations.shape[1] if self.average_views else 1

    @model_validator(mode="after")
    def _check(self) -> TrainingParams:
        if self.mixup and self.cutmix:
            raise ValueError("mixup and cutmix cannot both be on: set one of them to 0")
        return self


def problem(params: TrainingParams, features: Features, dataset: Dataset) -> str | None:
    """Say why nothing can be trained above what some features hold."""
    if features.layers not in ([], ["pooled"]) or len(features.image_size) > 1:
        return (
            f"kind {params.kind} trains what lies above one cut: name features with a cut, one image_size and no layers"
        )
    if params.augment and features.cut != "image":
        return "transfer.augment changes pixels, which only features with cut: image hold; store views of the images"
    if params.soft_labels and dataset.label.soft is None:
        return "transfer.soft_labels: the data set has no soft labels; name their column as label.soft"
    if params.class_weight != "none" and dataset.label.multi_label:
        return "transfer.class_weight is for one class of each image; the data set has several labels"
    return None


@dataclass
class Course:
    """How far a training is: everything on which the rest of it depends.

    network : what is trained; average : the running average of its state; steps : taken so far
    start, best : the state before the first step, and of the epoch of lowest validation log loss, as arrays
    earlier : seconds and core seconds that it took in processes that were stopped; began : the clocks in this one
    """

    network: Above
    optimizer: torch.optim.Optimizer
    average: dict[str, torch.Tensor]
    start: Arrays = field(default_factory=dict)
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: Arrays = field(default_factory=dict)
    earlier: Floats = field(default_factory=lambda: np.zeros(2))
    began: Floats = field(default_factory=clocks)

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    @property
    def taken(self) -> Floats:
        """Seconds and core seconds in all processes."""
        return self.earlier + clocks() - self.began


@dataclass
class Trained:
    """What a training has come to: the states of its network, as arrays by name.

    start : before the first step; chosen : in the epoch of lowest validation log loss; final : of the refit where there
    is one, else the chosen one
    earlier : seconds and core seconds in processes that were stopped; validated : how often a state was, afterwards
    """

    params: TrainingParams
    data: TrainingData
    network: Above
    history: list[dict[str, float]]
    start: Arrays
    chosen: Arrays
    final: Arrays
    earlier: Floats
    validated: int = 0

    @property
    def epoch(self) -> int:
        """The chosen epoch, from 1."""
        return int(np.argmin([row["validation_log_loss"] for row in self.history])) + 1

    def validate(self, arrays: Arrays) -> dict[str, float]:
        """Return log loss, its temperature and accuracy on validation of a state of the network."""
        import torch

        from stages.transfers.shared.above import all_cores

        self.network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.validated += 1
        with all_cores():
            return _validate(self.params, self.network, self.data)

    def model(self, arrays: Arrays | None = None, temperature: float | None = None, **chosen: Any) -> NetworkModel:
        """Return a state as a model, with its temperature and what was chosen beside the epoch; else the final one."""
        ours = self.params
        facts = {
            "kind": ours.kind,
            "classes": self.data.classes,
            "views": "all" if ours.average_views else "identity",
            "chosen": {"epoch": self.epoch, **chosen},
            "temperature": self.history[self.epoch - 1]["temperature"] if temperature is None else temperature,
            "trained_parameters": sum(p.numel() for p in self.network.parameters() if p.requires_grad),
            "operations": self._counted[0],
            "averaged": ours.averaged(self.data.training),
            "training_operations": self.operations,
            "above": {**self.data.facts, "classifier": self.network.classifier},
            **({"multi_label": True} if self.data.multi_label else {}),
        }
        return NetworkModel(facts, self.final if arrays is None else arrays, self.history, self.earlier)

    @cached_property
    def _counted(self) -> tuple[int, int]:
        return _operations(self.network, self.data.training)

    @property
    def operations(self) -> int:
        """How many multiply-adds the training has taken.

        The way back, down to the lowest layer that is trained, counts twice: it has two products for each there.
        """
        from stages.transfers.shared.starting import settling

        ours, training, validation = self.params, len(self.data.training.labels), len(self.data.validation.labels)
        both = training + validation
        steps = ours.epochs * training * ours.rounds(training)
        passes = (ours.epochs + self.validated) * validation
        if ours.refit:
            steps += self.epoch * both * ours.rounds(both)
        if ours.start == "probe":
            passes += (1 + ours.refit) * (both + (training if settling(self.network) else 0))
        whole, trained = self._counted
        return whole * passes + (whole + 2 * trained) * steps


def train(params: TrainingParams, data: TrainingData, seed: int, begin: Begin | None = None, order: int = 0) -> Trained:
    """Train what lies above the cut.

    begin : is given the network at its start, and returns what is added to the loss of each step, if anything
    order : of the same start, another order of images and views for each number
    Losses are in nats per image. Raises UserError when a loss is no longer finite, naming the epoch and the learning
    rate, and for a name under `train` or `class_weight` that there is not.
    """
    import torch

    from stages.backbones.engines import device
    from stages.memory import keep_freed_memory
    from stages.transfers.shared.above import all_cores

    keep_freed_memory()
    repeatable = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True)
    with all_cores(), torch.random.fork_rng(devices=[]), repeatable:
        where = torch.device(device())
        course = _course(params, data, (seed, order), begin, where, [data.training], params.epochs, "choice")
        states = course.start, course.best, course.best
        trained = Trained(params, data, course.network, course.history, *states, course.earlier)
        if params.refit:
            both = [data.training, data.validation]
            refit = _course(params, data, (seed, order), begin, where, both, trained.epoch, "refit")
            trained.final = _arrays(refit.average)
            trained.earlier = course.earlier + refit.earlier
    return trained


def mean_state(states: Sequence[Arrays], weights: Sequence[float] | None = None) -> Arrays:
    """Return the weighted mean of some states of a network; counts, as of batches seen, are those of the last."""
    floats = [name for name, array in states[-1].items() if array.dtype.kind == "f"]
    mean = {n: np.average([s[n] for s in states], axis=0, weights=weights).astype(states[-1][n].dtype) for n in floats}
    return {**states[-1], **mean}


def _arrays(state: dict[str, torch.Tensor]) -> Arrays:
    """Return a copy of a state as arrays."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def _course(
    params: TrainingParams,
    data: TrainingData,
    seeds: tuple[int, int],
    begin: Begin | None,
    where: torch.device,
    parts: Sequence[Part],
    epochs: int,
    name: str,
) -> Course:
    """Train for so many epochs on some parts, from the start or from where a killed training was."""
    import torch

    from stages.transfers.shared.layout import train_channels_last

    seed, order = seeds
    began = clocks()
    torch.manual_seed(seed)
    assert data.above is not None
    network = data.above().to(where)
    if where.type == "cpu":
        train_channels_last(network)
    _choose_trained(network, params.train)
    if params.start == "probe":
        start_as_probe(network, data, params, seed)
    _set_dropout(network, params)
    optimizer = _optimizer(params, network)
    state = network.state_dict()
    course = Course(network, optimizer, {n: t.detach().clone() for n, t in state.items()}, _arrays(state), began=began)
    penalty = begin(network) if begin is not None else None
    if order:
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
    checkpoint = None if data.checkpoint is None else data.checkpoint.with_name(f"{data.checkpoint.name}-{name}.pt")
    if checkpoint is not None:
        _restore(course, checkpoint)
    images = _Images(params, parts, data)
    per_epoch = -(-images.count // params.batch_size) * params.rounds(images.count)
    for epoch in range(course.epoch, epochs):
        loss = _epoch(params, course, images, per_epoch, penalty, where)
        row = {"epoch": epoch + 1, "training_log_loss": loss}
        if name == "choice":
            kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            network.load_state_dict(course.average)
            row |= _validate(params, network, data)
            network.load_state_dict(kept)
        if not all(math.isfinite(value) for value in row.values()):
            raise UserError(
                f"the loss is no longer finite in epoch {epoch + 1}: lower learning_rate {params.learning_rate:g}"
            )
        course.history.append(row)
        if name == "choice" and row["validation_log_loss"] == min(r["validation_log_loss"] for r in course.history):
            course.best = _arrays(course.average)
        if checkpoint is not None:
            _keep(course, checkpoint)
    return course


# ---- what is trained, and from where


def _choose_trained(network: Above, wanted: Sequence[str]) -> None:
    """Freeze what is not named; the head is always trained."""
    from torch import nn

    if "all" in wanted:
        return
    modules = dict(network.lower.named_modules())
    chosen = {id(p) for p in network.head.parameters()}
    for name in wanted:
        if name == "norms":
            kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
            found = [p for m in modules.values() if isinstance(m, kinds) for p in m.parameters()]
        elif name == "biases":
            found = [p for n, p in network.body.named_parameters() if n.endswith("bias")]
        elif name == "head":
            found = []
        elif name in modules and name:
            found = list(modules[name].parameters())
        else:
            known = ["all", "norms", "biases", "head", *(n for n in modules if n and n.count(".") < 2)]
            raise UserError(f"train names {name}, which is no module above the cut; {suggest(name, known)}")
        chosen |= {id(p) for p in found}
    for parameter in network.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def _set_dropout(network: Above, params: TrainingParams) -> None:
    """Set dropout before the head, and stochastic depth where the network has blocks that can be skipped."""
    network.dropout.p = params.dropout
    if not params.stochastic_depth:
        return
    from timm.layers.drop import DropPath

    # A block that is never skipped has an identity there in timm's networks, and a module of share 0 in torchvision's.
    named, kinds = dict(network.body.named_modules()), ("DropPath", "StochasticDepth")
    places = [n for n, m in named.items() if n.rpartition(".")[2].startswith("drop_path") or type(m).__name__ in kinds]
    if not places:
        raise UserError("stochastic_depth: the network has no blocks above the cut that can be skipped; leave it out")
    for at, place in enumerate(places):
        share = params.stochastic_depth * (at + 1) / len(places)
        if hasattr(named[place], "p"):
            named[place].p = share
        else:
            parent, _, name = place.rpartition(".")
            setattr(named[parent], name, DropPath(share))


def _optimizer(params: TrainingParams, network: Above) -> torch.optim.Optimizer:
    """Group parameters by layer and by whether weight decay pulls at them."""
    import torch

    named = dict(network.named_parameters())
    layers = list(network.groups().values())
    groups = []
    for depth, names in enumerate(reversed(layers)):
        # The head and the layer below it have the full rate.
        scale = params.layer_decay ** max(0, depth - 1)
        for decays in (True, False):
            tensors = [named[n] for n in names if named[n].requires_grad and (named[n].ndim > 1) == decays]
            if tensors:
                decay = params.weight_decay if decays else 0.0
                groups.append({"params": tensors, "weight_decay": decay, "scale": scale, "lr": 0.0})
    if params.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def rate(params: TrainingParams, step: int, per_epoch: int) -> float:
    """Return the step size of the head at a step, counted from 0: a linear rise, then a half cosine to zero.

    The course is that of `epochs` in params.yaml also where it is left sooner: a refit repeats its beginning.
    """
    rise, total = params.warmup * per_epoch, params.epochs * per_epoch
    if step < rise:
        return params.learning_rate * (step + 1) / (rise + 1)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1.0, total - rise)))


# ---- an epoch


class _Images:
    """The training images of some parts: activations by number, targets and weights."""

    def __init__(self, params: TrainingParams, parts: Sequence[Part], data: TrainingData) -> None:
        self._parts, self._ends = parts, np.cumsum([len(part.labels) for part in parts])
        self.side, self.multi_label = int(parts[0].activations.shape[-1]), data.multi_label
        self.count, self.views = int(self._ends[-1]), parts[0].activations.shape[1] if params.views == "all" else 1
        self._labels, self._classes = np.concatenate([part.labels for part in parts]), len(data.classes)
        soft = [part.targets for part in parts if params.soft_labels and part.targets is not None]
        assert len(soft) in (0, len(parts))
        self._soft, self._smooth = np.concatenate(soft) if soft else None, params.label_smoothing
        weights = _weights(params, data, parts, parts)
        self.weights = (weights / weights.mean()).astype(np.float32)

    def targets(self, rows: Indices) -> NDArray[np.float32]:
        """Return what is aimed at for some images (n, classes)."""
        own, spread_over = self._labels[rows], 2 if self.multi_label else self._classes
        if self._soft is not None:
            own = self._soft[rows]
        elif not self.multi_label:
            own = (own[:, np.newaxis] == np.arange(self._classes)).astype(np.float32)
        aimed: NDArray[np.float32] = (own * (1 - self._smooth) + self._smooth / spread_over).astype(np.float32)
        return aimed

    def read(self, drawn: tuple[Indices, Indices]) -> NDArray[np.float32]:
        """Return the activations (n, *shape) of some images, each in one view."""
        rows, views = drawn
        result = np.empty((len(rows), *self._parts[0].activations.shape[2:]), np.float32)
        start = 0
        for part, end in zip(self._parts, self._ends, strict=True):
            mine = (rows >= start) & (rows < end)
            if mine.any():
                result[mine] = part.activations[rows[mine] - start, views[mine]]
            start = int(end)
        return result


def _epoch(
    params: TrainingParams,
    course: Course,
    images: _Images,
    per_epoch: int,
    penalty: Penalty | None,
    where: torch.device,
) -> float:
    """Take the steps of an epoch; returns the mean loss, without the penalty."""
    import torch

    from stages.transfers.shared.layout import channels_last

    network, optimizer = course.network, course.optimizer
    network.training_mode()
    trained = [p for p in network.parameters() if p.requires_grad]
    drawn: list[tuple[Indices, Indices]] = []
    for _ in range(params.rounds(images.count)):
        order = torch.randperm(images.count).numpy()
        views = torch.randint(images.views, (images.count,)).numpy()
        split = np.array_split(np.arange(images.count), -(-images.count // params.batch_size))
        drawn += [(order[at], views[at]) for at in split]
    count = sum(len(rows) for rows, _ in drawn)
    total = 0.0
    batches = zip(drawn, in_threads(images.read, drawn, threads=1), strict=True)
    shown = progress(batches, count, "image", lambda batch: len(batch[1]))
    augment = augmentation(params.augment, images.side) if params.augment else None
    for (rows, _), activations in shown:
        pixels = torch.from_numpy(activations) if augment is None else augment(torch.from_numpy(activations))
        inputs, targets = channels_last(pixels).to(where), torch.from_numpy(images.targets(rows)).to(where)
        weights = torch.from_numpy(images.weights[rows]).to(where)
        inputs, targets, weights = mixed(inputs, targets, weights, params.mixup, params.cutmix, params.jitter)
        step_size = rate(params, course.steps, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = step_size * group["scale"]
        with torch.autocast(where.type, torch.bfloat16, enabled=params.precision == "bfloat16"):
            logits = network(inputs)
        loss = (weights * _lost(logits.float(), targets, images.multi_label)).mean()
        optimizer.zero_grad(set_to_none=True)
        (loss if penalty is None else loss + penalty()).backward()  # type: ignore[no-untyped-call]
        if params.clip:
            torch.nn.utils.clip_grad_norm_(trained, params.clip)
        optimizer.step()
        course.steps += 1
        _average(course, params.average)
        total += loss.item() * len(rows)
    return total / count


def _lost(logits: torch.Tensor, targets: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """Return the log loss (B,) in nats; of several labels the mean of each label's."""
    from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

    if multi_label:
        return binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
    return -(targets * log_softmax(logits, 1)).sum(1)


def _weights(params: TrainingParams, data: TrainingData, training: Sequence[Part], parts: Sequence[Part]) -> Floats:
    """Return how much each image of some parts counts; training : the parts that tell how frequent a class is."""
    own = counts(parts)
    if data.multi_label:
        return own
    labels = np.concatenate([part.labels for part in parts])
    weights: Floats = class_weights(params.class_weight, training, data.classes)[labels] * own
    return weights


def _average(course: Course, keep: float) -> None:
    """Move the running average a step towards the network; early on faster, as it should not remember the start."""
    import torch

    share = min(keep, (1 + course.steps) / (10 + course.steps)) if keep else 0.0
    state = course.network.state_dict()
    floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
    with torch.no_grad():
        torch._foreach_lerp_([course.average[n] for n in floats], [state[n] for n in floats], 1 - share)
        for name in state.keys() - floats:
            course.average[name].copy_(state[name])


def _validate(params: TrainingParams, network: Above, data: TrainingData) -> dict[str, float]:
    """Return log loss, its temperature and accuracy on validation, of images as they are."""
    logits = outputs(network.eval(), data.validation.activations, 0).astype(np.float64)
    labels = data.validation.labels
    weights = _weights(params, data, [data.training], [data.validation])
    loss, temperature = fit_temperature(logits, labels, weights)
    right = float(((logits >= 0) == labels if data.multi_label else logits.argmax(axis=1) == labels).mean())
    return {"validation_log_loss": loss, "temperature": temperature, "validation_accuracy": right}


def fit_temperature(logits: Floats, labels: Indices, weights: Floats) -> tuple[float, float]:
    """Return the weighted log loss (nats) of logits (n, classes) divided by what suits them best, and this temperature.

    labels : (n,) as indices, or (n, classes) of 0 and 1 where images may have several.
    Its logarithm has a standard normal distribution beforehand, which counts as much as one image: few images that
    happen to lie apart do not make the model sure of everything. Where logits are not finite the loss is not, either.
    """
    from scipy.optimize import minimize_scalar

    if not np.isfinite(logits).all():
        return math.nan, 1.0

    among = sigmoid if labels.ndim == 2 else softmax

    def loss(log_temperature: float) -> float:
        return log_loss(among(logits / math.exp(log_temperature)), labels, weights)

    def with_prior(log_temperature: float) -> float:
        return loss(log_temperature) + log_temperature**2 / (2 * float(weights.sum()))

    bounds = -math.log(20), math.log(20)
    best = float(minimize_scalar(with_prior, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)
    return loss(best), math.exp(best)


def _operations(network: Above, part: Part) -> tuple[int, int]:
    """Count the multiply-adds that an image takes in a network, and those from the lowest trained layer on."""
    import torch

    from stages.backbones.cut import counting

    one = torch.zeros(1, *part.activations.shape[2:], device=network.head.weight.device)
    below: list[int] = []
    trained = [m for m in network.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    with torch.no_grad(), counting() as counted:
        hooks = [m.register_forward_pre_hook(lambda *_: below.append(counted())) for m in trained]
        network.eval()(one)
        whole = counted()
    for hook in hooks:
        hook.remove()
    return whole, whole - min(below)


# ---- going on after a kill


def _keep(course: Course, path: Path) -> None:
    import torch

    where = course.network.head.weight.device
    state = {
        "network": course.network.state_dict(),
        "average": course.average,
        "optimizer": course.optimizer.state_dict(),
        "steps": course.steps,
        "history": course.history,
        "best": {name: torch.from_numpy(array) for name, array in course.best.items()},
        "random": torch.get_rng_state(),
        "random_on_device": torch.cuda.get_rng_state(where) if where.type == "cuda" else None,
        "taken": course.taken.tolist(),
    }
    content = io.BytesIO()
    torch.save(state, content)
    with new_file(path) as temporary, temporary.open("wb") as file:  # written here, a full disk is told as one
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def _restore(course: Course, path: Path) -> None:
    """Bring a course to where its checkpoint says; without one, or with a damaged one, it stays at its beginning."""
    import torch

    if not path.is_file():
        return
    written = path.read_bytes()
    checksum, content = written[:CHECKSUM], memoryview(written)[CHECKSUM:]
    if hashlib.sha256(content).digest() != checksum:
        path.unlink()
        warn(f"{path} was damaged: the training begins anew")
        return
    state = torch.load(io.BytesIO(content), map_location=course.network.head.weight.device, weights_only=True)
    course.network.load_state_dict(state["network"])
    course.average = state["average"]
    course.optimizer.load_state_dict(state["optimizer"])
    course.steps, course.history = state["steps"], state["history"]
    course.best = {name: tensor.cpu().numpy() for name, tensor in state["best"].items()}
    course.earlier = np.array(state["taken"])
    torch.set_rng_state(state["random"].cpu())
    if state["random_on_device"] is not None:
        torch.cuda.set_rng_state(state["random_on_device"].cpu(), course.network.head.weight.device)

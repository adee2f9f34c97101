"""What shallow heads share: views, normalised features, class weights, the choice among values, and the saved model.

A head turns feature vectors into logits, one per class; its softmax is the probability. Each kind brings a function
that fits one head for each of several settings on the same rows. All else is done here, in the same way for all:

1. Each sample's views become one row (their mean, or the first) or several (`views: all`, which share its weight).
2. Features are normalised by the statistics of the rows that are fitted.
3. Where a key is a list, a head for each combination is fitted on training, and the one of lowest log loss on
   validation is chosen; equals are decided by the order in params.yaml.
4. `refit: true` fits that one again on training and validation together.

Weights of classes and of samples have one meaning everywhere: a sample of weight 2 counts as two equal samples would,
in statistics, in losses, in calibration and in the choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

import numpy as np
from pydantic import Field

from stages.cli import UserError
from stages.params import Transfer, suggest
from stages.transfers.shared.vectors import StoredVectors, choose_views, read_ahead, some_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stages.params import Dataset
    from stages.transfers import Part, TrainingData

    Floats = NDArray[np.float64]
    Singles = NDArray[np.float32]
    Indices = NDArray[np.int64]

ROWS_AT_ONCE = 1024
"""So many rows are predicted at a time, to keep memory flat."""


class ShallowParams(Transfer):
    """Keys of every shallow head. A key whose value is a list is chosen on validation."""

    normalize: Literal["standard", "l2", "none"] = Field(
        "standard", description="make features alike: mean 0 and variance 1 each, or each image's vector of length 1"
    )
    views: Literal["mean", "identity", "all"] = Field(
        "mean",
        description="of an image's stored views the mean, the first, or all: train on each and average predictions",
    )
    refit: bool = Field(True, description="fit again on training and validation together, once values are chosen")


ClassWeight: TypeAlias = Annotated[
    Literal["none", "auto"] | dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]],
    Field(
        description="how much a sample of each class counts; auto: all classes the same in sum; a class not named: 1"
    ),
]


class WeightedParams(ShallowParams):
    """Keys of the heads whose loss weighs samples."""

    class_weight: ClassWeight = "none"


Setting: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """What a head is fitted on.

    features : (n, D) normalised, an array; or `StoredVectors`, which are read like one in pieces
    labels : (n,) as indices; weights : (n,) how often each row counts
    images, groups : (n,) numbers of what a row belongs to; groups is None where the data set has none
    classes : the names
    """

    features: Singles
    labels: Indices
    weights: Floats
    images: Indices
    groups: Indices | None
    classes: list[str]


class Head:
    """A fitted head: a frozen dataclass whose fields are the arrays that it consists of."""

    def logits(self, features: Singles) -> Floats:
        """Return (n, classes) for normalised features (n, D)."""
        raise NotImplementedError

    @classmethod
    def logits_of(cls, heads: Sequence[Any], features: Singles) -> Iterator[Floats]:
        """Yield the logits of heads that were fitted together: a kind may find once what they have in common."""
        return (head.logits(features) for head in heads)

    @property
    def trained_parameters(self) -> int:
        """How many numbers the training has set."""
        raise NotImplementedError

    @classmethod
    def load(cls, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> ShallowModel:
        """Make the model again from what it has saved."""
        mean, factor = arrays.pop("mean", None), arrays.pop("factor", None)
        return ShallowModel(facts, Normalization(facts["normalize"], mean, factor), cls(**arrays))


@dataclass(frozen=True)
class Linear(Head):
    """logits = features @ weight + bias; weight : (D, classes), bias : (classes,)."""

    weight: Floats
    bias: Floats

    def logits(self, features: Singles) -> Floats:
        """Return (n, classes) for normalised features (n, D)."""
        return features.astype(np.float64) @ self.weight + self.bias

    @property
    def trained_parameters(self) -> int:
        """Weights and biases; of two classes only the difference is free."""
        return (len(self.weight) + 1) * free_columns(len(self.bias))


FitHeads: TypeAlias = Callable[[Rows, Sequence[Setting], int], Sequence[Head]]
"""Fits one head for each setting on the same rows; the last argument is the seed."""


def fit_shallow(
    params: ShallowParams, data: TrainingData, seed: int, fit_heads: FitHeads, folded: bool = False
) -> ShallowModel:
    """Choose among the settings on validation and return the fitted model.

    folded : whether `fit_heads` fits on folds; then what they keep whole is among the facts, as it may be images where
    there are groups. Raises UserError for a class weight that names no class.
    """
    from stages.transfers.shared.platt import deal

    def fit(parts: Sequence[Part], settings: Sequence[Setting]) -> tuple[Normalization, Sequence[Head], Rows]:
        normalization, rows = prepare(params, parts, data.classes)
        heads = fit_heads(rows, settings, seed)
        return normalization, heads, replace(rows, features=np.empty((0, 0), np.float32))  # which are large

    settings = grid(params)
    chosen, choices = 0, []
    if len(settings) > 1 or not params.refit:
        normalization, heads, rows = fit([data.training], settings)
        losses = validation_losses(params, normalization, heads, data)
        choices = [{**s, "validation_log_loss": loss} for s, loss in zip(settings, losses, strict=True)]
        chosen = int(np.argmin(losses))
        head = heads[chosen]
    if params.refit:
        normalization, (head,), rows = fit([data.training, data.validation], [settings[chosen]])
    facts = facts_of(params, data.classes, settings[chosen], choices)
    if folded:
        facts["folds_keep_whole"] = deal(rows, seed)[0]
    return ShallowModel(facts, normalization, head)


def facts_of(params: ShallowParams, classes: list[str], chosen: Setting, choices: Sequence[Setting]) -> dict[str, Any]:
    """Return what model.json says; choices are the settings that were tried, each with its validation log loss."""
    return {
        "kind": params.kind,
        "classes": classes,
        "views": params.views,
        "normalize": params.normalize,
        "chosen": dict(chosen),
        "choices": [dict(choice) for choice in choices],
    }


def validation_losses(
    params: ShallowParams, normalization: Normalization, heads: Sequence[Head], data: TrainingData
) -> list[float]:
    """Return the mean log loss of each head on the validation part, in nats; classes weigh as they do in training."""
    labels = data.validation.labels
    lost, first = np.empty((len(heads), len(labels))), 0
    for some in some_images(data.validation.activations):
        for each in predicted(normalization, heads, params.views, some):
            rows = slice(first, first + len(each[0]))
            lost[:, rows] = [log_losses(probabilities, labels[rows]) for probabilities in each]
            first = rows.stop
    weights = class_weights(getattr(params, "class_weight", "none"), [data.training], data.classes)[labels]
    return [float(np.average(own, weights=weights * counts([data.validation]))) for own in lost]


def predicted(
    normalization: Normalization, heads: Sequence[Head], views: str, activations: Singles
) -> Iterator[list[Floats]]:
    """Yield of some images at a time the probabilities (k, classes) by each of some heads of one kind.

    activations : (n, views, *shape); of no images one piece is yielded, without rows
    """
    vectors = choose_views(activations, views)
    count, used, width = vectors.shape
    step = max(1, ROWS_AT_ONCE // used)
    for first in range(0, max(count, 1), step):
        rows = normalization(vectors[first : first + step].reshape(-1, width))
        of_heads = (softmax(logits) for logits in type(heads[0]).logits_of(heads, rows))
        yield [found.reshape(-1, used, found.shape[1]).mean(axis=1) for found in of_heads]


def grid(params: Transfer) -> list[Setting]:
    """Return every combination of the values of the keys that may be lists, the last key changing fastest."""
    lists = {name: value for name, value in params if isinstance(value, list)}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def prepare(params: ShallowParams, parts: Sequence[Part], classes: list[str]) -> tuple[Normalization, Rows]:
    """Return the rows of some parts together, normalised by their own statistics, and how to normalise others so."""
    features = vectors_of(parts, params.views)
    labels = np.concatenate([part.labels for part in parts])
    count, views = len(labels), len(features) // len(labels)
    weights = class_weights(getattr(params, "class_weight", "none"), parts, classes)[labels] * counts(parts) / views
    names = [name for part in parts for name in part.groups or ()]
    groups = np.unique(names, return_inverse=True)[1].astype(np.int64) if names else None

    def repeat(array: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(array, views)

    normalization = Normalization.of(params.normalize, features, repeat(weights))
    if isinstance(features, StoredVectors):
        features = replace(features, normalize=normalization.apply)
    else:
        normalization.apply(features)
    return normalization, Rows(
        features=cast("Singles", features),  # stored ones are read like an array by the kinds that are given them
        labels=repeat(labels),
        weights=repeat(weights),
        images=repeat(np.arange(count)),
        groups=None if groups is None else repeat(groups),
        classes=classes,
    )


def vectors_of(parts: Sequence[Part], views: str) -> Singles | StoredVectors:
    """Return the vectors (n, D) of some parts together: a new array, or stored ones where what they are of is stored.

    Of fewer rows than columns all are read: they are few, and `coordinates` needs them together.
    """
    activations = [part.activations for part in parts]
    if all(isinstance(own, np.ndarray) for own in activations):
        chosen = np.concatenate([choose_views(own, views) for own in activations])  # (n, views, D)
        return chosen.reshape(-1, chosen.shape[2])
    vectors = StoredVectors(activations, views)
    count, width = vectors.shape
    return vectors if count > width else vectors[:]


def counts(parts: Sequence[Part]) -> Floats:
    """Return how much each sample of some parts counts, one after the other."""
    return np.concatenate([np.ones(len(p.labels)) if p.weights is None else p.weights for p in parts])


def weights_refused(params: ShallowParams, dataset: Dataset) -> str | None:
    """Return why a kind to which a sample's weight means nothing cannot take a data set that has weights."""
    if dataset.weight is None:
        return None
    return f"kind {params.kind} lets all samples count alike; its data set has weights: take another kind"


def class_weights(wanted: str | Mapping[str, float], parts: Sequence[Part], classes: Sequence[str]) -> Floats:
    """Return the weight of each class, for samples of some parts; raises UserError for a name that is no class."""
    if wanted == "none":
        return np.ones(len(classes))
    if isinstance(wanted, str):
        own, labels = counts(parts), np.concatenate([part.labels for part in parts])
        held = np.bincount(labels, own, minlength=len(classes))
        balanced: Floats = own.sum() / (len(classes) * np.where(held > 0, held, 1.0))
        return balanced
    for name in wanted:
        if name not in classes:
            raise UserError(f"class_weight names {name}, which is no class; {suggest(name, classes)}")
    return np.array([wanted.get(name, 1.0) for name in classes])


@dataclass(frozen=True)
class Normalization:
    """How features are made alike: (x - mean) * factor, or each row divided by its length, or nothing."""

    how: str
    mean: Singles | None = None
    factor: Singles | None = None

    @classmethod
    def of(cls, how: str, features: Singles | StoredVectors, weights: Floats) -> Normalization:
        """Take the statistics of rows (n, D) of which each counts `weights` (n,) times."""
        if how != "standard":
            return cls(how)
        mean = weighted_sums(weights, features) / weights.sum()
        variance = weighted_sums(weights, features, mean.astype(np.float32)) / weights.sum()
        # A feature that does not vary beyond rounding, as of a dead channel, says nothing: its factor is 0.
        varies = variance > np.square(mean) * len(features) * np.finfo(np.float32).eps ** 2
        factor = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
        return cls(how, mean.astype(np.float32), factor.astype(np.float32))

    def __call__(self, features: Singles) -> Singles:
        """Return normalised copies of rows (n, D)."""
        copies = features.copy()
        self.apply(copies)
        return copies

    def apply(self, features: Singles) -> None:
        """Normalise rows (n, D) in place."""
        for start in range(0, len(features), ROWS_AT_ONCE):
            rows = features[start : start + ROWS_AT_ONCE]
            if self.mean is not None and self.factor is not None:
                rows -= self.mean
                rows *= self.factor
            elif self.how == "l2":
                rows[:] = unit_length(rows)


def weighted_sums(weights: Floats, features: Singles | StoredVectors, center: Singles | None = None) -> Floats:
    """Return the sums (D,) of rows (n, D), or of their squared distances from a center, weighted."""
    total = np.zeros(features.shape[1])
    step = min(ROWS_AT_ONCE, features.at_once) if isinstance(features, StoredVectors) else ROWS_AT_ONCE
    starts = range(0, len(features), step)

    def read(start: int) -> Singles:
        return features[start : start + step]

    some = read_ahead(read, starts) if isinstance(features, StoredVectors) else map(read, starts)
    for start, rows in zip(starts, some, strict=True):
        rows = rows if center is None else np.square(rows - center)
        total += weights[start : start + step] @ rows
    return total


def unit_length(features: Singles) -> Singles:
    """Return the rows (n, D) divided by their lengths; rows of zeros stay zeros."""
    length: Singles = np.sqrt(np.square(features).sum(axis=1, keepdims=True))
    length[length == 0] = 1
    return features / length


@dataclass(frozen=True)
class ShallowModel:
    """Views, normalisation and a head, as one model; facts is what model.json holds, history what history.csv does."""

    facts: dict[str, Any]
    normalization: Normalization
    head: Head
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def chosen(self) -> dict[str, Any]:
        """The values that were chosen, or the only ones there were."""
        return dict(self.facts["chosen"])

    @property
    def trained_parameters(self) -> int:
        """How many numbers the training has set; the normalisation's are not counted."""
        return self.head.trained_parameters

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What the head and the normalisation consist of."""
        arrays = {f.name: getattr(self.head, f.name) for f in fields(self.head)}  # type: ignore[arg-type]
        normalization = {"mean": self.normalization.mean, "factor": self.normalization.factor}
        return arrays | {name: array for name, array in normalization.items() if array is not None}

    def predict_proba(self, activations: Singles) -> Floats:
        """Return the probabilities (n, classes) for activations (n, views, *shape)."""
        some = predicted(self.normalization, [self.head], self.facts["views"], activations)
        return np.concatenate([probabilities for (probabilities,) in some])

    def save(self, folder: Path) -> None:
        """Write the model into a folder."""
        from stages.store.models import write_arrays

        write_arrays(folder, self.facts, self.arrays)


def softmax(logits: Floats) -> Floats:
    """Return probabilities (n, classes) that sum to one in each row."""
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def sigmoid(logits: Floats) -> Floats:
    """Return the probability of each label (n, labels) by itself."""
    powers = np.exp(-np.abs(logits))
    probabilities: Floats = np.where(logits < 0, powers, 1.0) / (1 + powers)
    return probabilities


def log_loss(probabilities: Floats, labels: Indices, weights: Floats) -> float:
    """Return the weighted mean of the log loss in nats, see `log_losses`."""
    return float(np.average(log_losses(probabilities, labels), weights=weights))


def log_losses(probabilities: Floats, labels: Indices) -> Floats:
    """Return the log loss of each row (n,) in nats; a probability of zero counts as the least positive number.

    labels : (n,) as indices; or (n, labels) of 0 and 1, of which an image's loss is the mean
    """
    tiny = np.finfo(np.float64).tiny
    if labels.ndim == 2:
        lost: Floats = -np.log(np.maximum(np.where(labels > 0, probabilities, 1 - probabilities), tiny)).mean(axis=1)
        return lost
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], tiny))


def free_columns(classes: int) -> int:
    """Return how many columns of scores are free: of two classes one is the other's opposite."""
    return 1 if classes == 2 else classes


def opposite(score: Floats) -> Floats:
    """Return two columns of logits (..., 2) whose difference is the score of the second class (..., 1)."""
    return np.concatenate([-score / 2, score / 2], axis=-1)


def coordinates(features: Singles) -> tuple[Floats, Callable[[Floats], Floats]]:
    """Return features in double precision, in fewer columns where there are more columns than rows.

    A rotation changes no linear method that treats all directions alike, and n rows span at most n directions: with
    X X^T = L L^T the rows of L (n, n) have the inner products of the rows of X (n, D). Also returns the function that
    turns weights (columns, k) for L into those for X: X^T L^-T w. Stored vectors, which are more than their columns,
    stay stored.
    """
    from scipy.linalg import cholesky, solve_triangular

    count, width = features.shape
    if width <= count:
        return features.astype(np.float64), lambda weight: weight
    products = inner_products(features)
    # Rows may depend on each other (centred ones do): each gets a column of its own, of a 10,000th of its length.
    products[np.diag_indices(count)] += 1e-8 * np.trace(products) / count
    lower = cholesky(products, lower=True, overwrite_a=True, check_finite=False)

    def back(weight: Floats) -> Floats:
        dual: Floats = solve_triangular(lower, weight, lower=True, trans="T", check_finite=False)
        return features.T @ dual

    return lower, back


def inner_products(features: Singles) -> Floats:
    """Return X X^T (n, n) in double precision, taking some columns of X (n, D) at a time."""
    total = np.zeros((len(features), len(features)))
    for start in range(0, features.shape[1], 1024):
        block = features[:, start : start + 1024].astype(np.float64)
        total += block @ block.T
    return total

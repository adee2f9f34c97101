"""The levels of params.yaml, what each key means, and the strict base of every entry.

    python -m stages.params            check params.yaml, and say everything that is wrong with it

An entry of `downloads` is described by the file of its `source` in stages/sources/, a run's `transfer` by the file of
its `kind` in stages/transfers/: each holds a class `Params`. The rest is described here.
"""

from __future__ import annotations

import importlib
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from stages.cli import UserError, guard

LEVELS = ("downloads", "datasets", "features", "runs")
KEY = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
MOST_PROBLEMS = 20
"""Lines that are shown of what is wrong."""
MOST_SEED = 2**32 - 1
"""The highest seed that numpy takes."""
T = TypeVar("T")
OneOrMany = Annotated[list[T], BeforeValidator(lambda v: v if isinstance(v, list) else [v]), Field(min_length=1)]
"""A value, or a list of values to choose from or to put together; always read as a list."""

SYMMETRIES = ("identity", "flip", "flip_vertical", "turn180", "turn90", "turn270", "transpose", "transverse")
View = Literal[
    "identity", "flip", "flip_vertical", "turn180", "turn90", "turn270", "transpose", "transverse", "symmetries"
]


class Entry(BaseModel, extra="forbid", strict=True, frozen=True):
    """One entry of params.yaml: no unknown key, no silent conversion, no change after reading."""

    @field_validator("*")
    @classmethod
    def _no_zero(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("a character with the number 0 is in it, which no file, column or class can be named by")
        return value


class Download(Entry):
    """What every source of images or weights has; each file in stages/sources/ adds its own keys."""

    source: str = Field(description="where it comes from: the name of a file in stages/sources/")
    path: str = Field(
        description="what DVC watches for a change: the folder or file, or requirements.lock for what a package brings"
    )


class Label(Entry):
    """Where an image's class comes from."""

    column: str | list[str] = Field(
        "class",
        description="column of the source that holds the class, or a number; or for several labels of an image a "
        "column of each, of 0 and 1",
    )
    separator: str | None = Field(
        None, min_length=1, description="what stands between an image's labels where the column holds several in a cell"
    )
    threshold: float | Annotated[list[float], Field(min_length=1)] | None = Field(
        None,
        description="makes two classes of a number: below the threshold, and at least the threshold; several "
        "thresholds, n of them, make n + 1 classes; of several columns each is a label from the threshold on",
    )
    soft: str | dict[str, str] | None = Field(
        None,
        description="column with the probability of the second of two classes, for transfers that train on soft "
        "labels; or for each class its column",
    )

    @model_validator(mode="after")
    def _check(self) -> Label:
        if any(low >= high for low, high in pairwise(self.thresholds)):
            raise ValueError(f"threshold: {', '.join(f'{t:g}' for t in self.thresholds)} do not rise")
        if self.separator is not None and (self.thresholds or isinstance(self.column, list)):
            raise ValueError("separator parts the labels in the cells of one column, without threshold")
        if isinstance(self.column, list) and len(self.column) < 2:
            raise ValueError("column is a list of two labels or more; name a single column without the list")
        if isinstance(self.column, list) and len(self.thresholds) > 1:
            raise ValueError("threshold: several columns take one, from which on an image has the label")
        if isinstance(self.column, list) and len(set(self.column)) < len(self.column):
            raise ValueError("column names something twice")
        if self.multi_label and self.soft is not None:
            raise ValueError("soft is for one class of each image; here are several labels")
        return self

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, or none."""
        return isinstance(self.column, list) or self.separator is not None

    @property
    def columns(self) -> list[str]:
        """The columns that the labels are made of."""
        return self.column if isinstance(self.column, list) else [self.column]

    @property
    def thresholds(self) -> list[float]:
        """All thresholds, rising; none where the column holds the classes."""
        if self.threshold is None:
            return []
        return self.threshold if isinstance(self.threshold, list) else [self.threshold]


class Split(Entry):
    """How the samples are divided into training, validation and test."""

    test: float = Field(0.25, gt=0, lt=1, description="share of the samples in the test part")
    validation: float = Field(0.15, gt=0, lt=1, description="share of all samples in the validation part")
    column: str | None = Field(
        None, description="column with the split that the source brings (train, validation, test), used as it is"
    )
    stratify: list[str] = Field(
        [], description="columns whose values are spread evenly over the parts; the label when the list is empty"
    )
    repeats: int = Field(
        1, ge=1, description="how many splits: one, or as many as make repeats times test whole, as test parts rotate"
    )
    seed: int = Field(0, ge=0, le=MOST_SEED, description="seed of the split")

    @model_validator(mode="after")
    def _check(self) -> Split:
        if self.test + self.validation >= 1:
            raise ValueError(f"test {self.test:g} and validation {self.validation:g} leave nothing to train on")
        if self.column is not None and self.repeats != 1:
            raise ValueError("a split that the source brings has one repeat, it cannot rotate")
        if self.repeats != 1 and not _is_whole(self.repeats * self.test):
            good = [n for n in range(2, 101) if _is_whole(n * self.test)]
            near = sorted(sorted(good, key=lambda n: abs(n - self.repeats))[:2])
            hint = f"use 1 or {' or '.join(map(str, near))}" if near else "use 1"
            raise ValueError(
                f"repeats {self.repeats} times test {self.test:g} is not a whole number, so that images would be "
                f"tested unequally often: {hint}"
            )
        return self


def _is_whole(value: float) -> bool:
    return round(value) >= 1 and abs(value - round(value)) < 1e-6


class Dataset(Entry):
    """Labels, groups and splits over the images of one download."""

    images: str = Field(description="key of the download that brings the images")
    label: Label = Field(Label(), description="where the class comes from")
    group: str | None = Field(
        None, description="column whose values (a module, a patient, a day) are never on two sides of a split"
    )
    weight: str | None = Field(
        None,
        description="column of how much each sample counts in training and in what is chosen on validation, 1 where it "
        "is empty; when a run is scored all count alike",
    )
    split: Split = Field(Split(), description="training, validation and test")
    near_duplicates: bool = Field(
        True,
        description="keep images that look nearly the same on one side of every split, as those of equal pixels are",
    )
    max_unreadable: float = Field(
        0.1,
        ge=0,
        le=1,
        exclude=True,  # it stops a stage, and changes no sample
        description="largest share of the images that may be missing, broken or of no known label; they are left out",
    )


class Features(Entry):
    """Activations of a frozen backbone for every image of one download."""

    images: str = Field(description="key of the download that brings the images")
    backbone: str = Field(
        pattern=r"^(raw|models)/[A-Za-z][A-Za-z0-9_-]*$",
        description="raw/ and the key of the download that brings the weights, or models/ and that of a run",
    )
    image_size: OneOrMany[Annotated[int, Field(ge=8, le=2048)]] = Field(
        description="side of the square that the network sees, in pixels; several are concatenated (cut: pooled)"
    )
    resize: Literal["crop", "stretch"] = Field(
        "crop", description="make it square by cutting off the longer side at both ends, or by stretching"
    )
    cut: str = Field(
        "pooled",
        description="the module whose output is stored; pooled is what the last linear layer reads, image the pixels",
    )
    layers: list[str] = Field(
        [], description="with cut pooled: modules whose averaged outputs are concatenated, pooled among them"
    )
    views: list[View] = Field(
        ["identity"], min_length=1, description="what is stored of each image; symmetries stands for all eight"
    )
    dtype: Literal["float32", "float16"] = Field("float32", description="number format on disk")
    precision: Literal["float32", "int8"] = Field(
        "float32", description="number format of the network's products; int8 is faster where the processor has it"
    )
    logits: bool = Field(False, description="store the source classifier's outputs, too")

    @model_validator(mode="after")
    def _check(self) -> Features:
        if self.cut != "pooled" and (self.layers or len(self.image_size) > 1):
            raise ValueError("several layers or sizes can only be put together with cut: pooled")
        if self.cut == "image" and self.logits:
            raise ValueError("with cut: image no network is run that could give logits; extract them with cut: pooled")
        if self.cut == "image" and self.precision != "float32":
            raise ValueError(f"with cut: image no network is run that could be {self.precision}: leave precision out")
        for name, values in (("layers", self.layers), ("image_size", self.image_size), ("views", self.all_views)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names something twice")
        if self.all_views[0] != "identity":
            raise ValueError("views begin with identity, the image as it is")
        return self

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave float32 out: features keep the fingerprint that they had before there was another precision."""
        written: dict[str, Any] = write(self)
        if self.precision == "float32":
            written.pop("precision", None)
        return written

    @property
    def all_views(self) -> list[str]:
        """The views with `symmetries` written out."""
        return [v for view in self.views for v in (SYMMETRIES if view == "symmetries" else (view,))]

    @property
    def all_layers(self) -> list[str]:
        """The layers whose pooled outputs are stored, or the one cut."""
        return self.layers or [self.cut]


class Transfer(Entry):
    """What every transfer has; each file in stages/transfers/ adds its own keys."""

    kind: str = Field(description="the method: the name of a file in stages/transfers/")


class Run(Entry):
    """One transfer on one data set and one set of features."""

    dataset: str = Field(description="key of the data set")
    features: str = Field(description="key of the features")
    transfer: Any = Field(description="the method (kind) and its keys")
    repeats: int | None = Field(None, ge=1, description="use only so many of the data set's repeats")
    seed: int = Field(0, ge=0, le=MOST_SEED, description="seed of the training")
    final: bool = Field(False, description="also train a model on all samples; it is not scored")
    labels_per_class: list[Annotated[int, Field(ge=2)] | Literal["all"]] | None = Field(
        None,
        min_length=1,
        description="train with so many labels of each class, training and validation together, or all; the run's "
        "figures are those with the most, the others make a curve",
    )

    @property
    def budgets(self) -> list[int | None]:
        """How many labels of each class to train with, from few to many; None is all."""
        if self.labels_per_class is None:
            return [None]
        numbers = sorted({n for n in self.labels_per_class if n != "all"})
        return [*numbers, *([None] if "all" in self.labels_per_class else [])]


class Compare(Entry):
    """How the runs are compared."""

    references: dict[str, str] = Field(
        {},
        description="for a data set the run that others are compared with; its first plain linear probe if not named",
    )


class Params(Entry):
    """All of params.yaml."""

    downloads: dict[str, Any] = Field(description="images and weights, each entry a source")
    datasets: dict[str, Dataset] = Field(description="labels, groups and splits")
    features: dict[str, Features] = Field(description="what frozen backbones make of the images")
    runs: dict[str, Run] = Field(description="what is trained, scored and compared")
    compare: Compare = Field(description="how the runs are compared")

    def entry(self, level: str, name: str) -> Any:
        """Return an entry; raises UserError with the nearest names when there is none."""
        entries: dict[str, Any] = getattr(self, level)
        if name not in entries:
            raise UserError(f"params.yaml: {level}.{name} is not there; {suggest(name, entries)}")
        return entries[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """Say which known name is nearest to a wrong one, or which there are."""
    known = list(known)
    spelled = {k.lower(): k for k in known}  # C for c, too
    near = get_close_matches(name.lower(), spelled, n=1)
    return f"did you mean {spelled[near[0]]}?" if near else f"known: {', '.join(known) or 'none'}"


def kinds(room: str) -> list[str]:
    """Return the names of the files in a room (stages/transfers, stages/sources) that hold a class `Params`."""
    folder = Path(__file__).parent / room
    return sorted(
        p.stem for p in folder.glob("*.py") if not p.stem.startswith("_") and "class Params(" in p.read_text("utf-8")
    )


def kind_module(room: str, kind: str) -> ModuleType:
    """Import stages/<room>/<kind>.py."""
    return importlib.import_module(f"stages.{room}.{kind}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file as DVC does (YAML 1.2, no double keys); raises UserError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not there: run the command in the project's root") from None
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{path}{line}: {(error.problem or str(error)).splitlines()[0]}") from None
    except (YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: {(str(error).splitlines() or ['cannot be read'])[0]}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: the file holds no levels; see docs/params.md")
    return content


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check all of params.yaml; raises one UserError that tells every problem, a line each."""
    content = read_yaml(path)
    problems: list[str] = []
    params = _validate(Params, content, (), problems)
    ill_named = [
        f"params.yaml: {level}.{name} is no good name: a letter, then letters, digits, dash, underscore"
        for level in LEVELS
        for name, _ in _items(content.get(level))
        if not isinstance(name, str) or not KEY.fullmatch(name)
    ]
    problems += ill_named
    downloads = _by_kind(content.get("downloads"), "sources", "source", lambda name: ("downloads", name), problems)
    transfers = _by_kind(
        {k: v.get("transfer") for k, v in _dictionaries(content.get("runs")) if "transfer" in v},
        "transfers",
        "kind",
        lambda name: ("runs", name, "transfer"),
        problems,
    )
    if params is None or problems:
        # What refers to an ill-named entry, or to one of a level that is none, is wrong for that reason alone.
        if not ill_named and all(isinstance(content.get(level), dict) for level in LEVELS):
            problems += _wrong_references(*_valid_part(content, downloads))
        raise UserError(*_told(problems))
    runs = {k: run.model_copy(update={"transfer": transfers[k]}) for k, run in params.runs.items()}
    params = params.model_copy(update={"downloads": downloads, "runs": runs})
    problems = list(_wrong_references(params))
    if problems:
        raise UserError(*_told(problems))
    return params


def _told(problems: Iterable[str]) -> list[str]:
    """Return problems, each once, and not more than fit on a screen."""
    lines = list(dict.fromkeys(problems))
    more = len(lines) - MOST_PROBLEMS
    return lines if more <= 1 else [*lines[:MOST_PROBLEMS], f"params.yaml: and {more} more of the kind"]


def _items(level: Any) -> list[tuple[Any, Any]]:
    return list(level.items()) if isinstance(level, dict) else []


def _dictionaries(level: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(k, v) for k, v in _items(level) if isinstance(v, dict)]


def _by_kind(entries: Any, room: str, key: str, where: Any, problems: list[str]) -> dict[str, Any]:
    """Validate entries that a file of a room describes, each by the class Params of the file that `key` names."""
    known, result = kinds(room), {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        loc = where(name)
        if not isinstance(entry, dict):
            problems.append(f"params.yaml: {'.'.join(map(str, loc))} is {entry!r}: it needs keys, {key} among them")
        elif key not in entry:
            problems.append(f"params.yaml: {'.'.join(map(str, (*loc, key)))} is missing; known: {', '.join(known)}")
        elif entry[key] not in known:
            hint = suggest(str(entry[key]), known)
            problems.append(f"params.yaml: {'.'.join(map(str, (*loc, key)))} is {entry[key]!r}, which is none; {hint}")
        else:
            result[name] = _validate(kind_module(room, entry[key]).Params, entry, loc, problems)
    return result


ModelT = TypeVar("ModelT", bound=BaseModel)


def _validate(model: type[ModelT], content: Any, where: tuple[str, ...], problems: list[str]) -> ModelT | None:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        # Names of entries are checked by `read_params`: pydantic would only say that 7 is no text.
        errors = [e for e in error.errors() if not (model is Params and e["loc"][2:] == ("[key]",))]
        problems += [explain({**e, "loc": (*where, *e["loc"])}, model, content, where) for e in errors]
        return None


def explain(error: ErrorDetails, model: type[BaseModel], content: Any, where: tuple[str, ...] = ()) -> str:
    """Say in one line where the mistake is, what stands there and what may stand there."""
    loc = _readable(error["loc"], content, len(where))
    place = "params.yaml: " + ".".join(map(str, loc)) if loc else "params.yaml"
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] == "extra_forbidden":
        return f"{place} is not a key; {suggest(str(loc[-1]), _known_keys(model, loc[len(where) : -1]))}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{place}: {message}"
    shown = "empty" if error["input"] is None else repr(error["input"])
    if error["type"] in ("model_type", "dict_type"):
        return f"{place} is {shown}: it needs keys"
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{place} is {shown}: {message[0].lower()}{message[1:]}"


def _readable(loc: tuple[int | str, ...], content: Any, skip: int) -> tuple[int | str, ...]:
    """Keep of pydantic's location what stands in the file: no names of alternatives, no index of a lone value."""
    kept: list[int | str] = list(loc[:skip])
    for part in loc[skip:]:
        if isinstance(content, dict):
            if part in content or KEY.fullmatch(str(part)):  # not "literal['auto']", the name of an alternative
                kept.append(part)
                content = content.get(part)
        elif isinstance(content, list) and isinstance(part, int):
            kept.append(part)
            content = content[part] if part < len(content) else None
    return tuple(kept)


def _known_keys(model: Any, path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation if is_model(model) and part in model.model_fields else model
        inner = [a for a in (annotation, *typing.get_args(annotation)) if is_model(a)]
        model = inner[0] if inner else annotation
    return list(model.model_fields) if is_model(model) else []


def is_model(value: Any) -> bool:
    """Whether a key's type is an entry, with keys of its own."""
    return isinstance(value, type) and issubclass(value, BaseModel)


def _valid_part(content: dict[str, Any], downloads: Mapping[str, Any]) -> tuple[Params, set[str]]:
    """Return what of params.yaml can be read, and the names of the entries that cannot."""
    kept: dict[str, Any] = {"downloads": {name: entry for name, entry in downloads.items() if entry is not None}}
    for level, model in (("datasets", Dataset), ("features", Features), ("runs", Run)):
        entries = {name: _validate(model, entry, (), []) for name, entry in _dictionaries(content.get(level))}
        kept[level] = {name: entry for name, entry in entries.items() if entry is not None}
    unread = {str(name) for level, read in kept.items() for name, _ in _items(content.get(level)) if name not in read}
    compare = _validate(Compare, content.get("compare", {}), (), []) or Compare()
    return Params.model_construct(**kept, compare=compare), unread | {f"raw/{name}" for name in unread}


def _wrong_references(params: Params, unread: Iterable[str] = ()) -> Iterator[str]:
    """Tell every name in params.yaml that stands for nothing, or for something of the wrong sort.

    unread : names of entries that are there and cannot be read; nothing is said of what refers to them
    """
    unread = set(unread)
    for problem, name in _references(params):
        if name not in unread:
            yield problem


Wrong = tuple[str, str | None]
"""A line about a reference, and the name that stands for nothing; None where another thing is wrong with it."""


def _references(params: Params) -> Iterator[Wrong]:
    """Yield each wrong reference."""
    images = [k for k, d in params.downloads.items() if d.source != "weights"]
    for level, entries in (("datasets", params.datasets), ("features", params.features)):
        for name, entry in typing.cast("Mapping[str, Dataset | Features]", entries).items():
            yield from _wrong(f"{level}.{name}.images", entry.images, images, "brings no images")
    yield from _backbones(params)
    for name, run in params.runs.items():
        yield from _wrong(f"runs.{name}.dataset", run.dataset, params.datasets, "is no data set")
        yield from _wrong(f"runs.{name}.features", run.features, params.features, "is none of the features")
        if run.dataset in params.datasets and run.features in params.features:
            for problem in _run(run, params.datasets[run.dataset], params.features[run.features]):
                yield f"params.yaml: runs.{name}{problem}", None
    for dataset_name, run_name in params.compare.references.items():
        place = f"compare.references.{dataset_name}"
        yield from _wrong(place, dataset_name, params.datasets, "is no data set")
        of_dataset = [k for k, run in params.runs.items() if run.dataset == dataset_name]
        yield from _wrong(place, run_name, of_dataset, f"is no run of {dataset_name}")


def _backbones(params: Params) -> Iterator[Wrong]:
    weights = [f"raw/{k}" for k, d in params.downloads.items() if d.source == "weights"]
    trained = [f"models/{k}" for k, run in params.runs.items() if _trains_network(run)]
    for name, features in params.features.items():
        yield from _wrong(f"features.{name}.backbone", features.backbone, [*weights, *trained], "brings no weights")
        if name in _behind(params, name):
            yield f"params.yaml: features.{name}.backbone: {features.backbone} is itself trained on {name}", None


def _run(run: Run, dataset: Dataset, features: Features) -> Iterator[str]:
    """Yield why a run cannot bring its data set and its features together, each to be put after the run's name."""
    if dataset.images != features.images:
        yield (
            f" brings together {run.dataset} of the images {dataset.images} and {run.features} of the images "
            f"{features.images}; both must be of the same images"
        )
    if run.repeats is not None and run.repeats > dataset.split.repeats:
        yield f".repeats is {run.repeats}: {run.dataset} has {dataset.split.repeats}"
    kind = getattr(run.transfer, "kind", None)
    if kind is None:
        return  # what is wrong with it has been said
    if dataset.label.multi_label and run.labels_per_class is not None:
        yield f".labels_per_class counts images of one class each; {run.dataset} has several labels of an image"
    problem = getattr(kind_module("transfers", kind), "problem", None)
    if problem is not None and (reason := problem(run.transfer, features, dataset)):
        yield f": {reason}"


def _trains_network(run: Run) -> bool:
    """Whether a run, valid or not, is of a kind that trains a network."""
    kind = run.transfer.get("kind") if isinstance(run.transfer, dict) else getattr(run.transfer, "kind", None)
    return kind in kinds("transfers") and bool(getattr(kind_module("transfers", str(kind)), "STREAMS", False))


def _behind(params: Params, features: str) -> set[str]:
    """Return the features that some features' backbone was trained on, and those behind these."""
    found: set[str] = set()
    todo = [features]
    while todo:
        entry = params.features.get(todo.pop())
        room, _, name = entry.backbone.partition("/") if entry else ("", "", "")
        if room == "models" and name in params.runs and params.runs[name].features not in found:
            found.add(params.runs[name].features)
            todo.append(params.runs[name].features)
    return found


def _wrong(place: str, name: str, known: Iterable[str], what: str) -> Iterator[Wrong]:
    known = list(known)
    if name not in known:
        yield f"params.yaml: {place}: {name} {what}; {suggest(name, known)}", name


def main() -> None:
    """Check params.yaml."""
    if sys.argv[1:]:
        raise UserError("usage: python -m stages.params; what each key means: python -m stages.keys")
    read_params()


if __name__ == "__main__":
    guard(main)

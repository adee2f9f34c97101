"""What runs the frozen part of a network: ONNX Runtime on a CPU, torch on a GPU.

Where it runs comes from the environment, and changes no result beyond rounding (which is coarse in bfloat16):

    TRANSFER_DEVICE    cpu or cuda; cuda by default where torch finds a GPU
    TRANSFER_ENGINE    onnxruntime or torch; by default onnxruntime on a CPU and torch on a GPU
    TRANSFER_THREADS   cores to use on a CPU; by default all that this process may

ONNX Runtime runs every call in the thread that makes it, on one core: the caller keeps all cores busy by as many calls
at once (`calls`), and what comes out depends neither on their number nor on what else is in a call. It reads an export
of the network, which is made when the first images come, checked on them against the undivided network in torch, and
kept in the private cache; where it is found there, torch is not even imported. `precision: int8` runs a quantised copy
of that export, on a CPU alone.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stages.backbones.backbone import Backbone
from stages.cli import UserError, warn
from stages.files import hash_file, hash_json, new_file, write_json
from stages.params import Features
from stages.store.location import cache_root
from stages.threads import TORCH, thread_count

if TYPE_CHECKING:
    import onnxruntime
    from numpy.typing import NDArray

    from stages.backbones.folding import Apart, FromPixels
    from stages.backbones.int8 import Ranges

    Images = NDArray[np.uint8]
    Outputs = dict[str, NDArray[Any]]

VERSION = "2"
"""To be raised with every change here, in cut.py or in folding.py that changes a float."""

TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime and torch, relative to the largest activation; 2e-6 is usual."""

ENOUGH = 150
"""How many multiplications of an image a weight should serve, so that reading it costs nothing beside them."""

COMPARED_IMAGES = 64
"""On how many images a quantised network is compared with the exact one."""


class Engine(ABC):
    """Runs what lies below the cut.

    batch_size : how many images a call brings at most; calls : how many threads may call at once, and should;
    identity : all about engine, device, precision and versions that changes a float.
    """

    batch_size: int
    calls: int
    identity: dict[str, str]

    @abstractmethod
    def __call__(self, images: Images) -> Outputs:
        """Return the outputs of images (B, C, S, S), grey (C = 1) or in colour (C = 3), 0 ... 255.

        The result holds in float32 for each layer (B, D), for a cut that is a module (B, *shape), and `logits`
        (B, classes) where they are asked for; with cut: image the images themselves. Raises UserError for a network
        that cannot be run at this size or cut.
        """

    @abstractmethod
    def operations(self, size: int, channels: int) -> int:
        """Return how many multiplications with addition an image takes, counted in torch as it runs."""


def open_engine(backbone: Backbone, features: Features, cache: Path | None = None) -> Engine:
    """Open what runs a backbone for an entry of `features`; cheap, all work is left to the first images.

    cache : folder of exported networks; in the private cache if not named. Raises UserError for a setting in the
    environment that cannot be.
    """
    if features.cut == "image":
        return _Pixels()
    place = device()
    runtime = _setting("TRANSFER_ENGINE", ("onnxruntime", "torch")) or ("torch" if place == "cuda" else "onnxruntime")
    if features.precision == "int8":
        if runtime == "torch":
            raise UserError(
                "precision: int8 runs by ONNX Runtime on a CPU alone, and torch was to run it: leave precision out of "
                "the features' entry, or set TRANSFER_DEVICE=cpu and TRANSFER_ENGINE=onnxruntime"
            )
        return _Int8(backbone, features, cache)
    if runtime == "torch":
        return _Torch(backbone, features, place)
    if place == "cuda":
        raise UserError(
            "TRANSFER_ENGINE is onnxruntime: on a GPU only torch runs; set TRANSFER_DEVICE=cpu, or unset it"
        )
    return _OnnxRuntime(backbone, features, cache)


def calibrated(
    backbone: Backbone, features: Features, images: Sequence[Mapping[int, Images]], cache: Path | None = None
) -> Backbone:
    """Return the backbone with the ranges that `precision: int8` needs, measured on images.

    images : of each image, for every size (C, S, S), grey or in colour. cache : see `open_engine`.
    Raises UserError where the network does not take eight bits: where an output's error is LARGEST_ERROR or more.
    """
    from stages.backbones.int8 import joined

    exact, ranges = _OnnxRuntime(backbone, features, cache), {}
    pixels = {size: _alike(images, size) for size in features.image_size}
    for size, kinds in pixels.items():
        ranges[str(size)] = joined(*(exact.ranges(alike) for alike in kinds))
    backbone = replace(backbone, ranges=ranges)
    _check_int8(_Int8(backbone, features, cache), [some for kinds in pixels.values() for some in kinds])
    return backbone


def _check_int8(quantised: _Int8, images: Sequence[Images]) -> None:
    """Compare with the exact engine on images, each (B, C, S, S); see `calibrated`. Warn where nothing is gained."""
    from stages.backbones.int8 import LARGEST_ERROR, relative_error

    found: dict[tuple[int, str], list[tuple[Any, Any]]] = {}
    seconds = [0.0, 0.0]
    for alike in images:
        outputs = []
        for at, engine in enumerate((quantised, quantised.exact)):
            engine(alike[:1])  # what it takes to make or read it is not counted
            begun = time.process_time()
            outputs.append(engine(alike[:COMPARED_IMAGES]))
            seconds[at] += time.process_time() - begun
        for name, wanted in outputs[1].items():
            found.setdefault((alike.shape[-1], name), []).append((outputs[0][name], wanted))
    for (size, name), pairs in found.items():
        error = relative_error(*(np.concatenate(values) for values in zip(*pairs, strict=True)))
        if not error < LARGEST_ERROR:
            raise UserError(
                f"{quantised.backbone.name} does not take precision: int8: at {size} pixels the error of {name} is "
                f"{error:.2f} of its spread over images, not less than {LARGEST_ERROR}: leave precision out of the "
                "features' entry"
            )
    if seconds[0] > seconds[1]:
        warn(
            f"precision: int8 makes {quantised.backbone.name} no faster: it takes {seconds[0] / seconds[1]:.1f} times "
            "as long as without; leave precision out of the features' entry"
        )


def _alike(images: Sequence[Mapping[int, Images]], size: int) -> list[Images]:
    """Put images of one size together, grey ones and those in colour apart: each (B, C, S, S)."""
    kinds = [[image[size] for image in images if len(image[size]) == channels] for channels in (1, 3)]
    return [np.stack(alike) for alike in kinds if alike]


def _setting(name: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(name) or None
    if value is not None and value not in allowed:
        raise UserError(f"{name} is {value!r}: it can be {' or '.join(allowed)}")
    return value


def device() -> str:
    """Return where networks run, cpu or cuda; raises UserError where the environment wants what is not there."""
    chosen = _setting("TRANSFER_DEVICE", ("cpu", "cuda"))
    if chosen == "cpu" or (chosen is None and not _may_have_gpu()):
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if chosen == "cuda":
        raise UserError("TRANSFER_DEVICE is cuda: torch finds no GPU here; unset it, or set it to cpu")
    return "cpu"


def _may_have_gpu() -> bool:
    """Whether there is a sign of a GPU's driver; to ask torch itself takes seconds."""
    return os.name == "nt" or any(Path(p).exists() for p in ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


class _Pixels(Engine):
    """cut: image. Nothing is frozen, and the images are what is stored."""

    def __init__(self) -> None:
        self.batch_size, self.calls, self.identity = 64, thread_count(), {"engine": "none"}

    def __call__(self, images: Images) -> Outputs:
        return {"image": images}

    def operations(self, size: int, channels: int) -> int:  # noqa: ARG002
        return 0


class _Frozen(Engine):
    """What both engines share: the part of the network as a module in torch, built when it is needed."""

    def __init__(self, backbone: Backbone, features: Features):
        self.backbone, self.features = backbone, features
        self.names = (*features.all_layers, *(["logits"] if features.logits else []))
        self.lock = TORCH

    def whole(self, size: int, only: str | None = None) -> FromPixels:
        """The part below the cut that reads three channels, with nothing folded; `only` for one of its outputs."""
        from stages.backbones.cut import taken
        from stages.backbones.folding import FromPixels

        features, facts = self.features, self.backbone.facts
        if features.logits and not facts["classes"]:
            raise UserError(f"logits: {self.backbone.name} has no classifier that gives logits; set logits: false")
        part = taken(self.backbone.network, features.cut, features.layers, features.logits, size, only)
        return FromPixels(part, facts["mean"], facts["std"])

    def folded(self, whole: FromPixels, size: int, channels: int) -> FromPixels | Apart:
        """The same for so many channels, with all folded that folds."""
        from stages.backbones.folding import folded

        mean, std = self.backbone.facts["mean"], self.backbone.facts["std"]
        return folded(whole, lambda: [self.whole(size, name) for name in self.names], mean, std, channels, size)


def _packages(backbone: Backbone) -> list[str]:
    """The package that the network comes from; the textbook's is our own."""
    library = backbone.facts["library"]
    return [] if library == "textbook" else [library]


def _versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages)


def _operations(part: FromPixels | Apart, size: int, channels: int) -> int:
    """Count the multiplications with addition that an image takes in a part of a network."""
    import torch

    from stages.backbones.cut import count_operations

    return count_operations(
        part, torch.zeros(1, channels, size, size, dtype=torch.uint8, device=next(part.buffers()).device)
    )


class _Torch(_Frozen):
    """Torch: channels_last, and on a GPU bfloat16 by autocast where the GPU has it."""

    def __init__(self, backbone: Backbone, features: Features, device: str):
        super().__init__(backbone, features)
        import torch

        self.device, self.batch_size, self.calls = device, 32, 1
        self.parts: dict[tuple[int, int], tuple[FromPixels | Apart, int]] = {}
        self.low_precision = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        place = f"cuda {torch.cuda.get_device_name()}" if device == "cuda" else f"cpu {platform.machine()}"
        self.identity = {
            "engine": "torch",
            "device": place,
            "precision": "bfloat16" if self.low_precision else "float32",
            "versions": _versions("torch", *_packages(backbone)),
            "version": VERSION,
        }
        if device == "cpu":
            self.identity["threads"] = str(thread_count())

    def __call__(self, images: Images) -> Outputs:
        import torch
        from torch.backends import cudnn

        count, channels, _, size = images.shape
        with self.lock, cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            part, batch = self._part(size, channels)  # outside of inference mode, in which no cut could be checked
            with torch.inference_mode():
                pieces = [self._run(part, piece, batch) for piece in np.split(images, range(batch, count, batch))]
        return {name: np.concatenate(parts) for name, parts in zip(self.names, zip(*pieces, strict=True), strict=True)}

    def operations(self, size: int, channels: int) -> int:
        with self.lock:
            return _operations(self._part(size, channels)[0], size, channels)

    def _part(self, size: int, channels: int) -> tuple[FromPixels | Apart, int]:
        """The part on its device, and how many images it takes at once."""
        import torch

        if (size, channels) not in self.parts:
            if self.device == "cpu":
                torch.set_num_threads(thread_count())
            # A copy: the tensors that move would be the network's own, of which parts for other images are made.
            part = copy.deepcopy(self.folded(self.whole(size), size, channels)).to(self.device)
            part.to(memory_format=torch.channels_last)
            self.parts[size, channels] = part, max(1, min(self.batch_size, self.batch_size * 224**2 // size**2))
        return self.parts[size, channels]

    def _run(self, part: FromPixels | Apart, images: Images, batch: int) -> list[NDArray[np.float32]]:
        import torch

        pixels = torch.from_numpy(_padded(images, batch)).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low_precision):
            outputs = part(pixels)
        return [o[: len(images)].float().cpu().contiguous().numpy() for o in outputs]


def _padded(images: Images, batch: int) -> Images:
    """Fill up to a whole batch with black images: equal shapes are computed equally."""
    if len(images) == batch:
        return images
    return np.concatenate([images, np.zeros((batch - len(images), *images.shape[1:]), np.uint8)])


class _Export(NamedTuple):
    """An exported network, open; batch : images at once."""

    session: onnxruntime.InferenceSession
    batch: int
    operations: int


class _OnnxRuntime(_Frozen):
    """ONNX Runtime on a CPU, in as many threads as call."""

    def __init__(self, backbone: Backbone, features: Features, cache: Path | None):
        super().__init__(backbone, features)
        self.batch_size, self.calls = 16, thread_count()
        self.exports: dict[tuple[int, int], _Export] = {}
        self.cache = cache
        self.identity = {
            "engine": "onnxruntime",
            "device": f"cpu {platform.machine()}",
            "precision": "float32",
            "versions": _versions("torch", *_packages(backbone), "onnxscript", "onnxruntime"),
            "version": VERSION,
        }

    def __call__(self, images: Images) -> Outputs:
        with self.lock:
            export = self._export(images)
        count = len(images)
        pieces = [_run(export, piece) for piece in np.split(images, range(export.batch, count, export.batch))]
        return {name: np.concatenate(parts) for name, parts in zip(self.names, zip(*pieces, strict=True), strict=True)}

    def operations(self, size: int, channels: int) -> int:
        with self.lock:
            export = self._read(size, channels)
            if export is not None:
                return export.operations
            return _operations(self.folded(self.whole(size), size, channels), size, channels)

    def _export(self, images: Images) -> _Export:
        """The export for images of this size and channels: open already, in the cache, or made and checked now."""
        channels, size = images.shape[1:3]
        export = self._read(size, channels)
        if export is None:
            export = self.exports[size, channels] = self._make(images)
        return export

    def _key(self, size: int, channels: int) -> dict[str, Any]:
        """All that an export is made of."""
        known = ("library", "network", "classes", "weights_hash", "mean", "std")
        return {
            "network": {k: self.backbone.facts[k] for k in known},
            "cut": self.features.cut,
            "outputs": self.names,
            "image": [channels, size, size],
            "engine": self.identity,
        }

    def _path(self, size: int, channels: int) -> Path:
        folder = self.cache if self.cache is not None else cache_root() / "networks"
        return folder / f"{self.backbone.name}-{hash_json(self._key(size, channels))}.onnx"

    def _read(self, size: int, channels: int) -> _Export | None:
        if (size, channels) not in self.exports:
            path = self._path(size, channels)
            try:
                facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                session = _session(path) if hash_file(path) == facts["hash"] else None
            except (FileNotFoundError, ValueError, KeyError):
                session = None
            if session is None:
                return None
            self.exports[size, channels] = _Export(session, facts["batch"], facts["operations"])
        return self.exports[size, channels]

    def _make(self, images: Images) -> _Export:
        """Make the export and put it into the cache."""
        channels, size = images.shape[1:3]
        path = self._path(size, channels)
        with new_file(path) as temporary:
            export, told = self._write(images, temporary)
            digest = hash_file(temporary)
        facts = {"batch": export.batch, "operations": export.operations, **told, "hash": digest}
        # Last: an export counts when its facts stand beside it.
        write_json(path.with_suffix(".json"), {**self._key(size, channels), **facts})
        return export

    def _write(self, images: Images, target: Path) -> tuple[_Export, dict[str, float]]:
        """Export the network, and check the export on these images."""
        channels, size = images.shape[1:3]
        whole = self.whole(size)
        part = self.folded(whole, size, channels)
        operations = _operations(part, size, channels)
        batch = _images_at_once(operations, sum(p.numel() for p in part.parameters()))
        _write_onnx(part, (batch, channels, size, size), target, self.backbone.name)
        export = _Export(_session(target), batch, operations)
        return export, {"largest_difference": self._difference(export, whole, images[:batch])}

    def ranges(self, images: Images) -> Ranges:
        """Return how far the tensors of the export reach on some images (B, C, S, S)."""
        from stages.backbones.int8 import measured_ranges

        path, batch = self.exported(images)
        pieces = np.split(images, range(batch, len(images), batch))
        return measured_ranges(path, (np.resize(piece, (batch, *piece.shape[1:])) for piece in pieces))

    def exported(self, images: Images) -> tuple[Path, int]:
        """Return the file of the export for such images (B, C, S, S), and how many it takes at once."""
        channels, size = images.shape[1:3]
        with self.lock:
            return self._path(size, channels), self._export(images).batch

    def _difference(self, export: _Export, whole: FromPixels, images: Images) -> float:
        """Return the largest difference from torch, relative to an output's largest value; raises UserError."""
        import torch

        from stages.backbones.cut import plain_attention

        with torch.inference_mode(), plain_attention():
            expected = [o.numpy() for o in whole(torch.from_numpy(images))]
        largest = 0.0
        for name, found, wanted in zip(self.names, _run(export, images), expected, strict=True):
            difference = float(abs(found - wanted).max() / max(float(abs(wanted).max()), np.finfo(np.float32).tiny))
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{name}: ONNX Runtime differs from torch by {difference:.1e} of the largest activation of "
                    f"{self.backbone.name}, more than {TOLERANCE:.0e}: set TRANSFER_ENGINE=torch"
                )
            largest = max(largest, difference)
        return largest


class _Int8(_OnnxRuntime):
    """The same in eight bits, with the ranges that the backbone brings."""

    def __init__(self, backbone: Backbone, features: Features, cache: Path | None):
        from stages.backbones.int8 import check_processor

        check_processor()
        super().__init__(backbone, features, cache)
        self.exact = _OnnxRuntime(backbone, features, cache)
        self.identity = {**self.identity, "precision": "int8", "ranges": hash_json(backbone.ranges)}

    def operations(self, size: int, channels: int) -> int:
        return self.exact.operations(size, channels)

    def _write(self, images: Images, target: Path) -> tuple[_Export, dict[str, float]]:
        """Quantise the exact export."""
        from stages.backbones.int8 import quantise

        channels, size = images.shape[1:3]
        assert self.backbone.ranges is not None
        exported, batch = self.exact.exported(images)
        quantise(exported, self.backbone.ranges[str(size)], target)
        return _Export(_session(target), batch, self.operations(size, channels)), {}


def _images_at_once(operations: int, parameters: int) -> int:
    """How many images to pass at once on a core.

    One, as long as a weight that is read serves enough multiplications: fewer activations leave the processor's cache.
    """
    return max(1, min(16, ENOUGH * parameters // max(operations, 1)))


def _session(path: Path) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run(export: _Export, images: Images) -> list[NDArray[np.float32]]:
    name = export.session.get_inputs()[0].name
    return [o[: len(images)] for o in export.session.run(None, {name: _padded(images, export.batch)})]


def _write_onnx(part: FromPixels | Apart, shape: tuple[int, ...], path: Path, network: str) -> None:
    import torch

    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            program = torch.onnx.export(part, (torch.zeros(shape, dtype=torch.uint8),), dynamo=True, verbose=False)
            assert program is not None
            program.save(path)
    except OSError:  # what a full disk says is no failure of the exporter
        raise
    except Exception as error:  # the exporter fails in as many ways as there are networks
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{network} cannot be exported for ONNX Runtime ({reason}): set TRANSFER_ENGINE=torch"
        ) from error

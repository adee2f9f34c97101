"""Eight bits instead of thirty-two: an exported network, quantised by ONNX Runtime.

Affine quantisation (Jacob et al., CVPR 2018): weights by channel, activations by tensor. How far a tensor's numbers
reach is measured on images, and rounded up to one of few steps: a few new images then hardly ever move a range, and
what was computed before them stays valid.
"""

from __future__ import annotations

import logging
import math
import platform
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.cli import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ranges = dict[str, tuple[float, float]]
"""The least and the largest number of a tensor, by its name in the exported network."""

OPERATORS = ["Conv", "Clip", "Relu", "Gemm", "MatMul"]
"""What is computed in eight bits. Sums of skip connections are not: that costs accuracy and saves nothing."""

STEP = math.sqrt(2.0)
UNIT = 6.0
"""Ranges end at UNIT * STEP**k, among them 6, where ReLU6 ends them."""

LARGEST_ERROR = 1.0
"""Where the error of an output is as large as what images differ by, in the median, the network is refused."""

_FLAGS = {"x86_64": ("avx512_vnni", "avx_vnni"), "aarch64": ("asimddp",)}


def check_processor() -> None:
    """Raise UserError where the processor is known to have no instruction for sums of products of eight bits.

    Without one it would be hardly faster, and on x86 wrong: two products are added in 16 bits, which overflow.
    """
    wanted, found = _FLAGS.get(platform.machine()), _processor_flags()
    if wanted and found and not found.intersection(wanted):
        raise UserError(
            f"precision: int8 needs a processor that has {' or '.join(wanted)}, and this one has not: "
            "leave precision out of the features' entry"
        )


def _processor_flags() -> set[str]:
    """What the processor can; nothing where it does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}


def measured_ranges(network: Path, batches: Iterable[NDArray[np.uint8]]) -> Ranges:
    """Measure how far the tensors of an exported network reach.

    network : the ONNX file; batches : what it reads, each (b, C, S, S). Returns the ranges, rounded up.
    """
    from onnxruntime.quantization import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.left = ({name: batch} for batch in batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.left, None)

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(network, OPERATORS, f"{folder}/augmented.onnx")
        calibrator.collect_data(Reader(calibrator.infer_session.get_inputs()[0].name))
        data = calibrator.compute_data().data
    found = {name: [float(np.ravel(end)[0]) for end in tensor.range_value] for name, tensor in data.items()}
    return {name: (-_rounded_up(-low), _rounded_up(high)) for name, (low, high) in sorted(found.items())}


def joined(*measured: Ranges) -> Ranges:
    """Return ranges that hold what all do."""
    names = sorted({name for ranges in measured for name in ranges})
    held = {name: [ranges[name] for ranges in measured if name in ranges] for name in names}
    return {name: (min(low for low, _ in ends), max(high for _, high in ends)) for name, ends in held.items()}


def _rounded_up(end: float) -> float:
    if not end > 0.0:
        return 0.0
    return UNIT * STEP ** math.ceil(math.log(end / UNIT, STEP) - 1e-6)


def quantise(network: Path, ranges: Mapping[str, tuple[float, float]], target: Path) -> None:
    """Write an exported network in eight bits, with these ranges of its tensors.

    Raises UserError where a tensor has none: a network may be exported otherwise for grey images than for others.
    """
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantType,
        TensorsData,
        quantize_static,
        save_tensors_data,
    )

    measured = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        known = Path(folder) / "ranges.json"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, measured), known)
        try:
            quantize_static(
                network,
                target,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibration_cache_path=known,
            )
        except ValueError as error:
            raise UserError(
                f"precision: int8: the network cannot be quantised ({' '.join(str(error).split())}); leave precision "
                "out of the features' entry, or bring images of the colours that are predicted"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what quantisation advises, and hints at on the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Return the root mean square error of outputs (n, ...) over their standard deviation over images, in the median.

    Outputs that are the same for all images do not count; 0 where all are.
    """
    found, wanted = found.reshape(len(found), -1), wanted.reshape(len(wanted), -1)
    spread = wanted.std(axis=0)
    counts = spread > 1e-3 * spread.max()
    error = np.sqrt(((found - wanted) ** 2).mean(axis=0))[counts] / spread[counts]
    return float(np.median(error)) if len(error) else 0.0

"""Numbers as people read them, the same in the terminal, in Markdown and on the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

FAMILIES = {
    "feature": "feature representation",
    "parameter": "model parameters",
    "instance": "instances",
    "relational": "relational knowledge",
    "multi_task": "multi-task",
    "domain": "domain adaptation",
    "robustness": "adversarial and shift robustness",
    "none": "none",
}
"""The families of transfer by the short names that the methods' files use."""
FIGURE_NAMES = {"accuracy": "accuracy", "average_precision": "mean average precision"}
"""What runs are compared by, as sentences name it; columns say mAP for the second."""


def column_name(figure: str) -> str:
    """Return the name of a figure that runs are compared by, above a column."""
    return "mAP" if figure == "average_precision" else figure


def decimals(value: Any, digits: int = 3) -> str:
    """Return a figure with so many decimals; a dash where there is none."""
    return "–" if _missing(value) else f"{float(value):.{digits}f}"


def signed(value: Any, digits: int = 3) -> str:
    """Return a difference with its sign; a dash where there is none, and no sign for what rounds to nothing."""
    if _missing(value):
        return "–"
    text = f"{abs(float(value)):.{digits}f}"
    return text if float(text) == 0 else f"{'−' if float(value) < 0 else '+'}{text}"


def interval(low: Any, high: Any, shown: Callable[[Any], str] = decimals) -> str:
    """Return "0.771 to 0.872"; nothing where there is no interval."""
    return "" if _missing(low) or _missing(high) else f"{shown(low)} to {shown(high)}"


def p_value(value: Any) -> str:
    """Return a p value with three decimals, never as nothing."""
    if _missing(value):
        return "–"
    return "< 0.001" if float(value) < 0.001 else f"{float(value):.3f}"


def count(value: Any) -> str:
    """Return a count in three figures: 1,540, 386 M, 5.2 G; a dash where there is none."""
    if _missing(value):
        return "–"
    value = float(value)
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size * 0.9995:
            size = size / 10 if unit == "k" else size
            return f"{_three_figures(value / size)} {unit}"
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


def size(value: Any) -> str:
    """Return a number of bytes: 512 B, 13.4 MB; a dash where there is none."""
    if _missing(value):
        return "–"
    value = float(value)
    for unit_size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit_size * 0.9995:
            return f"{_three_figures(value / unit_size)} {unit}"
    return f"{value:.0f} B"


def seconds(value: Any) -> str:
    """Return a time: 0.42 s, 12 s, 3 min 20 s; a dash where there is none."""
    if _missing(value):
        return "–"
    value = float(value)
    if value < 59.95:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _three_figures(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and not math.isfinite(value))


def listed(names: list[str]) -> str:
    """Return names as a sentence lists them: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def unbroken(text: str) -> str:
    """Keep a number and its per cent sign on one line."""
    return text.replace(" %", "\u00a0%")

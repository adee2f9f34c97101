"""The page's charts as inline SVG: small, of text and lines, in the page's own colours, light or dark.

A chart that only repeats numbers of the table around it is hidden from screen readers; one that stands alone has a role
and a name that says what it shows. Colour is never the only sign: shapes and positions say the same.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markupsafe import Markup, escape

from stages.scoring.wording import count

BAR_HEIGHT, BAR_MARGIN = 18, 8
CURVE_SIDE = 190
MAX_CURVE_POINTS = 60


def style() -> str:
    """Return the charts' look as CSS."""
    return Path(__file__).with_name("charts.css").read_text(encoding="utf-8")


def stand_alone(svg: str) -> str:
    """Return a chart of the page as a file of its own, with its look."""
    look = f"<style>{style()}:root {{ background: var(--paper); }}</style>"
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{look}", 1) + "\n"


def element(tag: str, *content: str, **attributes: object) -> Markup:
    """Return an element of SVG; text and attributes are escaped, underscores in attribute names become dashes."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value) if isinstance(value, float) else value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), Markup(given), Markup("").join(content))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class Scale:
    """Maps values from low to high onto pixels from start to end, both clamped."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round values that cover low to high in about so many steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * m for m in (1, 2, 5, 10) if power * m * about >= span * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class Bars:
    """A column of bars that share a scale; `marks` are the ticks of its axis."""

    marks: list[float]
    width: int

    @classmethod
    def over(cls, values: Iterable[float], width: int, at_most: float | None = None) -> Bars:
        """Return bars whose axis covers the values."""
        values = list(values)
        marks = [t for t in ticks(min(values), max(values)) if at_most is None or t <= at_most + 1e-9]
        return cls(marks if len(marks) > 1 else [marks[0] - 0.1, marks[0]], width)

    @property
    def scale(self) -> Scale:
        """Where values stand, in pixels from the left."""
        return Scale(self.marks[0], self.marks[-1], BAR_MARGIN, self.width - BAR_MARGIN)

    def bar(self, low: float, value: float, high: float, mark: float | None = None) -> Markup:
        """Draw a value as a dot and its interval as a line; `mark` is a thin upright line, such as zero."""
        scale, middle, parts = self.scale, BAR_HEIGHT / 2, []
        if mark is not None:
            x = scale(mark)
            parts.append(element("line", class_="mark", x1=x, x2=x, y1=0.0, y2=float(BAR_HEIGHT)))
        parts += [
            element("line", class_="whisker", x1=scale(low), x2=scale(high), y1=middle, y2=middle),
            element("circle", class_="dot", cx=scale(value), cy=middle, r=4.0),
        ]
        return _svg(self.width, BAR_HEIGHT, parts, name=None, class_="bar")

    def axis(self, signed: bool = False) -> Markup:
        """Draw the axis that stands once above the bars: first and last tick, and zero if there is room."""
        scale, first, last = self.scale, self.marks[0], self.marks[-1]
        parts = [
            element("line", class_="axis", x1=scale(t), x2=scale(t), y1=12.0, y2=float(BAR_HEIGHT)) for t in self.marks
        ]
        labels = [(first, "start", 1.0), (last, "end", self.width - 1.0)]
        if first < 0 < last and 46 < scale(0) < self.width - 46:
            labels.append((0.0, "middle", scale(0)))
        parts += [element("text", _tick(t, signed), x=x, y=9.0, text_anchor=anchor) for t, anchor, x in labels]
        return _svg(self.width, BAR_HEIGHT, parts, name=None, class_="bar")


def _tick(value: float, signed: bool = False) -> str:
    if value == 0:
        return "0"
    text = f"{abs(value):.3f}".removesuffix("0")
    return ("−" if value < 0 else "+" if signed else "") + text


@dataclass(frozen=True)
class Point:
    """A run in a chart of cost against accuracy; `cost` in multiply-adds."""

    label: str
    cost: float
    low: float
    value: float
    high: float
    shape: str  # dot, baseline, or best: how the run is drawn
    url: str


def scatter(
    points: Sequence[Point], name: str, axis: str, joined: Sequence[Sequence[str]] = (), width: int = 860
) -> Markup:
    """Draw accuracy with its interval against cost on a logarithmic axis; what costs nothing stands left, apart.

    axis : what is counted. joined : labels of points that belong to one curve.
    """
    frame = _Frame.around(points, width)
    parts = [*frame.axes(axis)]
    for labels in joined:
        along = sorted((p for p in points if p.label in labels), key=lambda p: p.cost)
        path = "M" + "L".join(f"{frame.x(p.cost):.1f} {frame.up(p.value):.1f}" for p in along)
        parts.append(element("path", class_="curve", d=path))
    for cluster in _clusters(points, frame):
        parts += _cluster(cluster, frame)
    return _svg(width, frame.height, parts, name, class_="scatter", role="group")  # an image could hold no links


@dataclass(frozen=True)
class Growth:
    """A run's accuracy over the number of labels: points (labels, low, value, high), from few to many."""

    label: str
    points: Sequence[tuple[float, float, float, float]]
    shape: str  # dot, baseline, or best: how the run is drawn


def growth(lines: Sequence[Growth], name: str, width: int = 860) -> Markup:
    """Draw accuracy with its interval against the number of labels, on a logarithmic axis, a line for each run."""
    height, left, top, bottom = max(250, ROW * len(lines) + 70), 40, 12, 44
    all_points = [point for line in lines for point in line.points]
    marks = [t for t in ticks(min(p[1] for p in all_points), max(p[3] for p in all_points), 5) if t <= 1 + 1e-9]
    up = Scale(marks[0], marks[-1], height - bottom, top)
    counts = sorted({point[0] for point in all_points})
    names = min(NAME_WIDTH * max(len(line.label) for line in lines), width * 0.34) + 24
    across = Scale(math.log10(counts[0]) - 0.01, math.log10(counts[-1]) + 0.01, left + 14, width - names)
    parts = [*_levels(marks, up, left, width)]
    parts += _below([(across(math.log10(n)), f"{n:,.0f}") for n in counts], height - bottom + 18.0)
    parts.append(element("text", "labels, training and validation together", x=float(left), y=height - 6.0))
    ordered = sorted(lines, key=lambda line: -line.points[-1][2])
    heights = _spread([up(line.points[-1][2]) for line in ordered], ROW, top + 4, height - bottom - 4)
    for at, (line, label_y) in enumerate(zip(ordered, heights, strict=True)):
        nudge = 2.0 * (at - (len(lines) - 1) / 2)  # so that whiskers over the same number of labels stay apart
        pixels = [(across(math.log10(p[0])) + nudge, p) for p in line.points]
        path = "M" + "L".join(f"{x:.1f} {up(p[2]):.1f}" for x, p in pixels)
        parts.append(element("path", class_="curve strong" if line.shape == "best" else "curve", d=path))
        for x, p in pixels:
            parts += _marker(Point(line.label, 0, p[1], p[2], p[3], line.shape, ""), x, up)
        strong = "strong" if line.shape == "best" else None
        parts.append(element("text", line.label, x=pixels[-1][0] + 12, y=label_y + 4, class_=strong))
    return _svg(width, height, parts, name, class_="scatter")


ROW = 15
"""Height of a run's name."""
TICK_GAP = 46


@dataclass(frozen=True)
class _Frame:
    """Where a chart of cost against accuracy has its axes."""

    width: int
    height: int
    left: int
    marks: list[float]
    up: Scale
    costs: list[float]
    across: Scale
    free: float | None  # where the runs stand that cost nothing

    @classmethod
    def around(cls, points: Sequence[Point], width: int) -> _Frame:
        top, bottom, left = 12, 44, 40
        height = max(250, ROW * len(points) + top + bottom + 10)
        marks = [t for t in ticks(min(p.low for p in points), max(p.high for p in points), 5) if t <= 1 + 1e-9]
        marks = marks if len(marks) > 1 else [marks[0] - 0.1, marks[0]]
        costs = cost_ticks([p.cost for p in points if p.cost > 0])
        free = left + 14.0 if any(p.cost <= 0 for p in points) else None
        names = min(NAME_WIDTH * max(len(p.label) for p in points), width * 0.34) + 44
        start = left + 14 if free is None else left + 0.16 * width
        across = Scale(math.log10(costs[0]), math.log10(costs[-1]), start, width - names)
        return cls(width, height, left, marks, Scale(marks[0], marks[-1], height - bottom, top), costs, across, free)

    def x(self, cost: float) -> float:
        """Return where a cost stands."""
        return self.free if cost <= 0 and self.free is not None else self.across(math.log10(cost))

    def axes(self, title: str) -> Iterator[Markup]:
        """Draw the levels of accuracy, and the costs below."""
        yield from _levels(self.marks, self.up, self.left, self.width)
        free = [] if self.free is None else [(self.free, "0")]
        yield from _below([*free, *((self.x(t), count(t)) for t in self.costs)], self.up.start + 18)
        yield element("text", title, x=float(self.left), y=self.height - 6.0)


def _levels(marks: Sequence[float], up: Scale, left: int, width: int) -> Iterator[Markup]:
    for t in marks:
        yield element("line", class_="grid", x1=float(left), x2=float(width), y1=up(t), y2=up(t))
        yield element("text", _tick(t), x=left - 6.0, y=up(t) + 4, text_anchor="end")


def _below(marks: Sequence[tuple[float, str]], y: float) -> Iterator[Markup]:
    """Draw the marks of the axis below, those left out that would stand too close to the one before."""
    taken = -math.inf
    for x, text in marks:
        if x - taken >= TICK_GAP:
            taken = x
            yield element("text", text, x=x, y=y, text_anchor="middle")


def cost_ticks(costs: Sequence[float]) -> list[float]:
    """Return round costs that cover the given ones: powers of ten, or 1, 2 and 5 times these over a short way."""
    if not costs:
        return [1e6, 1e9]
    low, high = math.log10(min(costs)), math.log10(max(costs))
    steps = (1, 2, 5) if high - low < 1 else (1,)
    all_marks = [m * 10.0**e for e in range(math.floor(low) - 1, math.ceil(high) + 2) for m in steps]
    first = max(i for i, t in enumerate(all_marks) if t <= min(costs) * (1 + 1e-9))
    last = min(i for i, t in enumerate(all_marks) if t >= max(costs) * (1 - 1e-9))
    return all_marks[first : max(last, first + 1) + 1]


NAME_WIDTH = 6.7
"""Of a character of a run's name, on average."""


def _clusters(points: Sequence[Point], frame: _Frame) -> list[list[Point]]:
    """Put runs together whose names would stand over another's dots: they get one column of names."""
    clusters: list[list[Point]] = []
    end = -math.inf
    for point in sorted(points, key=lambda p: (p.cost, -p.value, p.label)):
        x = frame.x(point.cost)
        if x > end:
            clusters.append([])
        clusters[-1].append(point)
        end = max(end, x + 66 + NAME_WIDTH * len(point.label))
    return clusters


def _cluster(cluster: Sequence[Point], frame: _Frame) -> Iterator[Markup]:
    """Draw runs of about one cost: none covers another of the same cost, their names in one column on the right."""
    seen: Counter[float] = Counter()
    places: dict[str, float] = {}
    step = min(9.0, 36.0 / len(cluster))
    for point in cluster:
        places[point.label] = frame.x(point.cost) + step * seen[point.cost]
        seen[point.cost] += 1
    end = max(places.values()) + 18
    ordered = sorted(cluster, key=lambda p: (-p.value, p.label))
    heights = _spread([frame.up(p.value) for p in ordered], ROW, frame.up.end + 4, frame.up.start - 4)
    for point, label_y in zip(ordered, heights, strict=True):
        yield from _marker(point, places[point.label], frame.up)
        at, y = places[point.label], frame.up(point.value)
        if abs(label_y - y) > 3 or end - at > 20:
            yield element("path", class_="leader", d=f"M{at + 8:.1f} {y:.1f}L{end - 2:.1f} {label_y:.1f}")
        room = int((frame.width - end - 3) / NAME_WIDTH)
        label = point.label if len(point.label) <= room else point.label[: max(room - 1, 1)] + "…"
        text = element("text", label, x=end + 2, y=label_y + 4, class_="strong" if point.shape == "best" else None)
        yield element("a", text, href=point.url)


def _marker(point: Point, x: float, up: Scale) -> Iterator[Markup]:
    y = up(point.value)
    yield element("line", class_="whisker", x1=x, x2=x, y1=up(point.low), y2=up(point.high))
    if point.shape == "baseline":
        yield element("rect", class_="dot hollow", x=x - 3.5, y=y - 3.5, width=7.0, height=7.0)
    else:
        yield element("circle", class_="dot", cx=x, cy=y, r=4.0)
    if point.shape == "best":
        yield element("circle", class_="ring", cx=x, cy=y, r=7.5)


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions as little as needed for a gap between them, within the room from low to high."""
    placed: list[float] = []
    for y in wanted:
        placed.append(max(y, low, placed[-1] + gap if placed else low))
    limit = high
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - gap
    return placed


@dataclass(frozen=True)
class Line:
    """A curve in the unit square; `strong` ones are drawn over the faint ones."""

    points: Sequence[tuple[float, float]]
    strong: bool = False
    dots: bool = False


def curve(
    lines: Sequence[Line], x_title: str, y_title: str, name: str, diagonal: bool = False, level: float | None = None
) -> Markup:
    """Draw curves in the unit square, with a dashed diagonal or a dashed level for what guessing would give."""
    left, bottom, top, side = 40, 34, 6, CURVE_SIDE
    across, up = Scale(0, 1, left, left + side), Scale(0, 1, top + side, top)
    parts = [element("rect", class_="frame", x=float(left), y=float(top), width=float(side), height=float(side))]
    for t in (0.0, 0.5, 1.0):
        label = f"{t:g}"
        anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[t]
        parts += [
            element("text", label, x=across(t), y=top + side + 13.0, text_anchor=anchor),
            element("text", label, x=left - 4.0, y=up(t) + (4 if t < 1 else 8), text_anchor="end"),
        ]
    if diagonal:
        parts.append(element("line", class_="chance", x1=across(0), y1=up(0), x2=across(1), y2=up(1)))
    if level is not None:
        parts.append(element("line", class_="chance", x1=across(0), y1=up(level), x2=across(1), y2=up(level)))
    for line in sorted(lines, key=lambda x: x.strong):
        pixels = [(across(x), up(y)) for x, y in thin(line.points)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
        parts.append(element("path", class_="curve strong" if line.strong else "curve", d=path))
        if line.dots:
            parts += [element("circle", class_="dot", cx=x, cy=y, r=2.5) for x, y in pixels]
    parts += [
        element("text", x_title, x=left + side / 2, y=float(top + side + 28), text_anchor="middle"),
        element(
            "text",
            y_title,
            x=0.0,
            y=0.0,
            text_anchor="middle",
            transform=f"translate(10 {top + side / 2:g}) rotate(-90)",
        ),
    ]
    return _svg(left + side + 8, top + side + bottom, parts, name, class_="unit")


def thin(points: Sequence[tuple[float, float]], limit: int = MAX_CURVE_POINTS) -> list[tuple[float, float]]:
    """Keep so many points of a curve, evenly along its length, its ends among them."""
    points = list(points)
    if len(points) <= limit:
        return points
    lengths = [math.dist(a, b) for a, b in pairwise(points)]
    step, walked, kept = sum(lengths) / (limit - 1), 0.0, [points[0]]
    for point, length in zip(points[1:], lengths, strict=True):
        walked += length
        if walked >= step:
            kept.append(point)
            walked %= step
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _svg(
    width: float, height: float, parts: Iterable[Markup], name: str | None, class_: str, role: str = "img"
) -> Markup:
    size = {"class_": class_, "viewBox": f"0 0 {width:g} {height:g}", "width": width, "height": height}
    if name is None:
        return element("svg", *parts, **size, aria_hidden="true")
    return element("svg", *parts, **size, role=role, aria_label=name)

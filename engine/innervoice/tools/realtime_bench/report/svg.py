"""Canvas: SVG from shapes, with scales and axes. Colours come from the page, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Maps the values from `low` to `high` to places from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """The place of a value."""
        span = self.high - self.low or 1.0
        return self.begin + (value - self.low) / span * (self.end - self.begin)


class Canvas:
    """A drawing of so many units; text is 12 units high. label: for those who do not see it."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width = width
        self.height = height
        self._label = label
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, *, title: str = "", round: float = 0
    ) -> None:
        """Draw a rectangle; title: shown under the pointer."""
        corner = f' rx="{_number(min(round, width / 2, height / 2))}"' if round else ""
        place = (
            f'x="{_number(x)}" y="{_number(y)}" width="{_number(max(0.0, width))}" height="{_number(height)}"'
        )
        self._add(f'<rect class="{kind}" {place}{corner}', title, "rect")

    def line(self, begin: Point, end: Point, kind: str) -> None:
        """Draw a line."""
        x1, y1, x2, y2 = map(_number, (*begin, *end))
        self._parts.append(f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>')

    def path(self, points: Sequence[Point], kind: str, *, closed: bool = False) -> None:
        """Draw a line through points, or the area within."""
        if points:
            words = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
            self._parts.append(f'<path class="{kind}" d="M{words}{"Z" if closed else ""}"/>')

    def circle(self, x: float, y: float, radius: float, kind: str, *, title: str = "") -> None:
        """Draw a dot."""
        place = f'cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}"'
        self._add(f'<circle class="{kind}" {place}', title, "circle")

    def text(self, x: float, y: float, words: str, kind: str = "label", anchor: str = "start") -> None:
        """Write words; y: of their base line."""
        place = f'x="{_number(x)}" y="{_number(y)}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="{kind}" {place}>{escape(words)}</text>')

    def axis(
        self, scale: Scale, y: float, words: str, shown: Callable[[float], str], *, top: float | None = None
    ) -> None:
        """Draw a horizontal axis at y, with lines up to `top`, and what it measures."""
        self.line((scale.begin, y), (scale.end, y), "axis")
        for value in ticks(scale.low, scale.high, max(2, int((scale.end - scale.begin) / 80))):
            x = scale(value)
            if top is not None:
                self.line((x, top), (x, y), "grid")
            self.text(x, y + 16, shown(value), "tick", "middle")
        if words:
            self.text(scale.end, y + 32, words, "tick", "end")

    def markup(self) -> Markup:
        """The SVG element."""
        size = f"0 0 {_number(self.width)} {_number(self.height)}"
        body = "".join(self._parts)
        return Markup(f'<svg viewBox="{size}" role="img" aria-label="{escape(self._label)}">{body}</svg>')

    def _add(self, element: str, title: str, name: str) -> None:
        self._parts.append(f"{element}><title>{escape(title)}</title></{name}>" if title else f"{element}/>")


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most so many round values from `low` to `high`, 1, 2 or 5 times a power of 10 apart."""
    if high <= low or most < 1:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def plain(value: float) -> str:
    """A number without needless digits."""
    return f"{value:.6g}"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")

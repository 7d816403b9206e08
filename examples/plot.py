"""Lines over two logarithmic axes, as SVG, with where they cross."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 440, 70, 190, 40, 50
COLOURS = ("#333333", "#c2410c", "#1d6fb8")


@dataclass
class Line:
    name: str
    points: list[tuple[float, float]]


def plotted(title: str, across: str, up: str, lines: list[Line]) -> str:
    """The first line is what the others are held against: where one of them crosses it is marked."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys)))

    def at(x: float, y: float) -> tuple[float, float]:
        right = math.log(x / min(xs)) / math.log(max(xs) / min(xs))
        above = math.log(y / low) / math.log(high / low)
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - above * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(across)}</text>',
        f'<text x="16" y="{TOP - 8}">{escape(up)}</text>',
    ]
    for x in sorted(set(xs)):
        left, bottom = at(x, low)
        label = f"{x / 1024:g} K" if x >= 1024 else f"{x:g}"
        parts.append(
            f'<path d="M{left:.1f} {TOP}V{bottom:.1f}" stroke="#ddd"/>'
            f'<text x="{left:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{label}</text>'
        )
    y = low
    while y <= high:
        left, height = at(min(xs), y)
        parts.append(
            f'<path d="M{left:.1f} {height:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{left - 6:.1f}" y="{height + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
        y *= 10
    for colour, line in zip(COLOURS, lines):
        places = [at(*point) for point in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = places[-1]
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" fill="{colour}">{escape(line.name)}</text>')
        for x, y in crossings(lines[0], line):
            left, height = at(x, y)
            parts.append(
                f'<circle cx="{left:.1f}" cy="{height:.1f}" r="5" fill="none" stroke="{colour}"/>'
                f'<text x="{left + 8:.1f}" y="{height + 16:.1f}" fill="{colour}">{x:.0f}</text>'
            )
    return "\n".join((*parts, "</svg>\n"))


def crossings(one: Line, other: Line) -> list[tuple[float, float]]:
    """Where two lines over the same x cross, between points as straight as they are drawn."""
    found = []
    pairs = [(x, math.log(a), math.log(b)) for (x, a), (_, b) in zip(one.points, other.points)]
    for (x, a, b), (next_x, next_a, next_b) in zip(pairs, pairs[1:]):
        before, after = a - b, next_a - next_b
        if before * after < 0:
            share = before / (before - after)
            found.append((x * (next_x / x) ** share, math.exp(a + share * (next_a - a))))
    return found

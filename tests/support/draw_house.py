"""Draw the rooms and their floors: ``python tests/support/draw_house.py docs/architecture.svg``."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from house import FLOORS, ROOT

WIDTH, MARGIN, BOX, GAP, HEAD = 960, 16, 40, 8, 34
COLOURS = {"model_zoo": "#fdf1e3", "export": "#e8f1fb", "runtime": "#e9f6ec"}
STYLE = (
    "text{font-family:Helvetica,Arial,sans-serif;fill:#222}.room{font-size:17px;font-weight:bold}"
    ".name{font-size:13px;font-weight:bold}.purpose{font-size:11px;fill:#555}.box{fill:#fff;stroke:#bbb}"
)


def draw() -> str:
    """The page as SVG: rooms above each other, and in each room the lowest floor at the bottom."""
    parts, top = [], MARGIN
    for room, colour in COLOURS.items():
        height = HEAD + len(FLOORS[room]) * (BOX + GAP) + GAP
        parts += [
            f'<rect x="{MARGIN}" y="{top}" width="{WIDTH - 2 * MARGIN}" height="{height}" rx="8" fill="{colour}"/>',
            f'<text x="{2 * MARGIN}" y="{top + 23}"><tspan class="room">{room}</tspan>'
            f'<tspan dx="10" class="purpose">{escape(purpose(ROOT / room))}</tspan></text>',
            *_floors(room, top + HEAD),
        ]
        top += height + 2 * GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" role="img">'
    title = "<title>Rooms of firebox: imports run downwards</title>"
    return "\n".join([head, title, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def _floors(room: str, top: int) -> Iterator[str]:
    for row, names in enumerate(reversed(FLOORS[room])):
        y = top + row * (BOX + GAP)
        width = (WIDTH - 4 * MARGIN - (len(names) - 1) * GAP) / len(names)
        for column, name in enumerate(sorted(names)):
            x = 2 * MARGIN + column * (width + GAP)
            text = escape(_shortened(purpose(ROOT / room / name), width))
            yield f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BOX}" rx="5" class="box"/>'
            yield f'<text x="{x + 10:.1f}" y="{y + 16}" class="name">{name}</text>'
            yield f'<text x="{x + 10:.1f}" y="{y + 32}" class="purpose">{text}</text>'


def purpose(place: Path) -> str:
    """The first sentence of a module's or package's docstring."""
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    return docstring.partition("\n")[0].partition(". ")[0].rstrip(".").replace("``", "")


def _shortened(text: str, width: float) -> str:
    """As many words as fit into a box."""
    letters = int((width - 16) / 5.6)
    return text if len(text) <= letters else text[: letters - 1].rsplit(" ", 1)[0] + " …"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(), encoding="utf-8")

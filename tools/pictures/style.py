"""What all pictures have in common: two palettes, one size of letters, and SVG that comes out the same.

Letters are drawn as outlines. As text they would be smaller files, but then every browser, EPUB reader and
typst would set them in a font of its own with other widths, and labels would run into each other on the one
device nobody looked at. Matplotlib brings DejaVu Sans along, so outlines are also the same on every machine.
What outlines take away, search and reading aloud, the alternative text gives back: it is in the chapter and
in the picture, as <title> and <desc>.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

WIDTH = 5.4  # inches, 518 px: on a telephone, 358 px wide, letters of 11 points are still 10 px high
LETTERS = 11  # points
SMALL = 10  # points; nothing is smaller


@dataclass(frozen=True)
class Palette:
    """Colours by their use. Ink, muted and the four hues can be read as text on the ground (4.5 : 1)."""

    name: str
    ground: str
    ink: str
    muted: str  # secondary text, axes
    faint: str  # grids and the outlines of boxes
    panel: str  # the inside of a box
    blue: str  # the four hues differ in lightness too: they can be told apart by the colour-blind
    orange: str
    green: str
    pink: str

    def soft(self, colour: str, strength: float = 0.18) -> str:
        """The colour, thinned with the ground: for areas behind text, up to a strength of 0.45."""
        pairs = zip(to_rgb(colour), to_rgb(self.ground), strict=True)
        return "#" + "".join(f"{round(255 * (strength * c + (1 - strength) * g)):02x}" for c, g in pairs)


LIGHT = Palette(
    name="light",
    ground="#ffffff",
    ink="#1b1f27",
    muted="#5a6070",
    faint="#c9ced8",
    panel="#f3f5f8",
    blue="#1262b3",
    orange="#b84a00",
    green="#00795c",
    pink="#a2307e",
)
DARK = Palette(
    name="dark",
    ground="#1e2129",  # Material's slate
    ink="#e6e8ee",
    muted="#a7adbb",
    faint="#474c5a",
    panel="#2a2e39",
    blue="#74b9f5",
    orange="#ffa559",
    green="#4fd1ac",
    pink="#f09bd0",
)

Draw = Callable[[Any, Palette], None]


@dataclass(frozen=True)
class Picture:
    """One picture: its name, what draws it, what it says to those who do not see it, and its size."""

    name: str
    draw: Draw
    alt: str
    title: str
    size: tuple[float, float]
    grid: tuple[int, int]
    options: dict[str, Any]


PICTURES: dict[str, Picture] = {}


def figure(
    name: str,
    draw: Draw,
    alt: str,
    title: str = "",
    *,
    height: float = 3.2,
    width: float = WIDTH,
    grid: tuple[int, int] = (1, 1),
    **options: Any,
) -> Picture:
    """Enter a picture. draw(axes, palette) gets one Axes, or an array of them for a grid other than (1, 1).

    options go to Figure.subplots (sharex, width_ratios, …). height and width are in inches. Line ends in alt
    become spaces. Raises ValueError for a name that is taken or an alt that can not stand in a chapter.
    """
    if name in PICTURES and PICTURES[name].draw.__module__ != draw.__module__:
        raise ValueError(f"there is a picture named {name} in {PICTURES[name].draw.__module__} already")
    alt = " ".join(alt.split())
    if len(alt) < 40 or set(alt) & set("[]"):
        raise ValueError(f"{name}: the alternative text must have 40 characters or more, and no []")
    title = title or name.replace("-", " ")
    entry = Picture(name, draw, alt, title, size=(width, height), grid=grid, options=options)
    PICTURES[name] = entry
    return entry


def picture(name: str, alt: str, **settings: Any) -> Callable[[Draw], Draw]:
    """figure() as a decorator."""

    def enter(draw: Draw) -> Draw:
        figure(name, draw, alt, **settings)
        return draw

    return enter


def settings_of(palette: Palette) -> Any:
    """Matplotlib's settings: quiet axes, letters as outlines, names inside the file that do not vary."""
    return {
        "svg.fonttype": "path",
        "svg.hashsalt": "the book",
        "path.simplify": False,
        "font.family": "DejaVu Sans",
        "mathtext.fontset": "dejavusans",
        "font.size": LETTERS,
        "axes.titlesize": LETTERS,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": SMALL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.linewidth": 0.8,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "figure.facecolor": palette.ground,
        "axes.facecolor": palette.ground,
        "savefig.facecolor": palette.ground,
        "text.color": palette.ink,
        "axes.titlecolor": palette.ink,
        "axes.labelcolor": palette.muted,
        "axes.edgecolor": palette.muted,
        "xtick.color": palette.muted,
        "ytick.color": palette.muted,
        "grid.color": palette.faint,
        "grid.linewidth": 0.6,
    }


def render(entry: Picture, palette: Palette) -> str:
    """The picture as SVG text."""
    with matplotlib.rc_context(settings_of(palette)):
        page = Figure(figsize=entry.size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        axes = page.subplots(*entry.grid, **entry.options)
        entry.draw(axes, palette)
        out = io.BytesIO()
        page.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return tidy(out.getvalue().decode(), entry)


def tidy(svg: str, entry: Picture) -> str:
    """Shorter, and with a description: few decimals, no prologue, no unused names."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"-?\d+\.\d{3,}", lambda number: rounded(float(number[0])), body)
    body = re.sub(r'(?<= d=")[^"]*', lambda path: re.sub(r"\s*([A-Za-z])\s*", r"\1", path[0]).strip(), body)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda name: name[0] if name[1] in used else "", body)
    for font, short in (("DejaVuSansMono-", "m-"), ("DejaVuSans-Bold-", "b-"), ("DejaVuSans-Oblique-", "o-")):
        body = body.replace(font, short)
    body = body.replace("DejaVuSans-", "s-")
    body = re.sub(r"\n\s*", "\n", body)
    head, rest = body.split(">", 1)
    described = f"<title>{escape(entry.title)}</title>\n<desc>{escape(entry.alt)}</desc>"
    return f'{head} role="img">\n{described}{rest}'


def rounded(number: float) -> str:
    """A hundredth of a point is enough for a place, not for a scale."""
    return f"{number:.{2 if abs(number) >= 1 else 3}f}".rstrip("0").rstrip(".")


def canvas(axes: Axes, width: float, height: float) -> None:
    """Make axes a sheet to draw a diagram on: units as long in x as in y, y downwards, no frame."""
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_aspect("equal")
    axes.axis("off")


def box(axes: Axes, palette: Palette, x: float, y: float, w: float, h: float, **more: Any) -> None:
    """A box with rounded corners, its upper left corner at (x, y). text=, colour=, size=, weight=, mono=."""
    from matplotlib.patches import FancyBboxPatch

    colour = more.pop("colour", None)
    shape = FancyBboxPatch(
        (x, y),
        w,
        h,
        boxstyle=f"round,pad=0,rounding_size={more.pop('rounding', min(w, h) * 0.18)}",
        facecolor=more.pop("fill", palette.soft(colour) if colour else palette.panel),
        edgecolor=colour or palette.faint,
        linewidth=more.pop("line", 1.0),
    )
    axes.add_patch(shape)
    text = more.pop("text", "")
    if text:
        if more.pop("mono", False):
            more["family"] = "DejaVu Sans Mono"
        axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", **{"size": SMALL, **more})


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, **more: Any) -> None:
    """A thin arrow from start to end."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 0, **more}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def thousands(axis: Any) -> None:
    """Numbers on an axis with commas between thousands."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

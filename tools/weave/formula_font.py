"""Make lit/assets/formulas.woff2, once: the part of STIX Two Math that formulas need.

    pip install fonttools brotli
    npm pack @fontsource/stix-two-math@5.3.0    # and unpack it
    python tools/weave/formula_font.py package/files/stix-two-math-latin-400-normal.woff2

Without a font that has measures for mathematics, a browser sets roots, braces and subscripts badly, and many
systems have none. This one may be shared and changed under the SIL Open Font License, which lies beside the
result.

One change is made to it. Before a browser draws a root, it asks how wide the root will be; Chromium answers
with the widest radical sign of the font, and leaves a gap behind every small one. So the large signs are made
as narrow as the small one.
"""

import sys
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

RESULT = Path(__file__).resolve().parents[2] / "lit" / "assets" / "formulas.woff2"
RADICAL = 0x221A
# Letters, Greek, punctuation, arrows, operators, brackets and braces, the letters of mathematics.
CHARACTERS = (
    "20-7E A0-FF 302-308 332 338 370-3FF 2010-2044 2061-2064 20D0-20D7 2102 2107 210E-2115 2119-211D 2124 "
    "2130 2131 2133 2190-22FF 2308-230B 2320 2321 23B4-23B7 23DC-23E1 25A1 25CB 27C2 27E6-27EF 27F5-27FA "
    "2A00-2A06 2A7D 2A7E 1D400-1D4CF 1D538-1D56B 1D6A8-1D71B"
)


def characters() -> list[int]:
    """The code points to keep."""
    kept: list[int] = []
    for part in CHARACTERS.split():
        first, _, last = part.partition("-")
        kept += range(int(first, 16), int(last or first, 16) + 1)
    return kept


def narrow_radicals(font: TTFont) -> None:
    """Give all sizes of the radical sign the width of the smallest."""
    name = font.getBestCmap()[RADICAL]
    width = font["hmtx"][name][0]
    variants = font["MATH"].table.MathVariants
    signs = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(name)]
    names = {record.VariantGlyph for record in signs.MathGlyphVariantRecord}
    names |= {part.glyph for part in signs.GlyphAssembly.PartRecords}
    outlines = font["glyf"]
    for sign in sorted(names - {name}):
        advance, bearing = font["hmtx"][sign]
        outlines[sign].coordinates.scale((width / advance, 1))
        outlines[sign].coordinates.toInt()
        outlines[sign].recalcBounds(outlines)
        font["hmtx"][sign] = width, round(bearing * width / advance)


def main(source: str) -> None:
    """Write the font."""
    font = TTFont(source)
    options = Options(layout_features=["*"])
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=characters())
    subsetter.subset(font)
    narrow_radicals(font)
    font.flavor = "woff2"
    font.save(RESULT)


if __name__ == "__main__":
    main(sys.argv[1])

"""The committed pictures are what the code draws, and can be read by everybody."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from matplotlib.colors import to_rgb

from tools.pictures import gallery
from tools.pictures.style import DARK, LIGHT, PICTURES, Palette, figure

SVG = "{http://www.w3.org/2000/svg}"


def files() -> list[str]:
    return [str(path) for path in sorted((gallery.ROOT / gallery.FOLDER).glob("*.svg"))]


def test_every_picture_is_what_the_model_draws_now():
    assert gallery.check() == []


@pytest.mark.parametrize("path", files(), ids=lambda path: path.rsplit("/", 1)[1])
def test_a_file_is_small_described_and_asks_no_other_host(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    root = ET.fromstring(text)
    assert len(text.encode()) <= gallery.LARGEST
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert title is not None
    assert title.text
    assert description is not None
    assert len(description.text or "") >= 40
    assert root.get("role") == "img"
    assert not re.findall(r'(?:href|src)="(?!#)|url\((?!#)|<script|<text', text)
    dark = path.endswith(".dark.svg")
    assert (DARK if dark else LIGHT).ground in text[:3000], "a picture brings its ground along"


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=lambda palette: palette.name)
def test_text_can_be_read_on_whatever_it_stands_on(palette: Palette):
    hues = [palette.blue, palette.orange, palette.green, palette.pink]
    for text in [palette.ink, palette.muted, *hues]:
        assert contrast(text, palette.ground) >= 4.5, text
        assert contrast(text, palette.panel) >= 4.5, text
    for hue in hues:
        assert contrast(palette.ink, palette.soft(hue, 0.45)) >= 4.5, hue
        assert contrast(palette.muted, palette.soft(hue)) >= 4.5, hue


def example() -> str:
    return (gallery.ROOT / gallery.FOLDER / "relu2.svg").read_text(encoding="utf-8")


def test_what_nobody_can_see_is_no_difference():
    assert gallery.same_drawing(example(), example().replace(" 170.6L", " 170.7L"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" 170.6L", " 171.6L"),
        ("<!-- relu -->", "<!-- ReLU -->"),
        (LIGHT.orange, LIGHT.blue),
        ("</svg>", "<g/></svg>"),
    ],
)
def test_what_somebody_can_see_is_a_difference(old, new):
    assert old in example()
    assert not gallery.same_drawing(example(), example().replace(old, new))


def test_the_dark_picture_is_the_light_one_in_other_colours():
    dark = (gallery.ROOT / gallery.FOLDER / "relu2.dark.svg").read_text(encoding="utf-8")
    assert gallery.same_in_other_colours(example(), dark)
    assert not gallery.same_in_other_colours(example(), dark.replace(" 170.6L", " 171.6L"))
    assert not gallery.same_in_other_colours(example(), dark.replace(DARK.orange, LIGHT.orange))
    assert not gallery.same_in_other_colours(example(), dark.replace(DARK.orange, DARK.blue, 1))


def test_alternative_texts_are_written_into_the_chapters_and_wrapped(tmp_path):
    page = tmp_path / "lit" / "10-a-chapter.md"
    page.parent.mkdir()
    page.write_text(
        "Before.\n\n![](pictures/relu2.svg)\n\nAfter ![mine](pictures/photo.svg).\n", encoding="utf-8"
    )
    gallery.pictures()
    problems = gallery.check_chapters(tmp_path)
    assert any("an alternative text is not that of its picture" in problem for problem in problems)
    assert any("no function draws photo" in problem for problem in problems)
    assert any("no page shows lit/pictures/softcap.svg" in problem for problem in problems)
    text = gallery.with_alternatives(page.read_text(encoding="utf-8"))
    assert gallery.with_alternatives(text) == text
    assert PICTURES["relu2"].alt in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 120


def test_a_picture_without_a_description_is_refused():
    with pytest.raises(ValueError, match="alternative text"):
        figure("nameless", lambda axes, palette: None, alt="A plot.")

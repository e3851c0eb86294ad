"""Formulas and links are found where a reader sees them, and nowhere else."""

from __future__ import annotations

import markdown
import pytest

from tools.weave import formulas
from tools.weave.formulas import Unreadable, mathml
from tools.weave.prose import Aside, Formula, Link, formulas_of, replace_in


def texs(text: str) -> list[str]:
    return [formula.tex for formula in formulas_of(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("the width $C$ and $D = C/H$.", ["C", "D = C/H"]),
        ("$$a\n= b$$", ["a\n= b"]),
        ("`$x$` and ``$y` $z$``", []),
        ("```text\n$x$\n```\n\n$y$", ["y"]),
        ("```python #name file=nanochat/x.py\nd = f\"${x}$\"\n```\n$y$", ["y"]),
        ("~~~markdown\n```\n$x$\n```\n~~~\n$y$", ["y"]),
        ("<!-- $x$ -->\n$y$", ["y"]),
        (r"costs \$5 and \$6, or $5 and $6", []),
        ("$not\n\na formula$", []),
        ("``` in a sentence ``` and $x$", ["x"]),
        (r"$a\$b$", [r"a\$b"]),
        ("see [the $D$ section](x.md)", ["D"]),
    ],
)  # fmt: skip
def test_formulas_are_told_from_code_and_money(text: str, found: list[str]) -> None:
    assert texs(text) == found


def test_a_formula_knows_its_line() -> None:
    assert [f.line for f in formulas_of("one\n\n$x$ and\n$$y$$\n\n```\n\n```\n$z$")] == [3, 4, 9]


def test_links_are_given_whole() -> None:
    found: list[Link] = []

    def keep(link: Link) -> str:
        found.append(link)
        return "HERE"

    text = 'a [`b` c](d.md#e) ![f](g.svg "h") `[i](j)` [k][l]'
    assert replace_in(text, str, keep) == "a HERE HERE `[i](j)` [k][l]"
    assert [str(link) for link in found] == ["[`b` c](d.md#e)", '![f](g.svg "h")']


def woven(text: str) -> str:
    """The Markdown with its formulas, through the converter that the site uses."""
    aside = Aside()
    marked = replace_in(text, lambda f: aside.put(mathml(f), f.tex), str)
    return aside.restore(markdown.markdown(marked, extensions=["tables", "toc"]))


def test_a_bar_in_a_formula_does_not_cut_the_table() -> None:
    page = woven("| a | b |\n|---|---|\n| $|x|$ | $p(y|x)$ |\n")
    assert page.count("<td>") == 2
    assert page.count("<math") == 2


def test_underscores_and_stars_in_formulas_are_no_emphasis() -> None:
    page = woven("$a_i * b_i * c_i$ and *$x_1$*")
    assert page.count("<em>") == 1
    assert page.count("<math") == 2


def test_a_formula_in_a_tag_is_plain_text() -> None:
    aside = Aside()
    mark = aside.put("<math></math>", "a < b")
    assert aside.restore(f'<img alt="{mark}"><p>{mark}</p>') == '<img alt="a &lt; b"><math></math>'


def test_a_displayed_formula_is_no_paragraph() -> None:
    page = woven("before\n\n$$x$$\n\nafter")
    assert "<p><div" not in page
    assert '<div class="formula"><math display="block"' in page


def test_a_formula_is_drawn_by_the_browser_alone() -> None:
    page = mathml(Formula(r"\sqrt{D} \cdot \frac{1}{2}", False))
    assert page.startswith("<math")
    assert "<msqrt><mi>D</mi></msqrt>" in page
    assert "annotation" not in page


def test_the_name_of_a_function_stands_apart() -> None:
    thin = '<mspace width="0.167em"></mspace>'
    assert mathml(Formula(r"x \ln V", False)).count(thin) == 2
    assert mathml(Formula(r"\tanh(z)", False)).count(thin) == 0


def test_no_line_begins_with_the_full_stop_behind_a_formula() -> None:
    page = woven("Let $y = x$. Then ($z$), and $w$ too.")
    assert page.count('<span class="unbroken"><math') == 2
    assert "</math>.</span> Then" in page
    assert "</math>),</span> and" in page


def test_thousands_are_one_number() -> None:
    assert "<mn>1,234,567</mn>" in mathml(Formula("1{,}234{,}567", False))
    assert "<mn>1,2</mn>" not in mathml(Formula("(1,2)", False))


def test_what_pandoc_does_not_know_is_refused() -> None:
    with pytest.raises(Unreadable, match=r"\\sqqrt\{D\}"):
        mathml(Formula(r"\sqqrt{D}", False))


def test_one_call_converts_all_formulas(monkeypatch: pytest.MonkeyPatch) -> None:
    formulas.convert([Formula("q_1", False), Formula("q_2", True), Formula("q_1", False)])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pandoc was called again")

    monkeypatch.setattr(formulas.subprocess, "run", refuse)
    formulas.convert([Formula("q_1", False)])
    assert "<msub>" in mathml(Formula("q_2", True))

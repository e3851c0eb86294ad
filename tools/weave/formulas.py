r"""Turn formulas in TeX into MathML, which browsers draw by themselves, without JavaScript.

pandoc does it, all formulas of the book in one call of a few hundredths of a second, because the EPUB is made
by pandoc too: a formula that one shows, the other shows. latex2mathml (pure Python) would be the smaller
dependency, but it shows a misspelt \command as if it were a letter, where pandoc says what it does not know.
KaTeX needs fonts of its own and, in the browser, JavaScript.
"""

import json
import re
import subprocess
from collections.abc import Iterable

import pypandoc

from tools.weave.prose import Formula

_made: dict[tuple[str, bool], str] = {}  # for as long as the process runs: `make serve` converts what is new


class Unreadable(Exception):
    """The formula is no TeX that pandoc knows. The text says where it stumbled."""


def convert(formulas: Iterable[Formula]) -> None:
    """Convert these, all at once; from then on `mathml` knows them."""
    new = list(dict.fromkeys((f.tex, f.display) for f in formulas if (f.tex, f.display) not in _made))
    if not new:
        return
    blocks: list[dict[str, object]] = []
    for number, (tex, display) in enumerate(new):
        kind = {"t": "DisplayMath" if display else "InlineMath"}
        blocks.append({"t": "RawBlock", "c": ["html", f"<!--{number}-->"]})
        blocks.append({"t": "Plain", "c": [{"t": "Math", "c": [kind, tex]}]})
    document = {"pandoc-api-version": [1, 23, 1], "meta": {}, "blocks": blocks}
    done = subprocess.run(
        [pypandoc.get_pandoc_path(), "--from=json", "--to=html", "--mathml", "--wrap=none"],
        input=json.dumps(document),
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    for part in done.stdout.split("<!--")[1:]:
        number_text, _, made = part.partition("-->")
        tex, display = new[int(number_text)]
        if "<math" in made:
            # What pandoc keeps of the TeX would be found by the search, and be read aloud by some readers.
            made = re.sub(r"</?semantics>|<annotation\b.*?</annotation>", "", made, flags=re.DOTALL).strip()
            if "{,}" in tex:  # a comma between digits, which TeX then sets without space
                made = re.sub(r"</mn><mo>,</mo><mn>(?=\d{3}<)", ",", made)
            _made[tex, display] = spaced(made)
        else:
            _made[tex, display] = ""


def spaced(made: str) -> str:
    """With the thin spaces that TeX sets around the name of a function, and browsers do not."""
    thin = '<mspace width="0.167em"></mspace>'
    made = re.sub(r"(<mo>&#8289;</mo></mrow>)(?!<mo\b|</)", rf"\1{thin}", made)
    name = r"<mrow><mi[^>]*>[a-z]{2,}</mi><mo>&#8289;</mo></mrow>"
    return re.sub(rf"(</m(?:i|n|sub|sup|subsup|frac)>)({name})", rf"\1{thin}\2", made)


def mathml(formula: Formula) -> str:
    """The formula as an element of HTML. Raises Unreadable."""
    if (formula.tex, formula.display) not in _made:
        convert([formula])
    made = _made[formula.tex, formula.display]
    if not made:
        raise Unreadable(
            f"pandoc cannot read the formula ${formula.tex}$. Write it in TeX without macros of your own."
        )
    return f'<div class="formula">{made}</div>' if formula.display else made

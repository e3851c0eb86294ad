"""Talk to it: a conversation as the model reads it, and what became of the training on it."""

from __future__ import annotations

from matplotlib.axes import Axes

from nanochat.conversation import Part, Rendered, assistant, render, user
from nanochat.tokenizer import Tokenizer
from tools.pictures.results import record
from tools.pictures.style import SMALL, Palette, box, canvas, picture

QUESTION, CALL, ANSWER = "How many r are in merry?", "count r in merry", "2 times."


def a_conversation() -> tuple[Tokenizer, Rendered]:
    """A short conversation with a call, in tokens of a tokenizer that knows its words."""
    words = [f" {word}" for word in (QUESTION + " " + CALL + " " + ANSWER).split()]
    tokenizer = Tokenizer.train([" ".join([QUESTION, CALL, ANSWER, *words])] * 200, 292)
    turns = [user(QUESTION), assistant(Part("call", CALL), Part("output", "2"), ANSWER)]
    return tokenizer, render(turns, tokenizer, 100)


@picture(
    "conversation",
    alt="""The tokens of a conversation in rows. First bos, then the user's turn, How many r are in merry?,
    between user start and user end, all of it only read. Then assistant start, and the model's call, count
    r in merry, between python start and python end, all learned. Then the tool's output, 2, between its
    marks, only read. Last the answer, 2 times, and assistant end, learned.""",
    title="What is read, and what is learned",
    height=2.9,
)
def conversation(axes: Axes, palette: Palette) -> None:
    canvas(axes, 389, 205)
    tokenizer, rendered = a_conversation()
    breaks = {"<|user_start|>", "<|assistant_start|>", "<|output_start|>"}
    x, y, size = 0.0, 26.0, 3.9
    for token, learned in zip(rendered.ids, rendered.learned, strict=True):
        name = tokenizer.decode([token])
        special = token >= len(tokenizer.tokens)
        if name in breaks or (name.strip() == "2" and learned):
            x, y = 0.0, y + 36
        shown = name.strip("<|>") if special else name.replace(" ", "·")
        width = size * len(shown) + 9
        colour = palette.orange if learned else palette.muted
        fill = palette.soft(palette.orange, 0.45) if learned else palette.panel
        weight = "normal" if special else "bold"
        box(
            axes,
            palette,
            x,
            y,
            width,
            22,
            text=shown,
            colour=colour,
            fill=fill,
            mono=True,
            size=6.2,
            weight=weight,
        )
        x += width + 3
    for place, (text, hue, learned) in enumerate(
        (("read only", palette.muted, False), ("read and learned", palette.orange, True))
    ):
        fill = palette.soft(palette.orange, 0.45) if learned else palette.panel
        box(axes, palette, 110 * place, 2, 16, 12, colour=hue, fill=fill)
        axes.text(110 * place + 22, 8, text, va="center", size=SMALL)


SHOWN = (  # the trial, how it is called, its colour, and how far its name is moved up
    ("everything-first", "everything first", "muted", -6),
    ("no-made-up-words", "answers only, no made-up words", "pink", -5),
    ("answers-falling", "answers only, some made-up words", "blue", 5),
    ("final-weights", "more made-up words and weight", "orange", 0),
)


@picture(
    "chat-choices",
    alt="""Two plots over the steps of training, from 200 to 1,100: validation words of which letters are
    counted rightly, and words that are spelled rightly. Four trainings are shown. Where every token is
    learned first, both stay near a fifth until answers alone are learned from step 700 on, and end at six
    in ten. Answers only end at three quarters without made-up words, near seven eighths with some, and
    with more of them and more weight above nine in ten.""",
    title="What four trainings learned",
    height=3.9,
    grid=(2, 1),
    sharex=True,
)
def chat_choices(axes: list[Axes], palette: Palette) -> None:
    trials = record("chat-choices")["trials"]
    for part, task in zip(axes, ("letters", "spelling"), strict=True):
        for name, label, hue, up in SHOWN:
            curve = trials[name]["curve"]
            steps, shares = [at["step"] for at in curve], [100 * at[task] for at in curve]
            part.plot(steps, shares, color=getattr(palette, hue), marker="o", ms=3)
            if task == "letters":
                part.text(1125, shares[-1] + up, label, size=SMALL, color=palette.ink, va="center")
        part.axhline(90, color=palette.faint, lw=0.8, zorder=0)
        part.set_title(f"{task}, % right")
        part.set_ylim(0, 100)
        part.set_xlim(180, 2000)
        part.set_xticks([200, 400, 600, 800, 1000])

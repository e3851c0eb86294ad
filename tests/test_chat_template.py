"""The exported chat template: transformers renders the ids, and the mask, that this book renders."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.conversation import Conversation, Part, Turn, assistant, render, render_prompt, system, user
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from scripts.export_hf import export

transformers = pytest.importorskip("transformers", minversion="5")
LIMIT = 10_000  # nothing is cut


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    words = ["the", "union", "Grüße", "  two", "1790", "don't", "count r in merry", "What is", "\n\n", "🙂"]
    rng = random.Random(0)
    return Tokenizer.train([" ".join(rng.choices(words, k=400)) for _ in range(20)], 300)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported run whose name says that it answers; and beside it one whose name does not."""
    base = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = GPT(GPTConfig(32, tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=16))
    model.init_weights()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        for tag in ("d1-chat", "d1"):
            run = base / "base_checkpoints" / tag
            tokenizer.save(run / "tokenizer")
            save_checkpoint(
                run, 3, model, [], {"model": vars(model.config), "tokenizer": tokenizer.fingerprint()}
            )
            export(tag, base / f"{tag}-exported")
    return base / "d1-chat-exported"


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def as_messages(turns: Conversation) -> list[dict[str, Any]]:
    """A conversation as transformers' users write it: calls and outputs are messages of their own."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role != "assistant":
            messages.append({"role": turn.role, "content": turn.text})
            continue
        messages.append({"role": "assistant", "content": ""})
        for part in turn.parts:
            if part.kind == "output":
                messages.append({"role": "tool", "content": part.text})
            elif messages[-1]["role"] == "tool":
                messages.append({"role": "assistant", "content": ""})
            if part.kind == "text":
                messages[-1]["content"] += part.text
            if part.kind == "call":
                function = {"name": "tool", "arguments": {"call": part.text}}
                messages[-1].setdefault("tool_calls", []).append({"type": "function", "function": function})
    return messages


def as_own_messages(turns: Conversation) -> list[dict[str, Any]]:
    """The same as this book's server has it."""
    return [
        {"role": turn.role, "content": turn.text, "parts": [vars(part) for part in turn.parts]}
        if turn.role == "assistant"
        else {"role": turn.role, "content": [{"type": "text", "text": turn.text}]}
        for turn in turns
    ]


def random_talk(rng: random.Random, texts: Sequence[str]) -> list[Any]:
    """A conversation of up to three exchanges, some answers with calls, one or several."""
    turns = [system(rng.choice(texts))] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        parts = [Part("text", rng.choice(texts))] if rng.random() < 0.5 else []
        for _ in range(rng.choice((0, 0, 1, 2))):
            parts += [Part("call", rng.choice(texts)), Part("output", rng.choice(texts))]
            parts += [Part("text", rng.choice(texts))]
        turns += [user(rng.choice(texts)), assistant(*parts)]
    return turns


TEXTS = (
    *(
        "What is 12 plus 30?",
        "12+30",
        "42",
        "It is 42.",
        "Grüße 🙂",
        " ",
        "",
        "\n",
        "  two \n\n lines\r\n",
        "a",
    ),
    *(
        "<b>&amp; 'quoted' \"twice\"",
        "{{ bos_token }}{% if %}",
        "<|",
        "|>",
        "<|bos",
        "年",
        "\u2028\x00",
        "<|x|>",
    ),
)


@pytest.mark.parametrize("form", [as_messages, as_own_messages])
def test_the_same_ids_and_the_same_is_learned(theirs: Any, tokenizer: Tokenizer, form: Any) -> None:
    rng = random.Random(1)
    for _ in range(200):
        turns = random_talk(rng, TEXTS)
        expected = render(turns, tokenizer, LIMIT)
        got = theirs.apply_chat_template(form(turns), return_dict=True)["input_ids"]
        assert got == list(expected.ids), turns
        asked = theirs.apply_chat_template(form(turns[:-1]), add_generation_prompt=True, return_dict=True)
        assert asked["input_ids"] == render_prompt(turns[:-1], tokenizer, LIMIT)


def test_what_is_learned_is_handed_over(theirs: Any, tokenizer: Tokenizer) -> None:
    """Of texts in ASCII: transformers finds tokens by characters, and some signs are several tokens."""
    rng = random.Random(2)
    texts = [text for text in TEXTS if text.isascii()]
    for _ in range(100):
        turns = random_talk(rng, texts)
        got = theirs.apply_chat_template(
            as_messages(turns), return_dict=True, return_assistant_tokens_mask=True
        )
        assert [bool(token) for token in got["assistant_masks"]] == list(
            render(turns, tokenizer, LIMIT).learned
        )


def test_after_an_output_the_answer_goes_on(theirs: Any, tokenizer: Tokenizer) -> None:
    turns = [user("3*4"), assistant(Part("call", "3*4"), Part("output", "12"))]
    open_end = theirs.apply_chat_template(as_messages(turns), add_generation_prompt=True, return_dict=True)
    assert open_end["input_ids"] == list(render(turns, tokenizer, LIMIT).ids[:-1])


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_no_text_becomes_a_mark_in_the_template_and_every_text_is_said(
    theirs: Any, tokenizer: Tokenizer, name: str
) -> None:
    hostile = ["{0}", "a{0}b", "{0}{0}", name[:4] + "{0}" + name[4:], "<|" + "{0}", "{0}|>", "< |{0}"]

    def talk(text: str) -> list[Turn]:
        parts = Part("call", text), Part("output", text), Part("text", text)
        return [system(text), user(text), assistant(*parts), user("b"), assistant("c")]

    for text in (form.format(name) for form in hostile):
        rendered = theirs.apply_chat_template(as_messages(talk(text)), return_dict=True)["input_ids"]
        broken = text.replace(name, name.replace("<", "< "))
        assert rendered == list(render(talk(broken), tokenizer, LIMIT).ids)
        assert rendered != list(render(talk(text), tokenizer, LIMIT).ids)


def test_turns_out_of_order_are_refused(theirs: Any) -> None:
    first, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for messages in (
        [first, first],
        [answer],
        [first, answer, answer],
        [first, {"role": "system", "content": "c"}],
        [first, {"role": "tool", "content": "c"}],
        [{"role": "critic", "content": "c"}],
    ):
        with pytest.raises(Exception, match="two take turns"):
            theirs.apply_chat_template(messages)


def test_a_model_that_does_not_answer_has_no_template(folder: Path, tokenizer: Tokenizer) -> None:
    plain = folder.parent / "d1-exported"
    assert not (plain / "chat_template.jinja").exists()
    assert json.loads((plain / "generation_config.json").read_text())["eos_token_id"] == tokenizer.bos
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [tokenizer.bos, tokenizer.special("<|assistant_end|>")]
    assert "apply_chat_template" in (folder / "README.md").read_text()
    assert "apply_chat_template" not in (plain / "README.md").read_text()

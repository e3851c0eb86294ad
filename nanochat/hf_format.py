"""The folder that transformers' NanoChat is loaded from, as far as this book's models need it: both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from nanochat.common import UserError, in_short
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer, undisguise

ALPHABET = {byte: char for char, byte in undisguise().items()}  # how the format shows each byte


NAMES = {
    "transformer.wte.": "model.embed_tokens.",
    "transformer.h.": "model.layers.",
    "attn.c_q.": "self_attn.q_proj.",
    "attn.c_k.": "self_attn.k_proj.",
    "attn.c_v.": "self_attn.v_proj.",
    "attn.c_proj.": "self_attn.o_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}  # ours: theirs; lm_head is called the same


def their_name(name: str) -> str:
    """What transformers calls the tensor that a checkpoint of this book calls `name`."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def our_name(name: str) -> str:
    """The inverse of their_name."""
    for ours, theirs in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def expected_shapes(shape: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of the book's GPT; `shape` holds the arguments of GPTConfig."""
    V, C = shape["vocab_size"], shape["n_embd"]
    kv = C // shape["n_head"] * shape["n_kv_head"]
    block = {
        "attn.c_q": (C, C),
        "attn.c_k": (kv, C),
        "attn.c_v": (kv, C),
        "attn.c_proj": (C, C),
        "mlp.c_fc": (4 * C, C),
        "mlp.c_proj": (C, 4 * C),
    }
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (V, C), "lm_head.weight": (V, C)}
    for i in range(shape["n_layer"]):
        shapes |= {f"transformer.h.{i}.{name}.weight": size for name, size in block.items()}
    return shapes


def refuse_other_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, tuple[int, ...]], where: Path
) -> None:
    """Raise UserError for the first tensor that is missing, unknown, of another shape, or not of floats."""
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(expected)} tensors are missing, {missing[0]} first: "
            "half downloaded, or another architecture"
        )
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        raise UserError(f"{where}: tensor {unknown[0]} has no place in this book's GPT: another architecture")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise UserError(
                f"{where}: {name} has the shape {tuple(tensor.shape)}, but the description of the model "
                f"says {expected[name]}"
            )
        if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise UserError(f"{where}: {name} holds {tensor.dtype}; wanted float32, bfloat16 or float16")


EPS = 2.0**-23  # what F.rms_norm adds in float32
# The book's GPT has the first; the second is what transformers takes where a file says nothing.
CONSTANTS: dict[str, tuple[Any, Any]] = {
    "hidden_act": ("relu2", "relu2"),
    "final_logit_softcapping": (15.0, 15.0),
    "attention_bias": (False, False),
    "tie_word_embeddings": (False, False),
    "attention_dropout": (0.0, 0.0),
}
ROTATION = {"rope_type": "default", "rope_theta": 10000.0}


def describe_model(shape: Mapping[str, int], bos: int, dtype: str) -> dict[str, Any]:
    """The contents of config.json; `shape` holds the arguments of GPTConfig, dtype is such as "float32"."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": shape["vocab_size"],
        "hidden_size": shape["n_embd"],
        "intermediate_size": 4 * shape["n_embd"],
        "num_hidden_layers": shape["n_layer"],
        "num_attention_heads": shape["n_head"],
        "num_key_value_heads": shape["n_kv_head"],
        "max_position_embeddings": shape["sequence_len"],
        "rms_norm_eps": EPS,
        **{name: ours for name, (ours, _) in CONSTANTS.items()},
        "rope_parameters": ROTATION,
        "bos_token_id": bos,
        "eos_token_id": bos,
        "pad_token_id": None,
        "use_cache": True,
        "dtype": dtype,
    }


LARGEST = {"num_hidden_layers": 1000, "num_attention_heads": 2**14, "num_key_value_heads": 2**14}
LARGEST |= {"vocab_size": 2**24, "intermediate_size": 2**22}  # of all others: 2^20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if the file is absent or holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: no folder of a model, or half downloaded") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can not be read, perhaps half downloaded: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}, wanted a JSON object")
    return found


def read_shape(path: Path) -> tuple[dict[str, int], list[str]]:
    """The arguments of GPTConfig that a config.json asks for, and remarks on what will differ.

    Raises UserError for what this book's GPT cannot be.
    """
    config = read_json(path)

    def insist(name: str, found: Any, wanted: Any) -> None:
        if found != wanted or isinstance(found, bool) != isinstance(wanted, bool):
            raise UserError(
                f"{path}: {name} is {in_short(found)}; this book's GPT has {wanted!r} and nothing else"
            )

    def number(name: str, default: int | None = None) -> int:
        value = config.get(name) if config.get(name) is not None else default
        most = LARGEST.get(name, 2**20)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(f"{path}: {name} is {in_short(value)}, wanted a whole number from 1 to {most:,}")
        return value

    def entries(name: str) -> dict[str, Any]:
        value = config.get(name) or {}
        if not isinstance(value, dict):
            raise UserError(f"{path}: {name} is {in_short(value)}, wanted an object")
        return value

    insist("model_type", config.get("model_type"), "nanochat")
    insist("quantization_config", config.get("quantization_config"), None)
    for name, (ours, default) in CONSTANTS.items():
        if name != "attention_dropout":
            insist(name, config.get(name, default), ours)
    older = {"rope_theta": config.get("rope_theta", 10000.0), **entries("rope_scaling")}
    rotation = {"rope_type": "default", **(entries("rope_parameters") or older)}
    insist("rope_parameters", rotation, ROTATION)
    heads = number("num_attention_heads")
    shape = {
        "sequence_len": number("max_position_embeddings", 2048),
        "vocab_size": number("vocab_size"),
        "n_layer": number("num_hidden_layers"),
        "n_head": heads,
        "n_kv_head": number("num_key_value_heads", heads),
        "n_embd": number("hidden_size"),
    }
    insist("intermediate_size", number("intermediate_size", 8192), 4 * shape["n_embd"])
    if config.get("head_dim") is not None:
        insist("head_dim", config["head_dim"], shape["n_embd"] // heads)
    eps = config.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise UserError(f"{path}: rms_norm_eps is {in_short(eps)}, wanted a number between 0 and 1")
    if eps == EPS:
        return shape, []
    return shape, [f"rms_norm_eps is {eps} there and 2^-23 here: numbers will differ in their last digits"]


def disguise(token: bytes) -> str:
    """A token's bytes as the characters that the format writes for them."""
    return "".join(ALPHABET[byte] for byte in token)


def all_merges(tokens: tuple[bytes, ...]) -> list[list[str]]:
    """Every cut of every token into two tokens, the tokens in the order of their ids."""
    known = set(tokens)
    return [
        [disguise(token[:cut]), disguise(token[cut:])]
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json."""
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    cut = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bos = {"SpecialToken": {"id": "<|bos|>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **plain} for name, i in tokenizer.specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, as_bytes]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, bos, second],
            "special_tokens": {
                "<|bos|>": {"id": "<|bos|>", "ids": [tokenizer.bos], "tokens": ["<|bos|>"]},
            },
        },
        "decoder": as_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {disguise(token): i for i, token in enumerate(tokenizer.tokens)},
            "merges": all_merges(tokenizer.tokens),
        },
    }


def tokenizer_settings(sequence_len: int, answers: bool) -> dict[str, Any]:
    """The contents of tokenizer_config.json; `answers`: of a model with a chat template."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sequence_len,
        "bos_token": "<|bos|>",
        "eos_token": "<|bos|>",
        "pad_token": "<|bos|>",
        "padding_side": "left",
        "extra_special_tokens": list(SPECIAL_TOKENS[1:]),
        "split_special_tokens": not answers,
        "clean_up_tokenization_spaces": False,
    }


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a folder's tokenizer.json describes, as one of ours. Raises UserError."""
    path = folder / "tokenizer.json"
    about = read_json(path)

    def refuse(reason: str) -> UserError:
        return UserError(f"{path}: {reason}; this is not a tokenizer of the kind this book's models have")

    try:
        model, steps = about["model"], about["pre_tokenizer"]["pretokenizers"]
        (cut,) = [step for step in steps if step["type"] == "Split"]
        if not all(isinstance(i, int) for i in model["vocab"].values()):
            raise TypeError("an id is no number")
        names = {i: name for name, i in model["vocab"].items()}
        names |= {added["id"]: added["content"] for added in about["added_tokens"]}
        makes = [model["vocab"]["".join(merge)] for merge in map(as_pair, model["merges"])]
        pattern = cut["pattern"]["Regex"]
        kinds = model["type"], about.get("normalizer"), steps[-1]["type"]
        if not all(isinstance(i, int) and isinstance(name, str) for i, name in names.items()):
            raise TypeError("an id is no number, or a token no text")
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise refuse(f"a field is missing or strange ({in_short(error)})") from None
    if kinds != ("BPE", None, "ByteLevel"):
        raise refuse("it is no plain byte pair encoding of bytes")
    count = len(names) - len(SPECIAL_TOKENS)
    if sorted(names) != list(range(len(names))):
        raise refuse("its ids have gaps")
    top = tuple(names[i] for i in range(max(0, count), len(names)))
    if top != SPECIAL_TOKENS:
        raise refuse(f"its last tokens are {', '.join(top)}, wanted {', '.join(SPECIAL_TOKENS)}")
    byte_of = undisguise()
    try:
        tokens = [bytes(byte_of[char] for char in names[i]) for i in range(count)]
        tokenizer = Tokenizer(tokens, pattern)
    except (KeyError, ValueError, TypeError) as error:
        raise refuse(f"a token or the pattern can not be read ({in_short(error)})") from None
    if any(bytes([byte]) not in tokens for byte in range(256)):
        raise refuse("not every byte is a token")
    if makes != sorted(makes):
        raise refuse("its merges are not in the order of the tokens they make")
    return tokenizer


def as_pair(merge: str | list[str]) -> list[str]:
    """A merge as a pair: older files write `a b` for `["a", "b"]`."""
    return merge.split(" ") if isinstance(merge, str) else merge


TRICKY = (
    "The state of the Union, 1790-2026: 3 1415926535 dollars, and 0.1% more.",
    "I'll say it's we've DON'T can't 'S ſ 'ſ don’t",
    "  two  spaces\tand a tab\t\t \n\n\n  lines\r\nand\r\rreturns \u00a0\u3000\u2028 end   ",
    "naïve café Ελληνικά Ελλάς русский 中文字符 한국어 عربى हिन्दी 🙂👩‍👩‍👧‍👦🇩🇪 𝔘𝔫𝔦 ½²③Ⅷ٣",
    "<|bos|>text<|user_start|> <|assistant_end|><|output_end",
    'def f(x):\n    return {"a": x ** 2}  # ^~`@$%&*()_+|\\\x00\x7f\x1c',
    "a" * 50 + " " * 50 + "\n" * 50 + "ab" * 50 + "1" * 7,
    "",
)


def refuse_another_cut(tokenizer: Tokenizer, folder: Path) -> None:
    """Raise UserError if tokenizer.json, run by its own library, cuts a tricky text unlike `tokenizer`."""
    from tokenizers import Tokenizer as Theirs

    path = folder / "tokenizer.json"
    try:
        theirs = Theirs.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} can not be read by tokenizers: {error}") from None
    theirs.encode_special_tokens = True
    for text in TRICKY:
        if theirs.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise UserError(f"{path}: this tokenizer cuts {text[:40]!r} in a way that ours can not")


CHAT_TEMPLATE = """\
{#- A conversation as this model has read them: in an answer there may be calls of the tool, and outputs. -#}
{%- set names = [NAMES] -%}
{%- macro plain(text) -%}
    {%- set kept = namespace(text=text) -%}
    {%- for name in names -%}
        {%- set kept.text = kept.text.replace(name, '< ' ~ name[1:]) -%}
    {%- endfor -%}
    {{- kept.text -}}
{%- endmacro -%}
{%- macro said(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for piece in content or [] -%}{{- piece.text -}}{%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro marked(kind, text) -%}
    {{- '<|' ~ kind ~ '_start|>' ~ plain(text) ~ '<|' ~ kind ~ '_end|>' -}}
{%- endmacro -%}
{%- set follows = {
    'system': [''], 'user': ['', 'system', 'assistant', 'tool'],
    'assistant': ['user', 'tool'], 'tool': ['assistant', 'tool']} -%}
{%- set state = namespace(instructions='', previous='') -%}
{{- '<|bos|>' -}}
{%- for message in messages -%}
    {%- set role = 'system' if message.role == 'developer' else message.role -%}
    {%- if state.previous not in follows.get(role, []) -%}
        {{- raise_exception('a message of the ' ~ role ~ ' stands where it cannot: two take turns') -}}
    {%- endif -%}
    {%- if role == 'system' -%}
        {%- set state.instructions = said(message.content) ~ '\\n\\n' -%}
    {%- elif role == 'user' -%}
        {%- if state.previous in ['assistant', 'tool'] -%}
            {%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
        {%- endif -%}
        {{- marked('user', state.instructions ~ said(message.content)) -}}
        {%- set state.instructions = '' -%}
    {%- elif role == 'tool' -%}
        {{- marked('output', said(message.content)) -}}
    {%- else -%}
        {%- if state.previous == 'user' -%}{{- '<|assistant_start|>' -}}{%- endif -%}
        {%- for part in message.parts or [] -%}
            {%- if part.kind == 'output' -%}
                {{- marked('output', part.text) -}}
            {%- else -%}
                {%- generation -%}
                {{- marked('python', part.text) if part.kind == 'call' else plain(part.text) -}}
                {%- endgeneration -%}
            {%- endif -%}
        {%- else -%}
            {%- generation -%}
            {{- plain(said(message.content)) -}}
            {%- for call in message.tool_calls or [] -%}
                {{- marked('python', call.function.arguments.call) -}}
            {%- endfor -%}
            {%- endgeneration -%}
        {%- endfor -%}
    {%- endif -%}
    {%- set state.previous = role -%}
{%- endfor -%}
{%- if state.previous == 'user' and add_generation_prompt -%}
    {{- '<|assistant_start|>' -}}
{%- elif state.previous == 'assistant' or state.previous == 'tool' and not add_generation_prompt -%}
    {%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
{%- endif -%}
""".replace("NAMES", ", ".join(f"'{name}'" for name in SPECIAL_TOKENS))

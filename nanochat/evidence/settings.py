"""One run of the book's model, or of a variation of it, as data. Imports no PyTorch."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from nanochat.common import UserError, nearest


@dataclass(frozen=True)
class Setting:
    """Every field that an experiment, or --vary, can change; the defaults are the book's model, small."""

    # sizes
    n_layer: int = 2
    n_embd: int = 96
    n_head: int = 3
    n_kv_head: int = 0  # 0: as many as n_head
    sequence_len: int = 128
    vocab_size: int = 1024
    # components
    activation: Literal["relu2", "relu", "gelu", "swiglu"] = "relu2"
    qk_norm: bool = True
    softcap: float = 15.0  # 0: none
    norm_after_embedding: bool = True
    tied: bool = False
    tied_std: float = 1.0  # spread of a tied matrix at the start
    bias: bool = False
    optimizer: Literal["split", "adamw", "muon"] = "split"
    table_dtype: Literal["bfloat16", "float32", "bfloat16 angles"] = "bfloat16"
    embedding_dtype: Literal["as the book", "float32", "bfloat16"] = "as the book"
    tables: Literal["buffer", "saved buffer", "parameter", "attribute"] = "buffer"
    # training
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    matrix_lr: float = 0.02
    weight_decay: float = 0.0
    width_scaling: bool = True  # AdamW's rates times (C / 768)^-½
    grad_clip: float = 1.0
    warmup_ratio: float = 0.0
    warmdown_ratio: float = 0.4
    batch_size: int = 8  # sequences in one pass
    passes: int = 1  # passes in one step
    steps: int = 300
    dtype: Literal["float32", "bfloat16"] = "float32"  # of matrix products
    # data
    data: str = "sotu"


def shrunk(setting: Setting) -> Setting:
    """The same variation at a size that takes a moment, on made-up data."""
    sizes = {"n_layer": 2, "n_embd": 12 * setting.n_head, "sequence_len": 16, "vocab_size": 64}
    short = {"batch_size": 2, "steps": 3, "data": "random"}
    return replace(setting, **sizes, **short)  # type: ignore[arg-type]


WORDS = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def read_value(name: str, text: str) -> Any:
    """A field's value from what a person types. Raises UserError for what the field cannot be."""
    kind = typing.get_type_hints(Setting)[name]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise UserError(f"{name}={text}: it can be {', '.join(choices)}{nearest(text, choices)}")
        return text
    try:
        if kind is bool:
            return WORDS[text.lower()]
        return 0.0 if kind is float and text.lower() in ("none", "off") else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "on or off", int: "a whole number", float: "a number"}[kind]
        raise UserError(f"{name}={text}: it wants {wanted}") from None


def varied(setting: Setting, changes: Sequence[str]) -> Setting:
    """The setting with changes such as "activation=gelu". Raises UserError for a wrong name or value."""
    names = [field.name for field in fields(Setting)]
    values: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise UserError(f"{change!r} is no change; write a field and its value, such as activation=gelu")
        if name not in names:
            raise UserError(f"there is no field {name}{nearest(name, names)} (there are {', '.join(names)})")
        values[name] = read_value(name, text.strip())
    return refuse_impossible(replace(setting, **values))


def refuse_impossible(setting: Setting) -> Setting:
    """The setting itself. Raises UserError for sizes or formats that make no model or no run."""
    values = asdict(setting)
    heads, kv_heads = setting.n_head, setting.n_kv_head or setting.n_head
    for name in ("n_layer", "n_embd", "n_head", "sequence_len", "batch_size", "passes", "steps"):
        if values[name] < 1:
            raise UserError(f"{name}={values[name]}: it must be at least 1")
    if setting.n_embd % heads or setting.n_embd // heads % 2 or heads % kv_heads or kv_heads < 1:
        raise UserError(
            f"n_embd={setting.n_embd}, n_head={heads}, n_kv_head={kv_heads} fit no model: heads must divide "
            "the width evenly into an even size, and key-value heads the heads"
        )
    if setting.embedding_dtype == "bfloat16" and setting.dtype != "bfloat16":
        raise UserError(
            "embedding_dtype=bfloat16 with dtype=float32: a float32 matrix multiplies no bf16 rows;"
            " add dtype=bfloat16"
        )
    return setting

"""Open the model that an evaluation asks: a run's, or one that transformers can load."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError
from nanochat.core_tasks import questions_folder
from nanochat.flags import flag
from nanochat.machine import autocast_dtype
from nanochat.trained import load_trained

if TYPE_CHECKING:
    import torch

    from nanochat.core_eval import Subject


@dataclass(frozen=True)
class ModelChoice:
    """Which model to ask, on what device, and where the answers go: flags of more than one program."""

    run: str = flag("latest", "the run's tag, such as d4")
    gpt: str = flag("", "whose model computes (without: the one that trained)")
    hf_path: str = flag("", "instead of a run: a folder that transformers can load")
    max_seq_len: int = flag(0, "T, tokens in a sequence (0: what the model was trained for)")
    out: str = flag("", "folder for the results (without: the run's)")
    record: str = flag("", "a file to write the JSON to as well")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")
    dtype: str = flag("auto", "format of matrix products", choices=("auto", "bfloat16", "float32"))

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if self.hf_path and (self.gpt or self.run != "latest"):
            raise UserError("--hf_path names a model of its own: leave out --run and --gpt")
        if self.max_seq_len < 0:
            raise UserError(f"--max_seq_len={self.max_seq_len}: must not be negative")
        if self.max_seq_len == 1:
            raise UserError("--max_seq_len=1: a token and one before it to predict it from are 2")


@dataclass(frozen=True)
class Opened:
    """A model that can be asked, what to say of it, and where its results belong."""

    subject: Subject
    model: Any
    tokenizer: Any
    about: dict[str, Any]
    folder: Path
    stem: str  # the beginning of the results' names


def with_autocast(
    model: Callable[[torch.Tensor], torch.Tensor], device: torch.device, dtype: torch.dtype | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model under torch.autocast, or as it is if dtype is None."""
    import torch

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            return model(ids)

    return logits


def open_run(choice: ModelChoice, device: torch.device) -> Opened:
    """The newest checkpoint of a run. Raises UserError if it is not there, or does not fit."""
    from nanochat.core_eval import Subject

    model, tokenizer, checkpoint = load_trained(choice.run, device, choice.gpt)
    dtype = autocast_dtype(device, choice.dtype)
    if choice.max_seq_len > model.rotary_seq_len:
        raise UserError(
            f"--max_seq_len={choice.max_seq_len}: the model's rotary tables end at {model.rotary_seq_len} "
            f"positions, ten times what it was trained for: take at most --max_seq_len={model.rotary_seq_len}"
        )
    shape, progress = model.config, checkpoint.meta.get("progress", {})
    about = {
        "run": checkpoint.folder.name,
        "step": checkpoint.step,
        "gpt": choice.gpt or checkpoint.meta.get("gpt", {"name": "book"})["name"],
        "config": asdict(shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": checkpoint.meta.get("config", {}).get("data", ""),
        "training": {name: progress.get(name) for name in ("train_seconds", "val_bpb")},
        "dtype": str(dtype or "float32").removeprefix("torch."),
    }

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer.encode(texts, prepend=tokenizer.bos)

    subject = Subject(
        with_autocast(model, device, dtype),
        encode,
        choice.max_seq_len or shape.sequence_len,
        shape.vocab_size,
        device,
    )
    stem = f"core_{checkpoint.step:06d}"
    return Opened(subject, model, tokenizer, about, checkpoint.folder, stem)


def load_foreign(choice: ModelChoice, folder: Path) -> tuple[Any, Any]:
    """A model that transformers can load, and its tokenizer. Raises UserError if they are not whole."""
    if not (folder / "config.json").is_file():
        raise UserError(f"--hf_path={choice.hf_path}: there is no config.json, so this is no model's folder")
    try:
        import transformers
    except ImportError:
        raise UserError("--hf_path needs the library transformers: pip install transformers") from None
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def load(kind: Any, what: str, **options: Any) -> Any:
        try:
            return kind.from_pretrained(str(folder), local_files_only=True, **options)
        except Exception as error:  # whatever a foreign folder provokes in a foreign library
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--hf_path={choice.hf_path}: transformers {transformers.__version__} cannot load the {what} "
                f"({type(error).__name__}: {reason})"
            ) from error

    model, loading = load(
        transformers.AutoModelForCausalLM, "model", output_loading_info=True, dtype="float32"
    )
    tokenizer = load(transformers.AutoTokenizer, "tokenizer")
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UserError(
            f"--hf_path={choice.hf_path}: the weights are those of another architecture than config.json's: "
            f"{len(missing)} tensors are missing, {missing[0]} among them"
        )
    vocab_size = int(model.config.get_text_config().vocab_size)
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"--hf_path={choice.hf_path}: the tokenizer has {len(tokenizer):,} tokens, the model "
            f"{vocab_size:,}: they do not belong together"
        )
    return model, tokenizer


def open_hf(choice: ModelChoice, device: torch.device) -> Opened:
    """A model of transformers' that can be asked. Raises UserError if it is not whole, or too short."""
    from nanochat.core_eval import Subject

    folder = Path(choice.hf_path).expanduser()
    model, tokenizer = load_foreign(choice, folder)
    text_config = model.config.get_text_config()
    most = getattr(text_config, "max_position_embeddings", None)
    context = choice.max_seq_len or most
    if context is None:
        raise UserError(
            f"--hf_path={choice.hf_path}: config.json does not say how long a text may be: "
            "give --max_seq_len=TOKENS"
        )
    if most is not None and context > most:
        raise UserError(f"--max_seq_len={context}: this model's positions end at {most}: take at most that")
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    before = [] if first is None else [first]

    def encode(texts: list[str]) -> list[list[int]]:
        return [before + row for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    dtype = autocast_dtype(device, choice.dtype)
    model.to(device).eval()
    about = {
        "hf_path": folder.resolve().name,
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(dtype or "float32").removeprefix("torch."),
    }
    logits = with_autocast(lambda ids: model(ids).logits, device, dtype)
    subject = Subject(logits, encode, int(context), int(text_config.vocab_size), device)
    results = questions_folder() / "results" / folder.resolve().name
    return Opened(subject, model, tokenizer, about, results, "core")


def open_model(choice: ModelChoice, device: torch.device) -> Opened:
    """The model that the flags name. Raises UserError as the two functions above do."""
    return open_hf(choice, device) if choice.hf_path else open_run(choice, device)


def free_name(folder: Path, stem: str) -> Path:
    """`stem.json` in a folder, or `stem-2.json`, …: the first that does not exist."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(path for name in names if not (path := folder / f"{name}.json").exists())

"""A run leaves for transformers and comes back: same numbers, same tokens, bad folders refused."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import load_checkpoint, save_checkpoint
from nanochat.common import UserError
from nanochat.hf_format import all_merges, describe_tokenizer
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.trained import load_model
from scripts import export_hf, import_hf
from tests.bounds import clearance, logits_error, unit_roundoff
from tests.programs import run_main

transformers = pytest.importorskip("transformers", minversion="5")

VOCAB_SIZE = 300
SHAPE = {
    "sequence_len": 32,
    "vocab_size": VOCAB_SIZE,
    "n_layer": 2,
    "n_head": 4,
    "n_kv_head": 2,
    "n_embd": 32,
}


def run(module: Any, *flags: str) -> int:
    """Run a script's main in this process; returns the exit status."""
    return run_main(module.main, *flags)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rng = random.Random(0)
    words = ["the", "union", "Grüße", "  two", "1790", "don't", "🙂", "年", "\n\n", "state's", "aaaa", "ab"]
    return Tokenizer.train([" ".join(rng.choices(words, k=400)) for _ in range(20)], VOCAB_SIZE)


def make_run(base: Path, tag: str, tokenizer: Tokenizer, shape: dict[str, int], fingerprint: str = "") -> GPT:
    """A run whose model has large random weights everywhere, some of them bfloat16."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**shape))
    model.init_weights()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=parameter.size(-1) ** -0.5)
    model.lm_head.weight.data[tokenizer.bos] = 0  # so that it never comes
    model.transformer.wte.weight.data = model.transformer.wte.weight.data.mul(5).bfloat16()
    folder = base / "base_checkpoints" / tag
    tokenizer.save(folder / "tokenizer")
    save_checkpoint(
        folder, 7, model, [], {"model": shape, "tokenizer": fingerprint or tokenizer.fingerprint()}
    )
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Iterator[Path]:
    """A base folder with the runs mha, gqa and mqa, each exported to a folder of its name."""
    base = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(base))
        for tag, heads in (("mha", 4), ("gqa", 2), ("mqa", 1)):
            make_run(base, tag, tokenizer, SHAPE | {"n_kv_head": heads})
            assert run(export_hf, f"--run={tag}", f"--out={base / tag}") == 0
        yield base


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of an exported folder, for breaking."""
    return Path(shutil.copytree(base / "gqa", tmp_path / "model"))


def unrounded(tag: str) -> GPT:
    """The run's model in float32, with rotary tables in float32 as transformers has them."""
    model, _ = load_model(tag, torch.device("cpu"))
    D, positions = model.config.head_dim, model.cos.size(1)
    speeds = 10000.0 ** (-torch.arange(0, D, 2, dtype=torch.float32) / D)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * speeds
    model.cos, model.sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    return model


def is_clear(model: Any, prompt: list[int], tokens: list[int]) -> bool:
    """Whether no choice of these likeliest tokens hangs on a rounding."""
    read = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        choices = model(read)[0, len(prompt) - 1 : -1]
    return clearance(choices, tokens, temperature=0) > logits_error(model, read)


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


# ---- numbers ----


@pytest.mark.parametrize("tag", ["mha", "gqa", "mqa"])
@pytest.mark.numerics
def test_the_logits_are_the_same(base: Path, tag: str) -> None:
    idx = torch.randint(0, VOCAB_SIZE, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        theirs = load(base / tag)(idx).logits
        ours = unrounded(tag)(idx)
        rounded = load_model(tag, torch.device("cpu"))[0](idx)
    assert theirs.std() > 0.5
    bound = logits_error(unrounded(tag), idx)
    assert bound < 1e-3, "a mistake must be larger"
    torch.testing.assert_close(ours, theirs, atol=bound, rtol=0)
    # the bfloat16 tables are all that differs, and they do
    assert 1e-4 < (rounded - theirs).abs().max() < 0.1


@pytest.mark.numerics
def test_vectors_so_short_that_epsilon_decides_their_length(
    base: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    model = make_run(base, "short", tokenizer, SHAPE)
    model.transformer.wte.weight.data.mul_(1e-4)
    meta = {"model": SHAPE, "tokenizer": tokenizer.fingerprint()}
    save_checkpoint(base / "base_checkpoints" / "short", 8, model, [], meta)
    assert run(export_hf, "--run=short", f"--out={tmp_path / 'short'}") == 0
    idx = torch.arange(32)[None]
    with torch.inference_mode():
        theirs, ours = load(tmp_path / "short"), unrounded("short")(idx)
        bound = logits_error(unrounded("short"), idx)
        torch.testing.assert_close(ours, theirs(idx).logits, atol=bound, rtol=0)
        theirs.model.norm.eps = 1e-6
        assert (ours - theirs(idx).logits).abs().max() > 10 * bound


@pytest.mark.numerics
def test_in_bfloat16_even_the_tables_are_the_same(base: Path) -> None:
    """Either is off by half a step below 1, that of bfloat16, and by the angle's own error in float32.

    An angle is a power, rounded after two roundings in its exponent of size ln 10,000, times a position.
    """
    model = load(base / "gqa")
    positions = torch.arange(32)[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.bfloat16), positions)
    ours = GPT(GPTConfig(**SHAPE))
    ours.init_weights()
    half = ours.config.head_dim // 2
    angle = 31 * (2 * math.log(10000) + 2) * unit_roundoff()
    bound = 2 * (2**-9 + angle)
    for theirs, table in ((cos, ours.cos), (sin, ours.sin)):
        assert theirs.dtype == table.dtype == torch.bfloat16
        torch.testing.assert_close(theirs[0, :, :half], table[0, :32, 0], atol=bound, rtol=0)
        assert (theirs[0, :, :half] == table[0, :32, 0]).float().mean() > 0.98, "a tie is rare"


@pytest.mark.numerics
def test_generate_goes_on_with_the_cache_as_we_do_and_stops_at_bos(base: Path, tokenizer: Tokenizer) -> None:
    model, ours = load(base / "gqa"), unrounded("gqa")
    assert model.generation_config.eos_token_id == model.generation_config.pad_token_id == tokenizer.bos
    prompt = tokenizer.encode("the union", prepend=tokenizer.bos)
    expected = list(ours.generate(prompt, 20, temperature=0))
    assert is_clear(ours, prompt, expected)
    for use_cache in (True, False):
        made = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, use_cache=use_cache)
        assert made[0, len(prompt) :].tolist() == expected
    last = expected[5]
    model.lm_head.weight.data[tokenizer.bos] = model.lm_head.weight.data[last] * 1.01  # now bos comes instead
    made = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[
        0, len(prompt) :
    ].tolist()
    assert made == [*expected[: expected.index(last)], tokenizer.bos]


@pytest.mark.numerics
def test_a_padded_batch_generates_as_its_rows_do(base: Path) -> None:
    model = load(base / "gqa")
    theirs = transformers.AutoTokenizer.from_pretrained(base / "gqa")
    texts = ["the union", "don't 1790 state's the the", "🙂"]
    batch = theirs(texts, return_tensors="pt", padding=True)
    made = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].size(1) :]
    for text, row in zip(texts, made.tolist(), strict=True):
        alone = theirs(text, return_tensors="pt")
        expected = model.generate(**alone, max_new_tokens=6, do_sample=False)[0, alone["input_ids"].size(1) :]
        assert is_clear(unrounded("gqa"), alone["input_ids"][0].tolist(), expected.tolist())
        assert row[: len(expected)] == expected.tolist()


PROGRAM = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model, about = AutoModelForCausalLM.from_pretrained(sys.argv[1], output_loading_info=True)
assert not any(about.values()), about
ids = model.generate(**tokenizer(sys.argv[2], return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(type(model).__name__, ids[0].tolist())
assert not any(name.split(".")[0] in ("nanochat", "scripts") for name in sys.modules)
"""


def test_transformers_alone_loads_and_writes(base: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Another process, another folder, none of the project on its path."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(base / "mha"), "the state's"],
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    prompt = tokenizer.encode("the state's", prepend=tokenizer.bos)
    made = list(unrounded("mha").generate(prompt, 8, temperature=0))
    assert is_clear(unrounded("mha"), prompt, made)
    ids = prompt + made
    assert done.stdout == f"NanoChatForCausalLM {ids}\n"


# ---- tokens ----


def random_texts(rng: random.Random, count: int) -> Iterator[str]:
    """Texts of any Unicode characters but surrogates, and of the things that are usually got wrong."""
    bits: list[Callable[[], str]] = [
        lambda: chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x10000)])),
        lambda: chr(rng.randrange(0x10000, 0x110000)),
        lambda: chr(rng.randrange(128)),
        lambda: (
            rng.choice([" ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u2028", "\x85"]) * rng.randint(1, 9)
        ),
        lambda: str(rng.randrange(10 ** rng.randint(1, 12))),
        lambda: rng.choice(
            ["the", "union", "'s", "'LL", "'ſ", "don't", "aaaaa", "abab", "é", "e\u0301", "²", "٣"]
        ),
        lambda: rng.choice([*SPECIAL_TOKENS, "<|bos", "<||bos|>", "<|bos|"]),
    ]
    for _ in range(count):
        yield "".join(rng.choice(bits)() for _ in range(rng.randint(0, 30)))


def test_any_text_has_the_same_tokens_and_comes_back(base: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(base / "gqa")
    texts = [*random_texts(random.Random(1), 1500), "", " ", "\n" * 3000, " " * 5000 + "x"]
    ours = tokenizer.encode(texts)
    assert theirs(texts, add_special_tokens=False)["input_ids"] == ours
    assert theirs(texts)["input_ids"] == [[tokenizer.bos, *row] for row in ours]
    assert theirs.batch_decode(ours) == texts
    assert theirs.batch_decode([[tokenizer.bos, *row] for row in ours], skip_special_tokens=True) == texts


def test_every_character_of_unicode_has_the_same_tokens(base: Path, tokenizer: Tokenizer) -> None:
    """Both engines for regular expressions know the same letters, digits and blanks."""
    theirs = transformers.AutoTokenizer.from_pretrained(base / "gqa")
    some = [
        *range(0xD800),
        *range(0xE000, 0x20000),
        *range(0x20000, 0x110000, 61),
    ]  # planes above 1 are uniform
    text = "".join(f"a{chr(code)}1{chr(code)} " for code in some)  # letters join letters, digits digits
    assert theirs(text, add_special_tokens=False, verbose=False)["input_ids"] == tokenizer.encode(text)


def test_any_ids_decode_to_the_same_text(base: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(base / "gqa")
    rng = random.Random(2)
    for _ in range(300):
        ids = [rng.choice([rng.randrange(VOCAB_SIZE), rng.randrange(256)]) for _ in range(rng.randint(0, 12))]
        assert theirs.decode(ids) == tokenizer.decode(ids)


def test_special_tokens_are_there_and_never_come_out_of_a_text(base: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(base / "gqa")
    assert len(theirs) == VOCAB_SIZE
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(tokenizer.specials.values())
    assert set(theirs.all_special_ids) == set(tokenizer.specials.values())
    assert theirs.bos_token_id == theirs.eos_token_id == tokenizer.bos
    assert not theirs.clean_up_tokenization_spaces
    text = "<|user_start|>the<|user_end|>"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    on_request = theirs(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    special = tokenizer.special
    assert on_request == [special("<|user_start|>"), *tokenizer.encode("the"), special("<|user_end|>")]


def test_tokens_made_to_overlap(tokenizer: Tokenizer) -> None:
    """Vocabularies no training would give: words that repeat themselves, in any order."""
    from tokenizers import Tokenizer as Theirs

    rng = random.Random(3)
    simplified = 0
    for _ in range(30):
        alphabet = rng.choice(["a", "ab", "abc"])
        words = {
            (("".join(rng.choices(alphabet, k=rng.randint(1, 3)))) * 9)[: rng.randint(2, 9)]
            for _ in range(40)
        }
        tokens = [bytes([byte]) for byte in range(256)] + sorted(
            map(str.encode, words), key=lambda _: rng.random()
        )
        ours = Tokenizer(tokens)
        about = describe_tokenizer(ours)
        theirs = Theirs.from_str(json.dumps(about))
        one_each = {"".join(pair): pair for pair in all_merges(ours.tokens)}
        about["model"]["merges"] = list(one_each.values())
        simple = Theirs.from_str(json.dumps(about))
        for _ in range(30):
            text = "".join(rng.choices(alphabet, k=rng.randint(1, 60)))
            expected = ours.encode(text)
            assert theirs.encode(text, add_special_tokens=False).ids == expected
            simplified += simple.encode(text, add_special_tokens=False).ids != expected
    assert simplified, "one merge for each token would do; the chapter says it would not"


# ---- there and back ----


def test_a_round_trip_changes_no_bit(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(import_hf, f"--folder={base / 'gqa'}", "--model_tag=returned") == 0
    assert "run returned" in capsys.readouterr().out
    before, after = (load_checkpoint(base / "base_checkpoints" / tag) for tag in ("gqa", "returned"))
    assert after.meta["model"] == before.meta["model"] == SHAPE
    assert after.meta["tokenizer"] == before.meta["tokenizer"]
    assert after.model.keys() == before.model.keys()
    for name, tensor in before.model.items():
        assert after.model[name].dtype == tensor.dtype
        assert torch.equal(after.model[name], tensor)
    assert run(export_hf, "--run=returned", f"--out={tmp_path / 'again'}") == 0
    for path in (base / "gqa").iterdir():
        if path.name != "README.md":
            assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_an_imported_model_writes_here_and_does_not_go_on_training(
    base: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(import_hf, f"--folder={folder}") == 0  # the folder's name is the tag
    ours, _ = load_model("model", torch.device("cpu"))
    assert list(ours.generate([VOCAB_SIZE - 9], 5, temperature=0)) == list(
        load_model("gqa", torch.device("cpu"))[0].generate([VOCAB_SIZE - 9], 5, temperature=0)
    )
    from nanochat.run import refuse_another_model
    from nanochat.train_config import TrainConfig

    saved = load_checkpoint(base / "base_checkpoints" / "model")
    with pytest.raises(UserError, match="--resume=model was imported"):
        refuse_another_model(
            saved, SHAPE, Tokenizer.load(saved.folder / "tokenizer"), TrainConfig(resume="model")
        )
    assert run(import_hf, f"--folder={folder}") == 0  # once more: a run beside it
    assert (base / "base_checkpoints" / "model-2").is_dir()
    capsys.readouterr()
    assert run(import_hf, f"--folder={folder}", "--model_tag=model") == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_folder_that_transformers_wrote(
    base: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """As published models are: bfloat16, in several files with an index, with the default epsilon."""
    torch.manual_seed(5)
    config = transformers.NanoChatConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    theirs = transformers.NanoChatForCausalLM(config).bfloat16()
    theirs.lm_head.weight.data.normal_(std=0.5)
    out = tmp_path / "published"
    theirs.save_pretrained(out, max_shard_size="20KB")
    transformers.AutoTokenizer.from_pretrained(base / "gqa").save_pretrained(out)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    assert run(import_hf, f"--folder={out}") == 0
    assert "remark: rms_norm_eps is 1e-06 there and 2^-23 here" in capsys.readouterr().out
    checkpoint = load_checkpoint(base / "base_checkpoints" / "published")
    assert {tensor.dtype for tensor in checkpoint.model.values()} == {torch.bfloat16}
    assert checkpoint.meta["tokenizer"] == tokenizer.fingerprint()
    idx = torch.arange(2, 42)[None]  # the row of token 1, its padding, is zero
    with torch.inference_mode():
        expected = load(out)(idx).logits
        got = unrounded("published")(idx)
        difference = (got - expected).abs().max()
        config.rms_norm_eps = 2.0**-23
        config.save_pretrained(out)
        bound = logits_error(unrounded("published"), idx)
        torch.testing.assert_close(got, load(out)(idx).logits, atol=bound, rtol=0)
    assert difference > 2 * bound
    assert 1e-4 < difference < 0.1, (
        "a model as small as transformers begins with, and an epsilon eight times ours"
    )
    next(out.glob("model-00002*")).unlink()
    assert run(import_hf, f"--folder={out}", "--model_tag=half") == 2
    assert "half downloaded" in capsys.readouterr().err


# ---- what is refused ----


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    about = json.loads(path.read_text())
    edit(about)
    path.write_text(json.dumps(about))


def set_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", lambda about: about.update(values))


def edit_tokenizer(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda folder: change(folder / "tokenizer.json", edit)


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return break_it


def cut_short(name: str) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])

    return break_it


def smaller_tokenizer(folder: Path) -> None:
    about = describe_tokenizer(Tokenizer([bytes([byte]) for byte in range(256)]))
    (folder / "tokenizer.json").write_text(json.dumps(about))


def swap_two_tokens(about: dict[str, Any]) -> None:
    vocab = about["model"]["vocab"]
    one, two = [name for name, number in vocab.items() if number in (270, 280)]
    vocab[one], vocab[two] = vocab[two], vocab[one]


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD_FOLDERS = {
    "no description": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "half a description": (cut_short("config.json"), "config.json can not be read, perhaps half downloaded"),
    "another type": (set_config(model_type="llama"), "model_type is 'llama'; this book's GPT has 'nanochat'"),
    "tied": (set_config(tie_word_embeddings=True), "tie_word_embeddings is True; this book's GPT has False"),
    "biases": (set_config(attention_bias=True), "attention_bias is True"),
    "gelu": (set_config(hidden_act="gelu"), "hidden_act is 'gelu'; this book's GPT has 'relu2'"),
    "no cap": (set_config(final_logit_softcapping=None), "final_logit_softcapping is None"),
    "another hidden layer": (
        set_config(intermediate_size=64),
        "intermediate_size is 64; this book's GPT has 128",
    ),
    "another base": (
        set_config(rope_parameters={"rope_type": "default", "rope_theta": 500000.0}),
        "rope_parameters is {'rope_type': 'default', 'rope_theta': 500000.0}",
    ),
    "an older spelling": (set_config(rope_parameters=None, rope_theta=5.0), "'rope_theta': 5.0"),
    "quantized": (set_config(quantization_config={"bits": 4}), "quantization_config is {'bits': 4}"),
    "impossible heads": (set_config(num_attention_heads=5), "does not divide into n_head 5 heads"),
    "no number": (set_config(hidden_size="32"), "hidden_size is '32', wanted a whole number"),
    "another width": (set_config(hidden_size=64, intermediate_size=256), "has the shape (300, 32)"),
    "fewer blocks": (set_config(num_hidden_layers=1), "tensor transformer.h.1."),
    "more blocks": (set_config(num_hidden_layers=3), "6 of 20 tensors are missing, transformer.h.2."),
    "no head": (
        edit_tensors(lambda t: t.pop("lm_head.weight")),
        "1 of 14 tensors are missing, lm_head.weight",
    ),
    "whole numbers": (
        edit_tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.int8)})),
        "lm_head.weight holds torch.int8",
    ),
    "half the weights": (cut_short("model.safetensors"), "model.safetensors can not be read, perhaps half"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors and no index"),
    "a pickle": (pickled, "pytorch_model.bin, a program, which is not run"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json does not exist"),
    "half a tokenizer": (cut_short("tokenizer.json"), "tokenizer.json can not be read, perhaps half"),
    "another size": (smaller_tokenizer, "the tokenizer has 265 tokens and the model 300"),
    "no special tokens": (
        edit_tokenizer(lambda about: about.update(added_tokens=[])),
        "its last tokens are",
    ),
    "gaps": (edit_tokenizer(lambda about: about["added_tokens"].pop(0)), "its ids have gaps"),
    "no bytes": (edit_tokenizer(lambda about: about["model"].update(type="Unigram")), "no plain byte pair"),
    "lower case": (
        edit_tokenizer(lambda about: about.update(normalizer={"type": "Lowercase"})),
        "no plain byte pair",
    ),
    "another order": (edit_tokenizer(swap_two_tokens), "merges are not in the order"),
    "missing merges": (
        edit_tokenizer(lambda about: about["model"].update(merges=[], ignore_merges=False)),
        "cuts 'The state of the Union",
    ),
}


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_bad_folder_is_one_line_and_leaves_no_run(
    base: Path, folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, message = BAD_FOLDERS[name]
    break_it(folder)
    runs = sorted(path.name for path in (base / "base_checkpoints").iterdir())
    assert run(import_hf, f"--folder={folder}") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert runs == sorted(path.name for path in (base / "base_checkpoints").iterdir())


def test_a_stranger_in_the_index(base: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = {"weight_map": {"lm_head.weight": "model.safetensors", "model.norm.weight": "model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run(import_hf, f"--folder={folder}") == 2
    assert "promises model.norm.weight in model.safetensors, where it is not" in capsys.readouterr().err


def test_an_export_overwrites_nothing(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert run(export_hf, "--run=gqa", f"--out={mine}") == 2
    assert "exists already, and nothing is overwritten" in capsys.readouterr().err
    with pytest.raises(UserError, match="nothing is overwritten"):
        export_hf.write_folder(mine, {"config.json": "{}"})  # created while the export was running
    assert list(tmp_path.iterdir()) == [mine]
    assert list(mine.iterdir()) == []


def test_a_full_disk_leaves_no_folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = export_hf.write_atomically

    def full(path: Path, data: bytes | str) -> None:
        if path.name == "tokenizer.json":
            raise export_hf.UserError("no space left")
        write(path, data)

    monkeypatch.setattr(export_hf, "write_atomically", full)
    assert run(export_hf, "--run=gqa", f"--out={tmp_path / 'out'}") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_architecture(
    base: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wider(torch.nn.Module):
        def __init__(self, model: GPT) -> None:
            super().__init__()
            self.transformer, self.lm_head = model.transformer, model.lm_head
            self.gain = torch.nn.Parameter(torch.ones(3))

    model = make_run(base, "plain", tokenizer, SHAPE)
    meta = {"model": SHAPE, "tokenizer": tokenizer.fingerprint(), "gpt": {"name": "mine"}}
    save_checkpoint(base / "base_checkpoints" / "plain", 8, model, [], meta)
    assert run(export_hf, "--run=plain", f"--out={tmp_path / 'same'}") == 0
    assert "warning: trained with --gpt=mine" in capsys.readouterr().out
    save_checkpoint(base / "base_checkpoints" / "plain", 9, Wider(model), [], meta)
    assert run(export_hf, "--run=plain", f"--out={tmp_path / 'out'}") == 2
    captured = capsys.readouterr()
    assert "tensor gain has no place in this book's GPT" in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_not_exported(
    base: Path, tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(base, "mixed", tokenizer, SHAPE, "0" * 64)
    assert run(export_hf, "--run=mixed", f"--out={tmp_path / 'out'}") == 2
    assert "is not the one this model was trained with" in capsys.readouterr().err


@pytest.mark.parametrize("module", [export_hf, import_hf])
def test_wrong_flags_do_not_wait_for_torch(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(module, "--rnu=d4") == 2
    assert capsys.readouterr().err.count("\n") == 1

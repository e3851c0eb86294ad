"""Files from strangers: whatever they say, the answer is what was asked for or one line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from nanochat import checkpoint_manager as cm
from nanochat import dataset, hf_format
from nanochat.common import UserError, fits, typed
from nanochat.core_tasks import read_bundle
from nanochat.tokenizer import Tokenizer
from scripts.import_hf import file_of_each_tensor, read_weights
from tests.core_questions import WORDS
from tests.programs import answer

DEFAULT = 25
EXAMPLES = int(os.environ.get("NANOCHAT_FUZZ", DEFAULT))  # of each kind
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="NANOCHAT_FUZZ" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**64, 10**30, 1e308, -0.0, "", "../../x", "/etc/x", "\x00", "7", "�"])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(said: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in what JSON said."""
    yield path
    inner = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@st.composite
def changed(draw: Callable[..., Any], said: Any) -> Any:
    """What JSON said, with up to three values replaced by anything, or left out."""
    said = deepcopy(said)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(said))))
        if not path:
            return draw(anything)
        holder = said
        for key in path[:-1]:
            holder = holder[key]
        if draw(st.booleans()) and isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(anything)
    return said


def asked(question: Callable[[], object]) -> None:
    """Ask; a UserError is an answer, and nothing else but a result is."""
    answers = []
    try:
        question()
    except UserError as error:
        answers.append(str(error))
    assert all(0 < len(text) < 2000 for text in answers)


# --- checkpoints ------------------------------------------------------------


def sign(folder: Path, record: dict[str, Any]) -> None:
    record = {key: value for key, value in record.items() if key != "sha256"}
    (folder / "meta_000001.json").write_text(json.dumps({"sha256": cm.digest(record), **record}))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    meta = {
        "model": {"n_layer": 1},
        "tokenizer": "x",
        "progress": {"step": 1},
        "loader": None,
        "gpt": {"name": "a"},
    }
    cm.save_checkpoint(folder, 1, model, [optimizer], meta, {"cpu": torch.get_rng_state()})
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def with_header(size: int, header: bytes, rest: bytes = b"") -> bytes:
    return struct.pack("<Q", size) + header + rest


def exchange(folder: Path, data: bytes) -> None:
    """Put other bytes in the place of the weights, and sign for them."""
    (folder / "model_000001.safetensors").write_bytes(data)
    record = json.loads((folder / "meta_000001.json").read_text())
    about = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record["files"]["model_000001.safetensors"] = about
    sign(folder, record)


LIES = {
    "a header of terabytes": with_header(2**43, b"{}"),
    "a header of more than there is": with_header(100, b"{}"),
    "a header of no size": with_header(0, b""),
    "nothing": b"",
    "a tensor outside of the file": with_header(
        60, b'{"weight":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}} '[:60]
    ),
    "a shape of 10^30": with_header(
        76, b'{"w":{"dtype":"F32","shape":[999999999999,999999999999],"data_offsets":[0,0]}}'[:76]
    ),
    "no JSON": with_header(4, b"\xff\xff\xff\xff"),
    "a format that nobody has": with_header(
        54, b'{"w":{"dtype":"F3","shape":[1],"data_offsets":[0,4]}}  '[:54], bytes(4)
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_that_lie_are_damaged_whatever_they_sign(lie: str, copy: Path) -> None:
    exchange(copy, LIES[lie])
    with pytest.raises(
        cm.Damaged, match=r"model_000001\.safetensors is no safetensors file that can be read"
    ):
        cm.load_checkpoint(copy, 1)


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a path outside": (
        lambda r: r["files"].update(
            {"model_../../x.safetensors": r["files"].pop("model_000001.safetensors")}
        ),
        "names the files",
    ),
    "no files": (lambda r: r.update(files={}), "names the files"),
    "files in a list": (lambda r: r.update(files=[]), "files is .*wanted dict"),
    "a size in words": (lambda r: r["files"]["model_000001.safetensors"].update(bytes="9"), "bytes is '9'"),
    "a step in words": (lambda r: r.update(step="1"), "step is '1', wanted int"),
    "a step that is true": (lambda r: r.update(step=True), "step is True, wanted int"),
    "a model of texts": (lambda r: r["meta"].update(model={"n_layer": "1"}), "model is .*wanted dict"),
    "a model of no layers": (lambda r: r["meta"].update(model={"n_layer": 0}), "wanted positive sizes"),
    "a model without end": (lambda r: r["meta"].update(model={"n_layer": 10**15}), "wanted positive sizes"),
    "a progress of a list": (lambda r: r["meta"].update(progress=[1]), "progress is .*wanted dict"),
    "a meta of null": (lambda r: r.update(meta=None), "meta is None, wanted dict"),
    "optimizers of a text": (lambda r: r.update(optimizers="x"), "optimizers is 'x'"),
    "optimizers without groups": (lambda r: r.update(optimizers=[{}]), "do not fit together"),
    "no optimizers for the tensors": (lambda r: r.update(optimizers=[]), "do not fit together"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_wrong_types_is_damaged_though_it_is_signed(name: str, copy: Path) -> None:
    change, message = RECORDS[name]
    record = json.loads((copy / "meta_000001.json").read_text())
    change(record)
    sign(copy, record)
    with pytest.raises(cm.Damaged, match=message) as caught:
        cm.load_checkpoint(copy, 1)
    assert "\n" not in str(caught.value)


@fuzzed
@given(data=st.data())
def test_any_signed_record(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "one", dirs_exist_ok=True)
    record = data.draw(changed(json.loads((run / "meta_000001.json").read_text())))
    if isinstance(record, dict):
        sign(tmp_path / "one", record)
    else:
        (tmp_path / "one" / "meta_000001.json").write_text(json.dumps(record))
    asked(lambda: cm.load_checkpoint(tmp_path / "one", 1))


@fuzzed
@given(data=st.data())
def test_any_signed_weights(data: st.DataObject, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "one", dirs_exist_ok=True)
    raw = (run / "model_000001.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(data.draw(changed(json.loads(raw[8 : 8 + size])))).encode()
    exchange(tmp_path / "one", with_header(len(header), header, raw[8 + size :]))
    asked(lambda: cm.load_checkpoint(tmp_path / "one", 1))


# --- folders of models ----------------------------------------------------------

CONFIG = {
    **hf_format.describe_model(
        {"sequence_len": 32, "vocab_size": 300, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32},
        291,
        "float32",
    )
}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "a rotation in a list": ({"rope_parameters": [1]}, r"rope_parameters is \[1\], wanted an object"),
    "a scaling in words": (
        {"rope_parameters": None, "rope_scaling": "linear"},
        "rope_scaling is 'linear', wanted an object",
    ),
    "layers without end": (
        {"num_hidden_layers": 10**8},
        "num_hidden_layers is 100000000, wanted .* 1 to 1,000",
    ),
    "positions without end": (
        {"max_position_embeddings": 10**10},
        "max_position_embeddings is 10000000000, wanted",
    ),
    "a vocabulary without end": ({"vocab_size": 10**12}, "vocab_size is 1000000000000, wanted"),
    "an epsilon in words": ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', wanted a number"),
    "half a layer": ({"num_hidden_layers": 1.5}, "num_hidden_layers is 1.5, wanted a whole number"),
    "heads that are true": ({"num_attention_heads": True}, "num_attention_heads is True, wanted"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_impossible_description(name: str, tmp_path: Path) -> None:
    values, message = CONFIGS[name]
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **values}))
    with pytest.raises(UserError, match=message) as caught:
        hf_format.read_shape(tmp_path / "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, '{"a": 1e999', "\x00", '"x"', ""])
def test_what_is_no_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json (can not be read|holds a)"):
        hf_format.read_shape(tmp_path / "config.json")


@pytest.mark.parametrize(
    "files",
    [
        *([], None, 7, "model.safetensors", {}, {"lm_head.weight": 7}, {"lm_head.weight": None}),
        *({"lm_head.weight": "../../outside.safetensors"}, {"lm_head.weight": "/tmp/outside.safetensors"}),
        *({"lm_head.weight": "..\\outside.safetensors"}, {"lm_head.weight": "weights.bin"}),
    ],
)
def test_an_index_that_leads_elsewhere(files: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    save_file({"lm_head.weight": torch.ones(2)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    with pytest.raises(
        UserError, match=r"index\.json: .*wanted a (file for each tensor|\.safetensors file of this)"
    ):
        read_weights(folder)


@fuzzed
@given(data=st.data())
def test_any_description(data: st.DataObject, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(data.draw(changed(CONFIG))))
    asked(lambda: hf_format.read_shape(tmp_path / "config.json"))


@fuzzed
@given(data=st.data())
def test_any_index(data: st.DataObject, tmp_path: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "a.safetensors", "model.x": "b.safetensors"}}
    (tmp_path / "index.json").write_text(json.dumps(data.draw(changed(index))))
    asked(lambda: file_of_each_tensor(tmp_path / "index.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS) * 20], 290)


@fuzzed
@given(data=st.data())
def test_any_tokenizer_of_others(data: st.DataObject, tokenizer: Tokenizer, tmp_path: Path) -> None:
    about = hf_format.describe_tokenizer(tokenizer)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data.draw(changed(about))))
    asked(lambda: hf_format.read_tokenizer(tmp_path))


@fuzzed
@given(data=st.data())
def test_any_tokenizer_of_ours(data: st.DataObject, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    if not folder.exists():
        tokenizer.save(folder)
        (tmp_path / "about.json").write_bytes((folder / "tokenizer.json").read_bytes())
    about = json.loads((tmp_path / "about.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(data.draw(changed(about))))
    asked(lambda: Tokenizer.load(folder))


@fuzzed
@given(
    text=st.text(max_size=60) | st.sampled_from(["<|bos|>", "<|assistant_end|>", "a<|bos|><|user_start|>"])
)
def test_text_never_spells_a_special_token(text: str, tokenizer: Tokenizer) -> None:
    assert not set(tokenizer.encode(text)) & set(tokenizer.specials.values())


# --- corpora ----------------------------------------------------------------------


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    return file.getvalue()


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.txt").write_text(f"text {number}")
    dataset.prepare_folder(source, "mine")
    return dataset.corpus_folder("mine")


TABLES = {
    "another column": (pa.table({"body": ["a"]}), "it has columns body, but not one column 'text'"),
    "numbers": (pa.table({"text": [1, 2]}), "its column 'text' holds int64, not strings"),
    "bytes": (pa.table({"text": [b"\xff"]}), "its column 'text' holds binary, not strings"),
    "lists": (pa.table({"text": [["a"]]}), r"its column 'text' holds list<.*>, not strings"),
    "two of them": (
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]),
        "but not one column 'text'",
    ),
    "none": (pa.table({}), "but not one column 'text'"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_holds_no_texts(name: str, tmp_path: Path) -> None:
    table, message = TABLES[name]
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    with pytest.raises(UserError, match=rf"a\.parquet: .*{message}"):
        dataset.row_groups([tmp_path / "a.parquet"])


def test_a_text_that_is_missing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": ["a", None, "b"]})))
    groups = dataset.row_groups([tmp_path / "a.parquet"])
    assert [text for group in groups for text in dataset.read_row_group(*group)] == ["a", "b"]


@fuzzed
@given(data=st.data())
def test_any_manifest(data: st.DataObject, corpus: Path) -> None:
    path = corpus / "corpus.json"
    kept = corpus.with_name("kept.json")
    if not kept.exists():
        kept.write_bytes(path.read_bytes())
    path.write_text(json.dumps(data.draw(changed(json.loads(kept.read_text())))))
    asked(lambda: dataset.parquet_files("mine", "train"))


@fuzzed
@given(data=st.data())
def test_any_damage_to_a_shard(data: st.DataObject, tmp_path: Path) -> None:
    raw = bytearray(parquet(pa.table({"text": ["some text", "and more", "é" * 50, "the last"]})))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.parquet").write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))] or raw))

    def read() -> None:
        for group in dataset.row_groups([tmp_path / "a.parquet"]):
            dataset.read_row_group(*group)

    asked(read)


@pytest.mark.parametrize(
    "name", ["../x.parquet", "/x.parquet", "a/b.parquet", ".x.parquet", "x.txt", "corpus.json"]
)
def test_a_manifest_names_files_of_its_folder(name: str, corpus: Path) -> None:
    said = json.loads((corpus / "corpus.json").read_text())
    said["shards"][0]["name"] = name
    (corpus / "corpus.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="which is no file of this folder"):
        dataset.parquet_files("mine", "train")


@pytest.mark.parametrize("uri", ["../../outside.jsonl", "/etc/passwd", "a/../../../outside.jsonl"])
def test_a_bundle_whose_paths_climb_out(uri: str, tmp_path: Path) -> None:
    bundle = tmp_path / "deep" / "bundle"
    (bundle / "eval_data").mkdir(parents=True)
    (tmp_path / "outside.jsonl").write_text('{"context": "a", "continuation": "b"}\n' * 20)
    task = f"- {{label: t, icl_task_type: language_modeling, num_fewshot: [0], dataset_uri: {uri}}}\n"
    (bundle / "core.yaml").write_text("icl_tasks:\n" + task)
    (bundle / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nt,0\n")
    with pytest.raises(UserError, match="leads out of the bundle"):
        read_bundle(bundle)


def test_the_numbers_of_the_chapter() -> None:
    chapter = " ".join((Path(__file__).parents[1] / "lit" / "60-common-ground.md").read_text("utf-8").split())
    kinds = [name for name in globals() if name.startswith("test_any_")]
    assert f"are such kinds, {len(kinds)} in all. `make test` tries {DEFAULT} files of each" in chapter


# --- the check itself ----------------------------------------------------------------


def test_a_type_is_exact() -> None:
    right: list[tuple[object, Any]] = [(1, int), (1, float), ("a", str), (None, str | None), (True, bool)]
    right += [([1], list[int]), ({"a": 1}, dict[str, int]), ({"a": [None]}, dict[str, Any])]
    wrong: list[tuple[object, Any]] = [(True, int), (1.0, int), (True, float), (None, str), (1, bool)]
    wrong += [(["a"], list[int]), ({"a": "b"}, dict[str, int]), ([], dict[str, int]), (1, str | None)]
    assert [pair for pair in right if not fits(*pair)] == []
    assert [pair for pair in wrong if fits(*pair)] == []


def test_a_field_that_is_missing_or_unknown() -> None:
    with pytest.raises(UserError, match="x does not say sha256"):
        typed(cm.File, {"bytes": 1}, "x")
    with pytest.raises(UserError, match="x says 'more', which it cannot; it can say bytes, sha256"):
        typed(cm.File, {"bytes": 1, "sha256": "a", "more": 2}, "x")


def test_an_error_is_one_line_whatever_a_file_says() -> None:
    def main() -> None:
        raise UserError("two\nlines\r\nof a file")

    assert answer(main).stderr == "error: two lines of a file\n"


def test_a_whole_file_of_weights_is_read(tmp_path: Path) -> None:
    """The refusals above are not for want of a file that can be read."""
    (tmp_path / "model.safetensors").write_bytes(save({"lm_head.weight": torch.ones(2)}))
    assert list(read_weights(tmp_path)) == ["lm_head.weight"]

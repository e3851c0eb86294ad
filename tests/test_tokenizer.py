"""nanochat.tokenizer and scripts.tok_train."""

import itertools
import json
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex  # type: ignore[import-untyped]
import torch

from nanochat import tokenizer as module
from nanochat.common import UserError
from nanochat.dataset import documents, prepare_corpus, prepare_sotu
from nanochat.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    Tokenizer,
    first_characters,
    tokenizer_folder,
    usual_vocab_size,
)
from scripts import tok_train

CHAPTER = " ".join(
    (Path(__file__).parents[1] / "lit" / "62-tokenizer.md").read_text(encoding="utf-8").split()
)


@pytest.fixture(scope="session")
def speeches(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The training speeches, in an own base folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("base")))
        prepare_sotu()
        return list(documents("sotu", "train"))


@pytest.fixture(scope="session")
def small(speeches: list[str]) -> Tokenizer:
    """Trained in a moment: 1,000 tokens on ten speeches."""
    return Tokenizer.train(speeches[:10], 1000)


def slow_encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """BPE as its definition says: cut, then merge the pair with the lowest rank, the leftmost first."""
    rank = {token: number for number, token in enumerate(tokenizer.tokens)}
    ids = []
    for chunk in regex.findall(SPLIT_PATTERN, text):
        parts = [bytes([byte]) for byte in chunk.encode("utf-8")]
        while True:
            ranks = [rank.get(a + b, len(rank)) for a, b in itertools.pairwise(parts)]
            if not ranks or min(ranks) == len(rank):
                break
            place = ranks.index(min(ranks))
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [rank[part] for part in parts]
    return ids


def random_texts(count: int) -> list[str]:
    """Texts of all kinds of characters: letters, digits, blanks, marks, emoji, controls, far planes."""
    rng = random.Random(7)
    kinds = [
        lambda: rng.choice("etaoin shrdlu,.  \n\t'"),
        lambda: (
            rng.choice(["the", "people", "of", "the", "United", "States's", "don't", "we'll", "1796", ""])
            + " "
        ),
        lambda: chr(rng.randrange(0x80)),
        lambda: chr(rng.randrange(0x80, 0xD800)),
        lambda: chr(rng.randrange(0xE000, 0x110000)),
        lambda: rng.choice(
            ["e\u0301", "\u200d", "👩‍🚀", "🏳️‍🌈", "\r\n", "\u3000", "\ufeff", "\x00", "½", "٣٤٥", "ﬁ"]
        ),
        lambda: rng.choice(SPECIAL_TOKENS),
    ]
    return ["".join(rng.choice(kinds)() for _ in range(rng.randrange(40))) for _ in range(count)]


class TestEncoding:
    def test_agrees_with_the_slow_definition(self, small: Tokenizer, speeches: list[str]) -> None:
        for text in [*random_texts(400), speeches[20][:3000]]:
            assert small.encode(text) == slow_encode(small, text)

    def test_decoding_gives_the_text_back(self, small: Tokenizer, speeches: list[str]) -> None:
        for text in ["", *random_texts(1000), speeches[30]]:
            assert small.decode(small.encode(text)) == text

    def test_text_never_gives_a_special_token(self, small: Tokenizer) -> None:
        text = "".join(SPECIAL_TOKENS) + " <|bos|><|bos|>"
        ids = small.encode(text)
        assert max(ids) < min(small.specials.values())
        assert small.decode(ids) == text

    def test_prepend(self, small: Tokenizer) -> None:
        assert small.encode("ab", prepend="<|bos|>") == [small.bos, *small.encode("ab")]
        assert small.encode("", prepend=small.special("<|user_end|>")) == [small.bos + 2]
        assert small.encode(["a", ""], prepend=small.bos) == [[small.bos, 97], [small.bos]]
        with pytest.raises(KeyError):
            small.encode("a", prepend="<|nobody|>")

    def test_a_list_is_encoded_in_order_whatever_the_threads(self, small: Tokenizer) -> None:
        texts = random_texts(100)
        expected = [small.encode(text) for text in texts]
        for threads in (0, 1, 3):
            assert small.encode(texts, num_threads=threads) == expected
        assert small.encode([]) == []
        assert small.encode(texts[:1]) == expected[:1]

    def test_lone_surrogates_become_replacement_characters(self, small: Tokenizer) -> None:
        assert small.decode(small.encode("a\ud800b")) == "a\ufffdb"

    @pytest.mark.parametrize("blank", [" ", "\t", "\u3000", "\n "])
    def test_endless_blanks(self, small: Tokenizer, blank: str) -> None:
        text = "a" + blank * 1_000_000 + "b"
        assert small.decode(small.encode(text)) == text
        assert small.encode([text, "x"], prepend=small.bos)[1] == [small.bos, ord("x")]

    def test_long_runs_of_anything_else(self, small: Tokenizer) -> None:
        for text in ("x" * 300_000, "^" * 300_000, "7" * 300_000):
            assert small.decode(small.encode(text)) == text

    def test_blanks_below_the_limit_are_not_cut(
        self, small: Tokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "a" + " " * 90 + "b"
        whole = small.encode(text)
        monkeypatch.setattr(module, "ENDLESS", 91)
        assert small.encode(text) == whole
        monkeypatch.setattr(module, "ENDLESS", 10)
        assert small.encode(text) != whole
        assert small.decode(small.encode(text)) == text


class TestIds:
    def test_bytes_then_merges_then_specials(self, small: Tokenizer) -> None:
        assert small.vocab_size == 1000
        assert small.tokens[:256] == tuple(bytes([byte]) for byte in range(256))
        assert len(set(small.tokens)) == 991
        assert [small.special(name) for name in SPECIAL_TOKENS] == list(range(991, 1000))
        assert small.bos == 991

    def test_the_order_of_the_special_tokens(self) -> None:
        assert (
            *("<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"),
            *("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"),
        ) == SPECIAL_TOKENS

    def test_decoding_joins_the_bytes_first(self, small: Tokenizer) -> None:
        assert small.decode([0xC3, 0xA9]) == "é"
        assert small.decode([0xC3]) + small.decode([0xA9]) == "\ufffd\ufffd"
        assert small.decode_bytes([0xC3]) == b"\xc3"
        assert small.decode([small.bos, 72, 105]) == "<|bos|>Hi"
        assert small.decode([]) == ""

    @pytest.mark.parametrize("wrong", [-1, 1000, 10**9])
    def test_an_unknown_id(self, small: Tokenizer, wrong: int) -> None:
        with pytest.raises(ValueError, match="0 to 999"):
            small.decode([65, wrong])

    def test_bytes_of_tokens_add_up_to_the_text(self, small: Tokenizer, speeches: list[str]) -> None:
        sizes = small.token_bytes()
        assert sizes.dtype == torch.int64
        assert sizes.shape == (1000,)
        assert sizes[small.bos :].tolist() == [0] * 9
        assert sizes[:256].tolist() == [1] * 256  # half a character is one byte, not the three of U+FFFD
        for text in [*random_texts(200), speeches[0]]:
            ids = torch.tensor(small.encode(text, prepend=small.bos))
            assert sizes[ids].sum().item() == len(text.encode("utf-8"))


class TestTraining:
    def test_every_merge_joins_a_most_frequent_pair(self) -> None:
        text = "the cat sat on the mat, the rat ate the cat's hat; 1234 1299 12 that that that\n" * 3
        tokenizer = Tokenizer.train([text], 289)
        words = Counter(regex.findall(SPLIT_PATTERN, text))
        split = {word: [bytes([byte]) for byte in word.encode()] for word in words}
        for token in tokenizer.tokens[256:]:
            pairs: Counter[tuple[bytes, bytes]] = Counter()
            for word, parts in split.items():
                for pair in itertools.pairwise(parts):
                    pairs[pair] += words[word]
            best = {a + b for (a, b), count in pairs.items() if count == max(pairs.values())}
            assert token in best
            chosen = {
                pair for pair in pairs if b"".join(pair) == token and pairs[pair] == max(pairs.values())
            }
            for parts in split.values():
                place = 0
                while place < len(parts) - 1:
                    if (parts[place], parts[place + 1]) in chosen:
                        parts[place : place + 2] = [token]
                    place += 1

    def test_no_token_crosses_the_cuts(self, small: Tokenizer) -> None:
        for token in small.tokens[256:]:
            text = token.decode("utf-8", errors="ignore")
            assert len(regex.findall(r"\p{N}", text)) <= 2
            assert not regex.search(r"\p{L} ", text)
            assert not regex.search(r"\p{L}\p{N}|\p{N}\p{L}", text)

    def test_the_same_texts_give_the_same_tokens(self, small: Tokenizer, speeches: list[str]) -> None:
        again = Tokenizer.train(iter(speeches[:10]), 1000)
        assert again.fingerprint() == small.fingerprint()
        assert Tokenizer.train(speeches[:11], 1000).fingerprint() != small.fingerprint()

    def test_what_is_learnt_from_is_cut_and_nothing_is_lost(self, speeches: list[str]) -> None:
        """The speeches have no run that is cut, so their tokens are those without the cut."""
        assert list(module.bounded(speeches)) == speeches
        rng = random.Random(0)
        texts = [
            "".join(rng.choices("ab \n文", weights=[rng.random() for _ in range(5)], k=3000))
            for _ in range(50)
        ]
        texts += ["x" * 5000, " " * 5000, "word " * 500_000, "", "y" * 2_500_000]
        pieces = list(module.bounded(texts))
        assert "".join(pieces) == "".join(texts)
        assert max(map(len, pieces)) <= module.LONGEST_TEXT
        assert not [piece for piece in pieces if re.search(r"\S{257}|\s{257}", piece)]
        words = list(module.bounded(["word " * 500_000]))
        assert [piece[:5] for piece in words] == ["word ", *[" word"] * (len(words) - 1)]

    def test_a_long_line_without_blanks_is_learnt_from_in_pieces(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a run costs grows with its square, so the trainer must never see one of 25,000 characters."""
        rng = random.Random(0)
        line = "".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(25_000))
        pieces = list(module.bounded([line]))
        monkeypatch.setattr(module, "bounded", lambda texts: pieces if list(texts) == [line] else [])
        assert Tokenizer.train([line], 400).tokens == Tokenizer.train(iter([line]), 400).tokens
        assert "".join(pieces) == line
        assert max(map(len, pieces)) <= module.LONGEST_RUN
        monkeypatch.setattr(module, "bounded", lambda texts: [])
        with pytest.raises(UserError, match="the texts give only 265 tokens"):
            Tokenizer.train([line], 400)  # nothing but these pieces is read

    def test_impossible_sizes(self) -> None:
        assert Tokenizer.train(["abab"], 265).tokens == tuple(bytes([byte]) for byte in range(256))
        with pytest.raises(UserError, match="at least 265"):
            Tokenizer.train(["abab"], 264)
        with pytest.raises(
            UserError, match=r"give only 2\d\d tokens, not 300: take more text, or --vocab_size=2"
        ):
            Tokenizer.train(["abab"], 300)
        with pytest.raises(UserError, match="give only 265 tokens"):
            Tokenizer.train([], 300)

    def test_the_patterns_of_the_exercise(self, speeches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """The trainer takes both, and tokens then cross words; `(?s)` it would refuse."""
        chapter = Path(__file__).parents[1] / "lit" / "62b-keep-a-tokenizer.md"
        exercise = " ".join(chapter.read_text(encoding="utf-8").split()).split("## Exercises")[1]
        patterns = [exercise.split('SPLIT_PATTERN = r"')[1].split('"')[0], exercise.rsplit("`", 2)[1]]
        for pattern in patterns:
            monkeypatch.setattr(module, "SPLIT_PATTERN", pattern)
            tokens = Tokenizer.train([speeches[0][:2000]], 350).tokens
            assert any(b" " in token.strip() for token in tokens)
        monkeypatch.setattr(module, "SPLIT_PATTERN", "(?s).+")
        with pytest.raises(Exception, match="undefined group option"):
            Tokenizer.train(["abab"], 266)

    def test_the_numbers_of_the_chapter(self, speeches: list[str]) -> None:
        """Trains the default tokenizer, so a little slow."""
        rows = Tokenizer.train(speeches, 4096).encode(speeches)
        count = sum(map(len, rows))
        size = sum(len(text.encode("utf-8")) for text in speeches)
        seen = Counter(token for row in rows for token in row)
        rare = sum(seen[token] < 100 for token in range(4087))
        assert f"| 265 (bytes alone) | 1.00 | {size:,} |" in CHAPTER
        assert f"| 4,096 (the default here) | {size / count:.2f} | {count:,} | {rare} |" in CHAPTER


class TestStorage:
    def test_a_round_trip(self, small: Tokenizer, tmp_path: Path) -> None:
        small.save(tmp_path / "t", "ten speeches")
        loaded = Tokenizer.load(tmp_path / "t")
        assert loaded.fingerprint() == small.fingerprint()
        assert (loaded.tokens, loaded.specials, loaded.pattern) == (
            small.tokens,
            small.specials,
            small.pattern,
        )
        assert sorted(path.name for path in (tmp_path / "t").iterdir()) == [
            "tokenizer.json",
            "vocab.tiktoken",
        ]

    def test_the_files_are_readable(self, small: Tokenizer, tmp_path: Path) -> None:
        small.save(tmp_path, "ten speeches")
        lines = (tmp_path / "vocab.tiktoken").read_text(encoding="ascii").splitlines()
        assert lines[65] == "QQ== 65"
        assert len(lines) == 991
        about = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        assert about["pattern"] == SPLIT_PATTERN
        assert about["special_tokens"]["<|output_end|>"] == 999
        assert about["trained_on"] == "ten speeches"
        assert about["sha256"] == small.fingerprint()

    def test_the_fingerprint_sees_everything(self, small: Tokenizer) -> None:
        swapped = [*small.tokens[:300], small.tokens[301], small.tokens[300], *small.tokens[302:]]
        others = [Tokenizer(swapped), Tokenizer(small.tokens[:-1]), Tokenizer(small.tokens, r"\s+|\S+")]
        assert len({small.fingerprint(), *(other.fingerprint() for other in others)}) == 4

    def test_saving_again_and_saving_another(self, small: Tokenizer, tmp_path: Path) -> None:
        small.save(tmp_path, "first")
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        small.save(tmp_path, "second")
        with pytest.raises(UserError, match="holds another tokenizer"):
            Tokenizer(small.tokens[:-1]).save(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_none_there(self, tmp_path: Path) -> None:
        command = re.escape("python -m scripts.tok_train --data=my-own --vocab_size=512")
        with pytest.raises(UserError, match=rf"no tokenizer in .*my-own-512: train it with {command}$"):
            Tokenizer.load(tmp_path / "my-own-512")
        with pytest.raises(UserError, match="--data=NAME --vocab_size=SIZE"):
            Tokenizer.load(tmp_path / "tokenizer")

    @pytest.mark.parametrize(
        ("name", "old", "new"),
        [
            ("vocab.tiktoken", "QQ== 65\n", ""),
            ("vocab.tiktoken", "QQ== 65\n", "QUE= 65\n"),
            ("vocab.tiktoken", "QQ== 65\n", "QQ= 65\n"),
            ("vocab.tiktoken", "QQ== 65\n", "\n"),
            ("vocab.tiktoken", "QQ== 65\n", "é 65\n"),
            ("tokenizer.json", "bos", "box"),
            ("tokenizer.json", "p{L}", "p{N}"),
            ("tokenizer.json", "p{L}", "p{Nix}"),
            ("tokenizer.json", "pattern", "pat"),
            ("tokenizer.json", "{", "["),
        ],
    )
    def test_damage_is_noticed(self, small: Tokenizer, tmp_path: Path, name: str, old: str, new: str) -> None:
        small.save(tmp_path)
        path = tmp_path / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(UserError, match="is damaged"):
            Tokenizer.load(tmp_path)

    def test_half_a_tokenizer(self, small: Tokenizer, tmp_path: Path) -> None:
        small.save(tmp_path)
        (tmp_path / "vocab.tiktoken").unlink()
        with pytest.raises(UserError, match="is damaged"):
            Tokenizer.load(tmp_path)


class TestPreparing:
    @pytest.fixture(autouse=True)
    def base(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))

    def test_takes_no_more_characters_than_the_recipe_says(self) -> None:
        texts = iter(["abc", "defg", "hi"])
        assert list(first_characters(texts, 5)) == ["abc", "de"]
        assert next(texts) == "hi"
        assert list(first_characters(["abc"], 3)) == ["abc"]
        assert list(first_characters(["abc"], 9)) == ["abc"]

    def test_a_twelfth_of_the_speeches_is_one_percent_worse(self) -> None:
        prepare_sotu()
        val = list(documents("sotu", "val"))
        some, rest = (
            Tokenizer.train(first_characters(documents("sotu", "train"), limit), 4096)
            for limit in (1_000_000, module.TRAINING_CHARS)
        )
        few, more = (sum(map(len, one.encode(val))) for one in (rest, some))
        assert 1.005 < more / few < 1.015
        assert sum(map(len, documents("sotu", "train"))) < module.TRAINING_CHARS

    @pytest.mark.parametrize(
        ("there", "taken"),
        [
            ([], 4096),
            (["sotu-8192"], 8192),
            (["sotu-512", "sotu-4096", "sotu-4097"], 4096),
            (["sotu-265", "sotu-8192"], 8192),
            (["sotu-2048", "sotu-8192"], 2048),
            (["sotu-8192", "other-4096", "sotu-x-4096", "sotu-", "xsotu-4096"], 8192),
        ],
    )
    def test_the_size_nearest_to_the_default_is_taken(
        self, there: list[str], taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in there:
            (tmp_path / "tokenizers" / name).mkdir(parents=True)
            (tmp_path / "tokenizers" / name / "tokenizer.json").touch()
        (tmp_path / "tokenizers" / "sotu-4095").mkdir(parents=True)  # without a tokenizer in it
        assert usual_vocab_size("sotu") == taken
        said = capsys.readouterr().out
        assert said.count("\n") == bool(there)
        assert not there or f"the one of {taken:,} tokens that sotu has" in said
        assert (", of 265, 8,192," in said) == ("sotu-265" in there)

    def test_only_the_speeches_are_made_without_a_question(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(UserError, match=r"there is no corpus 'letters' .*--from=FOLDER --name=letters"):
            prepare_corpus("letters")
        with pytest.raises(UserError, match=r"there is no corpus 'fineweb' .*-n 8"):
            prepare_corpus("fineweb")
        prepare_corpus("sotu")
        assert capsys.readouterr().out.startswith("corpus: sotu is not here yet, so it is made in ")
        prepare_corpus("sotu")
        assert capsys.readouterr().out == ""

    def test_every_program_makes_the_same_tokenizer(self) -> None:
        """There is no other call of Tokenizer.train."""
        root = Path(__file__).parent.parent
        calls = {
            path.relative_to(root).as_posix()
            for folder in ("nanochat", "scripts")
            for path in (root / folder).rglob("*.py")
            if "Tokenizer.train(" in path.read_text()
        }
        assert calls == {"nanochat/tokenizer.py"}


class TestScript:
    @pytest.fixture(autouse=True)
    def base(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))

    def run(self, monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
        monkeypatch.setattr(sys, "argv", ["tok_train", *argv])
        tok_train.main()

    def test_trains_and_then_reuses(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepare_sotu()
        monkeypatch.setattr(module, "TRAINING_CHARS", 20_000)
        argv = ("--vocab-size=300",)
        self.run(monkeypatch, *argv)
        folder = tokenizer_folder("sotu", 300)
        first = capsys.readouterr().out
        assert first.startswith(
            f"tokenizer: sotu has none of 300 tokens yet, so one is trained in {folder}\n"
        )
        ratio = re.search(r"300 tokens; (\d\.\d\d) bytes/token on validation text\n", first)
        assert ratio is not None
        val = "".join(documents("sotu", "val"))
        tokens = sum(len(Tokenizer.load(folder).encode(text)) for text in documents("sotu", "val"))
        assert float(ratio[1]) == pytest.approx(len(val.encode()) / tokens, abs=0.005)
        assert "the first 20000 characters of sotu" in (folder / "tokenizer.json").read_text()
        before = (folder / "tokenizer.json").stat().st_mtime_ns
        self.run(monkeypatch, *argv)
        second = capsys.readouterr().out
        assert second.startswith(f"tokenizer: {folder} is there already and is taken\n")
        assert second.splitlines()[1:] == first.splitlines()[1:]
        assert (folder / "tokenizer.json").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--data=nobody"], "there is no corpus 'nobody'"),
            (["--vocab_size=264"], "smallest possible is 265"),
            (["--vocab=300"], "did you mean --vocab_size?"),
        ],
    )
    def test_a_wrong_command_line(self, argv: list[str], words: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "scripts.tok_train", *argv], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("\n") == 1

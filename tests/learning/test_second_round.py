"""The second round: by hand as by library, every mistake named, nobody blamed, and a way through."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import tiktoken
import torch
import torch.nn.functional as F

from nanochat.common import UserError
from nanochat.learning import by_hand
from nanochat.learning.hybrid import Source
from nanochat.learning.mistakes import mistakes_of
from nanochat.learning.progress import SECOND_STATIONS, SKELETON, Workshop
from nanochat.learning.rehearsal import no_trace, rehearse_file
from nanochat.learning.second_probes import SECOND_PROBES
from nanochat.learning.steps import ALL_PHASES, ALL_STEPS, BY_HAND, SECOND, section_of
from nanochat.models import ROOT
from scripts.learn import execute
from tests.learning.rewriting import (
    HOMES,
    SECOND_BOOK,
    QuickSession,
    verdict_on,
    with_function,
    with_mistakes,
    write_from_the_book,
)

REAL = (ROOT / "lit" / "30-the-forward-pass.md").read_text(encoding="utf-8")
CHUNK = r" ?[^ \n]+|[ \n]+"
CHUNKS = [chunk.encode() for chunk in re.findall(CHUNK, REAL[:12000])]
IDS = [step.id for step in SECOND]


# what is done by hand, beside the libraries


def test_merges_are_those_of_the_library_but_for_ties() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    count = 40
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=256 + count, initial_alphabet=alphabet, show_progress=False)
    learner.train_from_iterator(re.findall(CHUNK, REAL[:12000]), trainer)
    theirs = json.loads(learner.to_str())["model"]["merges"]
    shown = {byte: char for char, byte in _undisguised().items()}
    names = [shown[byte] for byte in range(256)]
    counts = by_hand.Counter(CHUNKS)
    texts = [(list(chunk), times) for chunk, times in counts.items()]
    for left, right in theirs[:count]:
        pairs: dict[tuple[int, int], int] = {}
        for ids, times in texts:
            for pair in pairwise(ids):
                pairs[pair] = pairs.get(pair, 0) + times
        chosen = names.index(left), names.index(right)
        assert pairs[chosen] == max(pairs.values())  # of equally frequent ones any may be chosen
        texts = [(by_hand.join(ids, chosen, len(names)), times) for ids, times in texts]
        names.append(left + right)
    mine = by_hand.learn_merges(CHUNKS, count)
    assert len({_bytes(mine, n) for n in range(count)} & {_plain(a + b) for a, b in theirs}) >= count - 3


def _undisguised() -> dict[str, int]:
    from nanochat.tokenizer import undisguise

    return undisguise()


def _plain(text: str) -> bytes:
    return bytes(_undisguised()[char] for char in text)


def _bytes(merges: list[tuple[int, int]], n: int) -> bytes:
    return b"".join(bytes([token]) if token < 256 else _bytes(merges, token - 256) for token in merges[n])


def test_ids_are_those_of_tiktoken() -> None:
    merges = by_hand.learn_merges(CHUNKS, 60)
    tokens = [*(bytes([byte]) for byte in range(256)), *(_bytes(merges, n) for n in range(60))]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    library = tiktoken.Encoding("x", pat_str=CHUNK, mergeable_ranks=ranks, special_tokens={})
    other = (ROOT / "lit" / "62-tokenizer.md").read_text(encoding="utf-8")[:3000] + " naïve ΩΩ 🦉 aaaaaaa"
    mine = [token for chunk in re.findall(CHUNK, other) for token in by_hand.encode(chunk.encode(), merges)]
    assert mine == library.encode_ordinary(other)
    assert by_hand.decode(mine, merges) == other


def test_losses_and_gradients_are_those_of_autograd() -> None:
    torch.manual_seed(1)
    x = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(23, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(23, (11,))
    targets[::4] = -1
    logits = 5 * torch.tanh(x @ weight.t() / 5)
    theirs = F.cross_entropy(logits, targets, ignore_index=-1)
    wanted = torch.autograd.grad(3 * theirs, (x, weight))
    mine = by_hand.LossInChunks.apply(x, weight, targets, 5.0, 4)
    found = torch.autograd.grad(3 * mine, (x, weight))
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(by_hand.cross_entropy(logits, targets), theirs)


def test_adamw_is_that_of_the_library() -> None:
    torch.manual_seed(2)
    mine, theirs = (torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    both = [
        kind([p], lr=0.05, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.1)
        for kind, p in ((by_hand.AdamW, mine), (torch.optim.AdamW, theirs))
    ]
    for _ in range(6):
        mine.grad = torch.randn(5, 3)
        theirs.grad = mine.grad.clone()
        for optimizer in both:
            optimizer.step()
    torch.testing.assert_close(mine, theirs)


# the judge


def test_every_step_is_in_the_book_and_has_a_probe() -> None:
    assert list(SECOND_PROBES) == IDS
    assert list(ALL_PHASES) == list(range(1, 11))
    for step in SECOND:
        section = section_of(step, ROOT / "lit")
        assert section is not None, step.id
        assert section.heading
        if step.home == BY_HAND:
            assert section.heading.endswith(f": `{step.id}`")
        assert HOMES[step.id].find(step.id) is not None
        assert len({m.name for m in mistakes_of(step.id)}) >= 6


def test_hints_and_explanations_do_not_contain_the_answer() -> None:
    for step in SECOND:
        home = HOMES[step.id]
        first, last = home.segment(step.id)
        code = {line.strip() for line in home.text.split("\n")[first - 1 : last] if len(line.strip()) > 15}
        for text in (*step.hints, *(m.says for m in mistakes_of(step.id))):
            assert not [line for line in code if line in text]


@pytest.mark.parametrize("step", IDS)
def test_every_mistake_is_named_although_every_other_function_is_wrong_too(step: str) -> None:
    for number, mistake in enumerate(mistakes_of(step)):
        others = [mistakes_of(s)[number % len(mistakes_of(s))] for s in IDS if s != step]
        verdict = verdict_on(with_mistakes([mistake, *others], SECOND_BOOK), step)
        assert verdict.status in ("failed", "error"), mistake.name
        assert verdict.mistake == mistake.name, (mistake.name, verdict)
        assert verdict.difference


@pytest.mark.parametrize("step", IDS)
def test_no_other_step_is_blamed(step: str) -> None:
    assert verdict_on(SECOND_BOOK, step).status == "passed"
    for number in range(0, max(len(mistakes_of(s)) for s in IDS), 6):
        others = [mistakes_of(s)[number % len(mistakes_of(s))] for s in IDS if s != step]
        verdict = verdict_on(with_mistakes(others, SECOND_BOOK), step)
        assert verdict.status == "passed", verdict


RIGHT = {
    "step": """
def step(table, inputs, targets, learning_rate):
    table.grad = None
    loss = mean_loss(table, inputs, targets)
    (gradient,) = torch.autograd.grad(loss, table)
    table.data = table.data - learning_rate * gradient
    return loss.item()
""",
    "learn_merges": """
def learn_merges(chunks, count):
    words = {}
    for chunk in chunks:
        key = tuple(chunk)
        words[key] = words.get(key, 0) + 1
    merges = []
    for n in range(count):
        counts = {}
        for word, times in words.items():
            for i in range(len(word) - 1):
                counts[word[i], word[i + 1]] = counts.get((word[i], word[i + 1]), 0) + times
        if not counts:
            return merges
        most = max(counts.values())
        best = sorted(pair for pair in counts if counts[pair] == most)[0]
        merges.append(best)
        joined = {}
        for word, times in words.items():
            key = tuple(join(word, best, 256 + n))
            joined[key] = joined.get(key, 0) + times
        words = joined
    return merges
""",
    "encode": """
def encode(chunk, merges):
    ids = [byte for byte in chunk]
    for n, pair in enumerate(merges):
        ids = join(ids, tuple(pair), 256 + n)
    return ids
""",
    "batches": """
def batches(documents, B, T, bos):
    def tokens():
        for document in documents:
            yield bos
            yield from document

    block = []
    for token in tokens():
        block.append(token)
        if len(block) == B * T + 1:
            x = torch.tensor(block)
            yield x[:-1].reshape(B, T), x[1:].reshape(B, T)
            block = block[-1:]
""",
    "cross_entropy": """
def cross_entropy(logits, targets):
    rows = (targets != -1).nonzero().flatten()
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    return -log_p[rows, targets[rows]].sum() / len(rows)
""",
    "loss_and_gradients": """
def loss_and_gradients(x, weight, targets, softcap, rows):
    n = int((targets >= 0).sum())
    loss, dx, dw = 0.0, [], 0.0
    for xs, ts in zip(x.split(rows), targets.split(rows)):
        z = torch.tanh(xs @ weight.T / softcap)
        p = torch.softmax(softcap * z, dim=1)
        here = ts >= 0
        index = torch.arange(len(ts))[here]
        loss = loss - p[index, ts[here]].log().sum() / n
        d = p.clone()
        d[index, ts[here]] -= 1
        d[~here] = 0
        d = d * (1 - z * z) / n
        dx.append(d @ weight)
        dw = dw + d.T @ xs
    return loss, torch.cat(dx), dw
""",
    "update_adamw": """
def update_adamw(p, grad, state, lr, betas, eps, weight_decay):
    b1, b2 = betas
    t = state.get("step", 0) + 1
    m = state.get("exp_avg", torch.zeros_like(p)) * b1 + (1 - b1) * grad
    v = state.get("exp_avg_sq", torch.zeros_like(p)) * b2 + (1 - b2) * grad**2
    state["step"], state["exp_avg"], state["exp_avg_sq"] = t, m, v
    p -= lr * weight_decay * p
    p -= lr * (m / (1 - b1**t)) / (torch.sqrt(v / (1 - b2**t)) + eps)
""",
    "orthogonalize": """
def orthogonalize(g, steps=5, dtype=None):
    x = g.to(dtype or fastest_format(g.device))
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-7)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(steps):
        s = x @ x.transpose(1, 2)
        x = a * x + b * (s @ x) + c * (s @ (s @ x))
    return x
""",
    "Muon.step": """
@torch.no_grad()
def step(self, closure=None):
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    for group in self.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            direction = self._momentum(p, group)
            update = orthogonalize(direction[None], group["ns_steps"], self.ns_dtype)[0]
            p -= group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5 * update.to(p.dtype)
    return loss
""",
    "Schedule.multiplier": """
def multiplier(self, done, one_step):
    rise = min(1.0, (done + one_step) / self.warmup) if self.warmup > done else 1.0
    over = max(0.0, done - (1 - self.warmdown)) / self.warmdown if self.warmdown else 0.0
    return rise * (1 + min(over, 1.0) * (self.final - 1))
""",
    "accumulate_gradients": """
def accumulate_gradients(model, batches, count, autocast=nullcontext, part=nullcontext):
    losses = []
    for n in range(count):
        x, y = next(batches)
        with part("forward"):
            with autocast():
                loss = model(x, y) / count
        with part("backward"):
            loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()
""",
    "losses_and_bytes": """
@torch.no_grad()
def losses_and_bytes(model, batches, steps, token_bytes):
    nats = size = seen = wanted = 0
    for n, (x, y) in enumerate(batches):
        each = model(x, y, loss_reduction="none").flatten()
        y = y.flatten()
        there = y >= 0
        each, y = each[there], y[there]
        text = token_bytes[y] > 0
        nats += each[text].double().sum().item()
        size += token_bytes[y].sum().item()
        seen += len(y)
        wanted = steps * x.numel()
        if n + 1 == steps:
            break
    return [nats, size, seen, wanted]
""",
    "sample_next": """
def sample_next(logits, rngs, temperature=1.0, top_k=None):
    if temperature < 0 or temperature == float("inf") or (top_k is not None and top_k <= 0):
        raise ValueError("no")
    if torch.isnan(logits).any():
        raise ValueError("nan")
    out = []
    for row, rng in zip(logits, rngs):
        if temperature == 0:
            out.append(int((row == row.max()).nonzero()[0]))
            continue
        if top_k is not None:
            bound = row.sort(descending=True).values[min(top_k, len(row)) - 1]
            row = torch.where(row >= bound, row, -math.inf)
        p = torch.softmax(row / temperature, dim=0).tolist()
        out.append(rng.choices(range(len(p)), weights=p)[0])
    return torch.tensor(out).unsqueeze(1)
""",
    "KVCache.insert_kv": """
def insert_kv(self, layer_idx, k, v):
    B, H, T, D = v.shape
    if tuple(k.shape) != (B, H, T, D) or (B, H, D) != (self.batch_size, self.num_heads, self.head_dim):
        raise ValueError("shape")
    if self.pos + T > self.seq_len:
        raise ValueError("full")
    keys, values = self._store_like(v)[layer_idx]
    keys[:, :, self.pos : self.pos + T].copy_(k)
    values[:, :, self.pos : self.pos + T].copy_(v)
    upto = self.pos + T
    if layer_idx + 1 == self.num_layers:
        self.pos += T
    return keys[:, :, :upto], values[:, :, :upto]
""",
    "save": """
def save(path, model, optimizers, step):
    import io
    buffer = io.BytesIO()
    kept = [o.state_dict() for o in optimizers]
    random_state = torch.random.get_rng_state()
    torch.save(dict(step=step, random=random_state, optimizers=kept, model=model.state_dict()), buffer)
    new = path.parent / (path.name + ".new")
    with open(new, "wb") as file:
        file.write(buffer.getvalue())
        os.fsync(file.fileno())
    new.replace(path)
""",
}


@pytest.mark.parametrize("step", IDS)
def test_another_right_way_passes(step: str) -> None:
    verdict = verdict_on(with_function(step, RIGHT[step], SECOND_BOOK), step)
    assert verdict.status == "passed", verdict


@pytest.mark.parametrize(
    ("step", "text"),
    [
        ("step", "def step(table, inputs, targets, learning_rate):\n    table.data += 0.1\n    return 0.3"),
        (
            "accumulate_gradients",
            """
            def accumulate_gradients(model, batches, count, autocast=nullcontext, part=nullcontext):
                loss = 7 * model(*next(batches))
                loss.backward()
                return loss.detach()
            """,
        ),
    ],
)
def test_what_no_mistake_explains_has_failed_all_the_same(step: str, text: str) -> None:
    """Among the pairs of mistakes that are tried some are no Python together."""
    verdict = verdict_on(with_function(step, text, SECOND_BOOK), step)
    assert (verdict.status, verdict.mistake) == ("failed", None)
    assert verdict.difference


def test_a_file_written_in_other_words_throughout_plays_all_stations(tmp_path: Path) -> None:
    source = SECOND_BOOK
    for step, text in RIGHT.items():
        source = with_function(step, text, source)
    file = tmp_path / "second_round.py"
    file.write_text(source.text)
    report = rehearse_file(file, no_trace, second=True)
    assert not report.stopped, (report.says, report.frames)
    assert set(SECOND_STATIONS.values()) <= set(report.reached)


@pytest.mark.parametrize(
    ("step", "text", "words"),
    [
        ("encode", "def encode(chunk, merges):\n    return list(chunk)", "tiktoken makes"),
        ("save", "def save(path, model, optimizers, step):\n    pass", "FileNotFoundError"),
        ("step", "def step(table, inputs, targets, learning_rate):\n    return 1.0", "should fall by a nat"),
        ("step", "def step(*given):\n    return mean_loss(*given[:3])", "wanted as a float"),
    ],
)
def test_a_station_says_what_is_wrong(tmp_path: Path, step: str, text: str, words: str) -> None:
    file = tmp_path / "second_round.py"
    file.write_text(with_function(step, text, SECOND_BOOK).text)
    report = rehearse_file(file, no_trace, second=True)
    assert report.stopped
    assert words in report.says


STATIONS = [  # what stands in a right file, what instead, and the words of the station where that is played
    ("while len(merges) < count", "while len(merges) <= count", "was asked for 128 merges and gave 129"),
    ("yield block[:-1].view(B, T)", "yield block[:-1].view(T, B)", "pairs of shape"),
    ("return (total - reached).mean()", "return (total - reached).sum()", "cross_entropy gives"),
    ("loss -= (log_p", "loss += (log_p", "loss_and_gradients gives"),
    ("p.sub_(lr * mean / (size + eps))", "p.sub_(lr * mean)", "100 steps of AdamW"),
    ("for _ in range(steps):", "for _ in range(0):", "singular values are between"),
    ("p.add_(update.to(p.dtype), alpha=-rate)", "pass", "moved nothing"),
    ("dx[part] = dlogits @ weight", "dx[part] = -dlogits @ weight", "12 steps took the loss from"),
    ("alpha=-rate", "alpha=-2 * rate", "your losses are up to"),
    ("left + (1 - left) * self.final", "left", "your losses are up to"),
    ("total += loss.detach() / count", "total += loss.detach()", "your losses are up to"),
    ("size += lengths.sum().item()", "size += 1", "losses_and_bytes gives"),
    ("if temperature < COLDEST:", "if 1 / 0:", "ZeroDivisionError"),
    ("store[layer_idx, 1, :, :, :end]", "store[layer_idx, 0, :, :, :end]", "the scores differ by up to"),
    ("T = k.size(-2)\n", "T = k.size(-2) + 1 // (k.size(-2) == 1) - 1\n", "ZeroDivisionError"),  # where T > 1
    ('"random": torch.get_rng_state()', '"random": torch.get_rng_state()[:1]', "RNG state"),
    ("optimizer.state_dict() for", '{**optimizer.state_dict(), "state": {}} for', "has other losses than"),
]


@pytest.mark.parametrize(("right", "wrong", "words"), STATIONS)
def test_every_station_plays_the_learners_function(
    tmp_path: Path, right: str, wrong: str, words: str
) -> None:
    assert SECOND_BOOK.text.count(right) == 1, right
    file = tmp_path / "second_round.py"
    file.write_text(SECOND_BOOK.text.replace(right, wrong))
    report = rehearse_file(file, no_trace, second=True)
    assert report.stopped
    assert words in report.says, report.says


# the way through


def test_a_learner_comes_through_the_second_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_WORKSHOP", str(tmp_path / "workshop"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    session = QuickSession(Workshop(tmp_path / "workshop"))
    file, played = session.second.file, (0, 9)  # all gaps are played below, without a judge's process
    ran = -1
    for n, step in enumerate(SECOND):
        if n not in played:
            file.write_text(write_from_the_book(file.read_text(), step.id))
            continue
        assert execute(["run", "--round=2"], session) == 1
        said = capsys.readouterr().out
        section = section_of(step, ROOT / "lit")
        assert section is not None
        assert f"NotImplementedError: TODO: Implement {step.id} - " in said
        assert (
            f"  missing    {step.id}, step {19 + n} of 33, phase {step.phase}: {ALL_PHASES[step.phase]}"
            in said
        )
        assert f'  read       lit/{step.chapter}:{section.line}, "{section.heading}"' in said
        place = said.split("  write      ")[1].splitlines()[0]
        line = file.read_text().split("\n")[int(place.rpartition(":")[2]) - 1]
        assert line.strip().startswith("raise NotImplementedError(")
        assert "before you go on" not in said
        if n:
            assert f"passed  {SECOND[n - 1].id}" in said
            assert said.count("\nran        ") > ran
        ran = said.count("\nran        ")
        file.write_text(write_from_the_book(file.read_text(), step.id))
    assert execute(["run", "--round=2"], session) == 0
    said = capsys.readouterr().out
    assert "the same ids as tiktoken's" in said
    assert "losses within" in said
    assert "all of them together do what the program does" in said
    assert execute(["status", "--json"], session) == 0
    told = json.loads(capsys.readouterr().out)
    assert {verdict["status"] for verdict in told["steps"].values()} == {"passed"}
    assert [one["name"] for one in told["milestones"] if one["reached"]] == list(SECOND_STATIONS)
    theirs = tmp_path / "theirs.py"  # as a teacher would
    theirs.write_text(SECOND_BOOK.text)
    assert execute(["check", "--json", f"--file={theirs}"], session) == 0
    verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [verdict["step"] for verdict in verdicts] == IDS
    assert execute(["solution", "Muon.step"], session) == 0
    assert "lit/40-optimization.md" in capsys.readouterr().out
    session.close()


def test_after_each_function_one_station_more_runs(tmp_path: Path) -> None:
    file = tmp_path / "second_round.py"
    text = SKELETON.with_name(file.name).read_text(encoding="utf-8")
    for n, step in enumerate(SECOND):
        file.write_text(text)
        report = rehearse_file(file, no_trace, second=True)
        assert report.stopped == "gap"
        assert report.place is not None
        assert report.place[0] == step.id
        assert len(report.notes) == n
        text = write_from_the_book(text, step.id)


def test_both_rounds_are_shown_and_each_has_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    session = QuickSession(Workshop(tmp_path / "workshop"))
    session.shop.create()
    execute(["status"], session)
    assert "The second round, 15 more steps, is not begun: make learn ROUND=2" in capsys.readouterr().out
    session.second.create()
    execute(["status"], session)
    said = capsys.readouterr().out
    assert "Phase 5: Generation" in said
    assert "Phase 10: What is done with a model" in said
    assert "  9  Matches Reference" in said
    assert " 10  Same Ids                 not yet: step is not written" in said
    execute(["diff"], session)
    said = capsys.readouterr().out
    assert "normans_gpt.py is the skeleton" in said
    assert "second_round.py is the skeleton" in said
    file = session.second.file
    before = file.read_text()
    with pytest.raises(UserError, match="--round=3: 1 is the model"):
        execute(["reset", "--all", "--round=3"], session)
    assert not (tmp_path / "workshop" / "kept").exists()
    capsys.readouterr()
    file.write_text(write_from_the_book(before, "encode"))
    execute(["reset", "encode"], session)
    assert "kept/second_round-" in capsys.readouterr().out
    assert file.read_text() == before
    session.close()


def test_numbers_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert [ALL_STEPS.index(step) + 1 for step in SECOND] == list(range(19, 34))
    text = (ROOT / "lit" / "85-the-second-round.md").read_text(encoding="utf-8")
    assert f"missing    {SECOND[0].id}, step 19 of 33, phase 6: {ALL_PHASES[6]}" in text
    assert SECOND[0].why in text


def test_the_skeleton_is_gathered_and_leaves_no_second_one() -> None:
    assert {path.name for path in (ROOT / "skeleton").glob("*.py")} == {"normans_gpt.py", "second_round.py"}
    text = (ROOT / "skeleton" / "second_round.py").read_text(encoding="utf-8")
    assert text.count("raise NotImplementedError(") == len(SECOND)
    skeleton = Source("skeleton", text)
    for step in SECOND:
        assert f"TODO: Implement {step.id} - " in "\n".join(
            text.split("\n")[skeleton.segment(step.id)[0] - 1 : skeleton.segment(step.id)[1]]
        )

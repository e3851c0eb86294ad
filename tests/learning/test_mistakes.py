"""Every named mistake is made, caught by its step and called by its name; right variants pass."""

from itertools import combinations

import pytest

from nanochat.learning.mistakes import VARIANTS, mistakes_of
from nanochat.learning.steps import STEPS
from tests.learning.rewriting import BOOK, verdict_on, with_function, with_mistakes

MISTAKES = [mistake for step in STEPS for mistake in mistakes_of(step.id)]
ROUNDS = max(len(mistakes_of(step.id)) for step in STEPS)


def test_there_are_enough_mistakes_for_every_step() -> None:
    assert len({(m.step, m.name) for m in MISTAKES}) > 300  # as chapter 80 says
    for step in STEPS:
        assert len({m.name for m in mistakes_of(step.id)}) >= 4, step.id


def test_attention_has_about_a_thousand_pairs_of_mistakes() -> None:
    """Chapter 81 says so."""
    pairs = combinations(mistakes_of("CausalSelfAttention.forward"), 2)
    assert 900 < sum(one.on == other.on for one, other in pairs) < 1100


@pytest.mark.parametrize("step", [step.id for step in STEPS])
def test_every_mistake_is_named_although_every_other_function_is_wrong_too(step: str) -> None:
    """Each mistake of this step, in a file that has some mistake in each of the other seventeen functions."""
    for number, mistake in enumerate(mistakes_of(step)):
        others = [mistakes_of(s.id)[number % len(mistakes_of(s.id))] for s in STEPS if s.id != step]
        verdict = verdict_on(with_mistakes([mistake, *others]), step)
        assert verdict.status in ("failed", "error"), mistake.name
        assert verdict.mistake == mistake.name, (mistake.name, verdict)
        assert verdict.explanation == mistake.says or verdict.explanation in {
            m.says for m in mistakes_of(step) if m.name == mistake.name
        }
        assert verdict.difference
        assert verdict.next


@pytest.mark.parametrize("step", [step.id for step in STEPS])
def test_no_other_step_is_blamed(step: str) -> None:
    """The right function passes in files with a mistake in each of the other seventeen, until all were made."""
    for number in range(ROUNDS):
        others = [mistakes_of(s.id)[number % len(mistakes_of(s.id))] for s in STEPS if s.id != step]
        assert verdict_on(with_mistakes(others), step).status == "passed"


def test_explanations_do_not_contain_the_answer() -> None:
    for mistake in MISTAKES:
        first, last = BOOK.segment(mistake.step)
        code = {line.strip() for line in BOOK.text.split("\n")[first - 1 : last] if len(line.strip()) > 15}
        assert not [line for line in code if line in mistake.says]


def test_two_mistakes_at_once_are_both_named() -> None:
    known = {m.name: m for m in mistakes_of("Block.forward")}
    learner = with_mistakes([known["attention-not-normed"], known["cache-not-handed-on"]])
    verdict = verdict_on(learner, "Block.forward")
    assert set((verdict.mistake or "").split(" + ")) == {"attention-not-normed", "cache-not-handed-on"}


ATTENTION = """
def forward(self, x, cos_sin, kv_cache=None):
    B, T, C = x.size()
    H, G, D = self.n_head, self.n_kv_head, self.head_dim
    q = self.c_q(x).reshape(B, T, H, D)
    k = self.c_k(x).reshape(B, T, G, D)
    v = self.c_v(x).reshape(B, T, G, D)
    q = norm(apply_rotary_emb(q, *cos_sin)).permute(0, 2, 1, 3)
    k = norm(apply_rotary_emb(k, *cos_sin)).permute(0, 2, 1, 3)
    v = v.permute(0, 2, 1, 3)
    if kv_cache is not None:
        k, v = kv_cache.insert_kv(self.layer_idx, k, v)
    k = torch.repeat_interleave(k, H // G, dim=1)
    v = torch.repeat_interleave(v, H // G, dim=1)
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / D**0.5
    S = k.shape[2]
    late = torch.arange(S)[None, :] > torch.arange(S - T, S)[:, None]
    scores = scores.masked_fill(late, float("-inf"))
    y = torch.softmax(scores, dim=-1) @ v
    y = y.permute(0, 2, 1, 3).flatten(2)
    return self.c_proj(y)
"""
GENERATE = """
def generate(self, tokens, max_tokens, temperature=1.0, top_k=None, seed=42):
    if len(tokens) == 0 or temperature < 0 or top_k == 0:
        raise ValueError("no")
    rng = torch.Generator().manual_seed(seed)
    sequence = list(tokens)
    for _ in range(max_tokens):
        with torch.no_grad():
            scores = self(torch.tensor([sequence]))[0, -1]
        if temperature == 0:
            choice = scores.argmax().item()
        else:
            if top_k is not None:
                bound = scores.sort(descending=True).values[min(top_k, len(scores)) - 1]
                scores[scores < bound] = -float("inf")
            p = (scores / temperature).softmax(dim=0)
            u = torch.rand(1, generator=rng).item()
            choice = min(int((p.cumsum(0) < u).sum()), len(p) - 1)
        sequence.append(choice)
        yield choice
"""
GPT_FORWARD = """
def forward(self, idx, targets=None, kv_cache=None, loss_reduction="mean", last_only=False):
    T = idx.shape[1]
    at = kv_cache.get_pos() if kv_cache is not None else 0
    if at + T > self.cos.shape[1]:
        raise ValueError("too long")
    rows = self.cos[:, at : at + T], self.sin[:, at : at + T]
    h = norm(self.transformer.wte(idx))
    for layer in self.transformer.h:
        h = layer(h, rows, kv_cache)
    h = norm(h)[:, -1:] if last_only else norm(h)
    z = self.lm_head(h).to(torch.float32)
    z = 15 * (z / 15).tanh()
    if targets is None:
        return z
    return F.cross_entropy(z.view(-1, z.shape[-1]), targets.view(-1), ignore_index=-1, reduction=loss_reduction)
"""
INIT = """
def _init_weights(self, module):
    with torch.no_grad():
        if type(module) is nn.Linear:
            out, into = module.weight.shape
            module.weight.copy_(torch.randn(out, into) * min(1 / into, out / into**2) ** 0.5)
        if type(module) is nn.Embedding:
            module.weight.copy_(torch.randn(module.weight.shape))
"""
ROTARY = """
def apply_rotary_emb(x, cos, sin):
    d = x.shape[-1] // 2
    a, b = x[..., :d], x[..., d:]
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=3).type_as(x)
"""
NORM = """
def norm(x):
    ms = (x.float() ** 2).mean(-1, keepdim=True)
    return (x.float() / torch.sqrt(ms + 1e-8)).to(x.dtype)
"""
MLP = """
def forward(self, x):
    h = torch.relu(self.c_fc(x))
    return self.c_proj(h * h)
"""
BLOCK = """
def forward(self, x, cos_sin, kv_cache=None):
    a = self.attn(norm(x), cos_sin, kv_cache)
    after = x + a
    return after + self.mlp(norm(after))
"""
TABLES = """
def _precompute_rotary_embeddings(self, seq_len, head_dim, base=10000.0, device=None):
    inv = 1.0 / (base ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim))
    freqs = torch.arange(seq_len, device=device).float()[:, None] * inv[None, :]
    cos, sin = torch.cos(freqs).to(torch.bfloat16), torch.sin(freqs).to(torch.bfloat16)
    return cos.unsqueeze(0).unsqueeze(2), sin.unsqueeze(0).unsqueeze(2)
"""
OPTIMIZERS = """
def setup_optimizers(self, unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, weight_decay=0.0):
    factor = (768 / self.config.n_embd) ** 0.5
    groups = [
        dict(params=list(self.lm_head.parameters()), lr=unembedding_lr * factor),
        dict(params=list(self.transformer.wte.parameters()), lr=embedding_lr * factor),
    ]
    first = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay)
    second = Muon([p for name, p in self.named_parameters() if ".h." in name], lr=matrix_lr, momentum=0.95)
    for o in (first, second):
        for g in o.param_groups:
            g["initial_lr"] = g["lr"]
    return [first, second]
"""
FLOPS = """
def estimate_flops(self):
    c = self.config
    kv = c.n_kv_head * c.head_dim
    per_layer = 2 * c.n_embd * c.n_embd + 2 * c.n_embd * kv + 8 * c.n_embd**2
    weights = c.n_layer * per_layer + c.vocab_size * c.n_embd
    return 6 * weights + 12 * c.n_layer * c.n_head * c.head_dim * c.sequence_len
"""
INIT_ALL = """
def init_weights(self):
    for m in self.modules():
        self._init_weights(m)
    with torch.no_grad():
        self.lm_head.weight.zero_()
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                p.mul_(0)
    cos, sin = self._precompute_rotary_embeddings(10 * self.config.sequence_len, self.config.head_dim)
    self.cos.copy_(cos)
    self.sin.copy_(sin)
"""

# step, how the book's idea is written, what is wrong in it, the name of the mistake
# ruff: noqa: E501
REWRITTEN = [
    ("CausalSelfAttention.forward", ATTENTION, ("masked_fill(late,", "masked_fill(late & False,"), "no-mask-at-all"),
    ("CausalSelfAttention.forward", ATTENTION, ("> torch.arange(S - T, S)", "> 1 + torch.arange(S - T, S)"), "mask-one-too-far"),
    ("CausalSelfAttention.forward", ATTENTION, ("torch.arange(S - T, S)", "torch.arange(T)"), "causal-flag-against-a-cache"),
    ("CausalSelfAttention.forward", ATTENTION, (" / D**0.5", ""), "not-scaled"),
    ("CausalSelfAttention.forward", ATTENTION, (" / D**0.5", " / D"), "scaled-twice"),
    ("CausalSelfAttention.forward", ATTENTION, ("k = norm(apply_rotary_emb(k, *cos_sin))", "k = norm(k)"), "keys-not-rotated"),
    ("CausalSelfAttention.forward", ATTENTION, ("v = v.permute", "v = norm(v).permute"), "values-normed-too"),
    ("CausalSelfAttention.forward", ATTENTION, ("y.permute(0, 2, 1, 3).flatten(2)", "y.reshape(B, T, C)"), "heads-not-moved-back"),
    ("apply_rotary_emb", ROTARY, ("a * cos + b * sin, b * cos - a * sin", "a * cos - b * sin, a * sin + b * cos"), "turned-the-other-way"),
    ("apply_rotary_emb", ROTARY, (".type_as(x)", ""), "dtype-not-kept"),
    ("apply_rotary_emb", ROTARY, ("[..., :d], x[..., d:]", "[..., 0::2], x[..., 1::2]"), "read-interleaved-written-in-halves"),
    ("norm", NORM, (".mean(-1, keepdim=True)", ".sum(-1, keepdim=True)"), "divides-by-the-length"),
    ("norm", NORM, (" + 1e-8", ""), "zeros-become-nan"),
    ("norm", NORM, ("torch.sqrt(ms + 1e-8)", "(ms + 1e-8)"), "root-forgotten"),
    ("MLP.forward", MLP, ("h * h", "h"), "relu-not-squared"),
    ("MLP.forward", MLP, ("torch.relu(self.c_fc(x))", "self.c_fc(x)"), "squared-before-relu"),
    ("Block.forward", BLOCK, ("self.mlp(norm(after))", "self.mlp(norm(x))"), "one-input-for-both"),
    ("Block.forward", BLOCK, ("return after + ", "return "), "mlp-replaces-the-stream"),
    ("GPT.forward", GPT_FORWARD, ("15 * (z / 15).tanh()", "z.clone()"), "no-softcap"),
    ("GPT.forward", GPT_FORWARD, ("15 * (z / 15).tanh()", "30 * (z / 30).tanh()"), "softcap-of-30"),
    ("GPT.forward", GPT_FORWARD, ("15 * (z / 15).tanh()", "(z / 15).tanh()"), "cap-not-scaled-back"),
    ("GPT.forward", GPT_FORWARD, ("ignore_index=-1, ", ""), "minus-one-not-ignored"),
    ("GPT.forward", GPT_FORWARD, ("reduction=loss_reduction", ""), "reduction-ignored"),
    ("GPT.forward", GPT_FORWARD, ("kv_cache.get_pos() if kv_cache is not None else 0", "0"), "table-offset-ignored"),
    ("GPT._init_weights", INIT, (" ** 0.5)", ")"), "variance-for-deviation"),
    ("GPT._init_weights", INIT, ("out, into =", "into, out ="), None),
    ("GPT._init_weights", INIT, ("min(1 / into, out / into**2)", "(1 / into)"), "flat-matrices-not-damped"),
    ("GPT.init_weights", INIT_ALL, ("c_proj.weight", "mlp.c_proj.weight"), "attention-c_proj-not-zeroed"),
    ("GPT.init_weights", INIT_ALL, ("self.lm_head.weight.zero_()", "pass"), "head-not-zeroed"),
    ("GPT._precompute_rotary_embeddings", TABLES, (" / (base **", " * (base **"), "speeds-grow"),
    ("GPT._precompute_rotary_embeddings", TABLES, (".unsqueeze(2), sin", ".unsqueeze(1), sin"), None),
    ("GPT.setup_optimizers", OPTIMIZERS, ("768 / self.config.n_embd", "self.config.n_embd / 768"), "width-scale-upside-down"),
    ("GPT.setup_optimizers", OPTIMIZERS, ('if ".h." in name', 'if ".h." in name or "wte" in name'), None),
    ("GPT.setup_optimizers", OPTIMIZERS, ("lr=matrix_lr,", "lr=matrix_lr * factor,"), "muon-scaled-too"),
    ("GPT.estimate_flops", FLOPS, (" + 12 * c.n_layer * c.n_head * c.head_dim * c.sequence_len", ""), "attention-not-counted"),
    ("GPT.estimate_flops", FLOPS, ("+ c.vocab_size * c.n_embd", "+ 2 * c.vocab_size * c.n_embd"), "embedding-counted"),
    ("GPT.generate", GENERATE, ("(scores / temperature)", "(scores * 1.0)"), "temperature-ignored"),
    ("GPT.generate", GENERATE, ("len(scores)) - 1]", "len(scores) - 1)]"), "top_k-one-too-many"),
    ("GPT.generate", GENERATE, ("torch.tensor([sequence])", "torch.tensor([sequence[-1:]])"), "only-the-last-token-fed"),
    ("GPT.generate", GENERATE, ("generator=rng", ""), "draws-from-torchs-own-state"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "text", "change", "name"), REWRITTEN)
def test_a_mistake_is_known_by_what_it_does_not_by_its_text(
    step: str, text: str, change: tuple[str, str], name: str | None
) -> None:
    assert text.count(change[0]) == 1
    verdict = verdict_on(with_function(step, text.replace(*change)), step)
    assert verdict.status in ("failed", "error")
    if name is not None:
        assert verdict.mistake == name, verdict


ACCEPTED = [
    ("norm", NORM, "by hand"),
    ("norm", "def norm(x):\n    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()", "by hand"),
    ("apply_rotary_emb", ROTARY, None),
    (
        "apply_rotary_emb",
        """
        def apply_rotary_emb(x, cos, sin):
            a, b = x.float().chunk(2, dim=-1)
            z = torch.complex(a, b) * torch.complex(cos.float(), -sin.float())
            return torch.cat((z.real, z.imag), dim=-1).to(x.dtype)
        """,
        "complex number",
    ),
    (
        "apply_rotary_emb",
        """
        def apply_rotary_emb(x, cos, sin):
            a, b = x.chunk(2, dim=-1)
            y = x * torch.cat((cos, cos), dim=-1) + torch.cat((b, -a), dim=-1) * torch.cat((sin, sin), dim=-1)
            return y.to(x.dtype)
        """,
        "sign-changed copy",
    ),
    ("CausalSelfAttention.forward", ATTENTION, "fused attention computes"),
    ("CausalSelfAttention.forward", ATTENTION, "Repeating each key head"),
    (
        "CausalSelfAttention.forward",
        ATTENTION.replace("norm(apply_rotary_emb(q, *cos_sin))", "apply_rotary_emb(norm(q), *cos_sin)").replace(
            "norm(apply_rotary_emb(k, *cos_sin))", "apply_rotary_emb(norm(k), *cos_sin)"
        ),
        "A rotation keeps lengths",
    ),
    (
        "CausalSelfAttention.forward",
        ATTENTION.replace("    q = norm(app", "    q, k = norm(q), norm(k)\n    q = (app").replace("norm(app", "(app"),
        "A rotation keeps lengths",
    ),
    ("MLP.forward", MLP, "product with itself"),
    ("MLP.forward", "def forward(self, x):\n    return self.c_proj(self.c_fc(x).clamp(min=0) ** 2)", "product with"),
    ("Block.forward", BLOCK, None),
    ("GPT.forward", GPT_FORWARD, "Cross-entropy on all logits"),
    ("GPT._init_weights", INIT, "Other random numbers"),
    ("GPT.init_weights", INIT_ALL, "Walking over modules()"),
    ("GPT._precompute_rotary_embeddings", TABLES, "same table of angles"),
    ("GPT.setup_optimizers", OPTIMIZERS, None),
    ("GPT.get_device", "def get_device(self):\n    return next(self.parameters()).device", "any of them"),
    ("GPT.get_device", "def get_device(self):\n    return self.cos.device", "any of them"),
    ("GPT.estimate_flops", FLOPS, "counting by formula"),
    ("GPT.generate", GENERATE, "as likely"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "text", "remark"), ACCEPTED)
def test_another_right_way_passes_with_a_word_on_why(step: str, text: str, remark: str | None) -> None:
    verdict = verdict_on(with_function(step, text), step)
    assert verdict.status == "passed", verdict
    if remark is not None:
        assert remark in (verdict.remark or "")


def test_every_variant_has_a_remark_for_a_step() -> None:
    assert {v.step for v in VARIANTS} <= {step.id for step in STEPS}

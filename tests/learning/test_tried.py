"""Wrong and right files as people write them, apart from the list of mistakes: how many get their name?

The functions are written from memory of other projects, not from the entries in lit/mistakes. The counts are
asserted together, because one name more or less is no failure, and a wrong name in ten is one.
"""

from __future__ import annotations

from collections import Counter

# ruff: noqa: E501
import pytest

from tests.learning.rewriting import verdict_on, with_function
from tests.learning.test_mistakes import ATTENTION, GENERATE, GPT_FORWARD, MLP, NORM, ROTARY, TABLES

SDPA = """
def forward(self, x, cos_sin, kv_cache=None):
    b, t, c = x.size()
    cos, sin = cos_sin
    q = self.c_q(x).view(b, t, self.n_head, -1)
    k = self.c_k(x).view(b, t, self.n_kv_head, -1)
    v = self.c_v(x).view(b, t, self.n_kv_head, -1)
    q = norm(apply_rotary_emb(q, cos, sin)).transpose(1, 2)
    k = norm(apply_rotary_emb(k, cos, sin)).transpose(1, 2)
    v = v.transpose(1, 2)
    if kv_cache is not None:
        k, v = kv_cache.insert_kv(self.layer_idx, k, v)
    past = k.shape[2] - t
    mask = torch.ones(t, past + t, dtype=torch.bool).tril(past)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))
"""
NANO_GENERATE = """
@torch.no_grad()
def generate(self, tokens, max_tokens, temperature=1.0, top_k=None, seed=42):
    if not tokens:
        raise ValueError("empty")
    idx = torch.tensor([tokens], device=self.get_device())
    g = torch.Generator(device=self.get_device()).manual_seed(seed)
    for _ in range(max_tokens):
        logits = self(idx)[:, -1, :]
        if temperature == 0:
            idx_next = logits.argmax(dim=-1, keepdim=True)
        else:
            logits = logits / temperature
            if top_k is not None:
                v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
                logits[logits < v[:, [-1]]] = -float("Inf")
            idx_next = torch.multinomial(F.softmax(logits, dim=-1), 1, generator=g)
        idx = torch.cat((idx, idx_next), dim=1)
        yield idx_next.item()
"""
BLOCK = """
def forward(self, x, cos_sin, kv_cache=None):
    h = x + self.attn(norm(x), cos_sin, kv_cache)
    out = h + self.mlp(norm(h))
    return out
"""
A, G, N, R, M, B, F, T = (
    "CausalSelfAttention.forward",
    "GPT.generate",
    "norm",
    "apply_rotary_emb",
    "MLP.forward",
    "Block.forward",
    "GPT.forward",
    "GPT._precompute_rotary_embeddings",
)
LOOSE = "settings-not-refused"
WRONG = [  # step, text, change, the names that would be right (none: unnamed is expected)
    (A, ATTENTION, ("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=-2)"), "softmax-over-the-queries"),
    (A, ATTENTION, ("torch.softmax(scores, dim=-1)", "torch.softmax(scores, dim=1)"), "softmax-over-the-heads"),
    (A, ATTENTION, ("] > torch", "] >= torch"), "mask-hides-the-position-itself"),
    (A, ATTENTION, ('float("-inf")', "0.0"), "mask-of-zeros"),
    (A, ATTENTION, ('float("-inf")', "-1e4"), None),
    (A, ATTENTION, ("] > torch", "] < torch"), "mask-upside-down"),
    (A, ATTENTION, ("masked_fill(late,", "masked_fill(~late,"), "mask-inverted"),
    (A, ATTENTION, ("    scores = scores.masked", "    if kv_cache is None: scores = scores.masked"), "chunk-not-masked"),
    (A, ATTENTION, ("torch.softmax(scores, dim=-1) @ v", "F.dropout(torch.softmax(scores, dim=-1), 0.1) @ v"), "chance-left-in"),
    (A, ATTENTION, ("self.layer_idx, k, v)", "self.layer_idx, v, k)"), "keys-and-values-exchanged-in-the-cache"),
    (A, ATTENTION, (" / D**0.5", " * D**0.5"), "scaled-up"),
    (A, ATTENTION, (" / D**0.5", " / C**0.5"), "scaled-by-the-width"),
    (A, ATTENTION, ("return self.c_proj(y)", "self.c_proj(y)"), "nothing-returned"),
    (A, ATTENTION, ("return self.c_proj(y)", "return self.c_proj(y), kv_cache"), "several-things-returned"),
    (A, ATTENTION, ("return self.c_proj(y)", "return y"), "output-not-mixed"),
    (A, ATTENTION, ("v = self.c_v(x)", "v = self.c_k(x)"), "keys-taken-for-values"),
    (A, ATTENTION, ("torch.repeat_interleave(k, H // G, dim=1)", "k.repeat(1, H // G, 1, 1)"), None),
    (A, SDPA, (".tril(past)", ".tril()"), "causal-flag-against-a-cache|chunk-mask-from-the-left"),
    (A, SDPA, ("attn_mask=mask, ", ""), "no-mask-at-all"),
    (A, SDPA, ("attn_mask=mask", "is_causal=True"), "causal-flag-against-a-cache"),
    (A, SDPA, (".tril(past)", ".triu(past)"), "mask-upside-down"),
    (A, SDPA, (".tril(past)", ".tril(past - 1)"), "mask-hides-the-position-itself"),
    (A, SDPA, (".tril(past)", ".tril(past + 1)"), "mask-one-too-far"),
    (A, SDPA, ("q = norm(apply_rotary_emb(q, cos, sin))", "q = norm(q)"), "queries-not-rotated"),
    (A, SDPA, ("q = norm(apply_rotary_emb(q, cos, sin))", "q = apply_rotary_emb(q, cos, sin)"), "only-keys-normed"),
    (A, SDPA, ("y.transpose(1, 2).contiguous().view", "y.contiguous().view"), "heads-not-moved-back"),
    (A, SDPA, ("k, v = kv_cache.insert", "_ = kv_cache.insert"), "cache-written-never-read"),
    (G, NANO_GENERATE, ("logits / temperature", "logits * temperature"), f"temperature-multiplies + {LOOSE}"),
    (G, NANO_GENERATE, ("            logits = logits / temperature\n", ""), f"temperature-ignored + {LOOSE}"),
    (G, NANO_GENERATE, ("if temperature == 0", "if True"), f"always-the-likeliest + {LOOSE}"),
    (G, NANO_GENERATE, ("self(idx)[:, -1, :]", "self(idx[:, -self.config.sequence_len :])[:, -1, :]"), f"context-cropped + {LOOSE}"),
    (G, NANO_GENERATE, ("self(idx)[", "self(idx[:, -1:])["), f"only-the-last-token-fed + {LOOSE}"),
    (G, NANO_GENERATE, (", generator=g", ""), f"draws-from-torchs-own-state + {LOOSE}"),
    (G, NANO_GENERATE, ("yield idx_next.item()", "yield idx_next"), f"tensors-yielded + {LOOSE}"),
    (G, NANO_GENERATE, ("logits < v", "logits <= v"), None),
    (G, NANO_GENERATE, ("        idx = torch.cat((idx, idx_next), dim=1)\n", ""), f"new-token-not-appended + {LOOSE}"),
    (G, NANO_GENERATE, ("torch.tensor([tokens]", "torch.tensor([[0] + tokens]"), f"bos-put-before-the-prompt + {LOOSE}"),
    (G, GENERATE, ("sequence = list(tokens)", "sequence = tokens"), "prompt-changed"),
    (G, GENERATE, ("scores / temperature", "scores * temperature"), "temperature-multiplies"),
    (G, GENERATE, ("        yield choice", "    return sequence[len(tokens):]"), "a-list-returned"),
    (N, NORM, ("1e-8", "1e-5"), "epsilon-too-large"),
    (N, NORM, ("torch.sqrt(ms + 1e-8)", "(torch.sqrt(ms) + 1e-5)"), "epsilon-too-large"),
    (N, NORM, (".mean(-1, ", ".mean((-1, -2), "), "norm-over-two-axes"),
    (N, NORM, ("    return (x", "    x = (x"), "nothing-returned"),
    (N, NORM, (".to(x.dtype)", ".tolist()"), None),
    (N, NORM, (".to(x.dtype)", ".detach().numpy()"), "a-numpy-array-returned"),
    (N, NORM, (".to(x.dtype)", ".mean().item()"), "a-python-number-returned"),
    (R, ROTARY, ("    return ", "    "), "nothing-returned"),
    (R, ROTARY, ("torch.cat([a * cos + b * sin, b * cos - a * sin], dim=3).type_as(x)", "a * cos + b * sin, b * cos - a * sin"), "several-things-returned"),
    (R, ROTARY, ("b * sin, b", "b * cos, b"), None),
    (M, MLP, ("torch.relu(self.c_fc(x))", "torch.relu(self.c_fc(x)) + 0.1"), None),
    (M, MLP, ("torch.relu", "F.leaky_relu"), "leaky-relu"),
    (M, MLP, ("    return ", "    "), "nothing-returned"),
    (M, MLP, ("return self.c_proj(h * h)", "return F.dropout(self.c_proj(h * h), 0.2)"), "chance-left-in"),
    (B, BLOCK, ("out = h + ", "out = x + "), "skip-from-the-input"),
    (B, BLOCK, ("norm(h)", "h"), "mlp-not-normed"),
    (B, BLOCK, ("h = x + ", "h = norm(x) + "), None),
    (B, BLOCK, ("return out", "return h, out"), "several-things-returned"),
    (B, BLOCK, (", kv_cache)\n", ")\n"), "cache-not-handed-on"),
    (F, GPT_FORWARD, ("        return z\n", "        return z, None\n"), "several-things-returned"),
    (F, GPT_FORWARD, ("        return z\n", "        return z.softmax(-1)\n"), "softmax-in-forward"),
    (F, GPT_FORWARD, ("h = layer(h, rows, kv_cache)", "layer(h, rows, kv_cache)"), "what-blocks-return-is-dropped"),
    (F, GPT_FORWARD, ("norm(self.transformer.wte(idx))", "self.transformer.wte(idx)"), "no-norm-after-the-embedding"),
    (F, GPT_FORWARD, ("    if targets is None:\n        return z\n", "    if targets is None:\n        z\n"), None),
    (T, TABLES, ("base=10000.0", "base=500000.0"), "base-of-500000"),
    (T, TABLES, ("(base ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim))", "base ** torch.arange(0, head_dim, 2, device=device).float() / head_dim"), "exponent-binds-first"),
    (T, TABLES, ("torch.arange(0, head_dim, 2, device=device)", "torch.linspace(0, head_dim, head_dim // 2, device=device)"), "speeds-evenly-spaced"),
    (T, TABLES, ("    return cos.unsqueeze(0).unsqueeze(2), ", "    return "), None),
]  # fmt: skip
RIGHT = [
    (A, SDPA),
    (A, SDPA.replace("tril(past)", "tril(diagonal=past)").replace("b, t, c = x.size()", "b, t, c = x.shape")),
    (A, ATTENTION.replace('float("-inf")', "-1e30")),
    (G, GENERATE.replace("self(torch.tensor([sequence]))", "self(torch.tensor([sequence]), last_only=True)")),
    (G, GENERATE.replace("self(torch.tensor", "self.forward(torch.tensor")),
    (N, "def norm(x):\n    return torch.nn.functional.rms_norm(x, x.shape[-1:])"),
    (N, "def norm(x, eps=1e-6):\n    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)"),
    (M, "WIDE = 2\n\ndef forward(self, x):\n    return self.c_proj(self.c_fc(x).relu() ** self.WIDE)"),
    (M, "def forward(self, x):\n    h = self.c_fc(x)\n    return self.c_proj(torch.where(h > 0, h * h, 0.0))"),
    (B, BLOCK),
    ("GPT.setup_optimizers", """
def setup_optimizers(self, unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, weight_decay=0.0):
    s = (768 / self.config.n_embd) ** 0.5
    a = torch.optim.AdamW(
        [{"params": self.lm_head.parameters(), "lr": unembedding_lr * s},
         {"params": self.transformer.wte.parameters(), "lr": embedding_lr * s}],
        betas=(0.8, 0.95), eps=1e-10, weight_decay=weight_decay)
    m = torch.optim.Muon(self.transformer.h.parameters(), lr=matrix_lr, momentum=0.95, weight_decay=0.0)
    for o in (a, m):
        for g in o.param_groups:
            g["initial_lr"] = g["lr"]
    return [a, m]
"""),
]  # fmt: skip


@pytest.mark.parametrize(("step", "text"), RIGHT)
def test_right_in_other_words(step: str, text: str) -> None:
    assert verdict_on(with_function(step, text), step).status == "passed"


def test_wrong_files_are_caught_and_most_are_named() -> None:
    counts: Counter[str] = Counter()
    told = []
    for step, text, change, wanted in WRONG:
        assert text.count(change[0]) == 1, change
        verdict = verdict_on(with_function(step, text.replace(*change)), step)
        seen = verdict.mistake
        if verdict.status == "passed":
            kind = "not caught"
        elif seen is None:
            kind = "unnamed"
        elif wanted is not None and any(
            set(seen.split(" + ")) == set(w.split(" + ")) for w in wanted.split("|")
        ):
            kind = "named"
        else:
            kind = "named otherwise"
        counts[kind] += 1
        if kind != "named":
            told.append(
                f"{kind}: {step} {change[1]!r}: {seen}; {wanted} | {(verdict.difference or '')[:150]}"
            )
    text = "\n".join([str(dict(counts)), *told])
    print(text)
    assert counts["not caught"] <= 1, text  # a mask of -10,000 hides as much as one of minus infinity
    assert counts["named otherwise"] <= 0.01 * len(WRONG), text
    assert counts["named"] >= 0.8 * len(WRONG), text

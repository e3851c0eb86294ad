"""Wrong models by name, each made from the book's by an edit, and right ones written in another way."""

import ast
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.learning.hybrid import Function, Source


@dataclass(frozen=True)
class Mistake:
    """A wrong version of one function. `edits` turn the book's function into it, each found exactly once.

    Two entries with one step and one name are two ways in which the same misunderstanding can show.
    """

    step: str
    name: str
    says: str  # what goes wrong, and where to think again; never the code that is right
    edits: tuple[tuple[str, str], ...]


class DoesNotApply(Exception):
    """The book's function does not contain what an edit wants to replace."""


def _of(step: str, name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake(step, name, says, edits)


def make(mistakes: Sequence[Mistake], book: Source) -> Source:
    """The book with these mistakes of one step. Raises DoesNotApply unless each edit fits exactly once."""
    step_id = mistakes[0].step
    try:
        first, last = book.segment(step_id)
    except KeyError:
        raise DoesNotApply(f"the book has no {step_id}") from None
    lines = book.text.split("\n")
    before = "\n".join(lines[first - 1 : last])
    text = textwrap.dedent(before)
    indent = before[: len(before) - len(before.lstrip())]
    for mistake in mistakes:
        for old, new in mistake.edits:
            if text.count(old) != 1:
                raise DoesNotApply(f"{mistake.name}: {old!r} occurs {text.count(old)} times in {step_id}")
            text = text.replace(old, new)
    lines[first - 1 : last] = textwrap.indent(text, indent).split("\n")
    return Source(f"<{step_id} with {', '.join(m.name for m in mistakes)}>", "\n".join(lines))


NO_SUPER = (
    "PyTorch must set a module up before it can be given parts: the parent's constructor was not called."
)
NO_SUPER_EDIT = ("super().__init__()\n", "\n")

CONSTRUCTION = (
    _of(
        "GPTConfig",
        "heads-need-not-divide-the-width",
        "A width that the heads do not divide is accepted; channels would be lost when it is split.",
        ("if self.n_embd % self.n_head:", "if False:"),
    ),
    _of(
        "GPTConfig",
        "key-heads-need-not-divide-the-heads",
        "Query heads that the key heads do not divide are accepted; some key heads would serve more than "
        "others.",
        ("if self.n_head % self.n_kv_head:", "if False:"),
    ),
    _of(
        "GPTConfig",
        "odd-head-size-accepted",
        "An odd head size is accepted; a rotation turns pairs of channels and one would be left over.",
        ("if self.head_dim % 2:", "if False:"),
    ),
    _of(
        "GPTConfig",
        "size-of-zero-accepted",
        "A size of 0 is accepted. No model has zero layers, heads, channels, tokens or positions.",
        ("if value < 1:", "if value < 0:"),
    ),
    _of(
        "GPTConfig",
        "head-size-from-key-heads",
        "The head size is computed from the number of key heads. Fewer key heads do not make heads wider.",
        ("return self.n_embd // self.n_head", "return self.n_embd // self.n_kv_head"),
    ),
    _of(
        "GPTConfig",
        "key-heads-default-to-one",
        "Without being asked, all queries share one key head. The default is one key head for each query "
        "head.",
        ("n_kv_head: int = 6", "n_kv_head: int = 1"),
    ),
    _of(
        "GPTConfig",
        "vocabulary-of-gpt-2-not-padded",
        "The default vocabulary is GPT-2's own, which no power of two above 1 divides; the padded size is "
        "meant.",
        ("vocab_size: int = 50304", "vocab_size: int = 50257"),
    ),
    _of("GPT.__init__", "super-not-called", NO_SUPER, NO_SUPER_EDIT),
    _of(
        "GPT.__init__",
        "head-tied-to-the-embedding",
        "Head and embedding are one matrix. They start differently, learn at different rates and stay "
        "apart here.",
        (
            "self.rotary_seq_len = 10",
            "self.lm_head.weight = self.transformer.wte.weight\n    self.rotary_seq_len = 10",
        ),
    ),
    _of(
        "GPT.__init__",
        "head-with-a-bias",
        "The head adds a bias. Nothing in this model has one.",
        ("config.vocab_size, bias=False)", "config.vocab_size)"),
    ),
    _of(
        "GPT.__init__",
        "head-turned-around",
        "The head maps V to C. It reads the stream (C) and writes a score for each token (V).",
        (
            "nn.Linear(config.n_embd, config.vocab_size, bias=False)",
            "nn.Linear(config.vocab_size, config.n_embd, bias=False)",
        ),
    ),
    _of(
        "GPT.__init__",
        "tables-as-parameters",
        "The rotary tables are parameters: an optimizer would train cosines. They are constants that move "
        "along.",
        ('self.register_buffer("cos", cos, persistent=False)', "self.cos = nn.Parameter(cos)"),
        ('self.register_buffer("sin", sin, persistent=False)', "self.sin = nn.Parameter(sin)"),
    ),
    _of(
        "GPT.__init__",
        "tables-saved-with-the-weights",
        "The tables would be stored in every checkpoint and fix the length of the model that loads it.",
        ('("cos", cos, persistent=False)', '("cos", cos)'),
        ('("sin", sin, persistent=False)', '("sin", sin)'),
    ),
    _of(
        "GPT.__init__",
        "tables-as-plain-attributes",
        "The tables are plain attributes: moving the model to a GPU would leave them behind.",
        ('self.register_buffer("cos", cos, persistent=False)', "self.cos = cos"),
        ('self.register_buffer("sin", sin, persistent=False)', "self.sin = sin"),
    ),
    _of(
        "GPT.__init__",
        "tables-too-short",
        "The tables end at the training length. They are ten times as long, so that generation may go on.",
        ("10 * config.sequence_len", "config.sequence_len"),
    ),
    _of(
        "GPT.__init__",
        "tables-for-the-whole-width",
        "The tables have a pair for every two channels of the model. Each head is rotated on its own.",
        ("config.head_dim)", "config.n_embd)"),
    ),
    _of(
        "GPT.__init__",
        "tables-widened-to-float32",
        "The tables are kept in float32: twice the memory, and bfloat16 queries are widened in every "
        "rotation.",
        ('("cos", cos, ', '("cos", cos.float(), '),
        ('("sin", sin, ', '("sin", sin.float(), '),
    ),
    _of(
        "GPT.__init__",
        "one-block-for-all-layers",
        "All layers are the same block: multiplying a list repeats its element, it does not copy it.",
        (
            "nn.ModuleList(Block(config, layer_idx) for layer_idx in range(config.n_layer))",
            "nn.ModuleList([Block(config, 0)] * config.n_layer)",
        ),
    ),
    _of(
        "GPT.__init__",
        "blocks-not-numbered",
        "Every block is told that it is layer 0: with a cache they would overwrite each other's keys.",
        ("Block(config, layer_idx) for", "Block(config, 0) for"),
    ),
    _of(
        "GPT.__init__",
        "blocks-numbered-from-one",
        "The blocks count from 1. The cache has a place for layer 0 and none for layer L.",
        ("Block(config, layer_idx) for", "Block(config, layer_idx + 1) for"),
    ),
    _of(
        "GPT.__init__",
        "one-block-too-few",
        "There is one block less than n_layer.",
        ("range(config.n_layer)", "range(config.n_layer - 1)"),
    ),
    _of(
        "GPT.__init__",
        "blocks-in-a-plain-list",
        "The blocks are in a Python list. PyTorch does not look into lists: their weights are invisible to "
        "it.",
        ('"h": nn.ModuleList(Block(config, layer_idx) for layer_idx in range(config.n_layer)),', ""),
        (
            "self.rotary_seq_len = 10",
            "self.transformer.h = [Block(config, i) for i in range(config.n_layer)]\n"
            "    self.rotary_seq_len = 10",
        ),
    ),
    _of(
        "GPT.__init__",
        "embedding-has-a-row-per-position",
        "The embedding has as many rows as there are positions. It needs one for each token of the "
        "vocabulary.",
        ("nn.Embedding(config.vocab_size", "nn.Embedding(config.sequence_len"),
    ),
    _of(
        "GPT.__init__",
        "positions-are-learned",
        "There is an embedding for positions, as in GPT-2. Here position enters by rotation alone.",
        ('"h": nn', '"wpe": nn.Embedding(config.sequence_len, config.n_embd),\n            "h": nn'),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "tables-in-float32",
        "The tables are float32; they should be rounded to bfloat16, once, at the end.",
        ("angle.cos().bfloat16(), angle.sin().bfloat16()", "angle.cos(), angle.sin()"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "angles-rounded-to-bfloat16",
        "The angles are rounded before the cosine is taken: at position 300 bfloat16 steps by 2 radians.",
        ("torch.outer(position, speed)", "torch.outer(position, speed).bfloat16().float()"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "base-of-1000",
        "The slowest pairs turn too fast: the default base is ten times too small.",
        ("base: float = 10000.0", "base: float = 1000.0"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "base-ignored",
        "The parameter base has no effect.",
        ("base ** (", "10000.0 ** ("),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "speeds-grow",
        "Later pairs turn faster. They should turn slower: look at the sign of the exponent.",
        ("(-pair / head_dim)", "(pair / head_dim)"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "exponent-counts-pairs",
        "Pair i has the exponent i/D. It should be 2i/D, so that the slowest pair is almost 1/base.",
        ("torch.arange(0, head_dim, 2,", "torch.arange(0, head_dim // 2,"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "exponent-over-half-the-head",
        "The exponent is divided by D/2, so speeds fall to 1/base². Even channel numbers are divided by D.",
        ("(-pair / head_dim)", "(-2 * pair / head_dim)"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "sine-and-cosine-exchanged",
        "The sines come first. At position 0 the first table must be all ones.",
        ("return cos[None, :, None, :], sin[", "return sin[None, :, None, :], cos["),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "positions-from-one",
        "Positions count from 1. The first position is 0 and is not turned at all.",
        ("torch.arange(seq_len,", "torch.arange(1, seq_len + 1,"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "axes-missing",
        "The tables have two axes. Queries have four (B, T, H, D): add the ones over which to broadcast.",
        ("return cos[None, :, None, :], sin[None, :, None, :]", "return cos, sin"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "axes-in-the-order-of-attention",
        "The tables are (1, 1, T, D/2). Rotation happens before heads move in front of positions.",
        ("cos[None, :, None, :], sin[None, :, None, :]", "cos[None, None], sin[None, None]"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "tables-twice-as-wide",
        "Each angle stands in the tables twice. One for each pair is enough, since both halves share it.",
        (
            "return cos",
            "cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)\n    return cos",
        ),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "angles-in-turns",
        "Angles are multiplied by 2π. The fastest pair turns by one radian a position, not by one turn.",
        ("torch.outer(position, speed)", "torch.outer(position, speed) * 6.283185307179586"),
    ),
    _of(
        "GPT._precompute_rotary_embeddings",
        "device-ignored",
        "The tables are made on the default device, whatever device was asked for.",
        (
            "torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)",
            "torch.arange(0.0, head_dim, 2)",
        ),
        ("torch.arange(seq_len, dtype=torch.float32, device=device)", "torch.arange(seq_len).float()"),
    ),
    _of("Block.__init__", "super-not-called", NO_SUPER, NO_SUPER_EDIT),
    _of(
        "Block.__init__",
        "layer-number-not-handed-on",
        "Attention is told that it is layer 0 in every block: with a cache, layers overwrite each other.",
        ("CausalSelfAttention(config, layer_idx)", "CausalSelfAttention(config, 0)"),
    ),
    _of(
        "Block.__init__",
        "layer-number-off-by-one",
        "Attention is told the number of the next layer. Layers count from 0, and GPT has counted already.",
        ("CausalSelfAttention(config, layer_idx)", "CausalSelfAttention(config, layer_idx + 1)"),
    ),
    _of(
        "Block.__init__",
        "norms-that-learn",
        "The block owns layer norms with weights. The norm of this model has nothing to learn.",
        (
            "self.mlp = MLP(config)",
            "self.mlp = MLP(config)\n    self.ln_1 = nn.LayerNorm(config.n_embd)\n"
            "    self.ln_2 = nn.LayerNorm(config.n_embd)",
        ),
    ),
    _of(
        "Block.__init__",
        "attention-in-place-of-the-mlp",
        "Both parts are attention. The second part works on each position alone.",
        ("self.mlp = MLP(config)", "self.mlp = CausalSelfAttention(config, layer_idx)"),
    ),
    _of(
        "Block.__init__",
        "mlp-missing",
        "The block has attention and no MLP.",
        ("self.mlp = MLP(config)", ""),
    ),
    _of("CausalSelfAttention.__init__", "super-not-called", NO_SUPER, NO_SUPER_EDIT),
    _of(
        "CausalSelfAttention.__init__",
        "biases",
        "The matrices add biases. Nothing in this model has one.",
        (
            "self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)",
            "self.c_q = nn.Linear(config.n_embd, config.n_embd)",
        ),
        (
            "self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)",
            "self.c_k = nn.Linear(config.n_embd, kv_dim)",
        ),
        (
            "self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)",
            "self.c_v = nn.Linear(config.n_embd, kv_dim)",
        ),
        (
            "self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)",
            "self.c_proj = nn.Linear(config.n_embd, config.n_embd)",
        ),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "keys-as-wide-as-queries",
        "Keys and values are C wide although there are fewer key heads: the matrices do not follow "
        "n_kv_head.",
        ("kv_dim = self.n_kv_head * self.head_dim", "kv_dim = config.n_embd"),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "key-heads-counted-as-query-heads",
        "The layer believes that it has as many key heads as query heads, whatever n_kv_head says.",
        ("self.n_kv_head = config.n_kv_head", "self.n_kv_head = config.n_head"),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "queries-as-narrow-as-keys",
        "The query matrix makes only as many heads as there are key heads.",
        (
            "self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)",
            "self.c_q = nn.Linear(config.n_embd, kv_dim, bias=False)",
        ),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "head-size-from-key-heads",
        "The head size is the width divided by the number of key heads. It is divided among the query heads.",
        ("self.head_dim = config.head_dim", "self.head_dim = config.n_embd // config.n_kv_head"),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "layer-number-forgotten",
        "The layer does not keep its number as layer_idx; the cache will ask for it.",
        ("self.layer_idx = layer_idx\n", "\n"),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "one-fused-matrix",
        "Queries, keys and values come from one matrix. Checkpoints and Muon want three: c_q, c_k, c_v.",
        (
            "self.c_q = nn.Linear(config.n_embd, config.n_embd, bias=False)",
            "self.c_attn = nn.Linear(config.n_embd, config.n_embd + 2 * kv_dim, bias=False)",
        ),
        ("self.c_k = nn.Linear(config.n_embd, kv_dim, bias=False)", ""),
        ("self.c_v = nn.Linear(config.n_embd, kv_dim, bias=False)", ""),
    ),
    _of(
        "CausalSelfAttention.__init__",
        "output-matrix-missing",
        "There is no c_proj: what the heads found would reach the stream unmixed.",
        ("self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)", ""),
    ),
    _of("MLP.__init__", "super-not-called", NO_SUPER, NO_SUPER_EDIT),
    _of(
        "MLP.__init__",
        "biases",
        "The matrices add biases. Nothing in this model has one.",
        ("4 * config.n_embd, bias=False)", "4 * config.n_embd)"),
        ("(4 * config.n_embd, config.n_embd, bias=False)", "(4 * config.n_embd, config.n_embd)"),
    ),
    *(
        _of(
            "MLP.__init__",
            name,
            f"The middle of the MLP is {words}; it should be four times the width.",
            ("config.n_embd, 4 * config.n_embd,", f"config.n_embd, {width},"),
            ("(4 * config.n_embd, config.n_embd,", f"({width}, config.n_embd,"),
        )
        for name, words, width in (
            ("hidden-twice-the-width", "twice the width", "2 * config.n_embd"),
            ("hidden-not-widened", "as wide as the model", "config.n_embd"),
            ("hidden-of-a-gated-mlp", "8/3 of the width, a gated MLP's", "8 * config.n_embd // 3"),
        )
    ),
    _of(
        "MLP.__init__",
        "matrices-exchanged",
        "c_fc narrows and c_proj widens. The first one widens.",
        ("self.c_fc =", "self.c_other ="),
        ("self.c_proj =", "self.c_fc ="),
        ("self.c_other =", "self.c_proj ="),
    ),
    _of(
        "MLP.__init__",
        "a-gate-matrix",
        "There is a third matrix, as in SwiGLU. This MLP has two.",
        (
            "super().__init__()",
            "super().__init__()\n    self.c_gate = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)",
        ),
    ),
)


_DRAW_LINEAR = (
    "nn.init.normal_(module.weight, mean=0.0, std=fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5))"
)
_DRAW_EMBEDDING = "nn.init.normal_(module.weight, mean=0.0, std=1.0)"

INITIALIZATION = (
    _of(
        "GPT.init_weights",
        "attention-c_proj-not-zeroed",
        "Attention's c_proj keeps its noise. At zero, each block begins as the identity.",
        ("nn.init.zeros_(block.attn.c_proj.weight)", "pass"),
    ),
    _of(
        "GPT.init_weights",
        "mlp-c_proj-not-zeroed",
        "The MLP's c_proj keeps its noise. At zero, each block begins as the identity.",
        ("nn.init.zeros_(block.mlp.c_proj.weight)", "pass"),
    ),
    _of(
        "GPT.init_weights",
        "c_proj-not-zeroed",
        "Both c_proj keep their noise. At zero, each block begins as the identity.",
        ("nn.init.zeros_(block.attn.c_proj.weight)", "pass"),
        ("nn.init.zeros_(block.mlp.c_proj.weight)", "pass"),
    ),
    _of(
        "GPT.init_weights",
        "head-not-zeroed",
        "The head keeps its noise, so the first prediction is not uniform and the first loss is above ln V.",
        ("nn.init.zeros_(self.lm_head.weight)\n", "\n"),
    ),
    _of(
        "GPT.init_weights",
        "zeroed-before-drawing",
        "Neither the head nor any c_proj is zero at the end: nothing was zeroed, or it was drawn over "
        "afterwards.",
        ("self.apply(self._init_weights)\n", "\n"),
        ("device = self.get_device()", "self.apply(self._init_weights)\n    device = self.get_device()"),
    ),
    _of(
        "GPT.init_weights",
        "embedding-zeroed",
        "The embedding is zero: all tokens are the same, and a norm of zeros has no direction.",
        (
            "nn.init.zeros_(self.lm_head.weight)",
            "nn.init.zeros_(self.lm_head.weight)\n    nn.init.zeros_(self.transformer.wte.weight)",
        ),
    ),
    _of(
        "GPT.init_weights",
        "embedding-zeroed-in-place-of-the-head",
        "The embedding is zero and the head is not. It is the other way round.",
        ("nn.init.zeros_(self.lm_head.weight)", "nn.init.zeros_(self.transformer.wte.weight)"),
    ),
    _of(
        "GPT.init_weights",
        "nothing-drawn",
        "The weights are what was in memory before. Every module has to be visited, at any depth.",
        ("self.apply(self._init_weights)\n", "\n"),
    ),
    _of(
        "GPT.init_weights",
        "only-the-first-block-silenced",
        "Only block 0 has zero c_proj; the other blocks keep their noise.",
        ("in self.transformer.h.children():", "in list(self.transformer.h.children())[:1]:"),
    ),
    _of(
        "GPT.init_weights",
        "first-mlp-matrix-zeroed",
        "c_fc is zero and c_proj is not. Relu of zero passes no gradient back, so that this MLP never "
        "learns.",
        ("block.mlp.c_proj.weight", "block.mlp.c_fc.weight"),
    ),
    _of(
        "GPT.init_weights",
        "queries-zeroed",
        "c_q is zero, and attention's c_proj is not. The matrix that writes into the stream starts silent.",
        ("block.attn.c_proj.weight", "block.attn.c_q.weight"),
    ),
    _of(
        "GPT.init_weights",
        "tables-not-filled",
        "The rotary tables hold what was in memory before. A model from the meta device has empty tables.",
        ("self.cos, self.sin =", "_ ="),
    ),
    _of(
        "GPT.init_weights",
        "tables-too-short",
        "The tables have shrunk to the training length; the constructor made them ten times as long.",
        ("self.rotary_seq_len,", "self.config.sequence_len,"),
    ),
    _of(
        "GPT.init_weights",
        "embedding-narrowed-on-the-cpu",
        "The embedding is bfloat16 on the CPU. There, mixed precision does not widen it again.",
        ('if device.type == "cuda":', "if True:"),
    ),
    _of(
        "GPT._init_weights",
        "fans-exchanged",
        "Fan-in and fan-out are exchanged. A Linear from 64 to 256 stores its weight as (256, 64).",
        ("fan_out, fan_in =", "fan_in, fan_out ="),
    ),
    _of(
        "GPT._init_weights",
        "fan-out-for-fan-in",
        "The spread shrinks with the root of fan-out: either the two fans or their ratio is upside down. A "
        "sum has as many terms as the layer has inputs.",
        ("std=fan_in**-0.5", "std=fan_out**-0.5"),
    ),
    _of(
        "GPT._init_weights",
        "variance-for-deviation",
        "The variance was given where the standard deviation is asked for: the noise is far too small.",
        (
            "std=fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)",
            "std=(fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)) ** 2",
        ),
    ),
    _of(
        "GPT._init_weights",
        "flat-matrices-not-damped",
        "A Linear with fewer outputs than inputs should start smaller, by the root of their ratio.",
        (" * min(1.0, (fan_out / fan_in) ** 0.5)", ""),
    ),
    _of(
        "GPT._init_weights",
        "tall-matrices-amplified",
        "A Linear with more outputs than inputs starts too large: the ratio's factor is at most 1.",
        ("min(1.0, (fan_out / fan_in) ** 0.5)", "(fan_out / fan_in) ** 0.5"),
    ),
    _of(
        "GPT._init_weights",
        "ratio-without-root",
        "The ratio of fan-out and fan-in enters without its root.",
        ("(fan_out / fan_in) ** 0.5", "fan_out / fan_in"),
    ),
    _of(
        "GPT._init_weights",
        "linear-of-0.02",
        "Every Linear has spread 0.02, as in GPT-2. Here the spread follows from the shape.",
        ("std=fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)", "std=0.02"),
    ),
    _of(
        "GPT._init_weights",
        "kaiming-gain",
        "Every Linear is √2 too large: that is the gain for a relu network, and this formula has none.",
        ("std=fan_in**-0.5", "std=2**0.5 * fan_in**-0.5"),
    ),
    _of(
        "GPT._init_weights",
        "xavier",
        "The spread is that of Xavier: it averages fan-in and fan-out.",
        (_DRAW_LINEAR, "nn.init.xavier_normal_(module.weight)"),
    ),
    _of(
        "GPT._init_weights",
        "uniform-noise",
        "Centre and spread are right, and the shape is not: the noise is uniform, a normal one is asked for.",
        (
            _DRAW_LINEAR,
            "bound = 3**0.5 * fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)\n"
            "        nn.init.uniform_(module.weight, -bound, bound)",
        ),
    ),
    _of(
        "GPT._init_weights",
        "pytorchs-own-initialization",
        "A Linear gets what PyTorch gives it by itself: uniform noise, √3 too small.",
        (_DRAW_LINEAR, "module.reset_parameters()"),
    ),
    _of(
        "GPT._init_weights",
        "linear-not-drawn",
        "A Linear keeps the values it had.",
        (_DRAW_LINEAR, "pass"),
    ),
    _of(
        "GPT._init_weights",
        "embedding-not-drawn",
        "An Embedding keeps the values it had.",
        (_DRAW_EMBEDDING, "pass"),
    ),
    _of(
        "GPT._init_weights",
        "embedding-of-0.02",
        "The embedding has spread 0.02, as in GPT-2. Here it is unit normal.",
        (_DRAW_EMBEDDING, "nn.init.normal_(module.weight, mean=0.0, std=0.02)"),
    ),
    _of(
        "GPT._init_weights",
        "embedding-drawn-like-a-linear",
        "The embedding shrinks with the width. Looking a row up sums nothing, so nothing has to be balanced.",
        (_DRAW_EMBEDDING, "nn.init.normal_(module.weight, mean=0.0, std=module.weight.shape[1] ** -0.5)"),
    ),
)


_NORM = "F.rms_norm(x, (x.size(-1),)).to(x.dtype)"
_TURN_1, _TURN_2 = "y1 = x1 * cos + x2 * sin", "y2 = x2 * cos - x1 * sin"
_WRONG_AXIS = "Numbers of different positions are mixed: the mean runs over another axis than the last."

NORM_AND_ROTATION = (
    _of(
        "norm",
        "norm-over-the-wrong-axis",
        _WRONG_AXIS,
        (_NORM, "x * (x.square().mean(dim=1, keepdim=True) + 1e-7).rsqrt()"),
    ),
    _of(
        "norm",
        "norm-over-the-wrong-axis",
        _WRONG_AXIS,
        (_NORM, "x * (x.square().mean(dim=-2, keepdim=True) + 1e-7).rsqrt()"),
    ),
    _of(
        "norm",
        "norm-over-the-wrong-axis",
        _WRONG_AXIS,
        (_NORM, "x * (x.square().mean(dim=0, keepdim=True) + 1e-7).rsqrt()"),
    ),
    _of(
        "norm",
        "one-norm-for-everything",
        "The whole tensor is divided by one number. Each vector along the last axis has its own.",
        (_NORM, "F.rms_norm(x, x.shape)"),
    ),
    _of(
        "norm",
        "one-norm-per-sequence",
        "Each sequence is divided by one number: later positions would leak into earlier ones.",
        (_NORM, "F.rms_norm(x, x.shape[1:])"),
    ),
    _of(
        "norm",
        "divides-by-the-length",
        "Vectors come out with length 1. Their root mean square should be 1, so their length √C: mean, not "
        "sum.",
        (_NORM, "F.normalize(x, dim=-1)"),
    ),
    _of(
        "norm",
        "subtracts-the-mean",
        "The mean is subtracted, as layer norm does. RMS norm leaves it.",
        (_NORM, "F.layer_norm(x, (x.size(-1),))"),
    ),
    _of(
        "norm",
        "divides-by-the-deviation",
        "The divisor is the standard deviation, which leaves the mean out of account. Mean square is meant.",
        (_NORM, "x * (x.var(dim=-1, unbiased=False, keepdim=True) + 1e-7).rsqrt()"),
    ),
    _of(
        "norm",
        "root-forgotten",
        "The divisor is the mean square itself, not its root.",
        (_NORM, "x / (x.square().mean(dim=-1, keepdim=True) + 1e-7)"),
    ),
    _of(
        "norm",
        "mean-of-absolute-values",
        "The divisor is the mean of absolute values.",
        (_NORM, "x / (x.abs().mean(dim=-1, keepdim=True) + 1e-7)"),
    ),
    _of(
        "norm",
        "multiplies-where-it-should-divide",
        "Long vectors come out longer: the root mean square is multiplied.",
        (_NORM, "x * x.square().mean(dim=-1, keepdim=True).add(1e-7).sqrt()"),
    ),
    _of(
        "norm",
        "zeros-become-nan",
        "A vector of zeros is divided by zero. A tiny number under the root prevents that.",
        (_NORM, "x * x.square().mean(dim=-1, keepdim=True).rsqrt()"),
    ),
    _of(
        "norm",
        "dtype-not-kept",
        "bfloat16 goes in and float32 comes out.",
        (_NORM, "F.rms_norm(x.float(), (x.size(-1),))"),
    ),
    _of(
        "norm",
        "divisor-detached",
        "The numbers are right and the gradient is not: the divisor depends on x too.",
        (_NORM, "x * (x.detach().square().mean(dim=-1, keepdim=True) + 1e-7).rsqrt()"),
    ),
    _of("norm", "not-normed", "x comes out as it went in.", (_NORM, "x * 1.0")),
    _of(
        "apply_rotary_emb",
        "turned-the-other-way",
        "Pairs are turned by plus the angle: the sign of the sine is wrong in both halves.",
        (_TURN_1, "y1 = x1 * cos - x2 * sin"),
        (_TURN_2, "y2 = x2 * cos + x1 * sin"),
    ),
    _of(
        "apply_rotary_emb",
        "interleaved-pairs",
        "Neighbouring channels (0, 1), (2, 3) … form the pairs. Here channel i goes with channel i + D/2.",
        ("x.chunk(2, dim=-1)", "x[..., ::2], x[..., 1::2]"),
        ("torch.cat((y1, y2), dim=-1)", "torch.stack((y1, y2), dim=-1).flatten(-2)"),
    ),
    _of(
        "apply_rotary_emb",
        "read-interleaved-written-in-halves",
        "Pairs are read as neighbours and written as halves.",
        ("x.chunk(2, dim=-1)", "x[..., ::2], x[..., 1::2]"),
    ),
    _of(
        "apply_rotary_emb",
        "read-in-halves-written-interleaved",
        "Pairs are read as halves and written as neighbours.",
        ("torch.cat((y1, y2), dim=-1)", "torch.stack((y1, y2), dim=-1).flatten(-2)"),
    ),
    _of(
        "apply_rotary_emb",
        "halves-exchanged",
        "The halves come back in the wrong order.",
        ("torch.cat((y1, y2), dim=-1)", "torch.cat((y2, y1), dim=-1)"),
    ),
    _of(
        "apply_rotary_emb",
        "second-half-not-turned",
        "The second half comes back as it was: a turn changes both numbers of a pair.",
        (_TURN_2, "y2 = x2"),
    ),
    _of(
        "apply_rotary_emb",
        "first-half-not-turned",
        "The first half comes back as it was: a turn changes both numbers of a pair.",
        (_TURN_1, "y1 = x1"),
    ),
    _of(
        "apply_rotary_emb",
        "sine-and-cosine-exchanged",
        "Sine and cosine are exchanged. At position 0 nothing may change.",
        (_TURN_1, "y1 = x1 * sin + x2 * cos"),
        (_TURN_2, "y2 = x2 * sin - x1 * cos"),
    ),
    _of(
        "apply_rotary_emb",
        "mirrored",
        "The second half has the opposite sign: pairs are mirrored, and a mirror does not add up as angles "
        "do.",
        (_TURN_2, "y2 = x1 * sin - x2 * cos"),
    ),
    _of(
        "apply_rotary_emb",
        "both-signs-minus",
        "Both halves subtract. Lengths change: one half adds and the other subtracts.",
        (_TURN_1, "y1 = x1 * cos - x2 * sin"),
    ),
    _of(
        "apply_rotary_emb",
        "both-signs-plus",
        "Both halves add. Lengths change: one half adds and the other subtracts.",
        (_TURN_2, "y2 = x2 * cos + x1 * sin"),
    ),
    _of(
        "apply_rotary_emb",
        "turned-half-used-again",
        "The second half is computed from the first half after its turn. Both need the old values.",
        (_TURN_2, "y2 = x2 * cos - y1 * sin"),
    ),
    _of(
        "apply_rotary_emb",
        "cosine-only",
        "Both halves are scaled by the cosine and nothing is exchanged between them.",
        (_TURN_1, "y1 = x1 * cos"),
        (_TURN_2, "y2 = x2 * cos"),
    ),
    _of(
        "apply_rotary_emb",
        "dtype-not-kept",
        "bfloat16 goes in and float32 comes out: the tables have widened it.",
        (".to(x.dtype)", ""),
    ),
    _of(
        "apply_rotary_emb",
        "not-turned",
        "x comes out as it went in.",
        ("torch.cat((y1, y2), dim=-1).to(x.dtype)", "x * 1.0"),
    ),
)


_ROTATE = "q, k = apply_rotary_emb(q, cos, sin), apply_rotary_emb(k, cos, sin)"
_QK_NORM = "q, k = norm(q), norm(k)"
_CAUSAL = "y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)"
_CHUNK = "mask = torch.ones(T, T_k, dtype=torch.bool, device=q.device).tril(diagonal=T_k - T)"
_BY_HAND = (
    "many = self.n_head // self.n_kv_head\n"
    "        k, v = k.repeat_interleave(many, 1), v.repeat_interleave(many, 1)\n"
    "        seen = torch.ones(T, T, dtype=torch.bool).tril()\n"
    "        scores = q @ k.mT * self.head_dim**-0.5\n        "
)
_HIDES_ITSELF = "A position does not see itself. At position 0 nothing is left to see."


def _attention(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("CausalSelfAttention.forward", name, says, edits)


ATTENTION = (
    _attention(
        "no-causal-mask",
        "Without a cache, every position sees the future: training loss would fall to nearly zero.",
        ("is_causal=True, ", ""),
    ),
    _attention(
        "no-mask-at-all",
        "Nothing is masked, with or without a cache: every position of a chunk sees the chunk's future.",
        ("is_causal=True, ", ""),
        ("attn_mask=mask, ", ""),
    ),
    _attention(
        "mask-one-too-far",
        "Every position sees the next one, which is the answer it has to predict.",
        (_CAUSAL, _CAUSAL.replace("is_causal=True", "attn_mask=torch.ones(T, T).tril(diagonal=1).bool()")),
        ("diagonal=T_k - T)", "diagonal=T_k - T + 1)"),
    ),
    _attention(
        "mask-one-too-far",
        "Without a cache, every position sees the next one, which is the answer it has to predict.",
        (_CAUSAL, _CAUSAL.replace("is_causal=True", "attn_mask=torch.ones(T, T).tril(diagonal=1).bool()")),
    ),
    _attention(
        "mask-hides-the-position-itself",
        _HIDES_ITSELF,
        (_CAUSAL, _CAUSAL.replace("is_causal=True", "attn_mask=torch.ones(T, T).tril(diagonal=-1).bool()")),
    ),
    _attention(
        "mask-hides-the-position-itself",
        _HIDES_ITSELF,
        (_CAUSAL, f"{_BY_HAND}y = scores.masked_fill(~seen.tril(-1), -torch.inf).softmax(dim=-1) @ v"),
    ),
    _attention(
        "mask-upside-down",
        "Positions see themselves and the future, and nothing of the past.",
        (_CAUSAL, _CAUSAL.replace("is_causal=True", "attn_mask=torch.ones(T, T).triu().bool()")),
    ),
    _attention(
        "softmax-over-the-queries",
        "The weights of a key sum to one over the queries. The weights of a query sum to one over the keys.",
        (_CAUSAL, f"{_BY_HAND}y = scores.masked_fill(~seen, -torch.inf).softmax(dim=-2) @ v"),
    ),
    _attention(
        "masked-after-the-softmax",
        "The mask comes after the softmax: weights no longer sum to one, and the future has used some up.",
        (_CAUSAL, f"{_BY_HAND}y = scores.softmax(dim=-1).masked_fill(~seen, 0.0) @ v"),
    ),
    _attention(
        "chunk-mask-from-the-left",
        "Against a cache, the first query of a chunk sees the first key only. It sees the whole past.",
        ("diagonal=T_k - T)", "diagonal=0)"),
    ),
    _attention(
        "causal-flag-against-a-cache",
        "The causal flag aligns queries and keys at the left. With a cache, the newest query sees every key.",
        ("if T_k == T:", "if True:"),
    ),
    _attention(
        "chunk-not-masked",
        "The positions of a chunk that continues a cache see each other's future.",
        ("attn_mask=mask, ", ""),
    ),
    _attention(
        "one-query-masked",
        "A single query against a cache sees the first key only.",
        (
            "y = F.scaled_dot_product_attention(q, k, v, enable_gqa=shared)",
            "y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=shared)",
        ),
    ),
    _attention(
        "cache-not-used",
        "The cache is never asked: a token that comes alone sees nothing but itself.",
        ("if kv_cache is not None:", "if False:"),
    ),
    _attention(
        "cache-written-never-read",
        "Keys and values are stored, and the past that the cache returns is thrown away.",
        ("k, v = kv_cache.insert_kv", "kv_cache.insert_kv"),
    ),
    _attention(
        "stored-under-layer-0",
        "Every layer stores its keys as layer 0.",
        ("insert_kv(self.layer_idx,", "insert_kv(0,"),
    ),
    _attention(
        "not-rotated", "Queries and keys are not rotated: the order of tokens is invisible.", (_ROTATE, "")
    ),
    _attention(
        "keys-not-rotated",
        "Queries are rotated and keys are not: scores depend on the query's place, not on the distance.",
        (_ROTATE, "q = apply_rotary_emb(q, cos, sin)"),
    ),
    _attention(
        "queries-not-rotated",
        "Keys are rotated and queries are not: scores depend on the key's place, not on the distance.",
        (_ROTATE, "k = apply_rotary_emb(k, cos, sin)"),
    ),
    _attention(
        "values-rotated-too",
        "Values are rotated as well. Only what is compared needs a place; what is carried does not.",
        (_ROTATE, f"{_ROTATE}\n    v = apply_rotary_emb(v, cos, sin)"),
    ),
    _attention(
        "sine-and-cosine-exchanged",
        "The pair of tables is unpacked in the wrong order.",
        ("cos, sin = cos_sin", "sin, cos = cos_sin"),
    ),
    _attention(
        "no-qk-norm", "Queries and keys are not normed: scores can grow without bound.", (_QK_NORM, "")
    ),
    _attention("only-queries-normed", "Queries are normed and keys are not.", (_QK_NORM, "q = norm(q)")),
    _attention("only-keys-normed", "Keys are normed and queries are not.", (_QK_NORM, "k = norm(k)")),
    _attention(
        "values-normed-too",
        "Values are normed as well: attention could no longer say how much.",
        (_QK_NORM, "q, k, v = norm(q), norm(k), norm(v)"),
    ),
    _attention(
        "key-heads-dealt-in-turn",
        "Query heads 0, 1, 2, 3 take key heads 0, 1, 0, 1. Neighbours share: 0, 0, 1, 1.",
        (
            "shared = self.n_head != self.n_kv_head",
            "many, shared = self.n_head // self.n_kv_head, False\n"
            "    k, v = k.repeat(1, many, 1, 1), v.repeat(1, many, 1, 1)",
        ),
    ),
    _attention(
        "first-key-head-for-all",
        "All query heads use key head 0; the others are never read.",
        (
            "shared = self.n_head != self.n_kv_head",
            "shared = False\n    k, v = (t[:, :1].expand(-1, self.n_head, -1, -1) for t in (k, v))",
        ),
    ),
    _attention(
        "key-heads-not-grouped",
        "Fewer key heads than query heads meet each other unexpanded: nobody says which queries share a key.",
        ("shared = self.n_head != self.n_kv_head", "shared = False"),
    ),
    _attention(
        "key-heads-not-grouped",
        "Fewer key heads than query heads meet each other unexpanded: nobody says which queries share a key.",
        (
            "shared = self.n_head != self.n_kv_head",
            "shared = False\n    if self.n_kv_head not in (1, self.n_head):\n        q @ k.mT",
        ),
    ),
    _attention(
        "not-scaled",
        "Scores are not divided by the root of the head size.",
        ("q, k, v = q.transpose(1, 2),", "q, k, v = q.transpose(1, 2) * self.head_dim**0.5,"),
    ),
    _attention(
        "scaled-twice",
        "Scores are divided by the head size, not by its root: two scalings, or a root forgotten.",
        ("q, k, v = q.transpose(1, 2),", "q, k, v = q.transpose(1, 2) * self.head_dim**-0.5,"),
    ),
    _attention(
        "scaled-by-the-width",
        "Scores are divided by the root of the model's width. A score sums over one head's channels.",
        ("q, k, v = q.transpose(1, 2),", "q, k, v = q.transpose(1, 2) * (self.head_dim / C) ** 0.5,"),
    ),
    _attention(
        "heads-not-moved-back",
        "Heads are flattened while they stand before positions: numbers land at other positions.",
        ("y.transpose(1, 2).reshape(B, T, C)", "y.reshape(B, T, C)"),
    ),
    _attention(
        "heads-cut-across-positions",
        "Channels are split with heads before positions: a head gets pieces of several positions. "
        "Split first, then move the axis.",
        ("view(B, T, self.n_head, self.head_dim)", "view(B, self.n_head, T, self.head_dim).transpose(1, 2)"),
        (
            "self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)",
            "self.c_k(x).view(B, self.n_kv_head, T, self.head_dim).transpose(1, 2)",
        ),
        (
            "self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)",
            "self.c_v(x).view(B, self.n_kv_head, T, self.head_dim).transpose(1, 2)",
        ),
    ),
    _attention(
        "output-not-mixed",
        "c_proj is not applied: what the heads found is laid side by side.",
        ("self.c_proj(y.transpose(1, 2).reshape(B, T, C))", "y.transpose(1, 2).reshape(B, T, C)"),
    ),
    _attention(
        "keys-taken-for-values", "Values come from c_k; c_v is never used.", ("self.c_v(x)", "self.c_k(x)")
    ),
    _attention(
        "queries-taken-for-keys",
        "Keys come from c_q; c_k is never used. Where heads are shared, the shapes do not even fit.",
        ("self.c_k(x)", "self.c_q(x)"),
    ),
    _attention(
        "keys-and-values-exchanged",
        "Keys and values change places before they meet the queries.",
        ("T_k = k.size(2)", "k, v = v, k\n    T_k = k.size(2)"),
    ),
    _attention(
        "adds-its-input",
        "Attention adds x to its output. The block does that.",
        ("return mixed", "return x + mixed"),
    ),
)


_BEND = "F.relu(self.c_fc(x)).square()"
_ADD_ATTENTION = "x = x + self.attn(norm(x), cos_sin, kv_cache)"
_ADD_MLP = "x = x + self.mlp(norm(x))"
_GELU = "The bend is a GELU, as in GPT-2. Here it is relu, then squared."


def _mlp(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("MLP.forward", name, says, edits)


def _block(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("Block.forward", name, says, edits)


MLP_AND_BLOCK = (
    _mlp(
        "relu-not-squared",
        "The bend is a plain relu; its square is missing.",
        (_BEND, "F.relu(self.c_fc(x))"),
    ),
    _mlp(
        "squared-before-relu",
        "Negative channels come through squared: a square has nothing negative left for relu to cut.",
        (_BEND, "F.relu(self.c_fc(x).square())"),
    ),
    _mlp("gelu", _GELU, (_BEND, "F.gelu(self.c_fc(x))")),
    _mlp("gelu", _GELU, (_BEND, 'F.gelu(self.c_fc(x), approximate="tanh")')),
    _mlp("gelu-squared", "A GELU is squared. Relu is meant.", (_BEND, "F.gelu(self.c_fc(x)).square()")),
    _mlp("silu", "The bend is a SiLU. Here it is relu, then squared.", (_BEND, "F.silu(self.c_fc(x))")),
    _mlp("no-bend", "There is no bend: two matrices in a row are one matrix.", (_BEND, "self.c_fc(x)")),
    _mlp("cubed", "The relu is cubed.", (_BEND, "F.relu(self.c_fc(x)) ** 3")),
    _mlp(
        "sign-kept",
        "Negative channels come through as negative squares. Relu cuts them to zero.",
        (_BEND, "self.c_fc(x) * self.c_fc(x).abs()"),
    ),
    _mlp(
        "bent-after-the-second-matrix",
        "The bend comes after c_proj: the output has nothing negative, and between the matrices nothing "
        "happens.",
        ("self.c_proj(F.relu(self.c_fc(x)).square())", "F.relu(self.c_proj(self.c_fc(x))).square()"),
    ),
    _mlp(
        "adds-its-input", "The MLP adds x to its output. The block does that.", ("return y", "return x + y")
    ),
    _mlp(
        "norms-its-input", "The MLP norms x. The block has done that.", ("self.c_fc(x)", "self.c_fc(norm(x))")
    ),
    _block(
        "attention-replaces-the-stream",
        "What attention returns replaces x. It is added to x.",
        (_ADD_ATTENTION, _ADD_ATTENTION.replace("x = x + ", "x = ")),
    ),
    _block(
        "mlp-replaces-the-stream",
        "What the MLP returns replaces x. It is added to x.",
        (_ADD_MLP, _ADD_MLP.replace("x = x + ", "x = ")),
    ),
    _block(
        "nothing-added",
        "Both parts replace x. Both add to it.",
        (_ADD_ATTENTION, _ADD_ATTENTION.replace("x = x + ", "x = ")),
        (_ADD_MLP, _ADD_MLP.replace("x = x + ", "x = ")),
    ),
    _block(
        "norm-after-the-sum",
        "The sum is normed and the inputs are not: that is the order of 2017. Here the stream stays "
        "unnormed.",
        (_ADD_ATTENTION, "x = norm(x + self.attn(x, cos_sin, kv_cache))"),
        (_ADD_MLP, "x = norm(x + self.mlp(x))"),
    ),
    _block(
        "norm-after-each-part",
        "Outputs are normed and inputs are not.",
        (_ADD_ATTENTION, "x = x + norm(self.attn(x, cos_sin, kv_cache))"),
        (_ADD_MLP, "x = x + norm(self.mlp(x))"),
    ),
    _block(
        "attention-not-normed", "Attention reads the stream unnormed.", ("self.attn(norm(x),", "self.attn(x,")
    ),
    _block("mlp-not-normed", "The MLP reads the stream unnormed.", ("self.mlp(norm(x))", "self.mlp(x)")),
    _block(
        "nothing-normed",
        "Both parts read the stream unnormed.",
        ("self.attn(norm(x),", "self.attn(x,"),
        ("self.mlp(norm(x))", "self.mlp(x)"),
    ),
    _block(
        "one-input-for-both",
        "The MLP reads what attention read. It should read the stream after attention has written to it.",
        (_ADD_ATTENTION, f"before = x\n    {_ADD_ATTENTION}"),
        ("self.mlp(norm(x))", "self.mlp(norm(before))"),
    ),
    _block(
        "adds-to-the-normed-stream",
        "The sum begins with norm(x). Only the copy that a part reads is normed.",
        (_ADD_ATTENTION, _ADD_ATTENTION.replace("x = x +", "x = norm(x) +")),
        (_ADD_MLP, _ADD_MLP.replace("x = x +", "x = norm(x) +")),
    ),
    _block(
        "mlp-first",
        "The MLP comes before attention.",
        (_ADD_ATTENTION, "x = x + self.mlp(norm(x)) "),
        (f"    {_ADD_MLP}\n", f"    {_ADD_ATTENTION}\n"),
    ),
    _block("attention-forgotten", "Attention is not called.", (_ADD_ATTENTION, "")),
    _block("mlp-forgotten", "The MLP is not called.", (_ADD_MLP, "")),
    _block(
        "cache-not-handed-on",
        "The cache does not reach attention: a token that comes alone sees nothing but itself.",
        ("cos_sin, kv_cache)\n", "cos_sin)\n"),
    ),
)


_LOSS = "return softcapped_cross_entropy(x.flatten(0, 1), weight, flat_targets, SOFTCAP, loss_reduction)"
_LOGITS = "return SOFTCAP * torch.tanh(logits / SOFTCAP)"
_RAW = "self.lm_head(x).float().flatten(0, 1)"
_PLAIN = "flat_targets, ignore_index=-1, reduction=loss_reduction)"


def _forward(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("GPT.forward", name, says, edits)


FORWARD = (
    _forward(
        "no-norm-after-the-embedding",
        "The embedded tokens enter the stream unnormed.",
        ("norm(self.transformer.wte(idx))", "self.transformer.wte(idx)"),
    ),
    _forward(
        "no-final-norm",
        "The stream reaches the head unnormed.",
        ("x = norm(x)\n", "x = x\n"),
    ),
    _forward(
        "no-softcap",
        "Scores are not bounded, neither the logits nor those behind the loss.",
        (_LOGITS, "return logits"),
        (_LOSS, f"return F.cross_entropy({_RAW}, {_PLAIN}"),
    ),
    _forward(
        "logits-not-capped",
        "The loss sees bounded scores, the logits are not bounded.",
        (_LOGITS, "return logits"),
    ),
    _forward(
        "loss-not-capped",
        "Logits are bounded and the loss is computed from unbounded ones: the cap has to come before the "
        "loss.",
        (_LOSS, f"return F.cross_entropy({_RAW}, {_PLAIN}"),
    ),
    _forward(
        "softcap-on-the-loss",
        "The bound is put on the loss. It belongs on the scores from which the loss is computed.",
        (_LOGITS, "return logits"),
        (_LOSS, f"return SOFTCAP * torch.tanh(F.cross_entropy({_RAW}, {_PLAIN} / SOFTCAP)"),
    ),
    _forward(
        "softcap-on-the-loss",
        "The bound is put on the loss. It belongs on the scores from which the loss is computed.",
        (_LOSS, f"return SOFTCAP * torch.tanh(F.cross_entropy({_RAW}, {_PLAIN} / SOFTCAP)"),
    ),
    _forward(
        "softcap-of-30",
        "Scores reach up to 30; they should stay below 15.",
        ("flat_targets, SOFTCAP, loss", "flat_targets, 30.0, loss"),
        (_LOGITS, "return 30.0 * torch.tanh(logits / 30.0)"),
    ),
    _forward(
        "cap-not-scaled-back",
        "Scores end between -1 and 1: after the tanh they have to be multiplied again.",
        (_LOGITS, "return torch.tanh(logits / SOFTCAP)"),
        (_LOSS, f"return F.cross_entropy(torch.tanh({_RAW} / SOFTCAP), {_PLAIN}"),
    ),
    _forward(
        "cap-not-scaled-back",
        "Logits end between -1 and 1: after the tanh they have to be multiplied again.",
        (_LOGITS, "return torch.tanh(logits / SOFTCAP)"),
    ),
    _forward(
        "cap-not-scaled-down",
        "Scores enter the tanh undivided, so that nearly all of them end at ±15.",
        (_LOGITS, "return SOFTCAP * torch.tanh(logits)"),
        (_LOSS, f"return F.cross_entropy(SOFTCAP * torch.tanh({_RAW}), {_PLAIN}"),
    ),
    _forward(
        "ignored-targets-in-the-mean",
        "The sum is right and is divided by all positions, those with target -1 included.",
        (
            _LOSS,
            "total = softcapped_cross_entropy(x.flatten(0, 1), weight, flat_targets, SOFTCAP, "
            '"sum" if loss_reduction == "mean" else loss_reduction)\n'
            '        return total / targets.numel() if loss_reduction == "mean" else total',
        ),
    ),
    _forward(
        "minus-one-taken-for-token-0",
        "Where the target is -1, token 0 is asked for. Nothing is asked there.",
        ("targets.flatten()", "targets.flatten().clamp(min=0)"),
    ),
    _forward(
        "minus-one-taken-for-the-last-token",
        "Where the target is -1, the last token of the vocabulary is asked for. Nothing is asked there.",
        ("targets.flatten()", "targets.flatten() % self.config.vocab_size"),
    ),
    _forward(
        "minus-one-not-ignored",
        "The loss does not know that -1 means: nothing is asked here.",
        (
            _LOSS,
            f"return F.cross_entropy(15 * torch.tanh({_RAW} / 15), flat_targets, reduction=loss_reduction)",
        ),
    ),
    _forward(
        "reduction-ignored",
        "The loss is the mean, whatever loss_reduction says.",
        ("SOFTCAP, loss_reduction)", 'SOFTCAP, "mean")'),
    ),
    _forward(
        "always-summed",
        "The loss is the sum, whatever loss_reduction says: it would grow with the batch.",
        ("SOFTCAP, loss_reduction)", 'SOFTCAP, "sum")'),
    ),
    _forward(
        "summed-by-default",
        "Without being asked, the loss is the sum: it would grow with the batch.",
        ('loss_reduction: str = "mean"', 'loss_reduction: str = "sum"'),
    ),
    _forward(
        "loss-in-bits",
        "The loss is in bits, divided by ln 2. It should be in nats.",
        (_LOSS, f"{_LOSS} / 0.6931471805599453"),
    ),
    _forward(
        "targets-shifted-again",
        "The loss compares each position with the target of the next. The loader has shifted them already.",
        ("targets.flatten()", "targets[:, 1:].flatten()"),
        ("(x.flatten(0, 1), weight", "(x[:, :-1].flatten(0, 1), weight"),
    ),
    _forward(
        "table-offset-ignored",
        "With a cache, positions count from 0 again: the new tokens are rotated as if they were the first.",
        ("start = 0 if kv_cache is None else kv_cache.get_pos()", "start = 0"),
    ),
    _forward(
        "tables-not-cut",
        "The blocks get the whole tables. They need the rows of these positions.",
        ("self.cos[:, start:end], self.sin[:, start:end]", "self.cos, self.sin"),
    ),
    _forward(
        "cache-not-handed-on",
        "The cache does not reach the blocks.",
        ("block(x, cos_sin, kv_cache)", "block(x, cos_sin)"),
    ),
    _forward(
        "what-blocks-return-is-dropped",
        "The blocks are run and what they return is not kept.",
        ("x = block(", "block("),
    ),
    _forward(
        "last-block-skipped",
        "The last block is not run.",
        ("in self.transformer.h:", "in self.transformer.h[:-1]:"),
    ),
    _forward(
        "first-block-repeated",
        "Block 0 runs in the place of every block.",
        ("in self.transformer.h:", "in [self.transformer.h[0]] * len(self.transformer.h):"),
    ),
    _forward(
        "norm-after-every-block",
        "The stream is normed after each block. It is normed once, before the head.",
        ("x = block(x, cos_sin, kv_cache)", "x = norm(block(x, cos_sin, kv_cache))"),
    ),
    _forward(
        "last-position-only",
        "Only the last position gets logits. Every position predicts.",
        ("x[:, -1:] if last_only else x", "x[:, -1:]"),
    ),
    _forward(
        "last_only-ignored",
        "last_only has no effect: every position's scores are computed where only the last one's were "
        "wanted.",
        ("x[:, -1:] if last_only else x", "x"),
    ),
    _forward(
        "last_only-takes-the-first",
        "last_only gives the first position's scores.",
        ("x[:, -1:] if last_only else x", "x[:, :1] if last_only else x"),
    ),
    _forward(
        "last_only-drops-an-axis",
        "With last_only, the axis of positions is gone. One position is left on it.",
        (_LOGITS, f"{_LOGITS}[:, -1] if last_only else {_LOGITS[7:]}"),
    ),
    _forward(
        "logits-in-bfloat16",
        "Logits keep the dtype of the weights. A softmax over V numbers wants float32.",
        ("else x).float()", "else x)"),
    ),
    _forward(
        "embedding-used-as-head",
        "Scores come from the embedding's matrix; lm_head is never used.",
        ("self.lm_head.weight, targets", "self.transformer.wte.weight, targets"),
        (
            "self.lm_head(x[:, -1:] if last_only else x)",
            "F.linear(x[:, -1:] if last_only else x, self.transformer.wte.weight)",
        ),
    ),
    _forward(
        "past-the-tables-not-refused",
        "Past the end of the tables an error about shapes comes from deep inside. Say at the door what is "
        "wrong.",
        ("if end > self.cos.size(1):", "if False:"),
    ),
    _forward(
        "refused-one-too-early",
        "The last position that the tables have is refused.",
        ("if end > self.cos.size(1):", "if end >= self.cos.size(1):"),
    ),
)


_HEAD_GROUP = '{"params": [self.lm_head.weight], "lr": unembedding_lr * width_scale},'
_EMBEDDING_GROUP = '{"params": [self.transformer.wte.weight], "lr": embedding_lr * width_scale},'
_MATRICES = "list(self.transformer.h.parameters())"


def _optimizers(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("GPT.setup_optimizers", name, says, edits)


def _flops(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("GPT.estimate_flops", name, says, edits)


OPTIMIZATION = (
    _optimizers(
        "width-scale-upside-down",
        "A narrow model gets smaller rates. The factor is above 1 below width 768.",
        ("768) ** -0.5", "768) ** 0.5"),
    ),
    _optimizers(
        "not-scaled-to-the-width",
        "The rates do not depend on the width.",
        ("768) ** -0.5", "768) ** 0.0"),
    ),
    _optimizers(
        "width-scale-without-root",
        "The factor is 768 / width. Its root is meant.",
        ("768) ** -0.5", "768) ** -1.0"),
    ),
    _optimizers(
        "muon-scaled-too",
        "Muon's rate is scaled to the width. Its steps have a size of their own, whatever the width.",
        ("lr=matrix_lr,", "lr=matrix_lr * width_scale,"),
    ),
    _optimizers(
        "only-the-head-scaled",
        "The head's rate is scaled to the width, the embedding's is not.",
        ("embedding_lr * width_scale},\n        ],", "embedding_lr},\n        ],"),
    ),
    _optimizers(
        "only-the-embedding-scaled",
        "The embedding's rate is scaled to the width, the head's is not.",
        ("unembedding_lr * width_scale", "unembedding_lr"),
    ),
    _optimizers(
        "rates-exchanged",
        "The head learns at the embedding's rate and the embedding at the head's.",
        ('"lr": unembedding_lr', '"lr": EXCHANGED'),
        ('"lr": embedding_lr', '"lr": unembedding_lr'),
        ('"lr": EXCHANGED', '"lr": embedding_lr'),
    ),
    _optimizers(
        "embedding-given-to-muon",
        "Muon has the embedding. To orthogonalize a table of rows that are looked up one by one makes no "
        "sense.",
        (_EMBEDDING_GROUP, ""),
        (_MATRICES, f"{_MATRICES} + [self.transformer.wte.weight]"),
    ),
    _optimizers(
        "head-given-to-muon",
        "Muon has the head. AdamW trains it, with a rate of its own.",
        (_HEAD_GROUP, ""),
        (_MATRICES, f"{_MATRICES} + [self.lm_head.weight]"),
    ),
    _optimizers(
        "everything-given-to-muon-as-well",
        "Muon has every parameter, and AdamW two of them again: these would be moved twice.",
        (_MATRICES, "list(self.parameters())"),
    ),
    _optimizers("head-forgotten", "No optimizer has the head: it stays at zero.", (_HEAD_GROUP, "")),
    _optimizers("embedding-forgotten", "No optimizer has the embedding.", (_EMBEDDING_GROUP, "")),
    _optimizers(
        "last-block-forgotten",
        "The last block's matrices are in no optimizer.",
        (_MATRICES, "list(self.transformer.h[:-1].parameters())"),
    ),
    _optimizers(
        "matrices-given-to-adamw",
        "The blocks' matrices are trained by AdamW.",
        (
            f"Muon({_MATRICES}, lr=matrix_lr, momentum=0.95)",
            f"torch.optim.AdamW({_MATRICES}, lr=matrix_lr, betas=(0.8, 0.95), eps=1e-10, "
            "weight_decay=weight_decay)",
        ),
    ),
    _optimizers(
        "initial_lr-missing",
        "No group has an initial_lr: the schedule has nothing to multiply.",
        ('group["initial_lr"] = group["lr"]', "pass"),
    ),
    _optimizers(
        "initial_lr-for-adamw-only",
        "AdamW's groups have an initial_lr, Muon's has none.",
        ("for optimizer in optimizers:", "for optimizer in optimizers[:1]:"),
    ),
    _optimizers(
        "initial_lr-before-scaling",
        "initial_lr is the rate before it was scaled to the width: the first schedule step undoes the "
        "scaling.",
        (
            'group["initial_lr"] = group["lr"]',
            'group["initial_lr"] = group["lr"] / (width_scale if optimizer is adamw else 1.0)',
        ),
    ),
    _optimizers(
        "weight-decay-ignored",
        "The argument weight_decay has no effect.",
        ("weight_decay=weight_decay,", "weight_decay=0.0,"),
    ),
    _optimizers(
        "weight-decay-left-to-pytorch",
        "weight_decay is not handed on, and PyTorch's AdamW then takes 0.01.",
        ("weight_decay=weight_decay,", ""),
    ),
    _optimizers(
        "weight-decay-by-default",
        "Without being asked, weights decay. The default is 0.",
        ("weight_decay: float = 0.0", "weight_decay: float = 0.1"),
    ),
    _optimizers(
        "betas-left-to-pytorch", "AdamW has PyTorch's betas (0.9, 0.999).", ("betas=(0.8, 0.95),", "")
    ),
    _optimizers("eps-left-to-pytorch", "AdamW has PyTorch's eps of 1e-8.", ("eps=1e-10,", "")),
    _optimizers(
        "adam-for-adamw",
        "Adam mixes weight decay into the gradient. AdamW keeps the two apart.",
        ("torch.optim.AdamW(", "torch.optim.Adam("),
    ),
    _optimizers(
        "order-exchanged",
        "Muon comes first. The training loop expects AdamW, then Muon.",
        ("= [adamw, muon]", "= [muon, adamw]"),
    ),
    _optimizers(
        "momentum-of-0.9", "Muon's momentum is 0.9; it should be 0.95.", ("momentum=0.95", "momentum=0.9")
    ),
    _optimizers(
        "no-nesterov",
        "Muon does not look ahead along its momentum.",
        ("momentum=0.95)", "momentum=0.95, nesterov=False)"),
    ),
    _optimizers(
        "matrix-rate-ignored", "The argument matrix_lr has no effect.", ("lr=matrix_lr,", "lr=0.02,")
    ),
    _optimizers(
        "adamw-rates-ignored",
        "The arguments unembedding_lr and embedding_lr have no effect.",
        ("unembedding_lr * width_scale", "0.004 * width_scale"),
        ('"lr": embedding_lr * width_scale', '"lr": 0.2 * width_scale'),
    ),
    _of(
        "GPT.get_device",
        "device-guessed",
        "The answer is the machine's best device. The model may be elsewhere: ask its weights.",
        (
            "return self.transformer.wte.weight.device",
            'return torch.device("cuda" if torch.cuda.is_available() else "cpu")',
        ),
    ),
    _of(
        "GPT.get_device",
        "device-as-text",
        "The answer is the name of a device. Callers look at its type.",
        ("weight.device", "weight.device.type"),
    ),
    _of(
        "GPT.get_device",
        "tensor-returned",
        "The answer is a tensor of weights, not the place where it lives.",
        ("weight.device", "weight"),
    ),
    _of(
        "GPT.get_device",
        "dtype-returned",
        "The answer is the weights' dtype.",
        ("weight.device", "weight.dtype"),
    ),
    _of("GPT.get_device", "nothing-returned", "The function returns None.", ("return self", "self")),
    _flops(
        "attention-not-counted",
        "The products of queries with keys, and of their weights with values, are missing.",
        (" + 12 * config.n_layer * config.n_embd * config.sequence_len", ""),
    ),
    _flops(
        "embedding-counted",
        "The embedding's weights are counted. A lookup multiplies nothing.",
        (" - self.transformer.wte.weight.numel()", ""),
    ),
    _flops(
        "head-not-counted-either",
        "The head's weights are left out. The head is a matrix product like any other.",
        ("wte.weight.numel()", "wte.weight.numel() - self.lm_head.weight.numel()"),
    ),
    _flops(
        "two-per-weight",
        "Weights count twice: that is the forward pass alone. Backward costs twice as much again.",
        ("6 * weights", "2 * weights"),
    ),
    _flops(
        "forward-only",
        "Only the forward pass is counted, for weights and attention.",
        ("6 * weights + 12 *", "2 * weights + 4 *"),
    ),
    _flops("attention-halved", "Attention is counted half: 12 LCT counts the full square.", ("12 *", "6 *")),
    _flops(
        "per-sequence",
        "The count is for a sequence. It should be for one token.",
        (
            "return 6 * weights + 12 * config.n_layer * config.n_embd * config.sequence_len",
            "return (6 * weights + 12 * config.n_layer * config.n_embd * config.sequence_len)"
            " * config.sequence_len",
        ),
    ),
    _flops(
        "attention-per-sequence",
        "Attention is counted for a whole sequence, T². One token meets T others.",
        ("* config.sequence_len", "* config.sequence_len**2"),
    ),
    _flops("one-layer-of-attention", "Attention is counted for one layer.", ("config.n_layer * ", "")),
    _flops(
        "one-head-of-attention",
        "Attention is counted for one head.",
        ("12 * config.n_layer * config.n_embd", "12 * config.n_layer * config.head_dim"),
    ),
    _flops(
        "key-heads-for-query-heads",
        "Attention is counted for the key heads. Sharing a key saves memory, and no multiplication.",
        (
            "12 * config.n_layer * config.n_embd",
            "12 * config.n_layer * config.n_kv_head * config.head_dim",
        ),
    ),
)


_CHOOSE = "sample_next(logits, [rng], temperature, top_k)"
_RNG = "rng = random.Random(seed)"
_LOOP = "for _ in range(max_tokens):"


def _generate(name: str, says: str, *edits: tuple[str, str]) -> Mistake:
    return Mistake("GPT.generate", name, says, edits)


GENERATION = (
    _generate(
        "temperature-ignored",
        "Any temperature above 0 gives the same distribution.",
        (
            _CHOOSE,
            ("sample_next(logits, [rng], min(temperature, 1.0) and temperature / abs(temperature), top_k)"),
        ),
    ),
    _generate(
        "temperature-ignored",
        "The temperature has no effect at all, not even 0.",
        (_CHOOSE, "sample_next(logits, [rng], 1.0, top_k)"),
    ),
    _generate(
        "temperature-multiplies",
        "A higher temperature makes the likeliest token likelier: scores are multiplied by it.",
        (_CHOOSE, "sample_next(logits * (temperature**2 or 1.0), [rng], temperature, top_k)"),
    ),
    _generate(
        "always-the-likeliest",
        "The likeliest token is taken at every temperature: nothing is drawn.",
        (_CHOOSE, "sample_next(logits, [rng], min(temperature, 0.0), top_k)"),
    ),
    _generate(
        "zero-temperature-divides",
        "At temperature 0 scores are divided by zero. 0 stands for: take the likeliest.",
        (
            f"next_id = {_CHOOSE}",
            "if temperature == 0:\n            F.softmax(logits / temperature, dim=-1).multinomial(1)\n"
            f"        next_id = {_CHOOSE}",
        ),
    ),
    _generate(
        "negative-temperature-accepted",
        "A negative temperature is accepted; it would prefer the unlikeliest tokens.",
        (_CHOOSE, "sample_next(logits, [rng], abs(temperature), top_k)"),
    ),
    _generate(
        "top_k-one-too-many",
        "top_k keeps one token too many: compare with the score of the k-th, and count from 0.",
        (_CHOOSE, "sample_next(logits, [rng], temperature, top_k and top_k + 1)"),
    ),
    _generate(
        "top_k-one-too-few",
        "top_k keeps one token too few: the k-th is allowed.",
        (_CHOOSE, "sample_next(logits, [rng], temperature, top_k and max(top_k - 1, 1))"),
    ),
    _generate(
        "top_k-ignored",
        "top_k has no effect.",
        (_CHOOSE, "sample_next(logits, [rng], temperature, None if top_k else top_k)"),
    ),
    _generate(
        "top_k-of-0-accepted",
        "top_k of 0 is accepted, which leaves no token to choose.",
        (_CHOOSE, "sample_next(logits, [rng], temperature, top_k or None)"),
    ),
    _generate(
        "seed-ignored",
        "The same seed gives another text each time.",
        (_RNG, "rng = random.Random()"),
    ),
    _generate(
        "seed-has-no-effect",
        "Every seed gives the same text.",
        (_RNG, _RNG.replace("(seed)", "(42)")),
    ),
    _generate(
        "seeds-torch-itself",
        "The seed is given to torch's global generator: sampling during training would change the training.",
        (_RNG, f"torch.manual_seed(seed)\n    {_RNG}"),
    ),
    _generate(
        "draws-from-torchs-own-state",
        "Tokens are drawn from torch's global generator: no seed repeats a text, and training is disturbed.",
        (_RNG, "rng = random.Random(int(torch.randint(2**31, (1,))))"),
    ),
    _generate(
        "seeds-python-itself",
        "The seed is given to Python's global generator: whoever else draws from it gets other numbers.",
        (_RNG, "random.seed(seed)\n    rng = random"),
    ),
    _generate(
        "draws-from-pythons-own-state",
        "Tokens are drawn from Python's global generator: no seed repeats a text.",
        (_RNG, "rng = random"),
    ),
    _generate(
        "seeded-for-every-token",
        "The generator is seeded again for each token, so that the same random number comes each time.",
        (_LOOP, f"{_LOOP}\n        rng.seed(seed)"),
    ),
    _generate(
        "prompt-yielded-too",
        "The prompt is yielded before the new tokens. The caller has it already.",
        (_LOOP, f"yield from tokens\n    {_LOOP}"),
    ),
    _generate(
        "only-the-last-token-fed",
        "The model sees the newest token alone. Without a cache it has to see the whole sequence.",
        ("self.forward(ids,", "self.forward(ids[:, -1:],"),
    ),
    _generate(
        "first-position-read",
        "The next token is chosen by the first position's scores.",
        ("self.forward(ids, last_only=True)[:, -1]", "self.forward(ids)[:, 0]"),
    ),
    _generate(
        "new-token-not-appended",
        "The new token is not added to the sequence: the same question is asked each time.",
        ("ids = torch.cat((ids, next_id), dim=1)\n", "\n"),
    ),
    _generate(
        "new-token-put-in-front",
        "The new token is put in front of the sequence.",
        ("torch.cat((ids, next_id), dim=1)", "torch.cat((next_id, ids), dim=1)"),
    ),
    _generate(
        "one-token-too-many",
        "There is one token more than max_tokens.",
        ("range(max_tokens)", "range(max_tokens + 1)"),
    ),
    _generate(
        "one-token-too-few",
        "There is one token less than max_tokens.",
        ("range(max_tokens)", "range(max_tokens - 1)"),
    ),
    _generate(
        "tensors-yielded",
        "Tensors are yielded. A tokenizer decodes integers.",
        ("yield int(next_id.item())", "yield next_id"),
    ),
    _generate(
        "empty-prompt-accepted",
        "An empty prompt fails somewhere inside. Say at the door that it needs a token to begin with.",
        ("if not tokens:", "if False:"),
    ),
)


MISTAKES = (
    *CONSTRUCTION,
    *INITIALIZATION,
    *NORM_AND_ROTATION,
    *ATTENTION,
    *MLP_AND_BLOCK,
    *FORWARD,
    *OPTIMIZATION,
    *GENERATION,
)


def mistakes_of(step_id: str) -> tuple[Mistake, ...]:
    """The known mistakes of one step."""
    return tuple(mistake for mistake in MISTAKES if mistake.step == step_id)


@dataclass(frozen=True)
class Variant:
    """Another right way to write a step. `fits` sees a function's names in order of evaluation."""

    step: str
    name: str
    remark: str
    fits: Callable[[list[str]], bool]


VARIANTS = (
    Variant(
        "norm",
        "norm-by-hand",
        "Written out by hand it is the same division by the root mean square; F.rms_norm does it in one "
        "kernel.",
        lambda words: "rms_norm" not in words and "RMSNorm" not in words,
    ),
    Variant(
        "apply_rotary_emb",
        "complex-numbers",
        "A pair is a complex number and a turn is a product with one of length 1: the same four products.",
        lambda words: bool({"complex", "view_as_complex", "polar"} & set(words)),
    ),
    Variant(
        "apply_rotary_emb",
        "rotate-half",
        "x·cos plus an exchanged, sign-changed copy of x times sin is the same sum, in whole heads at a "
        "time.",
        lambda words: "roll" in words or words.count("cat") > 1,
    ),
    Variant(
        "CausalSelfAttention.forward",
        "norm-before-rotation",
        "A rotation keeps lengths, so norm before it and norm after it are the same up to rounding.",
        lambda words: _comes_before("norm", "apply_rotary_emb", words),
    ),
    Variant(
        "CausalSelfAttention.forward",
        "attention-by-softmax",
        "Softmax of scaled, masked scores is what the fused attention computes; written out, it holds all "
        "T x T scores in memory.",
        lambda words: "softmax" in words and "scaled_dot_product_attention" not in words,
    ),
    Variant(
        "CausalSelfAttention.forward",
        "key-heads-repeated",
        "Repeating each key head for its group is the same as sharing it; it copies what enable_gqa only "
        "reads.",
        lambda words: "repeat_interleave" in words,
    ),
    Variant(
        "MLP.forward",
        "square-by-hand",
        "A product with itself or a power of two is a square.",
        lambda words: "square" not in words,
    ),
    Variant(
        "GPT.forward",
        "loss-on-all-logits",
        "Cross-entropy on all logits is the same number; in chunks it needs an eighth of the memory or less.",
        lambda words: "cross_entropy" in words,
    ),
    Variant(
        "GPT._precompute_rotary_embeddings",
        "another-outer-product",
        "Broadcasting, einsum and outer give the same table of angles.",
        lambda words: "outer" not in words,
    ),
    Variant(
        "GPT._init_weights",
        "noise-by-hand",
        "Other random numbers with the same centre, spread and tails are as good: no single draw is right.",
        lambda words: "init" not in words,
    ),
    Variant(
        "GPT.init_weights",
        "walk-by-hand",
        "Walking over modules() visits what apply visits, in another order: other numbers, same "
        "distribution.",
        lambda words: "apply" not in words,
    ),
    Variant(
        "GPT.get_device",
        "another-weight-asked",
        "All weights of a model live together, so any of them can be asked.",
        lambda words: "wte" not in words,
    ),
    Variant(
        "GPT.estimate_flops",
        "counted-from-the-configuration",
        "The configuration fixes every shape, so counting by formula and counting weights agree.",
        lambda words: "parameters" not in words,
    ),
    Variant(
        "GPT.generate",
        "sampler-by-hand",
        "Another way to draw from the same distribution gives other tokens, as likely.",
        lambda words: "sample_next" not in words,
    ),
    Variant(
        "GPT.generate",
        "gradients-recorded",
        "The tokens are the same; without inference_mode or no_grad, PyTorch keeps notes for a backward "
        "pass.",
        lambda words: not {"inference_mode", "no_grad"} & set(words),
    ),
)


def recognize_variant(step_id: str, node: Function) -> str | None:
    """What to say about a right function that is written in another way than the book's, if anything."""
    words = list(_words(node))
    remarks = [v.remark for v in VARIANTS if v.step == step_id and v.fits(words)]
    return " ".join(remarks) or None


def _words(node: ast.AST) -> list[str]:
    """Names in the order of evaluation: a call's arguments come before its function."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        children = [*node.args, *node.keywords, node.func]
    words = [word for child in children for word in _words(child)]
    if isinstance(node, ast.Name):
        words.append(node.id)
    elif isinstance(node, ast.Attribute):
        words.append(node.attr)
    return words


def _comes_before(first: str, second: str, words: list[str]) -> bool:
    return first in words and second in words and words.index(first) < words.index(second)

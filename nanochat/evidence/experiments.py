"""The twelve experiments, as data. Imports no PyTorch, so that looking at records is quick."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nanochat.common import UserError, nearest
from nanochat.evidence.settings import Setting, enlarged

BOOK = "the book's"
BPB = "bits per byte"


@dataclass(frozen=True)
class Finding:
    """A comparison: a quantity of the best of some variations, against another's, seed by seed."""

    about: str
    of: tuple[str, ...]
    claimed: Literal["more", "less", "same", ""]
    quantity: str = BPB
    against: str = BOOK  # "": nothing is taken off, the quantity itself is compared with `null`
    ratio: bool = False  # divide instead of subtracting
    null: float | None = None  # what no effect would be (None: 1 for ratios, else 0)

    def nothing(self) -> float:
        """The value that means no effect."""
        return float(self.ratio) if self.null is None else self.null

    def kind(self) -> str:
        """A "factor" (1 means no effect), a "difference", or a "value" that is compared with `null`."""
        if self.nothing() == 1.0:
            return "factor"
        return "difference" if self.against else "value"


@dataclass(frozen=True)
class Experiment:
    """A question, what is run to answer it, and what was expected."""

    name: str
    question: str
    answer: str  # chapter#heading
    claim: str
    reconsider: str  # what would change our mind
    variations: dict[str, dict[str, Any]]  # changes to Setting; the first is the book's choice
    findings: tuple[Finding, ...]
    decisive: tuple[int, ...] = (1,)  # the findings, counted from 1, that the page of all twelve shows
    procedures: tuple[str, ...] = ("train",)  # for each variation and seed
    together: tuple[str, ...] = ()  # for all variations in turns, for each seed
    base: dict[str, Any] = field(default_factory=dict)  # changes common to all
    derived: str = ""  # a function in report.py that makes numbers of several trials
    columns: tuple[str, ...] = (BPB,)  # what the table shows
    curve: str = "loss"  # what the picture shows
    seeds: int = 3

    def settings(self, large: bool) -> dict[str, Setting]:
        """Each variation's setting, at the small size or the GPU's."""
        small = {name: Setting(**(self.base | changes)) for name, changes in self.variations.items()}
        return {name: enlarged(setting) if large else setting for name, setting in small.items()}

    def configuration(self, large: bool) -> dict[str, Any]:
        """All that decides the numbers, and no sentence: what a record is compared with."""
        return {
            "settings": {name: asdict(setting) for name, setting in self.settings(large).items()},
            "procedures": list(self.procedures),
            "together": list(self.together),
            "derived": self.derived,
        }


def slug(text: str) -> str:
    """A name for a key: "relu, 4C" becomes "relu-4c"."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower().replace("²", "2")).strip("-")


TIED_HEAD = Experiment(
    name="tied-head",
    question="Why untie embedding and lm_head weights?",
    answer="10-the-parts-of-a-gpt.md#why-untie-embedding-and-lm_head-weights",
    claim="One matrix for both jobs ends at a higher loss than two, whichever job its start and rate are "
    "made for.",
    reconsider="A tied model that ends lower at the same number of tokens, or as low once its saved "
    "weights are spent on width or depth.",
    variations={
        BOOK: {},
        "tied, made for the embedding": {"tied": True},
        "tied, made for the head": {"tied": True, "tied_std": 0.02, "embedding_lr": 0.004},
        "tied, in between": {"tied": True, "tied_std": 0.1, "embedding_lr": 0.03},
    },
    findings=(
        Finding(
            "loss with one matrix, the best of three starts and rates",
            ("tied, made for the embedding", "tied, made for the head", "tied, in between"),
            "more",
        ),
        Finding("loss with one matrix, made for the embedding", ("tied, made for the embedding",), "more"),
        Finding("loss with one matrix, made for the head", ("tied, made for the head",), "more"),
    ),
    columns=(BPB, "parameters", "largest logit"),
)

SHARED_HEADS = Experiment(
    name="shared-heads",
    question="What's the advantage of Multi-Query Attention?",
    answer="10-the-parts-of-a-gpt.md#whats-the-advantage-of-multi-query-attention",
    claim="Fewer key-value heads shrink the cache in proportion and make decoding faster, and cost some "
    "loss.",
    reconsider="Decoding that is no faster although the cache is smaller, or a loss that does not rise "
    "at larger sizes.",
    variations={BOOK: {}, "1 of 3": {"n_kv_head": 1}},
    findings=(
        Finding("loss with one key-value head for three", ("1 of 3",), "more"),
        Finding(
            "time of a decoded token with one for three",
            ("1 of 3",),
            "less",
            quantity="decoding, ms",
            ratio=True,
        ),
        Finding(
            "bytes of the cache with one for three", ("1 of 3",), "less", quantity="cache, MB", ratio=True
        ),
    ),
    decisive=(1, 3, 2),
    together=("measure decoding",),
    columns=(BPB, "parameters", "cache, MB", "decoding, ms"),
)

ACTIVATION = Experiment(
    name="activation",
    question="Why use relu^2 instead of regular relu or GELU?",
    answer="30-the-forward-pass.md#why-use-relu2-instead-of-regular-relu-or-gelu",
    claim="At equal weights and tokens relu² ends lower than relu and GELU, for less time than GELU, "
    "with most hidden numbers zero.",
    reconsider="relu or GELU at the same or a lower loss at equal time, at any size.",
    variations={
        BOOK: {},
        "relu": {"activation": "relu"},
        "GELU": {"activation": "gelu"},
        "SwiGLU, 8C/3": {"activation": "swiglu"},
        "a tenth more steps": {"steps": 440},
    },
    findings=(
        Finding("loss with relu instead", ("relu",), "more"),
        Finding("loss with GELU instead", ("GELU",), "more"),
        Finding("loss with SwiGLU at equal weights", ("SwiGLU, 8C/3",), "same"),
        Finding("time of a step with GELU", ("GELU",), "more", quantity="step, ms", ratio=True),
        Finding("time of a step with SwiGLU", ("SwiGLU, 8C/3",), "more", quantity="step, ms", ratio=True),
        Finding("loss of the book's model after a tenth more steps", ("a tenth more steps",), "less"),
        Finding(
            "share of zeros with relu², minus relu's", (BOOK,), "more", "zeros in the MLP", against="relu"
        ),
    ),
    decisive=(1, 2, 3),
    together=("measure a step",),
    columns=(BPB, "parameters", "step, ms", "zeros in the MLP"),
)

QK_NORM = Experiment(
    name="qk-norm",
    question="What does QK normalization prevent?",
    answer="30-the-forward-pass.md#what-does-qk-normalization-prevent",
    claim="Without QK norm attention scores grow with the learning rate, and with them the loss; with it "
    "they are bounded by the root of the head size.",
    reconsider="Scores that stay bounded without the norm at high rates, or a loss that does not suffer "
    "from large scores.",
    variations={
        BOOK: {},
        "without": {"qk_norm": False},
        "rate ×16": {"matrix_lr": 0.32},
        "without, rate ×16": {"qk_norm": False, "matrix_lr": 0.32},
    },
    findings=(
        Finding("loss without QK norm, at the book's rate", ("without",), "more"),
        Finding(
            "loss without QK norm, at 16 times the rate", ("without, rate ×16",), "more", against="rate ×16"
        ),
        Finding(
            "largest score without QK norm, at the book's rate",
            ("without",),
            "more",
            "largest score",
            ratio=True,
        ),
        Finding(
            "largest score without QK norm, at 16 times the rate",
            ("without, rate ×16",),
            "more",
            "largest score",
            against="rate ×16",
            ratio=True,
        ),
    ),
    decisive=(1, 2),
    columns=(BPB, "largest score"),
    curve="largest score",
)

TABLES_AS_BUFFERS = Experiment(
    name="tables-as-buffers",
    question="Why are rotary embeddings registered as buffers not parameters?",
    answer="10-the-parts-of-a-gpt.md#why-are-rotary-embeddings-registered-as-buffers-not-parameters",
    claim="Only a buffer that is not saved moves with the model, stays what it is in training, and "
    "leaves a checkpoint loadable at another length.",
    reconsider="A PyTorch that moves plain attributes, or an optimizer that skips parameters by itself.",
    variations={
        BOOK: {},
        "saved buffer": {"tables": "saved buffer"},
        "parameter": {"tables": "parameter"},
        "plain attribute": {"tables": "attribute"},
    },
    findings=(
        Finding(
            "how far training moves a table held as a parameter",
            ("parameter",),
            "more",
            quantity="table moved by",
        ),
        Finding(
            "bytes of a checkpoint that saves the tables",
            ("saved buffer",),
            "more",
            "checkpoint, bytes",
            ratio=True,
        ),
        Finding(
            "following a move (1: yes), a plain attribute minus the book's",
            ("plain attribute",),
            "less",
            "follows .to()",
        ),
        Finding(
            "loading at twice the length (1: yes), saved tables minus the book's",
            ("saved buffer",),
            "less",
            "loads at 2 T",
        ),
    ),
    decisive=(1, 3, 4),
    procedures=("hold the tables",),
    columns=(
        "tensors in a checkpoint",
        "checkpoint, bytes",
        "numbers the optimizer gets",
        "table moved by",
        "length error",
        "follows .to()",
        "loads at 2 T",
    ),
    curve="",
)

ACCUMULATION = Experiment(
    name="accumulation",
    question="How does gradient accumulation simulate larger batches?",
    answer="66-the-training-loop.md#how-does-gradient-accumulation-simulate-larger-batches",
    claim="The gradient of K passes is that of one large batch: to the last digits of float64, and under "
    "bf16 no further from the exact one.",
    reconsider="A distance in float64 above rounding, or bf16 passes that are further from the exact "
    "gradient than one batch.",
    variations={f"{passes} passes": {"passes": passes, "batch_size": 32 // passes} for passes in (2, 4, 16)},
    findings=(
        Finding(
            "distance of the gradient of 16 passes from that of 1, float64",
            ("16 passes",),
            "less",
            "float64",
            against="",
            null=1e-12,
        ),
        Finding(
            "distance of the gradient of 16 passes from that of 1, float32",
            ("16 passes",),
            "more",
            "float32",
            against="",
        ),
        Finding(
            "error of the gradient under bf16, 16 passes over 1",
            ("16 passes",),
            "less",
            "bf16, passes over one batch",
            against="",
            null=1.0,
        ),
        Finding(
            "length of the gradient without the division by 16",
            ("16 passes",),
            "more",
            "not divided",
            against="",
            null=1.0,
        ),
        Finding(
            "error of the gradient when the last pass has half the targets",
            ("16 passes",),
            "more",
            "unequal passes",
            against="",
        ),
    ),
    decisive=(1, 3),
    procedures=("compare accumulation",),
    columns=(
        "float64",
        "float32",
        "bf16, one batch",
        "bf16, passes",
        "bf16, passes over one batch",
        "not divided",
        "unequal passes",
    ),
    curve="",
)

NORM_AFTER_EMBEDDING = Experiment(
    name="norm-after-embedding",
    question="Why normalize after embedding instead of before?",
    answer="30-the-forward-pass.md#why-normalize-after-embedding-instead-of-before",
    claim="Without the norm after the embedding the rows' sizes drift apart and enter the stream, and "
    "the loss ends higher.",
    reconsider="A loss that does not rise without the norm, at this or a larger embedding rate.",
    variations={
        BOOK: {},
        "without": {"norm_after_embedding": False},
    },
    findings=(
        Finding("loss without the norm after the embedding", ("without",), "more"),
        Finding(
            "spread of the rows' sizes without the norm",
            ("without",),
            "same",
            "row size, 95 % to 5 %",
            ratio=True,
        ),
    ),
    decisive=(1, 2),
    columns=(BPB, "row size, 95 % to 5 %", "largest logit"),
)

SOFTCAP = Experiment(
    name="softcap",
    question="What does softcapping prevent?",
    answer="30-the-forward-pass.md#what-does-softcapping-prevent",
    claim="Without the cap raw logits grow larger; at this size the loss does not change.",
    reconsider="A loss that ends lower without the cap at any size, or logits that stay small without it.",
    variations={BOOK: {}, "no cap": {"softcap": 0.0}},
    findings=(
        Finding("loss without the cap", ("no cap",), "same"),
        Finding("largest logit without the cap", ("no cap",), "more", "largest logit", ratio=True),
    ),
    decisive=(1, 2),
    columns=(BPB, "largest logit"),
)

OPTIMIZERS = Experiment(
    name="optimizers",
    question="Why do embeddings need a different optimizer than matrices?",
    answer="40-optimization.md#why-do-embeddings-need-a-different-optimizer-than-matrices",
    claim="Muon for the matrices and AdamW for the two tables ends lower than either of them for "
    "everything, at the best of two rates.",
    reconsider="AdamW or Muon everywhere at the split's loss, at some rate, at equal time.",
    variations={
        BOOK: {},
        **{f"AdamW everywhere, {lr}": {"optimizer": "adamw", "matrix_lr": lr} for lr in (0.003, 0.01)},
        **{
            f"Muon everywhere, {lr}": {
                "optimizer": "muon",
                "embedding_lr": lr,
                "unembedding_lr": lr,
                "width_scaling": False,
            }
            for lr in (0.1, 0.5)
        },
        **{f"the split, Muon at {lr}": {"matrix_lr": lr} for lr in (0.01, 0.04)},
        "a tenth more steps": {"steps": 440},
    },
    findings=(
        Finding(
            "loss with AdamW everywhere, the best of two rates",
            tuple(f"AdamW everywhere, {lr}" for lr in (0.003, 0.01)),
            "more",
        ),
        Finding(
            "loss with Muon everywhere, the best of two rates",
            tuple(f"Muon everywhere, {lr}" for lr in (0.1, 0.5)),
            "more",
        ),
        Finding(
            "loss of the split at half or twice Muon's rate, the better",
            ("the split, Muon at 0.01", "the split, Muon at 0.04"),
            "same",
        ),
        Finding(
            "time of a step with AdamW everywhere",
            ("AdamW everywhere, 0.003",),
            "less",
            "step, ms",
            ratio=True,
        ),
        Finding(
            "time of a step with Muon everywhere", ("Muon everywhere, 0.1",), "more", "step, ms", ratio=True
        ),
        Finding("loss of the book's model after a tenth more steps", ("a tenth more steps",), "less"),
    ),
    decisive=(1, 2),
    together=("measure a step",),
    columns=(BPB, "step, ms", "largest logit"),
)

RATES_AND_WIDTHS = Experiment(
    name="rates-and-widths",
    question="How does the learning rate scaling formula work?",
    answer="40-optimization.md#how-does-the-learning-rate-scaling-formula-work",
    claim="The best AdamW rates fall as the width grows, with the power −½ of the formula.",
    reconsider="An interval for the exponent that excludes −½, from widths that differ by more than a "
    "factor of four.",
    variations={
        f"width {width}, rates ×{times}": {
            "n_embd": width,
            "n_head": width // 48,
            "embedding_lr": 0.2 * times,
            "unembedding_lr": 0.004 * times,
            "width_scaling": False,
            "steps": 240,
        }
        for width in (48, 96, 192)
        for times in (1, 3, 9)
    },
    findings=(
        Finding(
            "exponent of the width in the best rates, is it −½?",
            ("all widths",),
            "same",
            quantity="exponent",
            against="",
            null=-0.5,
        ),
        Finding(
            "exponent of the width in the best rates, is it 0?",
            ("all widths",),
            "less",
            "exponent",
            against="",
        ),
    ),
    decisive=(1, 2),
    derived="find the best rates",
    columns=(BPB, "largest logit"),
    curve="best rates",
)

BIASES = Experiment(
    name="biases",
    question="What's the advantage of no bias in linear layers?",
    answer="10-the-parts-of-a-gpt.md#whats-the-advantage-of-no-bias-in-linear-layers",
    claim="Biases in the blocks change the loss by nothing that can be measured at this size.",
    reconsider="A loss that biases lower by more than they cost in weights, at any size.",
    variations={BOOK: {}, "biases": {"bias": True}},
    findings=(
        Finding("loss with biases in every matrix of the blocks", ("biases",), "same"),
        Finding("time of a step with biases", ("biases",), "more", quantity="step, ms", ratio=True),
    ),
    together=("measure a step",),
    columns=(BPB, "parameters", "step, ms"),
)

BFLOAT16 = Experiment(
    name="bfloat16",
    question="Why use bfloat16 for embeddings and rotary cache?",
    answer="10-the-parts-of-a-gpt.md#why-use-bfloat16-for-embeddings-and-rotary-cache-the-tables",
    claim="bf16 halves the memory of both tables and moves a logit by less than a thousandth, no more at "
    "far positions than at near ones; at the embedding's large rate few of its steps are lost, at "
    "a usual one most are.",
    reconsider="An error that grows with the position, or a loss that rises with bf16 tables or a bf16 "
    "embedding.",
    base={"dtype": "bfloat16"},
    variations={
        BOOK: {"embedding_dtype": "bfloat16"},
        "both in float32": {"embedding_dtype": "float32", "table_dtype": "float32"},
        "tables from bf16 angles": {"embedding_dtype": "bfloat16", "table_dtype": "bfloat16 angles"},
        "embedding rate 0.0003": {"embedding_dtype": "bfloat16", "embedding_lr": 0.0003},
    },
    findings=(
        Finding(
            "error of a logit from bf16 tables, at 8 T over within T",
            (BOOK,),
            "less",
            "error, far over near",
            against="",
            null=1.0,
        ),
        Finding(
            "error of a logit at 8 T, with angles in bf16 too",
            ("tables from bf16 angles",),
            "more",
            "logit error, at 8 T",
            ratio=True,
        ),
        Finding(
            "time of a rotation, by bf16 tables over float32",
            (BOOK,),
            "less",
            "rotation, relative",
            "",
            null=1.0,
        ),
        Finding(
            "share of bf16 weights never moved, at rate 0.0003",
            ("embedding rate 0.0003",),
            "more",
            "weights never moved",
        ),
        Finding(
            "bytes of the embedding in float32", ("both in float32",), "more", "embedding, bytes", ratio=True
        ),
    ),
    decisive=(1, 4, 5),
    procedures=("measure rounding",),
    columns=(
        "embedding, bytes",
        "tables, bytes",
        "logit error, first T",
        "logit error, at 8 T",
        "weights never moved",
        "rotation, relative",
    ),
    curve="logit error",
)


EXPERIMENTS = (
    TIED_HEAD,
    SHARED_HEADS,
    ACTIVATION,
    QK_NORM,
    TABLES_AS_BUFFERS,
    ACCUMULATION,
    NORM_AFTER_EMBEDDING,
    SOFTCAP,
    OPTIMIZERS,
    RATES_AND_WIDTHS,
    BIASES,
    BFLOAT16,
)


def experiment(name: str) -> Experiment:
    """The experiment of this name. Raises UserError, suggesting the nearest, if there is none."""
    names = [one.name for one in EXPERIMENTS]
    if name not in names:
        hint = nearest(name, names)
        raise UserError(f"there is no experiment {name!r}{hint} (there are {', '.join(names)})")
    return EXPERIMENTS[names.index(name)]

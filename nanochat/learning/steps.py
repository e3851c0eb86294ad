"""The functions that a learner rewrites, as data: place in the book, reason, three hints each."""

import re
from dataclasses import dataclass
from pathlib import Path

PHASES = {
    1: "Model initialization",
    2: "Weight initialization",
    3: "Forward pass",
    4: "Optimization",
    5: "Generation",
}

CHAPTERS = {
    1: "10-the-parts-of-a-gpt.md",
    2: "20-weight-initialization.md",
    3: "30-the-forward-pass.md",
    4: "40-optimization.md",
    5: "50-generation.md",
}


@dataclass(frozen=True)
class Step:
    """One function to write. `id` is its name in the file, such as "GPT.forward"."""

    id: str
    phase: int
    title: str
    fragment: str  # the block of the book that holds the book's version
    why: str  # why training cannot go on without it
    hints: tuple[str, str, str]  # a question, a pointer, the plan in words; none is the answer
    questions: tuple[str, ...] = ()  # those of the twelve design questions that belong here
    companions: tuple[str, ...] = ()  # functions that share attribute names with this one
    tolerance: float = 2e-5  # largest accepted difference, relative to the largest number expected
    home: str = "normans_gpt"  # the module of nanochat that has the book's version
    told_in: str = ""  # the chapter; empty for that of the phase

    @property
    def chapter(self) -> str:
        """File name of the chapter that explains the step."""
        return self.told_in or CHAPTERS[self.phase]

    @property
    def folded(self) -> bool:
        """Whether the chapter folds the book's version: not where readers need it to read on."""
        return self.home in ("normans_gpt", BY_HAND)


INITIALIZATION = (
    Step(
        id="GPTConfig",
        phase=1,
        title="Six integers that fix every shape",
        fragment="describe-a-model",
        why="Every other function asks the configuration for its sizes. The skeleton brings it complete.",
        hints=(
            "Which combinations of the six integers describe a model that nobody can build?",
            "It is complete as it is. If this step fails, the class was changed: compare it with the "
            "chapter.",
            "refuse any size below one; refuse a width the heads do not divide; refuse query heads that the "
            "key-value heads do not divide; refuse an odd head size; offer the head size as a property",
        ),
    ),
    Step(
        id="GPT.__init__",
        phase=1,
        title="Model architecture setup",
        fragment="gpt-init",
        why="Training begins by building the model: without it there is nothing to run, count or save.",
        hints=(
            "Which parts of the model learn, which are fixed tables, and how does PyTorch tell them apart?",
            "Checkpoints know the parts as transformer.wte, transformer.h and lm_head. The tables follow "
            "from the configuration, so nobody should train or save them: read how register_buffer can "
            "leave them out.",
            "keep the configuration\nmake the trunk: an embedding of V rows, and a list of L blocks, each "
            "told its number\nmake the head: C to V, no bias, a matrix of its own\nask for the two tables, "
            "ten times as long as the training length\nregister them as buffers that are not saved",
        ),
        questions=(
            "Why untie embedding and lm_head weights?",
            "Why are rotary embeddings registered as buffers not parameters?",
        ),
        companions=(
            "GPT.init_weights",
            "GPT.forward",
            "GPT.get_device",
            "GPT.estimate_flops",
            "GPT.setup_optimizers",
            "GPT.generate",
            "GPTConfig",
        ),
    ),
    Step(
        id="GPT._precompute_rotary_embeddings",
        phase=1,
        title="Rotary embedding tables",
        fragment="precompute-rotary-embeddings",
        why="GPT.__init__ asks for the tables of cosines and sines while it builds the model.",
        hints=(
            "By how many radians does pair i turn from one position to the next?",
            "Pair 0 turns by one radian a position, and each pair slower than the one before. An outer "
            "product of positions and speeds gives every angle. Mind where you round, and which axes must "
            "broadcast.",
            "speeds: base to the power of minus (even channel number / head size), in float32\npositions: "
            "0, 1, 2 …\nangles: every position times every speed\ncosine and sine, only then rounded to "
            "bfloat16\nshape: one, positions, one, pairs",
        ),
        tolerance=2**-8,
        questions=("Why use bfloat16 for embeddings and rotary cache?",),
    ),
    Step(
        id="Block.__init__",
        phase=1,
        title="Transformer block",
        fragment="block-init",
        why="GPT.__init__ makes one block for each layer.",
        hints=(
            "Which two things happen in a block, and which of them needs to know the number of its layer?",
            "Checkpoints know the two parts as attn and mlp. The norms of this model learn nothing.",
            "make the attention from the configuration and the layer's number\nmake the MLP from the "
            "configuration",
        ),
        companions=("Block.forward",),
    ),
    Step(
        id="CausalSelfAttention.__init__",
        phase=1,
        title="Attention layer",
        fragment="attention-init",
        why="Each block makes one attention layer.",
        hints=(
            "How tall is the matrix that makes the keys, when there are fewer key heads than query heads?",
            "Four matrices: c_q, c_k, c_v, c_proj. Queries and output are C wide; keys and values have "
            "H_kv heads of the same head size. The cache will ask which layer is calling.",
            "remember the layer's number, both head counts and the head size\nc_q: C to C\nc_k and c_v: C to "
            "key-value heads times head size\nc_proj: C to C\nno biases",
        ),
        questions=("What's the advantage of Multi-Query Attention?",),
        companions=("CausalSelfAttention.forward", "GPTConfig"),
    ),
    Step(
        id="MLP.__init__",
        phase=1,
        title="Feed-forward network",
        fragment="mlp-init",
        why="Each block makes one MLP.",
        hints=(
            "How wide is the middle of the MLP, counted in widths of the model?",
            "Two matrices, c_fc and c_proj: up to four times the width, and back.",
            "c_fc: C to four times C\nc_proj: back\nno biases",
        ),
        questions=("What's the advantage of no bias in linear layers?",),
        companions=("MLP.forward", "GPTConfig"),
    ),
    Step(
        id="GPT.init_weights",
        phase=2,
        title="Initialize all weights",
        fragment="init-weights",
        why="The model was built without values; what its memory holds now is left over from something else.",
        hints=(
            "What should the model predict before it has seen anything, and which matrices must be zero "
            "for that?",
            "Three things: draw every module's weights (Module.apply walks them all), silence what writes "
            "into the stream and the head, and fill the tables, because a model from the meta device has "
            "empty ones.",
            "apply _init_weights to every module\nzero the head\nfor every block, zero both "
            "c_proj\ncompute the tables again, full length, on the device where the weights are\non CUDA "
            "only, turn the embedding to bfloat16",
        ),
        companions=("GPT.__init__", "GPT._init_weights"),
    ),
    Step(
        id="GPT._init_weights",
        phase=2,
        title="Initialize one module",
        fragment="init-one-module",
        why="init_weights hands it every module, to draw that module's weights.",
        hints=(
            "If every input has size 1, how large is a sum of fan_in of them with random signs?",
            "Two kinds of modules have weights. A Linear's spread shrinks with the root of its fan-in, and "
            "once more if it has fewer outputs than inputs. Linear stores its weight as (out, in).",
            "if Linear: normal noise; standard deviation one over root fan-in, times the root of (fan-out "
            "/ fan-in) where that is below one\nif Embedding: normal noise of standard deviation "
            "one\nanything else: leave",
        ),
        companions=("GPT.init_weights",),
        tolerance=1e-3,
    ),
)


FORWARD = (
    Step(
        id="norm",
        phase=3,
        title="RMS normalization",
        fragment="norm",
        why="It is the first thing that happens to the embedded tokens, and to the input of every layer.",
        hints=(
            "After norm, what is the mean of the squares of one position's channels?",
            "Nothing is learned and no mean is subtracted. Each vector along the last axis is divided by "
            "one number.",
            "mean of the squares over the last axis, that axis kept\nadd a tiny number, so that zeros stay "
            "zeros\ndivide by the root",
        ),
        tolerance=2e-5,
    ),
    Step(
        id="apply_rotary_emb",
        phase=3,
        title="Rotary embeddings",
        fragment="apply-rotary-emb",
        why=(
            "Attention turns its queries and keys before it compares them; without that it cannot tell order."
        ),
        hints=(
            "Which two channels form a pair here, and does the angle of a position turn them forwards or "
            "backwards?",
            "Channel i is paired with channel i + D/2. Write the 2x2 matrix of a turn by minus the angle, "
            "once.",
            "split the last axis into a first and a second half\nnew first half: from both, with cosine "
            "and sine\nnew second half: from both, with one sign changed so that lengths stay\nput them "
            "together, in x's dtype",
        ),
    ),
    Step(
        id="CausalSelfAttention.forward",
        phase=3,
        title="Attention computation",
        fragment="attention-forward",
        why="It is the only place where one position reads another.",
        hints=(
            "Which positions may position t read, and does that change when the past comes out of a cache?",
            "Order: project, split into heads, rotate and norm queries and keys, heads before positions, "
            "store in the cache, attend, heads back together, mix. With a cache there are more keys than "
            "queries: query i of T sees all but the last T - 1 - i keys. scaled_dot_product_attention "
            "scales by itself.",
            "q, k, v: project x and split the channels into heads\nrotate q and k, then norm q and k\nmove "
            "heads in front of positions\nif there is a cache: hand k and v over under this layer's "
            "number, take all back\nmask: as many keys as queries: causal; one query: none; else the past "
            "whole, the chunk causal\nattend, neighbouring query heads sharing a key head\nmove heads "
            "back, flatten, mix",
        ),
        questions=("What does QK normalization prevent?",),
        companions=("CausalSelfAttention.__init__",),
    ),
    Step(
        id="MLP.forward",
        phase=3,
        title="Feed-forward computation",
        fragment="mlp-forward",
        why="After attention has brought things together, each position works on them alone.",
        hints=(
            "What is the output for a hidden channel of -3? Of 3?",
            "The bend sits between the two matrices. It cuts first, then squares.",
            "widen\ncut the negative\nsquare\nnarrow",
        ),
        questions=("Why use relu^2 instead of regular relu or GELU?",),
        companions=("MLP.__init__",),
    ),
    Step(
        id="Block.forward",
        phase=3,
        title="Transformer block",
        fragment="block-forward",
        why="GPT.forward sends the stream through every block.",
        hints=(
            "If attention and MLP both gave zeros, what should a block return?",
            "Each part reads a normed copy of the stream and adds to the stream itself. The second part "
            "reads what the first has written.",
            "add to x: the attention of normed x, with tables and cache handed on\nadd to that: the MLP of "
            "that, normed",
        ),
        companions=("Block.__init__",),
    ),
    Step(
        id="GPT.forward",
        phase=3,
        title="Full model forward pass",
        fragment="gpt-forward",
        why="The training loop calls it for every batch; everything before was for this.",
        hints=(
            "A cache holds five positions and one token arrives. Which row of the tables belongs to it?",
            "Norm twice outside the blocks: after the embedding and before the head. Scores are bounded "
            "before they are shown and before the loss. Targets of -1 ask for nothing, and are not counted "
            "either.",
            "start: 0, or what the cache already holds; refuse to go past the tables\nrows of both tables "
            "from start on, as many as tokens\nembed, norm\nevery block, with rows and cache\nnorm\nwith "
            "targets: softcapped cross-entropy with the reduction asked for\nwithout: scores of the head "
            "in float32, softcapped",
        ),
        questions=(
            "Why normalize after embedding instead of before?",
            "What does softcapping prevent?",
            "How does gradient accumulation simulate larger batches?",
        ),
        companions=("GPT.__init__",),
    ),
)


TRAINING_AND_GENERATION = (
    Step(
        id="GPT.setup_optimizers",
        phase=4,
        title="Muon and AdamW optimizers",
        fragment="setup-optimizers",
        why="Gradients alone change nothing: the training loop asks who will apply them, and how strongly.",
        hints=(
            "Which weights are matrices between two layers, and which are tables with one row per token?",
            "Three groups, two optimizers. The two rates of AdamW were found at width 768: a narrower "
            "model takes larger ones. Schedules multiply initial_lr, so every group must carry it.",
            "factor: (width / 768) to the power of minus one half\nAdamW, betas 0.8 and 0.95, eps 1e-10: "
            "the head at unembedding_lr times factor, the embedding at embedding_lr times factor, weight "
            "decay as given\nMuon: every matrix of the blocks at matrix_lr, momentum 0.95\nwrite each "
            "group's rate into its initial_lr\nreturn AdamW, then Muon",
        ),
        questions=(
            "Why do embeddings need a different optimizer than matrices?",
            "How does the learning rate scaling formula work?",
        ),
        companions=("GPT.__init__",),
        tolerance=1e-4,
    ),
    Step(
        id="GPT.get_device",
        phase=4,
        title="Device of the weights",
        fragment="get-device",
        why="init_weights and generate must make their tensors where the weights are.",
        hints=(
            "A model was moved to a GPU. Who knows?",
            "The machine's best device says nothing about this model. A tensor knows where it lives.",
            "take a weight of the model\nreturn its device",
        ),
        companions=("GPT.__init__",),
    ),
    Step(
        id="GPT.estimate_flops",
        phase=4,
        title="Operations per token",
        fragment="estimate-flops",
        why="The training loop asks before its first step: it prints how much of the machine is used.",
        hints=(
            "How many multiplications and additions does one weight of a matrix cost in the forward pass? "
            "And in the backward pass?",
            "Every weight that multiplies counts six times. Looking a row up multiplies nothing. Attention "
            "compares each token with T others, without weights.",
            "weights: all parameters but the token embedding's\nsix for each weight\nfor each layer, "
            "twelve times width times training length\nadd",
        ),
        companions=("GPT.__init__",),
        tolerance=1e-6,
    ),
    Step(
        id="GPT.generate",
        phase=5,
        title="Autoregressive sampling",
        fragment="generate",
        why="Training works without it. Without it nobody can read what the model has learned.",
        hints=(
            "The model gives a score for every token at every position. Which position's scores choose the "
            "next token?",
            "No cache: the whole sequence is run for each new token. The random numbers come from a "
            "generator of this call's own, made once, so that a seed repeats a text and training is not "
            "disturbed.",
            "refuse an empty prompt\nmake a generator of Python's random with the seed: sample_next takes a "
            "list of them, one for each row\nrepeat max_tokens times: run the sequence; take the last "
            "position's scores; choose by temperature and top_k; append; yield as int",
        ),
        companions=("GPT.__init__", "GPT.get_device"),
        tolerance=1e-4,
    ),
)


STEPS = (*INITIALIZATION, *FORWARD, *TRAINING_AND_GENERATION)


SECOND_PHASES = {
    6: "A table that learns",
    7: "Text into batches",
    8: "The loss",
    9: "What moves the weights",
    10: "What is done with a model",
}
BY_HAND = "learning/by_hand"
HERE = "85-the-second-round.md"


TABLE_TEXT_AND_LOSS = (
    Step(
        id="step",
        phase=6,
        title="One step of gradient descent",
        fragment="take-a-step",
        home="bigram",
        told_in="03-a-table-of-what-follows-what.md",
        why="The shortest training there is: a table, a loss, and one line that moves the table.",
        hints=(
            "What does backward() do to a gradient that is already there?",
            "Three details: no gradient is left behind, for the next would be added to it; the move itself "
            "is not to be differentiated; and the table must stay the same tensor.",
            "compute mean_loss\ngo backward from it\nwithout recording: subtract the rate times the gradient "
            "from the table, in its place\ntake the gradient away\nreturn the loss as a plain number",
        ),
    ),
    Step(
        id="learn_merges",
        phase=7,
        title="Learn a tokenizer",
        fragment="learn-merges",
        home=BY_HAND,
        told_in=HERE,
        why="A table reads bytes. The model reads tokens, and which ones there are is learned from text.",
        hints=(
            "After the first merge, is the pair that was second before still the most frequent?",
            "Counts must be made anew from the joined sequences for each merge. Only neighbours within a "
            "chunk are a pair, and a chunk that occurs often counts often. min and max decide ties for you "
            "if the key is a tuple.",
            "turn each chunk into a list of bytes; keep equal ones once, with their number\nrepeat until "
            "there are enough: count every pair of neighbours\nstop if there is none\nchoose the most "
            "frequent; of equal ones the smallest\njoin it everywhere; its number is 256 plus the merges so "
            "far\nremember it",
        ),
    ),
    Step(
        id="encode",
        phase=7,
        title="Encode with it",
        fragment="encode-by-merges",
        home=BY_HAND,
        told_in=HERE,
        why="The text has to become tokens before anything can be trained on it.",
        hints=(
            "Is it the longest token, the first in the text, or another one that must be made first?",
            "Do what learning did: the merge with the smallest number that is possible anywhere comes first. "
            "One join can make the next possible.",
            "begin with the bytes\nlook for neighbours that are a merge\nif there are none, that is the "
            "answer\njoin the one with the smallest number, everywhere\nlook again",
        ),
    ),
    Step(
        id="batches",
        phase=7,
        title="Batches from a stream",
        fragment="cut-batches-from-a-stream",
        home=BY_HAND,
        told_in=HERE,
        why="Training asks for inputs and targets of one size, and documents have all sizes.",
        hints=(
            "How many tokens does one batch of B rows and T columns need, inputs and targets together?",
            "One token more than there are inputs. That last one has been a target; the next batch begins "
            "with it as an input. Read a document only when the tokens at hand do not fill a batch.",
            "keep a list of waiting tokens\nfor each document: add the sign that one begins, and its "
            "tokens\nwhile there are enough: cut one block off\nhand out all but its last as inputs, all but "
            "its first as targets, as B rows\nkeep the last one",
        ),
    ),
    Step(
        id="cross_entropy",
        phase=8,
        title="Cross-entropy by hand",
        fragment="cross-entropy-by-hand",
        home=BY_HAND,
        told_in=HERE,
        why="A model is trained by one number, and this is where it comes from.",
        hints=(
            "What is the exponential of 200 in float32, and what would the loss be?",
            "Adding one number to all scores of a row changes no probability: choose it so that nothing "
            "overflows. Leave rows without a target out before you average.",
            "choose the rows that have a target\nsubtract each row's largest score\nthe logarithm of the sum "
            "of exponentials, plus what was subtracted\nminus the target's score\nthe mean over the rows",
        ),
    ),
    Step(
        id="loss_and_gradients",
        phase=8,
        title="Loss and gradients in chunks",
        fragment="loss-and-gradients-by-hand",
        home=BY_HAND,
        told_in=HERE,
        why="The logits of a whole batch are too large to keep; so the loss computes its gradients itself.",
        hints=(
            "By how much does the loss change with the score of a token that is not the target?",
            "The gradient by a capped score is its probability, minus one at the target. Three factors come "
            "behind it: the slope of the cap, whether the row has a target, and one over the number of "
            "targets in ALL rows.",
            "count the targets of all rows\nfor each chunk: logits, squashed by tanh, capped, as log "
            "probabilities\nadd the chunk's loss, over that count\ngradient by the capped logits: "
            "probability minus one-hot\ntimes the slope of the cap, zero where nothing is asked, over that "
            "count\nto x: times the weight; to the weight: its transpose times x, added up over the chunks",
        ),
    ),
)


OPTIMIZERS_AND_AFTER = (
    Step(
        id="update_adamw",
        phase=9,
        title="AdamW",
        fragment="adamw-by-hand",
        home=BY_HAND,
        told_in=HERE,
        why="Embedding and head move by AdamW: each number at a rate that suits its own gradients.",
        hints=(
            "At the very first step, what are the two running means worth, and what should they be?",
            "A mean that begins at zero holds the share 1 - beta^t of what it should. Weight decay acts on "
            "the weight, before the step, and in neither mean.",
            "at the first call, two tensors of zeros and a count\ncount this step\nshrink p by rate times "
            "decay\nmove the mean of the gradient, and that of its square\ndivide both by what they "
            "lack\nsubtract rate times mean over (root of the other, plus eps)",
        ),
    ),
    Step(
        id="orthogonalize",
        phase=9,
        title="Newton–Schulz",
        fragment="orthogonalize-by-newton-schulz",
        home="muon",
        told_in="40-optimization.md",
        why="Muon asks for the direction of a matrix in which no singular value is overdone.",
        hints=(
            "What does X Xᵀ X do to the singular values of X, and what to its singular vectors?",
            "The polynomial is meant for values up to 1, so divide by something that is never smaller than "
            "the largest. For a tall matrix the product of the other order is the small one. K matrices come "
            "at once, each with its own norm.",
            "turn to the dtype\ntranspose each matrix if it is tall\ndivide each by its Frobenius norm, plus "
            "a tiny number\nso many times: gram = X Xᵀ; X becomes a X + (b gram + c gram²) X\ntranspose back",
        ),
        tolerance=2e-4,
    ),
    Step(
        id="Muon.step",
        phase=9,
        title="Muon",
        fragment="step-all-matrices",
        home="muon",
        told_in="40-optimization.md",
        why="The matrices of the blocks move by Muon.",
        hints=(
            "Why does a matrix with four times as many rows as columns take a step twice as long?",
            "_momentum gives the direction of one parameter and keeps its buffer. orthogonalize takes a "
            "stack of matrices. Parameters without a gradient stay where they are.",
            "call the closure, with gradients, if there is one\nfor each group, for each parameter with a "
            "gradient: its momentum\northogonalize it, by the group's number of steps\nscale: the rate times "
            "the root of rows over columns, where that is above one\nsubtract from the parameter\nreturn "
            "what the closure gave",
        ),
        companions=("orthogonalize",),
        tolerance=2e-4,
    ),
    Step(
        id="Schedule.multiplier",
        phase=9,
        title="The schedule",
        fragment="multiply-every-rate",
        home="step",
        told_in="66-the-training-loop.md",
        why="One rate for the whole run is too long at its end, when the noise of the steps shall die away.",
        hints=(
            "What would the first step of a warmup be, if its factor were 0?",
            "done is the part that is over before this step; a warmup counts the step itself too. In the "
            "fall, what is left of it goes from 1 to 0, and the factor from 1 to the final value.",
            "before the end of the warmup: the part including this step, over the warmup, at most 1\nup to "
            "the beginning of the warmdown: 1\nthen: what is left, over the warmdown; a mean of 1 and the "
            "final value with that weight",
        ),
    ),
    Step(
        id="accumulate_gradients",
        phase=9,
        title="Gradient accumulation",
        fragment="accumulate-gradients",
        home="step",
        told_in="66-the-training-loop.md",
        why="A batch too large for the memory is computed in pieces, and must give the same gradient.",
        hints=(
            "backward() adds to what is there. What must each loss be divided by, so that the sum is a mean?",
            "Take only as many batches as are asked for. What is returned is a number to be printed, so it "
            "keeps no graph alive.",
            "begin a total of zero, on the model's device\nso many times: the next batch; in the part "
            "forward and under autocast, the model's loss; in the part backward, go backward from its share; "
            "add its share, detached\nreturn the total",
        ),
    ),
    Step(
        id="losses_and_bytes",
        phase=10,
        title="Bits per byte",
        fragment="count-losses-and-bytes",
        home="loss_eval",
        told_in="64-bits-per-byte.md",
        why="What was trained has to be scored, on text that it has not seen, in a unit that others share.",
        hints=(
            "Which targets stand for no text at all, and in which of the four sums do they count?",
            "A token of no bytes, and a target below 0, count neither in nats nor in bytes. A loss there may "
            "be infinite, and zero times infinity is no number. steps = 0 takes all there is.",
            "for each batch: the loss of each target, by loss_reduction none\nthe number of bytes of each "
            "target, 0 where it is below 0\nadd the losses where bytes are above 0; add the bytes; count the "
            "targets that are not below 0\nwanted: the steps times the targets of a batch\nend after so many "
            "batches",
        ),
    ),
    Step(
        id="sample_next",
        phase=10,
        title="Temperature and top-k",
        fragment="sample-next",
        home="sampling",
        told_in="50-generation.md",
        why="A model gives probabilities; a text needs one token after the other.",
        hints=(
            "If two tokens tie for the last of the k places, which one stays?",
            "Row i draws with rngs[i] and nothing else: one number from it says where on the line of all "
            "probabilities the dart has hit. Both that tie stay. A temperature of 0 draws nothing.",
            "refuse a temperature below 0 or not finite, a k below 1, scores that are no number\ntemperature "
            "0: the first of the largest\nwith top_k: everything below the k-th largest value becomes minus "
            "infinity\nsoftmax of scores over temperature\nfor each row: the first token whose cumulated "
            "share exceeds a number drawn from the row's generator\nshape (B, 1)",
        ),
    ),
    Step(
        id="KVCache.insert_kv",
        phase=10,
        title="The key-value cache",
        fragment="insert-keys-and-values",
        home="engine",
        told_in="50-generation.md",
        why="Without a cache each new token computes all those before it once more.",
        hints=(
            "All layers store the same positions. Which of them may move the position on?",
            "Check before you store. _store_like gives the memory, in the dtype of v, and _write puts both "
            "in; each layer has a place for keys and one for values. What is returned is everything so far, "
            "without a copy.",
            "refuse keys and values of another shape than this cache is for\nrefuse more positions than "
            "there is room for\nstore both behind what is there\nafter the last layer the position moves "
            "on\nreturn this layer's keys and values up to the new end",
        ),
        companions=("KVCache.get_pos",),
    ),
    Step(
        id="save",
        phase=10,
        title="A checkpoint to go on from",
        fragment="save-by-hand",
        home=BY_HAND,
        told_in=HERE,
        why="Runs are stopped, by people and by power cuts, and should lose nothing but time.",
        hints=(
            "A run that goes on is compared with one that was not stopped. What must be the same in both, "
            "apart from the weights?",
            "Optimizers have a memory of their own, and chance has a state. A file that is written in place "
            "is neither the old nor the new one for a while; os.replace takes no time.",
            "gather the states of model, all optimizers and the generator, and the step, under the names "
            "that resume reads\nwrite them to another name in the same folder\nput that file in the place of "
            "the old",
        ),
    ),
)


SECOND = (*TABLE_TEXT_AND_LOSS, *OPTIMIZERS_AND_AFTER)


@dataclass(frozen=True)
class Round:
    """The steps that one file of the learner's holds."""

    number: int
    file: str
    steps: tuple[Step, ...]
    phases: dict[int, str]


FIRST_ROUND = Round(1, "normans_gpt.py", STEPS, PHASES)
SECOND_ROUND = Round(2, "second_round.py", SECOND, SECOND_PHASES)
ROUNDS = (FIRST_ROUND, SECOND_ROUND)
ALL_STEPS = (*STEPS, *SECOND)
ALL_PHASES = {**PHASES, **SECOND_PHASES}


def round_of(step: Step) -> Round:
    """The round that a step belongs to."""
    return SECOND_ROUND if step in SECOND else FIRST_ROUND


def step_named(name: str) -> Step:
    """The step with this id; case and a missing class are forgiven where one step fits. Raises KeyError."""
    for step in ALL_STEPS:
        if step.id == name:
            return step
    wanted = name.lower().removesuffix("()")
    fitting = [s for s in ALL_STEPS if wanted in (s.id.lower(), s.id.lower().rsplit(".", 1)[-1])]
    if len(fitting) != 1:
        raise KeyError(name)
    return fitting[0]


@dataclass(frozen=True)
class Section:
    """A heading of the book, and its line (from 1); a step's block opens somewhere below it."""

    path: Path
    heading: str
    line: int

    @property
    def anchor(self) -> str:
        """The heading as the end of a link, as forges and MkDocs make it."""
        kept = re.sub(r"[^\w\- ]", "", self.heading.lower())
        return re.sub(r"[ ]", "-", kept.strip())


def section_of(step: Step, lit: Path) -> Section | None:
    """Where the book in folder lit explains a step; None if it has no block of that name (any more)."""
    path = lit / step.chapter
    if not path.exists():
        return None
    heading, at, fence = step.title, 1, re.compile(rf"\s*```\w+ +#{re.escape(step.fragment)}(\s|$)")
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if fence.match(line):
            return Section(path, heading, at)
        if line.lstrip().startswith("```"):
            inside = not inside
        elif not inside and (re.match("##? ", line) or (line[:4] == "### " and f"`{step.id}`" in line)):
            heading, at = line.lstrip("#").strip(), number
    return None

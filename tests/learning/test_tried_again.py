"""The second round as people write it: kinds of mistakes in spellings that the list does not have."""

from __future__ import annotations

import pytest

# ruff: noqa: E501
from tests.learning.rewriting import SECOND_BOOK, verdict_on, with_function
from tests.learning.test_second_round import RIGHT
from tests.learning.test_tried import ATTENTION, BLOCK, NORM, SDPA

STEP = """
def step(table, inputs, targets, learning_rate):
    p = table.detach().softmax(dim=-1)
    came = torch.zeros_like(p)
    for i, j in zip(inputs.tolist(), targets.tolist()):
        came[i, j] += 1
    gradient = (came.sum(1, keepdim=True) * p - came) / len(inputs)
    loss = mean_loss(table, inputs, targets).item()
    table.data -= learning_rate * gradient
    return loss
"""
KINDS = [  # step, a right function, what is wrong in it, the name
    ("step", STEP, ("came[i, j] += 1", "came[i, j] = 1"), None),
    ("step", STEP, ("(came.sum(1, keepdim=True) * p - came) / len(inputs)", "p - came / came.sum(1, keepdim=True).clamp(min=1)"), "share-of-the-row-forgotten"),
    ("learn_merges", RIGHT["learn_merges"], ("0) + times\n        if", "0) + (times if max(word[i], word[i + 1]) < 256 else 1)\n        if"), "new-pairs-counted-once-a-chunk"),
    ("encode", RIGHT["encode"], ("enumerate(merges)", "list(enumerate(merges))[::-1]"), "last-learned-first"),
    ("batches", RIGHT["batches"], ("x[1:].reshape(B, T)", "torch.cat([x[1:-1], x[:1]]).reshape(B, T)"), "targets-rolled"),
    ("batches", RIGHT["batches"], ("yield bos\n", "if not document: continue\n            yield bos\n"), "empty-documents-left-out"),
    ("cross_entropy", RIGHT["cross_entropy"], ("logits - logits.logsumexp(dim=1, keepdim=True)", "logits - logits.exp().sum(dim=1, keepdim=True).log()"), "overflows"),
    ("cross_entropy", RIGHT["cross_entropy"], ("logits - logits.logsumexp(dim=1, keepdim=True)", "(logits.exp() / logits.exp().sum(1, keepdim=True)).log()"), None),
    ("cross_entropy", RIGHT["cross_entropy"], ("(targets != -1)", "(targets >= 1)"), "token-0-left-out"),
    ("cross_entropy", RIGHT["cross_entropy"], ("logits.logsumexp(dim=1, keepdim=True)", "logits.detach().logsumexp(dim=1, keepdim=True)"), "right-numbers-wrong-gradient"),
    ("cross_entropy", "def cross_entropy(logits, targets):\n    return nn.CrossEntropyLoss(ignore_index=-1)(logits, targets)", ("", ""), "ready-made-loss"),
    ("loss_and_gradients", RIGHT["loss_and_gradients"], ("(1 - z * z)", "(1 - (softcap * z) ** 2)"), "slope-of-the-capped-score"),
    ("update_adamw", RIGHT["update_adamw"], ("    b1, b2 = betas", "    b1, b2 = betas\n    grad.mul_(1.0 + 1e-3)"), None),
    ("orthogonalize", RIGHT["orthogonalize"], ("x = x / (x", "x /= (x"), "what-was-given-is-changed"),
    ("orthogonalize", RIGHT["orthogonalize"], ("dtype or fastest_format(g.device)", "g.dtype if dtype is None else dtype"), "fastest-format-not-used"),
    ("Muon.step", RIGHT["Muon.step"], ("                continue", "                break"), "stops-at-a-missing-gradient"),
    ("Schedule.multiplier", RIGHT["Schedule.multiplier"], ("done - (1 - self.warmdown)", "done + one_step - (1 - self.warmdown)"), None),
    ("accumulate_gradients", RIGHT["accumulate_gradients"], ('        with part("backward"):\n            loss.backward()', "        loss.backward()"), "parts-not-entered"),
    ("sample_next", RIGHT["sample_next"], ("    out = []", "    logits.sub_(logits.max())\n    out = []"), "what-was-given-is-changed"),
    ("KVCache.insert_kv", RIGHT["KVCache.insert_kv"], ("    if self.pos + T > self.seq_len:\n        raise ValueError(\"full\")", "    assert self.pos + T <= self.seq_len"), "refused-by-an-assert"),
    ("KVCache.insert_kv", RIGHT["KVCache.insert_kv"], ("self.pos + T > self.seq_len", "self.pos + T >= self.seq_len"), "refused-one-too-early"),
    ("save", RIGHT["save"], ("model=model.state_dict()", "model=dict(model.named_parameters())"), "buffers-forgotten"),
    ("save", RIGHT["save"], ("new.replace(path)", "path.write_bytes(new.read_bytes())\n    os.unlink(new)"), "written-in-place"),
]  # fmt: skip
FIRST = [
    ("CausalSelfAttention.forward", SDPA, ("mask = torch.ones(", "mask = ~torch.ones("), "mask-inverted"),
    ("CausalSelfAttention.forward", ATTENTION, ("y.permute(0, 2, 1, 3)", "y.permute(0, 2, 3, 1)"), "channels-of-the-heads-dealt-in-turn"),
    ("norm", NORM, ("    ms =", "    x += 0\n    ms ="), "what-was-given-is-changed"),
    ("Block.forward", BLOCK, ("h = x + ", "h = x\n    h += "), "what-was-given-is-changed"),
    ("GPT.get_device", "def get_device(self):\n    self.known = getattr(self, 'known', self.lm_head.weight.device)\n    return self.known", ("", ""), None),
]  # fmt: skip


@pytest.mark.parametrize(("step", "text", "change", "name"), [*KINDS, *FIRST])
def test_a_kind_is_caught_and_has_its_name(
    step: str, text: str, change: tuple[str, str], name: str | None
) -> None:
    assert not change[0] or text.count(change[0]) == 1, change
    wrong = text.replace(*change) if change[0] else text
    home = (SECOND_BOOK,) if step in RIGHT else ()
    verdict = verdict_on(with_function(step, wrong, *home), step)
    assert verdict.status in ("failed", "error"), verdict
    assert name is None or verdict.mistake == name, verdict


def test_the_formula_of_the_gradient_is_as_good_as_autograd() -> None:
    assert verdict_on(with_function("step", STEP, SECOND_BOOK), "step").status == "passed"

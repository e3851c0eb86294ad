"""Weights in pieces: 1, 2 and 4 gloo processes, each with several divisions, against one process."""

from __future__ import annotations

import math
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat import checkpoint_manager, normans_gpt
from nanochat.checkpoint_manager import InPieces, convert, load_checkpoint, saved_steps
from nanochat.cluster import FLOAT32, MACHINES, Division, activations, communication, memory
from nanochat.common import CannotWrite, Ranks, UserError, write_atomically
from nanochat.loss_eval import evaluate_bpb
from nanochat.muon import Muon, orthogonalize
from nanochat.normans_gpt import GPT
from nanochat.parallel import (
    Whole,
    cut_into_pieces,
    gathered,
    laid_like,
    laid_like_parameters,
    local,
    orthogonalize_shared,
    piece_sizes,
    shards_for,
    share_the_work,
)
from nanochat.run import go_on_with
from nanochat.step import Batch, Rates, Schedule, Stepper, build_model, build_optimizers
from scripts.plan import PlanConfig, lines
from tests.bounds import sum_error
from tests.conftest import SERVER_HAS

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
SHAPE = {"sequence_len": 16, "vocab_size": 67, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "n_embd": 32}
CPU = torch.device("cpu")
DIVISIONS = [(4, 4), (4, 2), (4, 1), (3, 3), (2, 2), (2, 1)]  # processes, pieces
STEPS, BATCHES = 2, 12  # of each step


def model_of(dtype: torch.dtype) -> GPT:
    """A small GPT of the book, whose every weight gets a gradient."""
    model = build_model(normans_gpt, SHAPE, CPU, 1, None)
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.02)
    return model.to(dtype)


def batches(count: int, seed: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randint(67, (2, 17), generator=rng) for _ in range(count)]
    return [(row[:, :-1], row[:, 1:].contiguous()) for row in rows]


def stepper_of(ranks: Ranks, shards: int, dtype: torch.dtype, clip: float = 0.05) -> Stepper:
    model = model_of(dtype)
    cut_into_pieces(model, ranks, CPU, shards)
    optimizers = build_optimizers(model, Rates(muon_dtype=str(dtype).removeprefix("torch.")))
    share_the_work(optimizers, ranks)
    return Stepper(model, optimizers, Schedule(warmdown=0.5), clip, ranks=ranks)


def kept(state: Any, ranks: Ranks) -> dict[str, Any]:
    """A state brought together, as a copy."""
    copy: dict[str, Any] = deepcopy(Whole(state, ranks).state_dict())
    return copy


def train(stepper: Stepper, count: int = BATCHES, steps: int = STEPS) -> list[tuple[float, float]]:
    """Take steps on `count` batches each, this process on its part; the loss and the length of each."""
    ranks, seen = stepper.ranks, []
    for step in range(steps):
        own = batches(count, step)[ranks.rank :: ranks.world_size]
        outcome = stepper.step(iter(own), len(own), step, step / steps, 1 / steps)
        assert outcome.finite
        seen.append((outcome.loss, outcome.norm))
    return seen


class Ill(nn.Module):
    """A model whose loss is no number in one process."""

    def __init__(self, model: nn.Module, ill: bool) -> None:
        super().__init__()
        self.model, self.ill = model, ill

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(inputs, targets)
        return loss * math.nan if self.ill else loss


def held(stepper: Stepper) -> tuple[int, int]:
    """The numbers of weights and of optimizers that lie here."""
    weights = sum(p.to_local().numel() for p in stepper.model.parameters())  # type: ignore[operator]
    states = [entry for o in stepper.optimizers for state in o.state.values() for entry in state.values()]
    return weights, sum(s.to_local().numel() for s in states if hasattr(s, "to_local"))


def look(stepper: Stepper) -> dict[str, Any]:
    """Bits per byte by all; then the first process alone, and as often as it likes, and one that fails."""
    model, ranks = stepper.model, stepper.ranks
    seen: dict[str, Any] = {}
    with gathered(model), torch.no_grad():
        own = batches(12, 9)[ranks.rank :: ranks.world_size]
        seen["bpb"] = evaluate_bpb(model, own, 0, torch.ones(67, dtype=torch.int64), ranks)
    with gathered(model):
        if ranks.first:
            assert isinstance(model, GPT)
            seen["text"] = list(model.generate([1, 2, 3], 5, temperature=0.0))
    try:
        with gathered(model):
            model(*batches(1, 0)[0])
            raise OSError("in the middle of a look")
    except OSError:
        pass
    return seen


def facts(ranks: Ranks, shards: int) -> dict[str, Any]:
    """What one process of a division sees."""
    stepper = stepper_of(ranks, shards, torch.float64)
    seen: dict[str, Any] = {"outcomes": train(stepper), "held": held(stepper), "look": look(stepper)}
    before = kept(stepper.model, ranks)
    healthy = stepper.model
    stepper.model = Ill(healthy, ranks.rank == ranks.world_size - 1)
    own = batches(ranks.world_size, 5)[ranks.rank : ranks.rank + 1]
    seen["ill"] = stepper.step(iter(own)).finite
    stepper.model = healthy
    seen["weights"] = kept(healthy, ranks)
    seen["unchanged"] = not ranks.first or all(torch.equal(before[k], v) for k, v in seen["weights"].items())
    states = [kept(optimizer, ranks) for optimizer in stepper.optimizers]
    seen["states"] = states
    # From whole tensors, as a file has them, into other pieces; then one step more of both.
    if ranks.world_size > 1:
        given: list[Any] = deepcopy(
            [seen["weights"] if ranks.first else None, states if ranks.first else None]
        )
        torch.distributed.broadcast_object_list(given)
        other = stepper_of(ranks, shards, torch.float64)
        pattern = other.model.state_dict()
        other.model.load_state_dict({k: laid_like(v, pattern[k]) for k, v in given[0].items()})
        for optimizer, state in zip(other.optimizers, given[1], strict=True):
            optimizer.load_state_dict(laid_like_parameters(optimizer, state))
        train(stepper, ranks.world_size, steps=1)
        train(other, ranks.world_size, steps=1)
        pairs = zip(stepper.model.parameters(), other.model.parameters(), strict=True)
        seen["goes on"] = all(torch.equal(a.to_local(), b.to_local()) for a, b in pairs)  # type: ignore[operator]
    # As many batches as processes: of two, the bits are those of one process.
    exact = stepper_of(ranks, shards, torch.float32, clip=0)
    seen["exact outcomes"] = train(exact, count=ranks.world_size)
    seen["exact"] = kept(exact.model, ranks)
    seen["costs"] = costs(exact)
    return seen


class Traffic(TorchDispatchMode):
    """Counts the bytes that this process receives from others, by the name of the exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            tensors = [a for a in tree_leaves(args) if isinstance(a, torch.Tensor)]
            groups = [a for a in args if isinstance(a, torch.ScriptObject)]
            size = torch.distributed.ProcessGroup.unbox(groups[0]).size()
            share = (size - 1) / size
            if name.startswith("allreduce"):
                self.bytes[name] += sum(2 * share * a.nbytes for a in tensors)  # type: ignore[assignment]
            elif name.startswith(("allgather", "_allgather", "reduce_scatter", "_reduce_scatter")):
                self.bytes[name] += share * max(a.nbytes for a in tensors)  # type: ignore[assignment]
            elif name.startswith("alltoall"):
                self.bytes[name] += share * tensors[0].nbytes  # type: ignore[assignment]
        return func(*args, **(kwargs or {}))


def costs(stepper: Stepper) -> dict[str, Any]:
    """The bytes that lie in this process, and those that it receives in a step of two passes."""
    gradients: list[int] = []
    update = stepper.update

    def look_at_gradients(rate: float, step: int) -> None:
        gradients.append(sum(local(p.grad).nbytes for p in stepper.model.parameters() if p.grad is not None))
        update(rate, step)

    stepper.update = look_at_gradients  # type: ignore[method-assign]
    with Traffic() as traffic:
        stepper.step(iter(batches(2, 7)), 2)
    states = [entry for o in stepper.optimizers for state in o.state.values() for entry in state.values()]
    return {
        "weights": sum(local(p).nbytes for p in stepper.model.parameters()),
        "gradients": gradients[0],
        "optimizers": sum(local(entry).nbytes for entry in states),
        "traffic": dict(traffic.bytes),
    }


def refuse_to_write(path: Path, data: bytes | str) -> None:
    """In place of `write_atomically`, on a disk that is full."""
    raise CannotWrite(f"no space for {path.name}")


def pieces(folder: Path, ranks: Ranks, shards: int) -> dict[str, Any]:
    """Four processes write; all divisions read what they wrote; a save that fails in one is none.

    One of the four would choose another folder; in the second save a file fails, in the third the JSON.
    """
    stepper = stepper_of(ranks, shards, torch.float32)
    group = torch.distributed.new_group(backend="gloo")
    seen: dict[str, Any] = {}
    if (ranks.world_size, shards) == (4, 4):
        train(stepper)
        extra = {"cpu": torch.get_rng_state()} if ranks.first else {}
        seen["errors"] = []
        if ranks.rank == 3:  # which finds the usual name taken, as if the others had made their folder
            checkpoint_manager.unused_name = lambda folder, kind, step: f"{kind}_{step:06d}-2"
        for step in (1, 2, 3):
            one = InPieces(folder, step, stepper.model, stepper.optimizers, extra, group)
            if step == 2 and ranks.rank == 3:
                one.own.result()
                one.own = Future()
                one.own.set_result({"error": "no space left"})
            if step == 3 and ranks.first:
                checkpoint_manager.write_atomically = refuse_to_write
            try:
                one.finish({"parameters": step})
            except CannotWrite as error:
                seen["errors"].append(str(error))
            checkpoint_manager.write_atomically = write_atomically
    else:
        assert isinstance(stepper.model, GPT)
        go_on_with(load_checkpoint(folder, leave_pieces=True), stepper.model, stepper.optimizers)
    seen["weights"] = kept(stepper.model, ranks)
    seen["states"] = [kept(optimizer, ranks) for optimizer in stepper.optimizers]
    return seen


def work(rank: int, folder: str) -> None:
    """One of four processes, which join in different numbers one after the other."""
    torch.set_num_threads(1)
    for world, shards in DIVISIONS:
        if rank >= world:
            continue
        store = torch.distributed.FileStore(f"{folder}/store-{world}-{shards}", world)
        patience = timedelta(minutes=15)
        torch.distributed.init_process_group(
            "gloo", timeout=patience, world_size=world, rank=rank, store=store
        )
        seen = facts(Ranks(rank, rank, world), shards)
        seen["pieces"] = pieces(Path(folder) / "run", Ranks(rank, rank, world), shards)
        torch.save(seen, f"{folder}/{world}-{shards}-{rank}.pt")
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes have seen."""
    made = tmp_path_factory.mktemp("ranks")
    (made / "run").mkdir()
    multiprocessing.set_forkserver_preload([*SERVER_HAS, "torch._dynamo", "nanochat.run"])
    mp.start_processes(work, args=(str(made),), nprocs=4, start_method="forkserver")  # type: ignore[attr-defined, no-untyped-call]
    return made


@pytest.fixture(scope="module")
def alone() -> Iterator[Stepper]:
    """One process after the same steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    stepper = stepper_of(Ranks(), 1, torch.float64)
    stepper.outcomes = train(stepper)  # type: ignore[attr-defined]
    yield stepper
    torch.set_num_threads(threads)


def seen_by(folder: Path, world: int, shards: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{world}-{shards}-{r}.pt", weights_only=False) for r in range(world)]


def trained(off: float, draw: int) -> list[torch.Tensor]:
    """The weights after the steps, when each sum over batches is off by so much of its terms, at random."""
    stepper = stepper_of(Ranks(), 1, torch.float64)
    model, update = stepper.model, stepper.update
    parameters, signs = list(model.parameters()), torch.Generator().manual_seed(draw)

    def update_wrongly(rate: float, step: int) -> None:
        gradients = [p.grad for p in parameters]
        terms = [torch.zeros_like(p) for p in parameters]
        for batch in batches(BATCHES, step):
            for sizes, each in zip(terms, torch.autograd.grad(model(*batch), parameters), strict=True):
                sizes += each.abs() / BATCHES
        for p, gradient, sizes in zip(parameters, gradients, terms, strict=True):
            assert gradient is not None
            p.grad = gradient + off * sizes * (torch.randint(2, p.shape, generator=signs) * 2 - 1)
        update(rate, step)

    stepper.update = update_wrongly  # type: ignore[method-assign]
    train(stepper)
    return [p.detach() for p in parameters]


@pytest.fixture(scope="module")
def bounds(alone: Stepper) -> list[float]:
    """How far each weight may be off after the steps, when sums over batches are made in another order.

    A gradient is a sum of BATCHES terms, divided once or twice. Both programs round it, each at most so much.
    """
    relative = 2 * sum_error(BATCHES + 2, torch.float64)
    still = list(alone.model.parameters())
    moves = [
        [float((a - b).detach().abs().max()) for a, b in zip(trained(relative, draw), still, strict=True)]
        for draw in range(2)
    ]
    return [2 * max(move) for move in zip(*moves, strict=True)]


@pytest.mark.parametrize(("world", "shards"), DIVISIONS)
@pytest.mark.numerics
def test_pieces_train_as_one_process_does(
    world: int, shards: int, folder: Path, alone: Stepper, bounds: list[float]
) -> None:
    first = seen_by(folder, world, shards)[0]
    for (name, wanted), bound in zip(alone.model.named_parameters(), bounds, strict=True):
        assert bound < 1e-6  # a mistake moves a weight by its rate, a thousandth at least
        torch.testing.assert_close(first["weights"][name], wanted.detach(), rtol=0, atol=bound, msg=name)
    for got, want in zip(first["outcomes"], alone.outcomes, strict=True):  # type: ignore[attr-defined, call-overload]
        assert got == pytest.approx(want, rel=1e-6)  # the mean loss is kept in float32


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.numerics
def test_two_batches_on_two_processes_give_the_bits_of_one(shards: int, folder: Path) -> None:
    """Halving is exact in binary, so a/2 + b/2 and (a + b)/2 round alike. Clipping adds squares: not here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = stepper_of(Ranks(), 1, torch.float32, clip=0)
    outcomes = train(one, count=2)
    torch.set_num_threads(threads)
    first = seen_by(folder, 2, shards)[0]
    for name, wanted in one.model.named_parameters():
        assert torch.equal(first["exact"][name], wanted), name
    for (loss, length), (loss_alone, length_alone) in zip(first["exact outcomes"], outcomes, strict=True):
        assert loss == loss_alone
        assert length == pytest.approx(length_alone, rel=1e-6)  # a sum of squares in another order


@pytest.mark.parametrize(("world", "shards"), DIVISIONS)
def test_what_lies_in_a_process_falls_with_the_pieces(world: int, shards: int, folder: Path) -> None:
    model = model_of(torch.float64)
    tables = model.lm_head.weight.numel() + model.transformer.wte.weight.numel()
    blocks = sum(p.numel() for p in model.parameters()) - tables
    held = [one["held"] for one in seen_by(folder, world, shards)]
    copies = world // shards
    assert sum(weights for weights, _ in held) == copies * (tables + blocks)
    assert sum(states for _, states in held) == copies * (2 * tables + blocks)
    assert max(weights for weights, _ in held) <= 1.05 * (tables + blocks) / shards


@pytest.mark.parametrize(("world", "shards"), DIVISIONS)
@pytest.mark.numerics
def test_looks_see_whole_weights_and_leave_pieces(
    world: int, shards: int, folder: Path, alone: Stepper
) -> None:
    with torch.no_grad():
        wanted = evaluate_bpb(alone.model, batches(12, 9), 0, torch.ones(67, dtype=torch.int64))
    assert isinstance(alone.model, GPT)
    everybody = seen_by(folder, world, shards)
    for one in everybody:
        assert one["look"]["bpb"] == pytest.approx(wanted, rel=1e-6)
        assert not one["ill"]  # one process's loss was no number, after these looks: nothing moved
        assert one["unchanged"]
        assert one["goes on"]
    text = list(alone.model.generate([1, 2, 3], 5, temperature=0.0))
    assert everybody[0]["look"]["text"] == text


def test_only_the_first_process_keeps_what_is_brought_together(folder: Path, alone: Stepper) -> None:
    first, *others = seen_by(folder, 4, 4)
    for other in others:
        assert set(other["weights"].values()) == {None}
    for got, optimizer in zip(first["states"], alone.optimizers, strict=True):
        wanted = optimizer.state_dict()
        assert got["state"].keys() == wanted["state"].keys()
        for number, entries in wanted["state"].items():
            assert {k: v.shape for k, v in got["state"][number].items()} == {
                k: v.shape for k, v in entries.items()
            }


def same(a: Any, b: Any) -> bool:
    """Whether two nests of dictionaries, lists and tensors hold the same."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize(("world", "shards"), DIVISIONS[1:])
def test_what_four_have_written_others_read(world: int, shards: int, folder: Path) -> None:
    written, read = (seen_by(folder, *division)[0]["pieces"] for division in (DIVISIONS[0], (world, shards)))
    assert same(read["weights"], written["weights"])
    for a, b in zip(read["states"], written["states"], strict=True):
        assert same(a["state"], b["state"])


def test_pieces_are_whole_for_one_process_and_become_a_single_file(folder: Path, tmp_path: Path) -> None:
    written = seen_by(folder, 4, 4)[0]["pieces"]
    saved = load_checkpoint(folder / "run")
    assert saved.step == 1
    assert set(saved.tensors) == {"cpu"}
    assert same(saved.model, written["weights"])
    for a, b in zip(saved.optimizers, written["states"], strict=True):
        assert same(a["state"], b["state"])
    assert same(load_checkpoint(folder / "run", weights_only=True).model, saved.model)
    # From pieces to two files, and from there to one piece, in place of the other kind.
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    convert(run, 1, "files")
    assert not list(run.glob("pieces_000001*"))
    files = load_checkpoint(run, 1)
    convert(run, 1, "pieces")
    assert not list(run.glob("model_*"))
    for other in (files, load_checkpoint(run, 1)):
        assert same(other.model, saved.model)
        assert same(other.optimizers, saved.optimizers)
        assert same(other.tensors, saved.tensors)
        assert other.meta == saved.meta


def test_a_save_that_fails_in_one_process_leaves_the_older_one(folder: Path) -> None:
    assert (folder / "run" / "pieces_000002").is_dir()  # three of four pieces at least
    assert saved_steps(folder / "run") == [1]
    for one in seen_by(folder, 4, 4):
        a_file, the_json = one["pieces"]["errors"]
        assert "process 3: no space left" in a_file
        assert "process 0: no space for meta_000003.json" in the_json


def test_a_damaged_piece_is_named(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    piece = sorted(run.glob("pieces_000001/*"))[2]
    data = bytearray(piece.read_bytes())
    data[-1] ^= 1
    piece.write_bytes(data)
    with pytest.raises(UserError, match=f"{piece.name} was changed"):
        load_checkpoint(run, 1)


# --- what it costs ----------------------------------------


@pytest.mark.parametrize(("world", "shards"), DIVISIONS)
def test_the_plan_is_what_was_measured(world: int, shards: int, folder: Path) -> None:
    division, seen = Division(world, shards), seen_by(folder, world, shards)[0]["costs"]
    planned = memory(SHAPE, division, 2, FLOAT32)
    for name in ("weights", "gradients", "optimizers"):
        assert seen[name] == pytest.approx(planned[name], rel=0.05), name
    sent, counted = communication(SHAPE, division, 2, FLOAT32), Counter[str]()
    for name, size in seen["traffic"].items():
        kind = "sum" if "allreduce" in name else "Muon" if "alltoall" in name else "scatter"
        counted["gather" if "gather" in name else kind] += size
    assert counted.total() == pytest.approx(sum(sent.values()), rel=0.05)
    assert counted["scatter"] == pytest.approx(sent["scatter"], rel=0.05)
    length = 64  # bytes at most of the gradient's length, which is a sum too
    assert counted["sum"] == pytest.approx(sent["sum"], rel=0.05, abs=length)


@pytest.mark.parametrize(("n_kv_head", "n_layer"), [(2, 1), (1, 3)])
@pytest.mark.numerics
def test_the_activations_are_what_a_forward_pass_keeps(n_kv_head: int, n_layer: int) -> None:
    shape = {**SHAPE, "n_embd": 64, "n_kv_head": n_kv_head, "n_layer": n_layer}
    model = build_model(normans_gpt, shape, CPU, 1, None)
    inputs, targets = batches(1, 0)[0]
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), inputs, targets]}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and tensor.is_floating_point():
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(inputs, targets)
    assert loss.requires_grad  # what it keeps is alive until here
    measured = sum(found.values()) - model.lm_head.weight.nbytes  # the head's gradient, counted elsewhere
    assert measured == pytest.approx(activations(shape, 2, FLOAT32), rel=0.05)


# --- without processes ----------------------------------------


def test_pieces_are_cut_as_pytorch_cuts_them() -> None:
    for rows in range(1, 20):
        for pieces in range(1, 6):
            cut = [len(part) for part in torch.zeros(rows).chunk(pieces)]
            assert piece_sizes(rows, pieces) == cut + [0] * (pieces - len(cut))


def test_the_models_size_decides_who_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    eight = Ranks(0, 0, 8)
    assert [shards_for(0, n, eight) for n in (10**6, 10**9)] == [1, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [shards_for(wanted, 10**9, eight) for wanted in (0, 1, 2, 8)] == [4, 1, 2, 8]
    with pytest.raises(UserError, match=r"--shard=3: 8 processes .* take 1, 2, 4, 8"):
        shards_for(3, 1, eight)


def test_the_plan_says_which_clock_decides() -> None:
    """Of the chapter's exercise: pieces over all nodes wait for the wires, pieces within a node do not."""
    for shard, clock in ((8, "arithmetic"), (64, "wires")):
        printed = "\n".join(lines(PlanConfig(depth=32, gpus=64, shard=shard, device_batch_size=4)))
        assert f"one copy of the weights on {shard}\n" in printed
        assert f"here {clock}," in printed
    assert "here arithmetic," in "\n".join(lines(PlanConfig()))
    with pytest.raises(UserError, match=r"--shard=8: 12 processes .* take 1, 2, 3, 4, 6, 12"):
        PlanConfig(gpus=12)
    gpu = MACHINES["H100"]  # tokens of a GPU in a pass below which the chapter says that the wires are slower
    assert 2 * 0.5 * gpu.flops / gpu.inside == pytest.approx(2200, rel=0.01)
    assert 2 * 0.5 * gpu.flops / gpu.between == pytest.approx(20_000, rel=0.02)


def test_one_process_keeps_what_it_has() -> None:
    model = model_of(torch.float32)
    before = list(model.parameters())
    cut_into_pieces(model, Ranks(), CPU, 1)
    optimizers = build_optimizers(model, Rates())
    share_the_work(optimizers, Ranks())
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert [o.orthogonalize for o in optimizers if isinstance(o, Muon)] == [orthogonalize]
    share_the_work(optimizers, Ranks(0, 0, 2))
    assert [o.orthogonalize for o in optimizers if isinstance(o, Muon)] == [orthogonalize_shared]
    with gathered(model):
        pass
    assert laid_like(before[0], before[0]) is before[0]

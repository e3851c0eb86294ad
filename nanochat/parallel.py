"""One model on several processes: weights in pieces, matrices with owners, and both whole again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from nanochat.cluster import refuse_uneven_groups
from nanochat.common import Ranks
from nanochat.muon import Muon, orthogonalize

Batch = TypeVar("Batch")


class Kept(Protocol):
    """What a checkpoint keeps the state of: a model, an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...


CUT_FROM = 2**27  # parameters


def shards_for(wanted: int, parameters: int, ranks: Ranks) -> int:
    """S, the processes that share one copy of the weights; wanted: what the flag says, 0 for no wish.

    Raises UserError if the processes do not divide into such groups.
    """
    world = ranks.world_size
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or world)
    shards = wanted or (here if parameters >= CUT_FROM and world % here == 0 else 1)
    refuse_uneven_groups(shards, world)
    return shards


def cut_into_pieces(model: nn.Module, ranks: Ranks, device: torch.device, shards: int) -> None:
    """Cut the weights into pieces, each held by one of `shards` processes; one process keeps them whole.

    All processes must call this, with the same weights. Parameters become DTensors over a mesh of
    world_size / shards copies; optimizers are to be made afterwards.
    """
    if ranks.world_size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    shape = (ranks.world_size // shards, shards)
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("copies", "pieces"))
    units: list[nn.Module] = []
    for module in model.modules():
        units += list(module) if isinstance(module, nn.ModuleList) else []
        units += [module] if isinstance(module, nn.Embedding) else []
    for unit in [*units, model]:
        fully_shard(unit, mesh=mesh)


def with_exchanges(model: nn.Module, batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The next `count` batches; before the last the model is told to sum over its copies."""
    for done, batch in enumerate(islice(batches, count), 1):
        if hasattr(model, "set_requires_all_reduce"):
            model.set_requires_all_reduce(done == count)  # type: ignore[operator]
        yield batch


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor that lies in pieces; all processes must call this. Others are given back."""
    made: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return made


def orthogonalize_shared(g: torch.Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> torch.Tensor:
    """What `muon.orthogonalize` gives for a stack (K, rows, columns), each process computing K / W of it.

    g is a DTensor whose rows lie in pieces along the mesh's second dimension; so is the result.
    All processes must call this. Source of the idea: "owners" of parameters as in ZeRO, arXiv 1910.02054.
    """
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    assert isinstance(g, DTensor)
    mesh, local = g.device_mesh, g.to_local()
    (copies, pieces), (copy, piece) = mesh.shape, mesh.get_coordinate() or (0, 0)
    count, (_, rows, columns) = -(-len(local) // (copies * pieces)), g.shape
    heights = piece_sizes(rows, pieces)
    here, sizes = heights[piece], [count * height * columns for height in heights]
    padded = local.new_zeros(copies, pieces * count, here, columns)
    padded.flatten(0, 1)[: len(local)] = local
    # My rows of the matrices of each owner in my copy, for its rows of mine.
    received = local.new_empty(sum(sizes))
    even = [sizes[piece]] * pieces
    dist.all_to_all_single(received, padded[copy].flatten(), sizes, even, group=mesh.get_group(1))
    parts = [part.view(count, -1, columns) for part in torch.split(received, sizes)]
    done = orthogonalize(torch.cat(parts, dim=1), steps, dtype)
    # And back: to each process its rows of what I have made of mine.
    sending = torch.cat([part.flatten() for part in torch.split(done, heights, dim=1)])
    mine = done.new_empty(pieces * count, here, columns)
    dist.all_to_all_single(mine.view(-1), sending, even, sizes, group=mesh.get_group(1))
    if copies > 1:
        all_copies = done.new_empty(copies * pieces * count, here, columns)
        dist.all_gather_single(all_copies, mine, group=mesh.get_group(0))
        mine = all_copies
    return DTensor.from_local(
        mine[: len(local)].contiguous(),
        mesh,
        g.placements,
        shape=g.shape,
        stride=g.stride(),
    )


def piece_sizes(rows: int, pieces: int) -> list[int]:
    """The rows of each piece, as PyTorch cuts them: equal ones, then a shorter one, then none."""
    most = -(-rows // pieces)
    return [max(0, min(most, rows - i * most)) for i in range(pieces)]


def share_the_work(optimizers: Iterable[torch.optim.Optimizer], ranks: Ranks) -> None:
    """Give each process its part of what the optimizers compute."""
    for optimizer in optimizers if ranks.world_size > 1 else ():
        if isinstance(optimizer, Muon):
            optimizer.orthogonalize = orthogonalize_shared


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Around a look: every process holds all weights. All processes must enter it; each may leave alone."""
    if not hasattr(model, "unshard"):
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    model.set_reshard_after_forward(False)  # type: ignore[operator]
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.unshard()
    try:
        yield
    finally:
        model.reset_iter_state()  # type: ignore[operator]
        for unit in model.modules():
            if isinstance(unit, FSDPModule):
                unit.set_reshard_after_forward(unit is not model, recurse=False)


class Whole:
    """What an object's `state_dict()` holds, with every tensor whole and on the CPU, in the first process."""

    def __init__(self, kept: Kept, ranks: Ranks) -> None:
        """All processes must call this where pieces lie on several of them; the others keep nothing."""
        self.state: dict[str, Any] = together(kept.state_dict(), ranks)

    def state_dict(self) -> dict[str, Any]:
        """The state."""
        return self.state


def together(state: Any, ranks: Ranks) -> Any:
    """The same nest of dictionaries and lists, with whole tensors in the first process and none elsewhere."""
    if isinstance(state, dict):
        return {key: together(value, ranks) for key, value in state.items()}
    if isinstance(state, list):
        return [together(value, ranks) for value in state]
    if not isinstance(state, torch.Tensor):
        return state
    made = local(state) if alone(state) else whole(state)
    return made.detach().cpu() if ranks.first else None


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies here; of one that is whole, all of it."""
    part: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def alone(tensor: torch.Tensor) -> bool:
    """Whether a DTensor's whole lies here, as it does where every process has a copy of its own."""
    return hasattr(tensor, "device_mesh") and tensor.device_mesh.shape[-1] == 1


def laid_like(value: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """The pieces of a whole tensor that this process holds of `pattern`; without pieces, value itself.

    Nothing is sent: every process has the whole value, and keeps its part.
    """
    if not hasattr(pattern, "device_mesh") or hasattr(value, "device_mesh") or value.shape != pattern.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = pattern.device_mesh
    value = value.to(pattern.device)
    return distribute_tensor(value, mesh, pattern.placements, src_data_rank=None)  # type: ignore[attr-defined]


def laid_like_parameters(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's saved state, every tensor of a parameter's shape laid like that parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    laid = {
        number: {
            name: laid_like(value, parameters[number]) if isinstance(value, torch.Tensor) else value
            for name, value in entries.items()
        }
        for number, entries in state["state"].items()
    }
    return {**state, "state": laid}


def begin_to_write(state: dict[str, Any], folder: Path, group: Any) -> Future[None]:
    """Copy the pieces of these tensors that lie here, and begin to write them; all processes must call this.

    The future ends when every process's file in `folder` is on the disk, or with what went wrong anywhere.
    group: the processes' group for this alone; None for a process without others.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save, save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    if group is None:
        done: Future[None] = Future()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no other processes is no news
            save(state, storage_writer=writer, no_dist=True)
        done.set_result(None)
        return done
    return async_save(state, storage_writer=writer, process_group=group)  # type: ignore[return-value]


def read_into(state: dict[str, Any], folder: Path) -> None:
    """Fill these tensors, whole ones or DTensors over any mesh, from the files in `folder`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    load(state, storage_reader=reader, no_dist=not torch.distributed.is_initialized())


def read_shapes(folder: Path) -> dict[str, torch.Tensor]:
    """For each tensor in `folder` one of its shape and format, on the meta device."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    about: dict[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: torch.empty(one.size, dtype=one.properties.dtype, device="meta") for name, one in about.items()
    }


def read_whole(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in `folder`, whole, in this process alone."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    state = {name: torch.empty_like(one, device="cpu") for name, one in read_shapes(folder).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there are no other processes is no news
        load(state, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return state

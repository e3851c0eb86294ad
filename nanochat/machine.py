"""What this machine can do: number formats, vector units, cores, memory, measured rates.

Importing this module does not import torch; the functions that need it do.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat import system
from nanochat.common import UserError
from nanochat.played import VARIABLE, given_up

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """What one process may use of one device and its host."""

    type: str  # cuda, mps or cpu
    device: str  # the GPU's name, or the processor's
    processor: str
    system: str
    vector: str  # PyTorch's word for the vector instructions that its kernels use, such as AVX2
    bfloat16: bool  # whether the device multiplies bfloat16 matrices in hardware
    cores: int
    threads: int
    memory: int  # bytes, of the host
    played: str  # $NANOCHAT_MACHINE

    @property
    def kind(self) -> str:
        """What measurements of this machine may be compared with: cuda, mps, or cpu with its fast format."""
        kind = self.type if self.type != "cpu" else f"cpu-{'bfloat16' if self.bfloat16 else 'float32'}"
        return f"{kind}-played" if self.played else kind

    def line(self) -> str:
        """All of it in one line."""
        name = self.device if self.device == self.processor else f"{self.device}, {self.processor}"
        return (
            f"{name}, {self.cores} {'core' if self.cores == 1 else 'cores'}, {self.threads} "
            f"{'thread' if self.threads == 1 else 'threads'}, {self.vector}, "
            f"{'bfloat16' if self.bfloat16 else 'no bfloat16'} products, {self.memory / 1e9:.1f} GB"
            + (f" (played: {VARIABLE}={self.played})" if self.played else "")
        )


def own_cores() -> int:
    """The cores that this process may keep busy: of its affinity and its quota the smaller; at least 1."""
    allowed = system.allowed_cores()
    played = int(given_up().get("threads") or allowed)
    return max(1, math.ceil(min(allowed, played, system.granted_cores())))


def use_own_cores() -> None:
    """Let PyTorch start at most a thread for each core that is ours, unless $OMP_NUM_THREADS is set."""
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(min(torch.get_num_threads(), own_cores()))


def own_memory() -> int:
    """Bytes of memory that this process may use: the machine's, a container's limit, or what is played."""
    limits = system.memory_limits()
    if played := given_up().get("memory"):
        limits.append(int(played) * 10**9)
    return min(limits, default=0)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware of `device` has instructions for bfloat16 products that PyTorch may use."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if "no-bfloat16" in given_up():
        return False
    abilities = torch.cpu.get_capabilities()
    if abilities.get("architecture") != "x86_64":
        return bool(abilities.get("bf16", False))
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "DEFAULT"
    may_use = any(word in allowed.upper() for word in ("DEFAULT", "ALL", "BF16", "FP16", "AMX", "AVX10"))
    has = any(abilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    return has and may_use and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


@functools.cache
def this_machine(device: torch.device) -> Machine:
    """What this process may use of `device` and its host. It is asked once."""
    import torch

    processor = system.processor_name()
    return Machine(
        type=device.type,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        processor=processor,
        system=f"{platform.system()} {platform.machine()}",
        vector=torch.backends.cpu.get_cpu_capability(),
        bfloat16=multiplies_bfloat16(device),
        cores=own_cores(),
        threads=torch.get_num_threads(),
        memory=own_memory(),
        played=os.environ.get(VARIABLE, ""),
    )


FORMATS = ("auto", "bfloat16", "float32")  # what a person may choose


def fastest_format(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it, float32 elsewhere."""
    import torch

    return torch.bfloat16 if multiplies_bfloat16(device) else torch.float32


def autocast_dtype(device: torch.device, choice: str = "auto") -> torch.dtype | None:
    """The format for matrix products under torch.autocast, or None for plain float32.

    `choice`: "auto" takes the fastest format; "bfloat16" and "float32" insist. Raises UserError for another.
    """
    import torch

    if choice not in FORMATS:
        raise UserError(f"--dtype is {choice!r}; it can be auto, bfloat16 or float32")
    chosen = fastest_format(device) if choice == "auto" else getattr(torch, choice)
    return torch.bfloat16 if chosen == torch.bfloat16 else None


# Dense bf16 with fp32 accumulation, FLOP/s, from NVIDIA's datasheets; the first name that fits decides.
BF16_PEAKS = (
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
)


def peak_flops(device: torch.device, dtype: torch.dtype | None) -> tuple[float, str]:
    """The most FLOP/s of this device in products of `dtype` (None: float32), and where that is from."""
    import torch

    if device.type == "cuda" and dtype is torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, peak in BF16_PEAKS:
            if all(word in name for word in part.split()):
                return peak, "datasheet"
    return measured_product_rate(device, dtype or torch.float32), "measured"


def measured_product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """The best rate, in FLOP/s, of a square matrix product repeated for a fifth of a second."""
    import torch

    rng = torch.Generator().manual_seed(0)  # its own: a measurement must not move the run's random numbers
    a = torch.randn(size, size, generator=rng).to(device, dtype)
    best, began = math.inf, time.perf_counter()
    for trial in itertools.count():
        start = time.perf_counter()
        torch.mm(a, a)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
        if trial and time.perf_counter() - began > 0.2:
            return 2 * size**3 / best
    raise AssertionError


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what it was given; a CPU always has."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class Rates:
    """What a device was seen to do at its best, in FLOP/s and bytes/s."""

    float32: float
    bfloat16: float
    copy: float  # bytes read and bytes written


def measure_rates(device: torch.device) -> Rates:
    """Measure for about a second."""
    import torch

    size = 2048 if multiplies_bfloat16(device) else 256
    return Rates(
        float32=measured_product_rate(device, torch.float32),
        bfloat16=measured_product_rate(device, torch.bfloat16, size),
        copy=measured_copy_rate(device),
    )


def measured_copy_rate(device: torch.device, numbers: int = 2**26) -> float:
    """The best rate, in bytes/s, of copying this many float32 numbers, of five tries."""
    import torch

    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best

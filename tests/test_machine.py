"""What a machine is asked, what it may play, and that nothing else looks at the processor."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat import machine
from nanochat.common import UserError

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
LIMITS = ["NANOCHAT_MACHINE", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"]
THREADS = ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]


@pytest.fixture
def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with everything, on which nothing is played."""
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    able = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)


@pytest.mark.usefixtures("unlimited")
class TestTheFormat:
    @pytest.mark.parametrize(
        ("abilities", "expected"),
        [
            ({"architecture": "x86_64", "avx512_bf16": True}, torch.bfloat16),
            ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
            ({"architecture": "aarch64", "bf16": True}, torch.bfloat16),
            ({"architecture": "aarch64", "bf16": False}, None),
            ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, None),
            ({}, None),
        ],
    )
    def test_on_a_cpu_the_instructions_decide(
        self, monkeypatch: pytest.MonkeyPatch, abilities: dict[str, object], expected: torch.dtype | None
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
        assert machine.autocast_dtype(CPU) == expected
        assert machine.fastest_format(CPU) == (expected or torch.float32)

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("ONEDNN_MAX_CPU_ISA", "AVX2", False),
            ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE", False),
            ("DNNL_MAX_CPU_ISA", "SSE41", False),
            ("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16", True),
            ("ONEDNN_MAX_CPU_ISA", "avx512_core_amx", True),
            ("ONEDNN_MAX_CPU_ISA", "DEFAULT", True),
            ("NANOCHAT_MACHINE", "no-bfloat16", False),
            ("NANOCHAT_MACHINE", "least", False),
            ("NANOCHAT_MACHINE", "threads=1", True),
        ],
    )
    def test_what_may_not_be_used_does_not_count(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: bool
    ) -> None:
        monkeypatch.setenv(name, value)
        assert machine.multiplies_bfloat16(CPU) == allowed

    def test_nor_what_pytorchs_own_kernels_may_not_use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert not machine.multiplies_bfloat16(CPU)

    def test_without_onednn_everything_is_emulated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not machine.multiplies_bfloat16(CPU)

    def test_emulation_does_not_count_on_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def supported(including_emulation: bool = True) -> bool:
            return including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert machine.autocast_dtype(torch.device("cuda")) is None

    def test_a_choice_is_obeyed(self) -> None:
        assert machine.autocast_dtype(torch.device("mps")) is None
        assert machine.autocast_dtype(CPU, "float32") is None
        assert machine.autocast_dtype(CPU, "bfloat16") == torch.bfloat16
        with pytest.raises(UserError, match="float16"):
            machine.autocast_dtype(CPU, "float16")


ASK = """
import json
from dataclasses import asdict
from nanochat import machine
import torch
print(json.dumps(asdict(machine.this_machine(torch.device("cpu")))))
"""


def ask(code: str = ASK, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process with these variables and none of the limits."""
    env = {name: value for name, value in os.environ.items() if name not in (*LIMITS, *THREADS)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=env | variables, capture_output=True, text=True)


def test_the_least_machine_is_played_to_the_end() -> None:
    done = ask(NANOCHAT_MACHINE="least")
    seen = json.loads(done.stdout)
    assert seen["vector"] in ("AVX2", "DEFAULT")
    assert not seen["bfloat16"]
    assert seen["threads"] == seen["cores"] == 1
    assert seen["memory"] <= 8e9
    assert seen["played"] == "least"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("leest", "'leest' is nothing that a machine can give up; give avx2, no-bfloat16, threads=N"),
        ("avx2=1", "'avx2=1' is nothing"),
        ("threads", "'threads' needs a whole number above 0, as in threads=1"),
        ("avx2,memory=0", "'memory=0' needs a whole number"),
        ("threads=-1", "needs a whole number"),
    ],
)
def test_a_value_that_means_nothing_ends_the_program(value: str, said: str) -> None:
    done = ask("import nanochat.common", NANOCHAT_MACHINE=value)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: NANOCHAT_MACHINE={value}: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_playing_after_pytorch_is_refused() -> None:
    late = "import sys; sys.modules['torch'] = sys; import nanochat.common"
    done = ask(late, NANOCHAT_MACHINE="avx2")
    assert done.returncode == 2
    assert "comes too late, PyTorch is already imported" in done.stderr
    assert "ATEN_CPU_CAPABILITY=avx2" in done.stderr
    heard = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert ask(late, NANOCHAT_MACHINE="avx2", **heard).returncode == 0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        ({"/sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "10000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "900000 100000\n"}, 4),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
@pytest.mark.usefixtures("unlimited")
def test_a_quota_counts(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int) -> None:
    def read(path: Path, **_: str) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert machine.own_cores() == expected


@pytest.mark.parametrize(("said", "expected"), [("", 1), ("3", 2)])
@pytest.mark.usefixtures("unlimited")
def test_a_quota_limits_the_threads(monkeypatch: pytest.MonkeyPatch, said: str, expected: int) -> None:
    """A process that may use one core of two starts one thread, unless the user has said how many."""
    asked = [2]
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(machine, "own_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    machine.use_own_cores()
    assert asked[-1] == expected


@pytest.mark.usefixtures("unlimited")
def test_a_containers_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path, **_: str) -> str:
        if str(path) != "/sys/fs/cgroup/memory.max":
            raise FileNotFoundError(path)
        return "123456789\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert machine.own_memory() == 123456789


def test_kinds_and_lines_tell_machines_apart() -> None:
    here = replace(machine.this_machine(CPU), processor="Chip", device="Chip", played="", bfloat16=True)
    assert here.kind == "cpu-bfloat16"
    assert replace(here, bfloat16=False).kind == "cpu-float32"
    assert replace(here, bfloat16=False, played="avx2").kind == "cpu-float32-played"
    assert replace(here, type="cuda", device="GPU").kind == "cuda"
    fixed = replace(here, cores=2, threads=1, vector="AVX2", memory=8_000_000_000, bfloat16=False)
    assert fixed.line() == "Chip, 2 cores, 1 thread, AVX2, no bfloat16 products, 8.0 GB"
    assert replace(fixed, played="avx2").line().endswith(" (played: NANOCHAT_MACHINE=avx2)")


def test_rates_are_positive_and_leave_the_random_state() -> None:
    before = torch.get_rng_state()
    assert 1e8 < machine.measured_product_rate(CPU, torch.float32, size=256) < 1e15
    assert machine.measured_copy_rate(CPU, 2**16) > 1e6
    assert torch.equal(before, torch.get_rng_state())


def test_datasheets(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for name, peak in (
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert machine.peak_flops(cuda, torch.bfloat16) == (peak, "datasheet")
    monkeypatch.setattr(machine, "measured_product_rate", lambda device, dtype: 1e11)
    assert machine.peak_flops(CPU, None) == (1e11, "measured")


def test_nothing_else_looks_at_the_processor() -> None:
    """A second place that asks would disagree on a machine that nobody here has."""
    asking = re.compile(
        r"get_capabilit|is_bf16_supported|cpuinfo|cpu_count|sched_getaffinity|_CPU_ISA|_MAX_CPU"
    )
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("nanochat", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name not in ("machine.py", "played.py", "system.py")
        for line in path.read_text().splitlines()
        if asking.search(line)
    ]
    assert found == []

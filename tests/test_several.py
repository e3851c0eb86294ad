"""Several machines: two agents on this one, and what is said of a machine that never comes."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import load_checkpoint
from nanochat.common import UserError
from scripts import several
from tests.tiny_run import flags, own_base, tiny_config

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
ROOT = Path(__file__).parent.parent
GIVEN = ["several", "--nnodes=2", "--rdzv-backend=c10d", "--rdzv-endpoint=10.0.0.1:29400", "--rdzv-id=mine"]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_two_agents_meet_and_train_one_model(tmp_path: Path) -> None:
    """Each has an address of its own, as two machines have, and begins with the script for two machines."""
    config = tiny_config(model_tag="both", total_batch_size=64, num_iterations=2, eval_every=-1, shard=2)
    with own_base(tmp_path):
        environment = os.environ | {"PROCESSES": "1", "PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        command = ["bash", str(ROOT / "scripts/two_machines.sh"), "127.0.0.1", "both", *flags(config)]
        agents = [
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment | {"AGENT_FLAGS": f"--local-addr=127.0.0.{number}"},
            )
            for number in (1, 2)
        ]
        said = [agent.communicate(timeout=900)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)
        assert sum(one.count("1 pass of 2 x 16 on each of 2 processes") for one in said) == 1
        assert load_checkpoint(tmp_path / "base_checkpoints" / "both").step == 2


def test_the_script_for_two_machines_says_what_it_wants() -> None:
    command = ["bash", str(ROOT / "scripts/two_machines.sh"), "10.0.0.1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "two_machines.sh ADDRESS NAME [flags]" in ended.stderr


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ("RendezvousTimeoutError", "not all of --nnodes=2 machines came to --rdzv-endpoint=10.0.0.1:29400"),
        ("RendezvousConnectionError", "nobody answers at --rdzv-endpoint=10.0.0.1:29400"),
    ],
)
def test_a_machine_that_never_comes_is_one_line(
    error: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_in_vain(given: object) -> None:
        raise getattr(torch.distributed.elastic.rendezvous, error)("of PyTorch")

    monkeypatch.setattr("sys.argv", [*GIVEN, "-m", "scripts.base_train", "--depth=2"])
    monkeypatch.setattr("torch.distributed.run.run", wait_in_vain)
    with pytest.raises(UserError, match=wanted):
        several.main()


@pytest.mark.parametrize(("exitcode", "status"), [(2, 2), (-9, 137)])
def test_the_status_is_that_of_the_process_that_failed(
    exitcode: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def fail(given: object) -> None:
        raise ChildFailedError("x", {0: ProcessFailure(0, 1, exitcode, "none")})

    monkeypatch.setattr("sys.argv", [*GIVEN, "-m", "scripts.base_train"])
    monkeypatch.setattr("torch.distributed.run.run", fail)
    with pytest.raises(SystemExit) as ended:
        several.main()
    assert ended.value.code == status

"""The server as a process of its own: SIGTERM lets the answers end that are being written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanochat.checkpoint_manager import save_checkpoint
from tests.chat_fixtures import TOKENIZER, random_model
from tests.test_chat_web import begin_stream, health, wait_until


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base folder with a run named tiny."""
    folder = tmp_path / "base_checkpoints" / "tiny"
    TOKENIZER.save(folder / "tokenizer")
    model = random_model()
    shape = vars(model.config)
    save_checkpoint(folder, 3, model, [], {"model": shape, "tokenizer": TOKENIZER.fingerprint()})
    return tmp_path


@pytest.mark.slow
def test_sigterm_lets_answers_end(base: Path) -> None:
    command = [sys.executable, "-m", "scripts.chat_web", "--run=tiny", "--port=0", "--device_type=cpu"]
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("open http://127.0.0.1:"), (line, process.stderr and process.stderr.read())
        url = line.split()[1].rstrip("/")
        answers: list[bytes] = []

        def listen_to_the_end(client: socket.socket) -> None:
            with client:
                answers.append(b"".join(iter(lambda: client.recv(4096), b"")))

        clients = [begin_stream(url) for _ in range(20)]
        threads = [threading.Thread(target=listen_to_the_end, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        wait_until(lambda: sum(health(url)) + len(answers) >= 20)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(timeout=60)
        process.wait(timeout=60)
    assert len(answers) == 20
    assert all(b"data: [DONE]" in answer for answer in answers)
    assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM)

"""Measure the chat server with one client and with fifty: python -m scripts.chat_bench."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common import UserError, run_program
from nanochat.flags import flag, parse_flags


@dataclass(frozen=True)
class BenchConfig:
    """The flags of scripts.chat_bench."""

    run: str = flag("", "the run's tag (without: the newest that answers)")
    clients: int = flag(50, "how many ask at once, after one by itself")
    seconds: float = flag(25.0, "how long each of the two asks")
    max_tokens: int = flag(64, "tokens of an answer at most")
    record: str = flag("", "a JSON file for the numbers")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")

    def __post_init__(self) -> None:
        if self.clients < 1 or self.seconds <= 0 or self.max_tokens < 1:
            raise UserError("--clients, --seconds and --max_tokens must be at least 1")


@contextmanager
def server(config: BenchConfig) -> Iterator[tuple[str, int]]:
    """Host and port of a server in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "scripts.chat_web", "--port=0", f"--run={config.run}"]
    command += [f"--queue={config.clients}", f"--per_client={config.clients}"]
    command += [f"--device_type={config.device_type}"] if config.device_type else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) < 2 or not words[1].startswith("http://"):
            process.wait()
            raise UserError("the server did not start; what it said stands above")
        host, _, port = words[1].removeprefix("http://").rstrip("/").partition(":")
        try:
            yield host, int(port)
        finally:
            process.terminate()


def ask(place: tuple[str, int], seed: int, max_tokens: int) -> tuple[float, float, int]:
    """One streamed answer: seconds to its first text, seconds in all, tokens."""
    question = {"role": "user", "content": f"How many letters has the word number {seed}?"}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"messages": [question], "seed": seed, "max_tokens": max_tokens, "truncation": "auto", **options}
    began, first, tokens = time.perf_counter(), 0.0, 0
    connection = http.client.HTTPConnection(*place, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
    answer = connection.getresponse()
    if answer.status != 200:
        raise UserError(f"the server answers {answer.status}: {answer.read(300)!r}")
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line.removeprefix(b"data: "))
            tokens = event.get("usage", {}).get("completion_tokens", tokens)
            if not first and any(choice["delta"].get("parts") for choice in event["choices"]):
                first = time.perf_counter() - began
    connection.close()
    took = time.perf_counter() - began
    return first or took, took, tokens


def measure(place: tuple[str, int], clients: int, config: BenchConfig) -> dict[str, Any]:
    """Let so many clients ask for config.seconds; times in seconds."""
    answers: list[tuple[float, float, int]] = []
    errors: list[str] = []
    end = time.perf_counter() + config.seconds

    def client(number: int) -> None:
        seed = number
        while time.perf_counter() < end and not errors:
            try:
                answers.append(ask(place, seed, config.max_tokens))
            except (OSError, UserError) as error:
                errors.append(str(error))
            seed += clients

    began = time.perf_counter()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if errors or not answers:
        raise UserError(errors[0] if errors else "there was no answer within --seconds; give more")
    firsts = sorted(first for first, _, _ in answers)
    return {
        "clients": clients,
        "seconds": took,
        "answers": len(answers),
        "tokens": sum(tokens for _, _, tokens in answers),
        "tokens_per_second": sum(tokens for _, _, tokens in answers) / took,
        "first_token_p50": statistics.median(firsts),
        "first_token_p99": firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))],
    }


def main() -> None:
    """Start a server, ask it, print and keep what it took."""
    config = parse_flags(
        BenchConfig, sys.argv[1:], "python -m scripts.chat_bench", "Measure the chat server."
    )
    with server(config) as place:
        ask(place, 0, config.max_tokens)
        rows = [measure(place, clients, config) for clients in (1, config.clients)]
    for row in rows:
        print(
            f"{row['clients']:3d} clients: {row['tokens_per_second']:8.1f} tokens/s, "
            f"{row['answers']} answers, first text after {row['first_token_p50']:.3f} s (median), "
            f"{row['first_token_p99']:.3f} s (99 %)"
        )
    if config.record:
        from nanochat.records import FORMAT, command_of, describe_machine, moment, write_record

        about = {
            "format": FORMAT,
            "command": command_of("scripts.chat_bench", config),
            "date": moment(time.time()),
        }
        machine = describe_machine(config.device_type)
        write_record(Path(config.record), {**about, "machine": machine, "measured": rows})


if __name__ == "__main__":
    run_program(main)

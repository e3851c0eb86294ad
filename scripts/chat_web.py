"""Serve a trained model to a browser and to programs: python -m scripts.chat_web."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.common import UserError, pick_device, run_program
from nanochat.flags import flag, parse_flags

if TYPE_CHECKING:
    from fastapi import FastAPI

TOKEN = "NANOCHAT_TOKEN"
GRACE = 30  # seconds for the answers that are being written when the server shall end


@dataclass(frozen=True)
class WebConfig:
    """The flags of scripts.chat_web."""

    run: str = flag("", "the run's tag (without: the newest that answers)")
    gpt: str = flag("", "whose model computes (without: the one that trained)")
    host: str = flag("127.0.0.1", "address to listen on; another than this machine's own needs a token")
    port: int = flag(8000, "0 takes a free one")
    rows: int = flag(16, "answers that are computed together")
    queue: int = flag(64, "answers that may wait for a place")
    per_client: int = flag(64, "answers at once for one address")
    max_body: int = flag(2**18, "bytes of a request at most")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("queue", 0), ("per_client", 1), ("max_body", 1), ("port", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least {least}")


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError when the address is taken or not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen on {host} port {port}: {reason}; choose another --host or --port"
        ) from error


def serve(app: FastAPI, listening: socket.socket, url: str) -> None:
    """Serve until SIGTERM or Ctrl-C, and let answers end."""
    import uvicorn

    class Server(uvicorn.Server):
        """Says where it listens when it does."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"open {url} in a browser, or give {url}v1 to a client; Ctrl-C ends", flush=True)

    config = uvicorn.Config(
        app, log_level="error", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    Server(config).run(sockets=[listening])


def main() -> None:
    """Load the run that the flags name, and serve it."""
    config = parse_flags(WebConfig, sys.argv[1:], "python -m scripts.chat_web", "Serve a trained model.")
    local = is_loopback(config.host)
    token = os.environ.get(TOKEN) or ("" if local else secrets.token_urlsafe(24))
    listening = listen(config.host, config.port)
    from nanochat.chat_server import Settings, build_app
    from nanochat.chat_worker import Worker
    from nanochat.checkpoint_manager import find_run
    from nanochat.decoding import for_decoding
    from nanochat.talk_training import newest
    from nanochat.trained import load_model

    run = find_run(config.run or newest("chat") or "latest").name
    model, tokenizer = load_model(run, pick_device(config.device_type), config.gpt)
    context = model.config.sequence_len
    worker = Worker(for_decoding(model), config.rows, config.queue, context)
    hosts = ("127.0.0.1", "localhost", "::1") if local else ()
    settings = Settings(run, context, token, hosts, config.max_body, config.per_client)
    if not worker.batch.together:
        print("this model's attention cannot be given rows of different lengths: each is computed by itself")
    if not local:
        print(f"clients need this token ({TOKEN} sets another): {token}")
    name = f"[{config.host}]" if ":" in config.host else config.host
    try:
        serve(
            build_app(worker, tokenizer, settings), listening, f"http://{name}:{listening.getsockname()[1]}/"
        )
    finally:
        worker.close()


if __name__ == "__main__":
    run_program(main)

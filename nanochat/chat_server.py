"""The web application: OpenAI's chat interface over a Worker, and the page."""

from __future__ import annotations

import asyncio
import hmac
import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from nanochat.answers import AnswerReader, keep
from nanochat.chat_api import ChatRequest, Envelope, Refusal, piece, read_request
from nanochat.chat_worker import Full, Worker
from nanochat.common import UserError
from nanochat.conversation import Part, render_prompt
from nanochat.rows import Row
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer
from nanochat.tool import ToolUse

PATIENCE = 30.0  # seconds that a client may take to send a body, or to read what it is sent
PAGE = Path(__file__).parent / "chat_page"
PAGE_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Settings:
    """What is served, and the limits."""

    name: str  # of the model
    context: int  # tokens: question and answer together
    token: str = ""  # what clients must send; "" for none
    hosts: tuple[str, ...] = ()  # names by which the server may be called; () for all
    max_body: int = 2**18  # bytes of a request
    per_client: int = 64  # answers at once for one address


def json_response(
    content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """An answer in JSON."""
    return Response(json.dumps(content), status, {**SAFE, **(headers or {})}, "application/json")


def refusal_response(refusal: Refusal) -> Response:
    """An error in the interface's form; for a full server with the time to try again."""
    return json_response(
        refusal.body(), refusal.status, {"Retry-After": "1"} if refusal.status >= 429 else {}
    )


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request. Raises Refusal when it is larger than the limit, or comes too slowly."""
    body = b""
    try:
        async with asyncio.timeout(PATIENCE):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise Refusal(413, f"the body has more than {limit:,} bytes; send less", "too_large")
    except TimeoutError:
        raise Refusal(408, f"the body took more than {PATIENCE:.0f} seconds", "timeout") from None
    return body


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of the work, or None as soon as the client is gone; the work is then cancelled."""
    gone = asyncio.ensure_future(until_gone(receive))
    done = asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, done}, return_when=asyncio.FIRST_COMPLETED)
        return await done if done.done() else None
    finally:
        for task in (gone, done):
            task.cancel()
        await asyncio.gather(gone, done, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, as long as the client reads them."""

    def __init__(self, events: AsyncGenerator[dict[str, Any], None]) -> None:
        super().__init__(None, 200, SAFE, "text/event-stream")
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; give up when the client is gone, or does not read for PATIENCE seconds."""
        try:
            with suppress(TimeoutError):
                await while_there(receive, self._write(send))
        finally:
            await self.events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self.events:
            await self._send(send, f"data: {json.dumps(event)}\n\n".encode())
        await self._send(send, b"data: [DONE]\n\n", more=False)

    async def _send(self, send: Send, data: bytes, more: bool = True) -> None:
        async with asyncio.timeout(PATIENCE):
            await send({"type": "http.response.body", "body": data, "more_body": more})


class Answer:
    """One answer on its way from the worker to a client."""

    def __init__(self, worker: Worker, tokenizer: Tokenizer, asked: ChatRequest, context: int) -> None:
        """Render the conversation. Raises Refusal for one that cannot be answered."""
        self.worker = worker
        turns = [message.turn() for message in asked.messages]
        longest = context - 1 if asked.truncation == "auto" else 2**31
        try:
            prompt = render_prompt(turns, tokenizer, longest)
        except UserError as error:
            raise Refusal(400, str(error), "invalid_value", "messages") from None
        if len(prompt) >= context:
            message = (
                f"the conversation has {len(prompt):,} tokens, and question and answer together may have "
                f'{context:,}; shorten it, or send "truncation": "auto"'
            )
            raise Refusal(400, message, "context_length_exceeded", "messages")
        end = {
            tokenizer.special(name)
            for name in SPECIAL_TOKENS
            if "python" not in name and "output" not in name
        }
        seed = random.getrandbits(31) if asked.seed is None else asked.seed
        most = asked.most_tokens(context - len(prompt))
        self.row = Row(
            prompt, most, asked.temperature, asked.top_k or None, seed, end, insert=ToolUse(tokenizer)
        )
        self.reader = AnswerReader(tokenizer, asked.stops())
        self.news: asyncio.Queue[tuple[list[int], str]] = asyncio.Queue()
        self.finish = ""

    def start(self) -> None:
        """Hand the row to the worker. Raises Refusal when there is no place."""
        loop = asyncio.get_running_loop()

        def tell(tokens: list[int], end: str) -> None:
            try:
                loop.call_soon_threadsafe(self.news.put_nowait, (tokens, end))
            except RuntimeError:  # the loop has been closed: nobody is there to be told
                self.worker.cancel(self.row)

        try:
            self.worker.submit(self.row, tell)
        except Full:
            raise Refusal(503, "the server is full; try again in a moment", "server_full") from None

    async def parts(self) -> AsyncGenerator[Part, None]:
        """What the model says, as it comes; afterwards `finish` is set. Raises Refusal if the model fails."""
        try:
            while not self.finish:
                tokens, end = await self.news.get()
                if end == "error":
                    raise Refusal(
                        500, "the model could not be computed; the server's log says why", "model_failed"
                    )
                for part in self.reader.take(tokens) + (self.reader.end() if end else []):
                    yield part
                self.finish = "stop" if self.reader.stopped else end
        finally:
            self.worker.cancel(self.row)

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        read, all_of_them = len(self.row.prompt), len(self.row.sequence)
        return {"prompt_tokens": read, "completion_tokens": all_of_them - read, "total_tokens": all_of_them}


async def stream(answer: Answer, envelope: Envelope, usage: bool) -> AsyncGenerator[dict[str, Any], None]:
    """The events of a streamed answer. An error in the middle is an event too; the status has been sent."""
    yield envelope.chunk({"role": "assistant", "content": ""})
    parts = answer.parts()
    try:
        async for part in parts:
            yield envelope.chunk(piece(part))
    except Refusal as refusal:
        yield refusal.body()
        return
    finally:
        await parts.aclose()
    yield envelope.chunk({}, answer.finish)
    if usage:
        yield envelope.last_chunk(answer.usage())


async def gathered(answer: Answer) -> list[Part]:
    """The whole answer."""
    parts: list[Part] = []
    async for part in answer.parts():
        keep(parts, part)
    return parts


class Chat:
    """Answers POST /v1/chat/completions."""

    def __init__(self, worker: Worker, tokenizer: Tokenizer, settings: Settings) -> None:
        self.worker, self.tokenizer, self.settings = worker, tokenizer, settings
        self.answering: Counter[str] = Counter()

    async def complete(self, request: Request) -> Response:
        """The answer, or its stream, or nothing for a client that is gone. Raises Refusal."""
        asked = read_request(await read_body(request, self.settings.max_body))
        if asked.model not in (None, self.settings.name):
            raise unknown_model(str(asked.model), self.settings.name)
        client = request.client.host if request.client else ""
        if self.answering[client] >= self.settings.per_client:
            message = f"{self.settings.per_client} answers for you are being written; wait for one of them"
            raise Refusal(429, message, "too_many_requests")
        answer = Answer(self.worker, self.tokenizer, asked, self.settings.context)
        answer.start()
        self.answering[client] += 1
        envelope = Envelope(self.settings.name, int(time.time()))
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return EventStream(self._counted(client, answer, stream(answer, envelope, usage)))
        try:
            parts = await while_there(request.receive, gathered(answer))
        finally:
            self._ended(client, answer)
        if parts is None:
            return Response(status_code=499)  # to nobody
        return json_response(envelope.whole(parts, answer.finish, answer.usage()))

    async def _counted(
        self, client: str, answer: Answer, events: AsyncGenerator[dict[str, Any], None]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events; whatever ends them, the client's answer is ended."""
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()
            self._ended(client, answer)

    def _ended(self, client: str, answer: Answer) -> None:
        """Forget an answer, finished or not."""
        self.worker.cancel(answer.row)
        self.answering[client] -= 1
        if not self.answering[client]:
            del self.answering[client]


def unknown_model(name: str, known: str) -> Refusal:
    """What to raise for a model that is not served."""
    return Refusal(404, f"there is no model {name[:100]!r} here; this is {known}", "model_not_found", "model")


def refuse_strangers(request: Request, settings: Settings) -> None:
    """Raise Refusal for a request by another name, from another origin, or without the token."""
    host = request.headers.get("host", "")
    if settings.hosts and (urlsplit(f"//{host}").hostname or "") not in settings.hosts:
        raise Refusal(421, f"this server is not {host[:100]!r}", "wrong_host")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise Refusal(403, "requests from the pages of other servers are refused", "wrong_origin")
    if settings.token and request.url.path not in PAGE_FILES:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), settings.token.encode()):
            message = (
                "the token is missing or wrong; send the one that the server was started with as API key"
            )
            raise Refusal(401, message, "invalid_api_key")


class Guard:
    """Stands in front of the application and lets in whom it may."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a refusal."""
        answer: ASGIApp = self.app
        if scope["type"] == "http":
            try:
                refuse_strangers(Request(scope), self.settings)
            except Refusal as refusal:
                answer = refusal_response(refusal)
            except ValueError as error:  # an address that cannot be read
                answer = refusal_response(Refusal(400, str(error), "invalid_request"))
        await answer(scope, receive, send)


def page_route(file: Path) -> Callable[[], Response]:
    """What answers with this file of the page."""
    content = file.read_bytes()

    def show() -> Response:
        return Response(content, headers=SAFE, media_type=TYPES[file.suffix])

    return show


def build_app(worker: Worker, tokenizer: Tokenizer, settings: Settings) -> FastAPI:
    """The application. Its documentation pages are left out, since they load scripts from elsewhere."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, settings=settings)
    chat = Chat(worker, tokenizer, settings)
    card: dict[str, Any] = {
        "id": settings.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "nanochat",
    }
    card["context_length"] = settings.context

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return refusal_response(refusal)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return refusal_response(Refusal(error.status_code, message, "not_found"))

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        return await chat.complete(request)

    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != settings.name:
            raise unknown_model(name, settings.name)
        return json_response(card)

    @app.get("/health")
    async def health() -> Response:
        computed, waiting = worker.load()
        return json_response({"status": "ok", "computed": computed, "waiting": waiting})

    for path, name in PAGE_FILES.items():
        app.add_api_route(path, page_route(PAGE / name), response_model=None)
    return app

"""The form of requests, answers and errors: what OpenAI's chat interface and this model have in common."""

from __future__ import annotations

import difflib
import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from nanochat.conversation import Part, Turn


class Refusal(Exception):
    """An answer that is none: a status, and why, in the interface's form."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def body(self) -> dict[str, Any]:
        """What the client is sent."""
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


NEUTRAL: dict[str, tuple[Any, ...]] = {  # for each, the values that ask for nothing
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "parallel_tool_calls"),
)


def without_what_asks_for_nothing(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are left to be done. null means that a field is not set. Raises Refusal."""
    known = set(ChatRequest.model_fields)
    left = {}
    for name, value in fields.items():
        if name in known and value is not None:
            left[name] = value
        elif name in NEUTRAL:
            same = [
                (value == neutral and type(value) is not bool) or value is neutral
                for neutral in NEUTRAL[name]
            ]
            if value is not None and not any(same):
                wanted = " or ".join(json.dumps(neutral) for neutral in NEUTRAL[name])
                message = (
                    f"{name} is {shown(value)}, which this server cannot do; leave it out, or send {wanted}"
                )
                raise Refusal(400, message, "unsupported_parameter", name)
        elif name not in known and name not in IGNORED:
            near = difflib.get_close_matches(name, [*known, *NEUTRAL, *IGNORED], n=1)
            hint = f"did you mean {near[0]}?" if near else "leave it out"
            raise Refusal(400, f"there is no field {shown(name)}; {hint}", "unknown_parameter", name[:100])
    return left


def shown(value: object) -> str:
    """A value as a message shows it: as JSON, cut when it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + " …"


class Strict(BaseModel):
    """An object with these fields of these types, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid")


class TextPart(Strict):
    """A piece of a message's content, as the interface has it."""

    type: Literal["text"]
    text: str


class OwnPart(Strict):
    """A part of an answer, as this server has sent it."""

    kind: Literal["text", "call", "output"]
    text: str


class Message(Strict):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart] | None = None
    parts: list[OwnPart] | None = None
    name: str | None = None
    refusal: None = None

    def turn(self) -> Turn:
        """The turn that the model is shown. Raises Refusal for one that says nothing."""
        if self.parts is not None and self.role == "assistant":
            return Turn("assistant", tuple(Part(part.kind, part.text) for part in self.parts))
        pieces = [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content
        if pieces is None:
            raise Refusal(400, f"a message of the {self.role} has no content", "invalid_value", "messages")
        role: Literal["system", "user", "assistant"] = "system" if self.role == "developer" else self.role
        return Turn(role, (Part("text", "".join(piece.text for piece in pieces)),))


class StreamOptions(Strict):
    """What a stream shall have besides."""

    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1, max_length=100)]


class ChatRequest(Strict):
    """What POST /v1/chat/completions is sent."""

    messages: list[Message] = Field(min_length=1, max_length=1000)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(0.8, ge=0, le=2)
    top_k: int = Field(50, ge=0, le=2**31)  # 0: among all tokens
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = Field(default_factory=list)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    truncation: Literal["auto", "disabled"] = "disabled"

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.stream_options and not self.stream:
            raise ValueError("stream_options is for streams; set stream to true, or leave it out")
        return self

    def stops(self) -> list[str]:
        """The stop texts as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def most_tokens(self, room: int) -> int:
        """How many tokens the answer may have, when there is room for so many."""
        wanted = [self.max_tokens, self.max_completion_tokens, room]
        return min(number for number in wanted if number is not None)


def read_request(body: bytes) -> ChatRequest:
    """The request in these bytes. Raises Refusal."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refusal(400, f"the body is not JSON: {reason}", "invalid_json") from None
    if not isinstance(fields, dict):
        raise Refusal(400, f"the body is {shown(fields)}; an object was expected", "invalid_json")
    try:
        return ChatRequest.model_validate(without_what_asks_for_nothing(fields))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{place or 'the body'} is {shown(first['input'])}: {first['msg']}"
        raise Refusal(400, message, "invalid_value", place or None) from None


class Envelope:
    """What stands around an answer, whole or in chunks."""

    def __init__(self, model: str, created: int) -> None:
        """model: the name of the model; created: seconds since 1970."""
        self.about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": created, "model": model}

    def whole(self, parts: list[Part], finish: str, usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece."""
        text = "".join(part.text for part in parts if part.kind == "text")
        message = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "parts": [vars(part) for part in parts],
        }
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        return {"object": "chat.completion", **self.about, "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A piece of the answer."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {"object": "chat.completion.chunk", **self.about, "choices": [choice]}

    def last_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """What follows the answer, for who asked to have it."""
        return {"object": "chat.completion.chunk", **self.about, "choices": [], "usage": usage}


def piece(part: Part) -> dict[str, Any]:
    """A part of an answer as a stream's delta."""
    return {"content": part.text if part.kind == "text" else "", "parts": [vars(part)]}

"""The official client of the interface, used as its documentation says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.chat_fixtures import CONTEXT, ScriptedWorker, real_worker, say, served

HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with a random model."""
    with served(real_worker()) as address:
        yield address


def client_of(url: str, key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=300)


def test_the_official_client_gets_the_same_answer_whole_and_streamed(url: str) -> None:
    client = client_of(url)
    name = client.models.list().data[0].id
    assert client.models.retrieve(name).id == name
    for seed in range(5):
        whole = client.chat.completions.create(model=name, messages=HELLO, seed=seed, max_tokens=40)
        text = whole.choices[0].message.content
        chunks = list(
            client.chat.completions.create(
                model=name,
                messages=HELLO,
                seed=seed,
                max_tokens=40,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        pieces = [choice for chunk in chunks for choice in chunk.choices]
        assert "".join(piece.delta.content or "" for piece in pieces) == text
        assert pieces[-1].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        assert whole.usage is not None
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert whole.usage.completion_tokens <= 40
        assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_calls_of_the_tool_are_parts_and_no_text() -> None:
    with served(ScriptedWorker(say)) as url:
        asked: list[Any] = [{"role": "user", "content": "17 * 23?"}]
        answer = client_of(url).chat.completions.create(model="tiny", messages=asked).choices[0].message
        assert answer.content == "It is 391."
        parts = answer.model_extra["parts"]  # type: ignore[index]
        assert [(part["kind"], part["text"]) for part in parts] == [
            ("call", "17*23"),
            ("output", "391"),
            ("text", "It is 391."),
        ]
        again = [*asked, answer.model_dump(exclude_none=True), {"role": "user", "content": "thanks"}]
        assert client_of(url).chat.completions.create(model="tiny", messages=again).choices[0].message.content


def test_the_clients_exceptions_are_those_of_the_interface(url: str) -> None:
    client = client_of(url)
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'"):
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match=r"n is 2.*cannot do") as refused:
        client.chat.completions.create(model="tiny", messages=HELLO, n=2)
    assert (refused.value.param, refused.value.code) == ("n", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="did you mean temperature"):
        client.chat.completions.create(model="tiny", messages=HELLO, extra_body={"temprature": 1})
    with pytest.raises(openai.BadRequestError, match="truncation"):
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "a" * CONTEXT}])


def test_errors_before_and_within_a_stream(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(ScriptedWorker(say), token="secret") as guarded:
        with pytest.raises(openai.AuthenticationError, match="token is missing or wrong"):
            client_of(guarded, "wrong").models.list()
        assert client_of(guarded, "secret").models.list().data[0].id == "tiny"
    monkeypatch.setattr("nanochat.rows.Batch.step", lambda self: 1 / 0)
    with pytest.raises(openai.APIError, match="could not be computed"):
        list(client_of(url).chat.completions.create(model="tiny", messages=HELLO, stream=True))

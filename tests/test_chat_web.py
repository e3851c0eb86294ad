"""The server: curl, refusals, hostile and vanished clients, many at once."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat import chat_server
from nanochat.chat_api import NEUTRAL, ChatRequest
from nanochat.common import UserError
from nanochat.conversation import Part
from scripts.chat_web import WebConfig, is_loopback, listen
from tests.chat_fixtures import CONTEXT, ScriptedWorker, real_worker, say, served

PATIENCE = 300  # seconds: little is done, on a machine that may be busy
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server with a random model."""
    with served(real_worker()) as address:
        yield address


def post(url: str, body: object, **headers: str) -> tuple[int, dict[str, Any]]:
    """Send a body, bytes or something for JSON; returns the status and what was answered."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", "/v1/chat/completions", data, given)
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


def health(url: str) -> tuple[int, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    connection.request("GET", "/health")
    answer = json.loads(connection.getresponse().read())
    return answer["computed"], answer["waiting"]


def wait_until(condition: Any, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_curl_sees_events() -> None:
    with served(ScriptedWorker(say)) as url:
        body = json.dumps({"messages": [{"role": "user", "content": "é"}], "stream": True})
        command = ["curl", "-sSN", f"{url}/v1/chat/completions", "-d", body]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    events = done.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    deltas = [json.loads(event.removeprefix("data: "))["choices"][0]["delta"] for event in events[:-2]]
    assert "".join(delta.get("content", "") for delta in deltas) == "You said: é"


def test_stop_texts_end_an_answer_and_are_not_said() -> None:
    with served(ScriptedWorker(lambda _: [Part("text", "one two three")])) as url:
        for stops, text in (("two", "one "), (["hree", "e t"], "on"), (["four"], "one two three")):
            status, answer = post(url, {"messages": HELLO, "stop": stops})
            assert (status, answer["choices"][0]["message"]["content"]) == (200, text)
            assert answer["choices"][0]["finish_reason"] == "stop"
        status, answer = post(url, {"messages": HELLO, "max_tokens": 3})
        assert answer["choices"][0]["finish_reason"] == "length"


REFUSED: list[tuple[object, int, str]] = [
    (b"{", 400, "not JSON"),
    (b"\xff\xfe", 400, "not JSON"),
    (b"[" * 100_000, 400, "nested too deeply"),
    ([1], 400, "an object was expected"),
    ({}, 400, "messages"),
    ({"messages": []}, 400, "messages"),
    ({"messages": "hello"}, 400, "messages"),
    ({"messages": [{"role": "king", "content": "I"}]}, 400, "messages.0.role"),
    ({"messages": [{"role": "user"}]}, 400, "no content"),
    ({"messages": [{"role": "assistant", "content": "I"}]}, 400, "take turns"),
    ({"messages": HELLO, "temperature": "1"}, 400, "temperature"),
    ({"messages": HELLO, "temperature": float("nan")}, 400, "temperature"),
    ({"messages": HELLO, "temperature": 2.1}, 400, "temperature"),
    ({"messages": HELLO, "max_tokens": 0}, 400, "max_tokens"),
    ({"messages": HELLO, "max_tokens": True}, 400, "max_tokens"),
    ({"messages": HELLO, "top_k": -1}, 400, "top_k"),
    ({"messages": HELLO, "seed": 2**63}, 400, "seed"),
    ({"messages": HELLO, "stop": [""]}, 400, "stop"),
    ({"messages": HELLO, "stop": list("abcde")}, 400, "stop"),
    ({"messages": HELLO, "stream_options": {"include_usage": True}}, 400, "set stream to true"),
    ({"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools"),
    ({"messages": HELLO, "n": True}, 400, "n is true"),
    ({"messages": HELLO, "\ud800": 1}, 400, "no field"),
    ({"messages": HELLO, "model": "\ud800"}, 404, "no model"),
    ({"messages": [{"role": "user", "content": "x" * 2**18}]}, 413, "more than 262,144 bytes"),
]


@pytest.mark.parametrize(("body", "status", "words"), REFUSED)
def test_what_cannot_be_answered_is_refused_in_the_interfaces_form(
    url: str, body: object, status: int, words: str
) -> None:
    answered, content = post(url, body)
    assert answered == status, content
    assert set(content) == {"error"}
    assert set(content["error"]) == {"message", "type", "param", "code"}
    assert words in content["error"]["message"]


def test_fields_that_ask_for_nothing_are_welcome(url: str) -> None:
    nothing = {name: values[0] for name, values in NEUTRAL.items()}
    nulls = dict.fromkeys((*NEUTRAL, *ChatRequest.model_fields))
    for fields in (nothing, nulls, {"user": "u", "metadata": {"a": "b"}, "store": True}):
        status, content = post(url, {**fields, "messages": HELLO})
        assert status == 200, content


def test_a_conversation_that_is_too_long_is_cut_for_who_asks(url: str) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(41)]
    status, content = post(url, {"messages": turns})
    assert (status, content["error"]["code"]) == (400, "context_length_exceeded")
    status, content = post(url, {"messages": turns, "truncation": "auto"})
    assert status == 200
    assert content["usage"]["total_tokens"] <= CONTEXT


def test_other_paths_and_methods_are_refused_likewise(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    for method, path, status in (("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)):
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        connection.request(method, path)
        answer = connection.getresponse()
        assert (answer.status, set(json.loads(answer.read()))) == (status, {"error"})


def test_pages_of_other_servers_and_other_names_are_refused(url: str) -> None:
    body = {"messages": HELLO}
    assert post(url, body, Origin=url)[0] == 200
    for origin in ("https://example.org", "null", "http://127.0.0.1:1"):
        assert post(url, body, Origin=origin)[0] == 403
    for host in ("evil.example", "127.0.0.1.evil.example", "[", ""):
        assert post(url, body, Host=host)[0] in (400, 421)


def test_a_token_is_required_where_there_is_one() -> None:
    with served(ScriptedWorker(say), token="secret") as url:
        body = {"messages": HELLO}
        assert post(url, body, Authorization="Bearer secret")[0] == 200
        assert post(url, body, Authorization="Bearer wrong")[1]["error"]["code"] == "invalid_api_key"
        assert post(url, body)[0] == 401
        assert post(url, {"messages": HELLO}, Authorization="Bearer \xe9")[0] == 401


def test_only_loopback_goes_without_a_token() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"))
    assert is_loopback(WebConfig().host)
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match=r"cannot listen on 127\.0\.0\.1"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_limits_of_concurrency_and_of_the_queue_answer_429_and_503() -> None:
    slow = ScriptedWorker(lambda _: [Part("text", "x" * 60)], pause=0.2, most=3)
    with served(slow, per_client=2) as url:
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(post, url, {"messages": HELLO, "max_tokens": 20}) for _ in range(2)]
            wait_until(lambda: slow.load()[0] == 2)
            status, content = post(url, {"messages": HELLO})
            assert (status, content["error"]["type"]) == (429, "rate_limit_error")
            assert [done.result()[0] for done in running] == [200, 200]
        assert post(url, {"messages": HELLO, "max_tokens": 1})[0] == 200
        slow.most = 0
        status, content = post(url, {"messages": HELLO})
        assert (status, content["error"]["code"]) == (503, "server_full")


def begin_stream(url: str, stream: bool = True) -> socket.socket:
    """A client that has asked and then does what it likes."""
    host, _, port = url.removeprefix("http://").partition(":")
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(60)
    made.connect((host, int(port)))
    body = json.dumps({"messages": HELLO, "stream": stream})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}"
    made.sendall(f"{head}\r\n\r\n{body}".encode())
    return made


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_place(stream: bool) -> None:
    worker = ScriptedWorker(lambda _: [Part("text", "x" * 60)], pause=1.0)
    with served(worker, per_client=1) as url:
        gone = begin_stream(url, stream)
        wait_until(lambda: worker.load()[0] == 1)
        gone.close()
        wait_until(lambda: worker.load()[0] == 0, seconds=15)
        wait_until(lambda: post(url, {"messages": HELLO, "max_tokens": 1})[0] == 200)


def test_a_client_that_does_not_read_harms_nobody_and_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "PATIENCE", 0.5)
    worker = ScriptedWorker(lambda _: [Part("text", "x" * 2000)])
    with served(worker, context=2**20, per_client=2) as url:
        deaf = begin_stream(url)  # more is sent than sockets hold
        assert post(url, {"messages": HELLO, "max_tokens": 3})[0] == 200
        wait_until(lambda: worker.load()[0] == 0)
        time.sleep(2.0)
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(post, url, {"messages": HELLO, "max_tokens": 3}) for _ in range(2)]
            assert [done.result()[0] for done in both] == [200, 200]
        deaf.close()


def test_a_body_that_does_not_come_is_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "PATIENCE", 0.3)
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as made:
        made.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        assert b" 408 " in made.recv(1000)


def test_a_step_that_fails_is_an_error_to_those_it_concerns(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = real_worker()
    with served(worker) as url:
        with monkeypatch.context() as patch:
            patch.setattr("nanochat.rows.Batch.step", lambda self: 1 / 0)
            status, content = post(url, {"messages": HELLO})
            assert (status, content["error"]["code"]) == (500, "model_failed")
        assert post(url, {"messages": HELLO})[0] == 200
    assert "a step failed" in capfd.readouterr().out


def test_fifty_at_once_get_what_each_would_get_alone(url: str) -> None:
    def ask(seed: int) -> str:
        question = {"role": "user", "content": "a" * (seed % 20)}
        body = {"messages": [question], "seed": seed, "temperature": 1, "max_tokens": 16}
        status, content = post(url, body)
        assert status == 200, content
        return str(content["choices"][0]["message"]["parts"])

    with ThreadPoolExecutor(50) as pool:
        together = list(pool.map(ask, range(50)))
    assert together == [ask(seed) for seed in range(50)]
    assert health(url) == (0, 0)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*ChatRequest.model_fields, *NEUTRAL, "user", "role", "content"])
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.text(max_size=20) | JSON}
)
BODY = st.dictionaries(FIELDS, JSON, max_size=4) | st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=3), "max_tokens": st.integers(-1, 5)},
    optional={
        "temperature": st.floats(0, 2) | JSON,
        "top_k": st.integers(0, 300) | JSON,
        "stop": st.text(max_size=3) | JSON,
        "seed": st.integers() | JSON,
        "stream": st.booleans(),
        "truncation": st.sampled_from(["auto", "disabled", "x"]),
    },
)
RIGHT = st.fixed_dictionaries(
    {"messages": st.text(max_size=9).map(lambda text: [{"role": "user", "content": text}])},
    optional={
        "max_tokens": st.integers(1, 3),
        "temperature": st.floats(0, 2),
        "top_k": st.integers(0, 300),
        "stop": st.lists(st.text(min_size=1, max_size=3), max_size=4),
        "seed": st.integers(-9, 9),
        "stream": st.booleans(),
        "user": JSON,
    },
).map(lambda body: {"max_tokens": 2, **body})
ANSWERED = {"200": 0, "400": 0, "404": 0}


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(body=RIGHT | BODY | st.binary(max_size=40))
def test_whatever_is_sent_is_answered_or_refused(url: str, body: object) -> None:
    """300 bodies: right, nearly right, fields at random, bytes; none may be answered by an error of ours."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/v1/chat/completions", data)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    ANSWERED[str(answer.status)] += 1  # another status is a KeyError
    if content.startswith("data: "):
        assert content.endswith("data: [DONE]\n\n")
        assert "error" not in content.split("\n")[0]
    else:
        assert ("error" in json.loads(content)) == (answer.status != 200)


def test_the_fuzz_has_met_both() -> None:
    """So that it does not come to test refusals alone. (Where the test above is not run: nothing.)"""
    if sum(ANSWERED.values()):
        assert ANSWERED["200"] > 40
        assert ANSWERED["400"] > 40


def test_the_page_may_load_nothing_from_elsewhere(url: str) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    for path in ("/", "/page.css", "/page.js"):
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        connection.request("GET", path)
        answer = connection.getresponse()
        assert answer.status == 200
        assert "default-src 'none'" in (answer.getheader("Content-Security-Policy") or "")
        assert b"//" not in answer.read().replace(b"// ", b"")
        connection.close()

"""Judges: rule, function, and an endpoint that works, fails, hangs and talks nonsense."""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embodied_rl.rewards.judge import (
    EndpointJudge,
    JudgeError,
    LocalJudge,
    RuleJudge,
    consistency_gate,
    judge_score,
    read_cache,
)
from embodied_rl.rewards.score import Term, score
from embodied_rl.types import Question

ASKED = Question(task="t", prompt="What?", answer="B", data={"choices": ["a", "b"]})


def completion(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers each request with the next of ``script`` (the last one again and again)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, bytes, float]] = [(200, completion("7"), 0.0)]
        self.seen: list[tuple[str, dict, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append((self.path, body, self.headers.get("Authorization")))
        index = min(len(server.seen), len(server.script)) - 1
        status, reply, pause = server.script[index]
        time.sleep(pause)
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # a client that gave up
            self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()


def endpoint(server: Server, **options) -> EndpointJudge:
    return EndpointJudge(**{"url": server.url, "model": "m", "backoff_s": 0.01} | options)


def test_rule_and_function() -> None:
    assert judge_score("abc", ASKED, judge=RuleJudge(lambda r, q: len(r))) == 0.3
    heard = []
    judge = LocalJudge(lambda text: heard.append(text) or "<think>3?</think>8")
    assert judge_score("abc", ASKED, judge=judge) == 0.8
    assert "What?" in heard[0] and "abc" in heard[0]


def test_silence_and_the_prompt_are_not_sent() -> None:
    judge = LocalJudge(lambda text: "10")
    assert judge_score(" ", ASKED, judge=judge) == judge_score("what?", ASKED, judge=judge) == 0.0


@pytest.mark.parametrize("words", ["", "good", "7 or 8", "nan"])
def test_an_opinion_that_is_no_number_is_an_error_that_is_counted(words: str) -> None:
    judge = LocalJudge(lambda text: words)
    with pytest.raises(JudgeError):
        judge_score("abc", ASKED, judge=judge)
    terms = [Term(name="judge", reward=judge_score, options={"judge": judge})]
    result = score(terms, ["abc"], [ASKED], [0])
    assert (result.values.tolist(), result.failures) == ([0.0], {"judge": 1})


def test_the_endpoint_is_asked_as_a_chat_model(server: Server) -> None:
    assert judge_score("abc", ASKED, judge=endpoint(server)) == 0.7
    path, body, key = server.seen[0]
    assert (path, body["model"], body["temperature"], key) == ("/v1/chat/completions", "m", 0, None)
    assert "abc" in body["messages"][0]["content"]


def test_errors_of_the_server_are_tried_again(server: Server) -> None:
    server.script = [(500, b"", 0), (503, b"", 0), (200, b"no json", 0), (200, completion("9"), 0)]
    assert judge_score("abc", ASKED, judge=endpoint(server)) == 0.9
    assert len(server.seen) == 4


def test_attempts_are_bounded_and_a_refusal_is_final(server: Server) -> None:
    server.script = [(500, b"", 0)]
    with pytest.raises(JudgeError, match="status 500"):
        judge_score("abc", ASKED, judge=endpoint(server, max_attempts=3))
    assert len(server.seen) == 3
    server.script = [(401, b"", 0)]
    with pytest.raises(JudgeError, match="status 401"):
        judge_score("abc", ASKED, judge=endpoint(server))
    assert len(server.seen) == 4


def test_a_server_that_hangs_is_given_up(server: Server) -> None:
    server.script = [(200, completion("7"), 5.0)]
    start = time.monotonic()
    with pytest.raises(JudgeError, match="timed out"):
        judge_score("abc", ASKED, judge=endpoint(server, timeout_s=0.1, max_attempts=2))
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("reply", [b"[]", b'{"choices": []}', completion("")[:-3], b"\xff"])
def test_a_malformed_reply_is_an_error(server: Server, reply: bytes) -> None:
    server.script = [(200, reply, 0)]
    with pytest.raises(JudgeError):
        judge_score("abc", ASKED, judge=endpoint(server, max_attempts=2))


def test_the_cache_outlives_the_judge_and_a_torn_line(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "judge.jsonl"
    first = endpoint(server, cache=cache)
    assert judge_score("abc", ASKED, judge=first) == judge_score("abc", ASKED, judge=first) == 0.7
    cache.write_text(cache.read_text() + "\n" + '{"key": "torn')
    assert judge_score("abc", ASKED, judge=endpoint(server, cache=cache)) == 0.7
    assert len(server.seen) == 1 and len(read_cache(cache)) == 1
    judge_score("another", ASKED, judge=endpoint(server, cache=cache))
    assert len(server.seen) == 2


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k-12345")
    caplog.set_level(logging.DEBUG)
    cache = tmp_path / "judge.jsonl"
    judge = endpoint(server, key_variable="JUDGE_KEY", cache=cache, max_attempts=1)
    judge_score("abc", ASKED, judge=judge)
    assert server.seen[0][2] == "Bearer k-12345"
    server.script = [(403, b"", 0)]
    with pytest.raises(JudgeError) as error:
        judge_score("other", ASKED, judge=judge)
    for text in (str(error.value), repr(judge), cache.read_text(), caplog.text):
        assert "k-12345" not in text


def test_consistency_is_asked_only_when_right() -> None:
    said = []
    judge = LocalJudge(lambda text: said.append(text) or "-1")
    right = "<think>a</think><answer>B</answer>"
    assert consistency_gate(right, ASKED, judge=judge) == 1.0
    assert consistency_gate(right.replace("B", "A"), ASKED, judge=judge) == 0.5
    assert len(said) == 1
    assert consistency_gate(right, ASKED, judge=LocalJudge(lambda text: "1")) == 2.0

"""Servers that break the OpenAI protocol: what is asked again, what fails and is named, and that the rest finishes."""

import asyncio
import email.utils
import json
import re
import time

import anyio
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import endpoint
from eval.endpoint import Endpoint, sample_of
from eval.engines import TRIES
from eval.failures import Overflow
from tests.chat_server import MODEL, RAW, Answer, ChatServer, choices, reply
from tests.server_faults import FAULTS, FAULTY, ask_servers, faulty

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("name", FAULTS)
def test_a_request_that_is_always_answered_with_a_fault_fails_and_the_others_finish(name):
    answer, sent, says = FAULTS[name]
    with ChatServer(faulty(answer)) as server:
        done, failed = ask_servers(server.url)
        assert list(done) == [0, 1, 2, 4, 5]
        assert server.requests == {0: 1, 1: 1, 2: 1, 3: sent, 4: 1, 5: 1}
    [(record, error)] = failed
    assert record["seed"] == FAULTY
    assert re.search(says, str(error)), str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 500
    assert isinstance(error, Overflow) == name.startswith("a long prompt")


@pytest.mark.parametrize("name", [name for name, (_, sent, _) in FAULTS.items() if sent > 1])
def test_a_fault_that_passes_costs_nothing(name):
    answer, sent, _ = FAULTS[name]
    with ChatServer(faulty(answer, most=sent - 1)) as server:
        done, failed = ask_servers(server.url)
        assert (list(done), failed) == ([0, 1, 2, 3, 4, 5], [])
        assert server.requests[FAULTY] == sent
    assert done[FAULTY] == {"response": "4", "tokens": 2, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("body", "sample"),
    [
        (reply(usage=None), ("4", None, "stop")),
        (reply(usage=...), ("4", None, "stop")),
        (reply(usage="many"), ("4", None, "stop")),
        (reply(usage={}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": None}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": -1}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": "2"}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": 2.5}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": True}), ("4", None, "stop")),
        (reply(usage={"completion_tokens": 0}), ("4", 0, "stop")),
        (reply(choices=choices(message={"content": None}, finish_reason="length")), ("", 2, "length")),
        (
            reply(choices=choices(message={"content": None, "reasoning_content": "so"}, finish_reason="length")),
            ("", 2, "length"),
        ),
        (reply(choices=choices(message={"content": ""})), ("", 2, "stop")),
        (reply(choices=choices(message={"content": "\u2028é\x00"})), ("\u2028é\x00", 2, "stop")),
        (reply(model=..., id=..., created=..., object=...), ("4", 2, "stop")),
        (reply(model="m-2026-01-31"), ("4", 2, "stop")),
        (reply(choices=choices(index=7, logprobs={}, stop_reason=5), extra=1), ("4", 2, "stop")),
    ],
)
def test_what_the_protocol_leaves_open_is_a_sample(body, sample):
    assert tuple(sample_of(json.dumps(body).encode(), {MODEL}).values()) == sample


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["stop", "length"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner, max_size=2),
    max_leaves=5,
)
PLACES = [
    lambda value: value,
    lambda value: reply(choices=value),
    lambda value: reply(choices=[value]),
    lambda value: reply(choices=choices(message=value)),
    lambda value: reply(choices=choices(message={"content": value})),
    lambda value: reply(choices=choices(finish_reason=value)),
    lambda value: reply(model=value),
    lambda value: reply(usage=value),
    lambda value: reply(usage={"completion_tokens": value}),
]


@hypothesis.settings(derandomize=True, max_examples=300)
@given(VALUES, st.sampled_from(PLACES), st.none() | st.integers(0, 150))
def test_any_reply_is_a_sample_or_one_line(value, place, cut):
    sample, problem = None, ""
    try:
        sample = sample_of(json.dumps(place(value)).encode()[:cut], {MODEL})
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem
    assert len(problem) < 500
    if sample is not None:
        assert isinstance(sample["response"], str)
        assert sample["tokens"] is None or sample["tokens"] >= 0
        assert sample["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize("content_type", ["text/plain", "text/html", "application/x-ndjson", ""])
def test_a_wrong_content_type_of_a_right_reply_does_not_matter(content_type):
    with ChatServer(lambda seed, number: Answer(reply(), Content_Type=content_type)) as server:
        assert ask_servers(server.url)[1] == []


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7),
        ("1.5", 1.5, 1.5),
        ("120", 120, 120),
        ("DATE", 50, 60),
        ("-5", 0, 0.001),
        ("soon", 0, 0.001),
        ("nan", 0, 0.001),
    ],
)
def test_the_client_waits_as_retry_after_states(header, low, high, monkeypatch):
    slept, sleep = [], anyio.sleep
    monkeypatch.setattr(anyio, "sleep", lambda seconds: (slept.append(seconds), sleep(0))[1])
    if header == "DATE":
        header = email.utils.formatdate(time.time() + 60, usegmt=True)
    with ChatServer(faulty(Answer(status=429, Retry_After=header), most=1)) as server:
        assert ask_servers(server.url)[1] == []
    [seconds] = slept
    assert low <= seconds <= high


def test_a_server_that_does_not_answer_in_time_is_asked_again(monkeypatch):
    monkeypatch.setattr(endpoint, "ENDPOINT_SECONDS", 0.5)
    sleeping = Answer(reply())
    with ChatServer(lambda seed, number: time.sleep(3) if seed == FAULTY and number < TRIES else sleeping) as server:
        done, failed = ask_servers(server.url)
        assert (len(done), failed, server.requests[FAULTY]) == (6, [], TRIES)
    with ChatServer(lambda seed, number: time.sleep(3) if seed == FAULTY else None) as server:
        _, [(record, error)] = ask_servers(server.url)
        assert record["seed"] == FAULTY
        assert "no answer in 0.5 s" in str(error)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        (Answer(status=401), "status 401: ; set OPENAI_API_KEY to the server's key"),
        (Answer({"error": {"message": "no\nway"}}, 403), "status 403: .*; set OPENAI_API_KEY"),
        (Answer(b"Not Found", 404), "status 404: Not Found; check --endpoint, which mostly ends with /v1"),
        (Answer(status=500), "does not answer as an OpenAI-compatible server: status 500"),
        (Answer(b"<html>"), "breaks the protocol: body: Invalid JSON.*<html>"),
        (Answer({"data": None}), "data: Input should be a valid array"),
        (Answer({"data": [{}]}), "data.0.id: Field required"),
        (Answer(status=RAW), "Connection error"),
        (Answer(status=302, Location="/v1/models"), "redirect"),
        ({"data": [{"id": "a"}, {"id": "b"}]}, "has no model m; it has a, b"),
        ({"data": []}, "has no model m; it has none"),
    ],
)
def test_a_server_that_is_wrong_at_the_start_is_one_line_with_the_fix(models, says):
    with ChatServer() as server:
        server.models = models
        with pytest.raises(ValueError, match=rf"^{server.url}: .*{says}") as caught:
            asyncio.run(Endpoint(server.url, MODEL, {}).describe())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:1/v1", "http://", "http://[::1", "ftp://127.0.0.1/v1", "http://127.0.0.1:x"]
)
def test_a_url_that_is_none_is_one_line(url):
    with pytest.raises(ValueError, match=r".") as caught:
        asyncio.run(Endpoint(url, MODEL, {}).describe())
    assert url in str(caught.value)


def test_names_of_the_same_model_are_one():
    with ChatServer(lambda seed, number: Answer(reply(model="first"))) as server:
        cards = [{"id": "first", "root": "/model"}, {"id": MODEL, "root": "/model"}, {"id": "other", "root": "/o"}]
        server.models = {"data": cards}
        one = Endpoint(server.url, MODEL, {})
        asyncio.run(one.describe())
        assert one.names == {"first", MODEL}


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("count", [2, 1000])
def test_a_server_that_nobody_may_ask_ends_it_at_once(status, count):
    with ChatServer(lambda seed, number: Answer(status=status)) as server:
        with pytest.raises(ValueError, match=f"status {status}: .*OPENAI_API_KEY|--endpoint"):
            ask_servers(server.url, count=count)
        assert set(server.requests.values()) == {1}


def test_a_key_that_is_refused_later_is_counted():
    with ChatServer(lambda seed, number: Answer(status=401) if sum(server.requests.values()) > 50 else None) as server:
        done, failed = ask_servers(server.url, count=100)
        assert (len(done), len(failed)) == (50, 50)


def test_a_refused_request_of_many_is_counted():
    with ChatServer(lambda seed, number: Answer(status=400)) as server:
        done, failed = ask_servers(server.url, count=100)
        assert (len(done), len(failed), server.requests.total()) == (0, 100, 100)

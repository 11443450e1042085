"""Faults of an OpenAI-compatible server, as data, and what asks servers that have them."""

import asyncio
import json

from eval.answering import answer_all
from eval.endpoint import CLIENT_RETRIES, Endpoint
from eval.engines import TRIES
from tests.chat_server import MODEL, RAW, Answer, choices, reply

SENT = TRIES * (1 + CLIENT_RETRIES)  # of a request that the client repeats too
FAULTY = 3  # the seed of the request that is answered with a fault
GATEWAY = Answer(b"<html>\n<h1>Bad Gateway</h1></html>", 502, Content_Type="text/html")

# What is answered: how often it is sent in all, and what the failure says.
BODIES = {
    "no choices": (reply(choices=[]), "choices: List should have at least 1 item"),
    "null choices": (reply(choices=None), "choices: Input should be a valid array"),
    "missing choices": (reply(choices=...), "choices: Field required"),
    "choices as an object": (reply(choices={}), "choices: Input should be a valid array"),
    "a choice that is null": (reply(choices=[None]), "choices.0: "),
    "two choices": (reply(choices=choices() * 2), "at most 1 item"),
    "null message": (reply(choices=choices(message=None)), "choices.0.message: "),
    "missing message": (reply(choices=choices(message=...)), "choices.0.message: Field required"),
    "missing content": (reply(choices=choices(message={"role": "assistant"})), "message.content: Field required"),
    "content in parts": (
        reply(choices=choices(message={"content": [{"type": "text", "text": "4"}]})),
        "message.content: Input should be a valid string",
    ),
    "content as a number": (reply(choices=choices(message={"content": 4})), "message.content: "),
    "half a character": (reply(choices=choices(message={"content": "\ud83d"})), "Invalid JSON"),
    "missing finish_reason": (reply(choices=choices(finish_reason=...)), "finish_reason: Field required"),
    "null finish_reason": (reply(choices=choices(finish_reason=None)), "finish_reason: "),
    "finish_reason error": (reply(choices=choices(finish_reason="error")), "no finished sample: finish_reason error"),
    "finish_reason abort": (reply(choices=choices(finish_reason="abort")), "finish_reason abort"),
    "finish_reason content_filter": (reply(choices=choices(finish_reason="content_filter")), "content_filter"),
    "finish_reason tool_calls": (reply(choices=choices(finish_reason="tool_calls")), "tool_calls"),
    "another model": (reply(model="mm"), "model mm's, not m's; check --model"),
    "model as a number": (reply(model=1), "model: "),
    "an error with status 200": ({"error": {"message": "out of memory"}}, "choices: Field required.*out of memory"),
    "a list": ([reply()], "breaks the protocol: body: "),
    "null": (None, "breaks the protocol: body: "),
    "empty body": (b"", "Invalid JSON: EOF"),
    "half a document": (json.dumps(reply()).encode()[:60], "Invalid JSON: EOF"),
    "two documents": (json.dumps(reply()).encode() * 2, "Invalid JSON: trailing characters"),
    "not UTF-8": (b'{"choices": "\xff"}', "breaks the protocol"),
    "deep nesting": (b"[" * 100_000, "recursion limit"),
    "an event stream": (b"data: {}\n\ndata: [DONE]\n\n", "Invalid JSON"),
}
FAULTS = {name: (Answer(body), TRIES, says) for name, (body, says) in BODIES.items()} | {
    "an HTML page": (Answer(b"<html>\nhello</html>", Content_Type="text/html"), TRIES, "Invalid JSON.*<html> hello"),
    "status 204": (Answer(status=204), TRIES, "Invalid JSON"),
    "status 500": (Answer({"error": {"message": "boom"}}, 500), SENT, "status 500: .*boom"),
    "status 502 of a proxy": (GATEWAY, SENT, "status 502: <html> <h1>Bad Gateway"),
    "status 503": (Answer(status=503), SENT, "status 503"),
    "status 429": (Answer({"error": {"message": "slow down"}}, 429), SENT, "status 429: .*slow down"),
    "status 408": (Answer(status=408), SENT, "status 408"),
    "a wait of an hour": (Answer(status=429, Retry_After="3600"), TRIES, "status 429"),
    "status 400": (Answer({"error": {"message": "no seed"}}, 400), 1, "status 400: .*no seed"),
    "status 401": (Answer({"error": {"message": "who?"}}, 401), 1, "status 401: .*who.*; set OPENAI_API_KEY"),
    "status 403": (Answer(status=403), 1, "status 403: ; set OPENAI_API_KEY to a key that may use the model"),
    "status 404": (Answer({"detail": "Not Found"}, 404), 1, "status 404: .*; check --endpoint, .*--model"),
    "status 413": (Answer(status=413), 1, "status 413"),
    "status 422": (Answer({"detail": [{"msg": "no"}]}, 422), 1, "status 422: .*no"),
    "a long prompt": (Answer({"error": {"message": "the context length is 9"}}, 400), 1, "context length is 9"),
    "a long prompt of another server": (
        Answer({"error": {"message": "the request exceeds the available context size"}}, 400),
        1,
        "context size",
    ),
    "a redirect that forgets the request": (
        Answer(status=302, Location="/v1/models"),
        TRIES,
        "choices: Field required",
    ),
    "a redirect to nowhere": (Answer(status=307), 1, "status 307"),
    "dropped before an answer": (Answer(status=RAW), SENT, r"Connection error. \(Server disconnected"),
    "dropped in the body": (Answer(reply(), cut=9), SENT, r"Connection error. \(peer closed"),
    "dropped in the headers": (Answer(b"HTTP/1.1 200 OK\r\nContent-Le", RAW), SENT, "Connection error"),
    "no HTTP": (Answer(b"SSH-2.0-OpenSSH_9.7\r\n", RAW), SENT, "Connection error"),
    "no gzip": (Answer(reply(), Content_Encoding="gzip"), SENT, "Connection error"),
}


def ask_servers(*urls, count=6):
    """Have servers answer `count` requests; returns the seeds that were answered and the failures."""
    done = []
    records = [{"seed": seed, "prompt": "2 + 2"} for seed in range(count)]
    served = [Endpoint(url, MODEL, {"max_tokens": 8}) for url in urls]
    failed = asyncio.run(answer_all(records, served, lambda record, result: done.append((record["seed"], result))))
    return dict(sorted(done)), failed


def faulty(answer, most=10**9):
    return lambda seed, number: answer if seed == FAULTY and number <= most else None

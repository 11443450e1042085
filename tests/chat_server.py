"""A server on this machine that speaks the OpenAI protocol's chat completions, and breaks it where a test says so."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "m"


def reply(**changed) -> dict:
    """Make a complete reply of the protocol, with some fields changed; those that are `...` are left out."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"}
    made = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
    made |= {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}} | changed
    return {name: value for name, value in made.items() if value is not ...}


def choices(**changed) -> list[dict]:
    """Make the choices of a reply with fields of the one choice changed, or those of its message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": "4"}, "finish_reason": "stop"} | changed
    return [{name: value for name, value in choice.items() if value is not ...}]


class Answer:
    """What a request is answered with: a status and a body, bytes or JSON; `cut` leaves out that many bytes of it."""

    def __init__(self, body=b"", status=200, cut=0, **headers):
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status, self.cut = status, cut
        self.headers = {"Content_Type": "application/json", "Content_Length": str(len(self.body))} | headers


GOOD = Answer(reply())
RAW = b"raw"  # of an Answer's status: its body is everything that is sent


class ChatServer:
    """Answers with `fault(seed, number)`, the `number`th request (from 1) with a seed, or well where that is None.

    `stop` closes its port, `start` opens the same one again; `models` is what it lists, or an Answer.
    """

    def __init__(self, fault: Callable[[int, int], Answer | None] = lambda seed, number: None):
        self.fault, self.models = fault, {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.requests: Counter = Counter()
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def start(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


def handler(chat: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            self.send(chat.models if isinstance(chat.models, Answer) else Answer(chat.models))

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            chat.requests[request["seed"]] += 1
            self.send(chat.fault(request["seed"], chat.requests[request["seed"]]) or GOOD)

        def send(self, answer: Answer) -> None:
            self.close_connection = True
            if answer.status == RAW:
                self.wfile.write(answer.body)
            else:
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(answer.body[: len(answer.body) - answer.cut])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    return Handler

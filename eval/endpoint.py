"""An OpenAI-compatible server that answers prompts, and which of its replies count as answers."""

import asyncio
import os
import re
import time
from typing import Annotated, Any, TypeVar

import openai
from pydantic import BaseModel, Field, ValidationError

from common.command import first_line
from eval.failures import FINISHED, EngineDown, EngineLost, NoAccess, Overflow, Refused, RequestFailed

ENDPOINT_SECONDS = 6 * 3600  # a response of 31,744 tokens on a busy server
ANSWER_SECONDS = 30  # to a connection, or to a question for the models: longer, and a server does not answer
# Of the client, for a dropped connection and for status 408, 409, 429 and 5xx, after 0.5, 1, 2 and 4 s: a server that
# is busy for a moment. Or after what Retry-After states, up to two minutes.
CLIENT_RETRIES = 4
RESTART_SECONDS = 180  # a server with a model of 7 billion parameters loads it again, and captures CUDA graphs
PROBE_SECONDS = 2  # between two looks at a server that restarts
TRANSIENT = (408, 409, 429)  # of the 4xx, which else refuse a request for good
FIXES = {
    401: "; set OPENAI_API_KEY to the server's key",
    403: "; set OPENAI_API_KEY to a key that may use the model",
    404: "; check --endpoint, which mostly ends with /v1, and --model",
}
TOO_LONG = (400, 413, 422)
CONTEXT = re.compile(r"context.(length|size|window)")  # the words of vLLM, SGLang, llama.cpp and OpenAI
SNAPSHOT = re.compile(r"-\d{4}-\d\d-\d\d$")  # OpenAI adds a model's date to its name
REASON_CHARACTERS = 200  # of a reply in a message


class Message(BaseModel):
    content: str | None  # null: a response without text, such as of a model that still reasons at its last token


class Choice(BaseModel):
    message: Message
    finish_reason: str


class Completion(BaseModel):
    """What a reply must have. Of the protocol's other fields nothing is needed, and servers leave them out."""

    choices: Annotated[list[Choice], Field(min_length=1, max_length=1)]
    model: str | None = None
    usage: Any = None  # the protocol allows none; a wrong one says nothing about the response


class Card(BaseModel):
    id: str
    root: Any = None  # vLLM's: the model behind a name


class Models(BaseModel):
    data: list[Card]


Kind = TypeVar("Kind", bound=BaseModel)


def shortened(text: str) -> str:
    return " ".join(text.split())[:REASON_CHARACTERS]


def parse(kind: type[Kind], body: bytes) -> Kind:
    """Read a reply; ValueError with what is wrong first."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "body"
        text = shortened(body.decode(errors="replace"))
        raise ValueError(f"the reply breaks the protocol: {place}: {first['msg']}: {text!r}") from None


def sample_of(body: bytes, names: set[str]) -> dict:
    """Read the one sample of a reply of a model with these names; ValueError if it is not what the protocol promises.

    `tokens` is None where the server does not count them.
    """
    reply = parse(Completion, body)
    if reply.model is not None and not names & {reply.model, SNAPSHOT.sub("", reply.model)}:
        raise ValueError(f"the reply is model {shortened(reply.model)}'s, not {min(names)}'s; check --model")
    choice = reply.choices[0]
    if choice.finish_reason not in FINISHED:
        raise ValueError(f"the reply is no finished sample: finish_reason {shortened(choice.finish_reason)}")
    tokens = reply.usage.get("completion_tokens") if isinstance(reply.usage, dict) else None
    if type(tokens) is not int or tokens < 0:
        tokens = None
    return {"response": choice.message.content or "", "tokens": tokens, "finish_reason": choice.finish_reason}


def reason(error: Exception) -> str:
    """Describe, in one line and with the fix where there is one, why a server did not answer."""
    if isinstance(error, openai.APIStatusError):
        return f"status {error.status_code}: {shortened(str(error.body))}{FIXES.get(error.status_code, '')}"
    cause = f" ({shortened(first_line(error.__cause__))})" if error.__cause__ else ""
    return f"{first_line(error)}{cause}"


def failure(error: Exception, where: str) -> RequestFailed:
    kind = RequestFailed
    if isinstance(error, openai.APIStatusError):
        if error.status_code in TOO_LONG and CONTEXT.search(str(error.body)):
            kind = Overflow
        elif error.status_code in FIXES:
            kind = NoAccess
        elif error.status_code < 500 and error.status_code not in TRANSIENT:
            kind = Refused
    return kind(f"{where}: {reason(error)}")


class Endpoint:
    """An OpenAI-compatible server, such as `vllm serve`; its chat template makes the prompt."""

    def __init__(self, url: str, model: str, sampling: dict):
        key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        try:
            self.client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=CLIENT_RETRIES)
        except Exception as error:  # its InvalidURL is no ValueError
            raise ValueError(f"{url}: {first_line(error)}; pass --endpoint http://HOST:PORT/v1") from error
        self.model, self.sampling, self.url = model, sampling, url
        self.names = {model}  # that a reply may have

    async def describe(self) -> dict:
        """Report the address; ValueError if the server does not answer or has another model."""
        try:
            reply = await self.client.models.with_raw_response.list(timeout=ANSWER_SECONDS)
            cards = parse(Models, reply.content).data
        except Exception as error:  # whatever a reply makes the client raise
            raise ValueError(f"{self.url}: does not answer as an OpenAI-compatible server: {reason(error)}") from error
        roots = {card.id: card.root for card in cards}
        if self.model not in roots:
            raise ValueError(f"{self.url}: has no model {self.model}; it has {', '.join(roots) or 'none'}")
        # vLLM answers with the first of the names that it serves a model by.
        self.names |= {name for name, root in roots.items() if root and root == roots[self.model]}
        return {"endpoint": str(self.client.base_url)}

    async def generate(self, record: dict) -> dict:
        """Sample one `response`; RequestFailed if there is none, EngineDown if the server answers nothing else too."""
        request = self.client.chat.completions.with_raw_response.create(
            model=self.model,
            messages=[{"role": "user", "content": record["prompt"]}],
            seed=record["seed"],
            timeout=openai.Timeout(None, connect=ANSWER_SECONDS),
            **self.sampling,
        )
        try:
            reply = await asyncio.wait_for(request, ENDPOINT_SECONDS)
            return sample_of(reply.content, self.names)
        except asyncio.TimeoutError:
            failed = RequestFailed(f"{self.url}: no answer in {ENDPOINT_SECONDS} s")
        except Exception as error:  # whatever a reply makes the client raise is this request's failure
            failed = failure(error, self.url)
        if not isinstance(failed, Overflow):
            try:
                await self.describe()
            except ValueError as error:
                raise EngineDown(str(error)) from failed
        raise failed

    async def recovered(self) -> None:
        """Wait until the server answers again with its model; EngineLost if it does not within RESTART_SECONDS."""
        end = time.monotonic() + RESTART_SECONDS
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await self.describe()
                return
            except ValueError as error:
                if time.monotonic() > end:
                    raise EngineLost(f"no answer for {RESTART_SECONDS} s: {error}") from error

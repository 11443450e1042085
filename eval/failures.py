"""How a request or an engine fails, and so what is done about it."""

FINISHED = ("stop", "length")  # finish reasons of a sample; "error", "abort" or "content_filter" cut one off


class RequestFailed(Exception):
    """One request was not answered; it is tried again, and then counted as failed."""


class Refused(RequestFailed):
    """A request is refused: no use trying again."""


class Overflow(Refused):
    """A prompt is longer than the model's context."""


class NoAccess(Refused):
    """A server refuses the key, the model or the address: probably every request."""


class EngineDown(RequestFailed):
    """An engine does not answer anyone now; its `recovered()` returns when it does, or raises EngineLost."""


class EngineLost(Exception):
    """An engine is gone; its requests can go to another."""

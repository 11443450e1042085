"""How a request or an engine fails, and so what is done about it."""

FINISHED = ("stop", "length")  # finish reasons of a sample; "error", "abort" or "content_filter" cut one off


class RequestFailed(Exception):
    """One request was not answered; it is tried again, and then counted as failed."""


class Overflow(RequestFailed):
    """A prompt is longer than the model's context: no use trying again."""


class Refused(RequestFailed):
    """A server refuses a request for good, such as for its key: no use trying again."""


class EngineDown(RequestFailed):
    """An engine does not answer anyone now; its `recovered()` returns when it does, or raises EngineLost."""


class EngineLost(Exception):
    """An engine is gone; its requests can go to another."""

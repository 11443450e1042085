"""What of the supervisor can be seen without a run."""

import signal

import pytest
from omegaconf import OmegaConf

from recipe.train import STOPPING_SIGNALS, Interrupted, interrupt


@pytest.fixture
def handlers():
    """The handlers of signals, put back after the test: what is ignored here, every later child would ignore."""
    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_an_interrupt_crosses_a_library_that_rewrites_errors():
    OmegaConf.register_new_resolver("interrupt", lambda: interrupt(signal.SIGTERM, None))
    config = OmegaConf.create({"value": "${interrupt:}"})
    with pytest.raises(Interrupted, match=r"^SIGTERM$"):
        config["value"]
    assert {signal.getsignal(number) for number in STOPPING_SIGNALS} == {signal.SIG_IGN}, "a second one is no matter"

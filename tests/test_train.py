"""What of the supervisor can be seen without a run."""

import signal

import pytest
from omegaconf import OmegaConf

from recipe.train import Interrupted, interrupt


def test_an_interrupt_crosses_a_library_that_rewrites_errors():
    OmegaConf.register_new_resolver("interrupt", lambda: interrupt(signal.SIGTERM, None))
    config = OmegaConf.create({"value": "${interrupt:}"})
    with pytest.raises(Interrupted, match=r"^SIGTERM$"):
        config["value"]

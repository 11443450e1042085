"""An agent loop whose samples do not depend on which engine draws them: a seed for each prompt and sample.

So a run's responses are the same on one rank and on two, each with an engine of its own; seeded_rollout.yaml names it.
"""

import json
from zlib import crc32

from recipe.verl_plugins.agent_loops import SingleTurn


class SeededSingleTurn(SingleTurn):
    """The run's agent loop with a seed."""

    async def run(self, sampling_params: dict, **kwargs):
        """Generate one response; arguments as in `SingleTurnAgentLoop.run`."""
        named = json.dumps([list(kwargs["raw_prompt"]), int(kwargs["session_id"])])
        return await super().run(sampling_params | {"seed": crc32(named.encode())}, **kwargs)

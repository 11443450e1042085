"""The order in which a step's responses reach the trainer, which decides what each mini-batch holds.

verl 0.9's trainer takes the responses in the order in which they were finished, shortest first, and cuts that
into mini-batches: the first update of a step would see the short responses and the last one the long ones.
verl 0.4 cut the batch in the order of its prompts, and so does this. See `recipe/FIDELITY.md`.
"""

from recipe.reward_metrics import ReplayBuffer


class PromptOrderReplayBuffer(ReplayBuffer):
    """A ReplayBuffer whose batch is in the order of its prompts; named by `trainer.v1.sampler.custom_sampler`.

    `sampler_kwargs.poll_interval`, in seconds, is how often it looks for finished rollouts; verl's class has 2 s for
    all, which is as long as a whole generation of the demo.
    """

    def __init__(self, *args, sampler_kwargs, **kwargs):
        super().__init__(*args, sampler_kwargs=sampler_kwargs, **sampler_kwargs, **kwargs)

    def sample(self, global_steps: int, partition_id: str, batch_size: int):
        """Sample as verl's does, then put the batch in the order in which the trainer submitted the prompts."""
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        place = {uid: i for i, uid in enumerate(self.prompt_global_steps[partition_id])}

        def position(i: int) -> tuple[int, int, int]:
            uid, session, index = batch.keys[i].rsplit("_", 2)
            return place[uid], int(session), int(index)

        batch.reorder(sorted(range(len(batch)), key=position))
        return batch, metrics

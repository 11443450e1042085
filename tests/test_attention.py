"""Packed attention and blocked log-probabilities against float64, as verl's engine and transformers call them."""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface

from recipe import attention as settings
from recipe.verl_plugins import attention
from recipe.verl_plugins.log_probs import BLOCK, log_probs
from tests.conftest import ROOT

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
PACKS = st.lists(st.integers(1, 40), min_size=1, max_size=12)
VOCABULARY = 50


def dense_attention(query, key, value, lengths):
    """Attend token by token, written out: softmax of the scaled products with all earlier tokens of the sequence."""
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    rows, start = [], 0
    for length in lengths:
        for i in range(start, start + length):
            scores = torch.einsum("hw,thw->ht", query[i], key[start : i + 1]) / WIDTH**0.5
            rows.append(torch.einsum("ht,thw->hw", scores.softmax(-1), value[start : i + 1]))
        start += length
    return torch.stack(rows)


def with_gradients(function, tensors):
    """Return the result and the gradients of a weighted sum of it."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    (out * weights).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def positions(lengths):
    return torch.cat([torch.arange(length) for length in lengths])[None]


@given(PACKS)
def test_the_reference_kernel_is_attention_within_each_sequence(lengths):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(sum(lengths), heads, WIDTH, dtype=torch.float64, generator=generator)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]
    boundaries, longest = attention.pack_boundaries(positions(lengths))
    assert longest == max(lengths)
    assert boundaries.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]

    def packed(*tensors):
        return attention.reference_kernel(*tensors, boundaries, longest, WIDTH**-0.5)

    expected = with_gradients(lambda *t: dense_attention(*t, lengths), tensors)
    for got, wanted in zip(with_gradients(packed, tensors), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def tiny_model(implementation, dtype=torch.float64, key_heads=KEY_HEADS):
    """Return a Qwen2 with grouped heads; the same weights for every implementation."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=key_heads,
        attn_implementation=implementation,
    )
    model = Qwen2ForCausalLM(config).to(dtype).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def sequences_of(lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]


def attend_densely(module, query, key, value, attention_mask, **options):
    """One of transformers' attention functions; its own eager one takes the softmax in fp32."""
    packed = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    return dense_attention(*packed, [query.shape[2]])[None], None


AttentionInterface.register("dense", attend_densely)


def each_alone(sequences):
    """Return logits, log-probs of the next tokens, entropies and the gradients of the log-probs' sum, in float64."""
    model = tiny_model("dense")
    logits = [model(input_ids=sequence[None]).logits[0] for sequence in sequences]
    every = [one.log_softmax(-1) for one in logits]
    chosen = [one[:-1].gather(-1, s[1:, None])[:, 0] for one, s in zip(every, sequences, strict=True)]
    torch.cat(chosen).sum().backward()
    entropies = [-(one.exp() * one).sum(-1) for one in every]
    return logits, chosen, entropies, {name: p.grad for name, p in model.named_parameters()}


def through_verls_engine(model, sequences, entropy=True):
    """Return log-probs and entropies, nested, as `FSDPEngineWithLMHead.forward_step` gets them from a micro-batch."""
    import verl.utils.torch_functional as functional
    from tensordict import TensorDict
    from verl.utils import tensordict_utils as tu
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead as Engine

    engine = SimpleNamespace(
        module=model,
        pad_to_length=False,
        use_ulysses_sp=False,
        _get_packed_pad_size=lambda length: 0,
        _gather_and_unpad_packed=lambda tensor, pad: tensor,
        engine_config=SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False),
        compute_entropy_from_logits=functional.entropy_from_logits,
    )
    nested = [
        torch.nested.as_nested_tensor(list(t), layout=torch.jagged)
        for t in (sequences, map(torch.arange, map(len, sequences)))
    ]
    batch = TensorDict({"input_ids": nested[0], "position_ids": nested[1]}, batch_size=len(sequences))
    tu.assign_non_tensor(batch, temperature=1.0, use_remove_padding=True, calculate_entropy=entropy)
    inputs, arguments = Engine.prepare_model_inputs(engine, batch)
    output = model(**inputs, use_cache=False)
    return output.logits[0], Engine.prepare_model_outputs(engine, output, arguments, batch, None)


@pytest.mark.parametrize("lengths", [[1], [7], [1, 2, 3], [5, 1, 9, 2, 30, 1, 1, 12], [64, 3, 64]])
def test_a_pack_gives_what_each_sequence_gives_alone(lengths):
    """Logits, log-probabilities, entropies and every parameter's gradient, with gradient checkpointing.

    Qwen2's norms and rotations are in fp32 even here, hence the tolerances.
    """
    sequences = sequences_of(lengths)
    logits, chosen, entropies, gradients = each_alone(sequences)
    model = tiny_model(settings.REFERENCE)
    packed, output = through_verls_engine(model, sequences)
    torch.testing.assert_close(packed, torch.cat(logits), rtol=0, atol=1e-6)
    found = [one[:-1] for one in output["log_probs"].unbind()]  # the last token of a sequence has no next one
    torch.testing.assert_close(torch.cat(found), torch.cat(chosen), rtol=0, atol=1e-6)
    torch.testing.assert_close(output["entropy"].values(), torch.cat(entropies), rtol=0, atol=1e-6)
    torch.cat(found).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=1e-5)


@given(st.integers(1, 200), st.sampled_from([torch.float32, torch.bfloat16]))
def test_log_probs_are_summed_in_fp32_whatever_the_logits_are(rows, dtype):
    """In several blocks, the last one incomplete."""
    generator = torch.Generator().manual_seed(rows)
    logits = (5 * torch.randn(rows, 33, generator=generator)).to(dtype)
    labels = torch.randint(33, (rows,), generator=generator)
    kept = logits.clone()
    with mock.patch.dict(BLOCK, cpu=33 * 64):
        got = with_gradients(lambda leaf: log_probs(leaf, labels), [logits])
    exact = with_gradients(lambda leaf: leaf.log_softmax(-1).gather(-1, labels[:, None])[:, 0], [logits.double()])
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got[0].double(), exact[0], rtol=0, atol=1e-5)
    last_bits = 1e-6 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(got[1].double(), exact[1], rtol=last_bits, atol=1e-6)
    assert torch.equal(logits, kept), "the logits are read again, among others by the entropy"


MEMORY = """
import resource, sys, torch
from recipe.verl_plugins.log_probs import log_probs
rows, vocabulary = 16384, 8192
logits = torch.randn(rows, vocabulary, dtype=torch.bfloat16).requires_grad_()
labels = torch.randint(vocabulary, (rows,))
naive = lambda: logits.float().log_softmax(-1).gather(-1, labels[:, None])[:, 0]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
log_probs(logits[:8].detach(), labels[:8])
before = peak()
(log_probs(logits, labels) if sys.argv[1] == "blocked" else naive()).sum().backward()
print(peak() - before)
"""


def test_the_memory_of_log_probs_is_bounded_by_the_block():
    """Beside the logits and their gradient (256 MiB of bf16) a few blocks of 8 MiB; without blocks it takes 1.5 GiB."""

    def mebibytes(which):
        run = [sys.executable, "-c", MEMORY, which]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return float(subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout)

    assert mebibytes("blocked") < 256 + 6 * 8
    assert mebibytes("plain") > 4 * 256


def ulysses_rank(rank, key_heads, lengths, store, answers):
    """Compute a rank's part of the packed model with two Ulysses ranks and compare the whole with one rank's."""
    import torch.distributed as dist
    from verl.utils import ulysses

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    tokens, place = torch.cat(sequences_of(lengths))[None], positions(lengths)
    alone = tiny_model(settings.REFERENCE, key_heads=key_heads)
    whole = alone(input_ids=tokens, position_ids=place, attention_mask=None, use_cache=False).logits
    whole.square().sum().backward()

    ulysses.set_ulysses_sequence_parallel_group(dist.group.WORLD)
    shared = tiny_model(settings.REFERENCE, key_heads=key_heads)
    part, part_place, pad = ulysses.ulysses_pad_and_slice_inputs(tokens, place, sp_size=2)
    logits = shared(input_ids=part, position_ids=part_place, attention_mask=None, use_cache=False).logits
    every = ulysses.gather_outputs_and_unpad(logits, gather_dim=1, unpad_dim=1, padding_size=pad)
    # Gather multiplies gradients by the number of ranks, for FSDP to take the mean over them.
    every.square().sum().backward()
    error = (every - whole).abs().max().item()
    for mine, theirs in zip(shared.parameters(), alone.parameters(), strict=True):
        gradient = mine.grad.clone()
        dist.all_reduce(gradient)
        error = max(error, (gradient / 2 - theirs.grad).abs().max().item())
    answers.put(error)
    dist.destroy_process_group()


@pytest.mark.parametrize("key_heads", [2, 1])
def test_ulysses_ranks_together_give_what_one_gives(key_heads, tmp_path):
    """Tokens that do not divide by the ranks, and fewer key heads than ranks."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    arguments = (key_heads, [5, 1, 9, 4], tmp_path / "store", answers)
    ranks = [context.Process(target=ulysses_rank, args=(rank, *arguments)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert max(answers.get() for _ in ranks) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sliding_window": 5}, "no sliding_window"),
        ({"dropout": 0.1}, "no dropout"),
        ({"attention_mask": torch.ones(1, 3)}, "use_remove_padding=true"),
        ({"position_ids": None}, "use_remove_padding=true"),
    ],
)
def test_input_that_is_not_packed_or_not_implemented_is_refused(options, message):
    tensor = torch.zeros(1, 2, 3, 4)
    given = {"attention_mask": None, "position_ids": torch.arange(3)[None]} | options
    with pytest.raises(ValueError, match=message):
        attention.packed_attention(None, None, tensor, tensor, tensor, **given)


@pytest.mark.parametrize("grouped", [False, True])
def test_torchs_kernel_is_called_as_either_release_requires(monkeypatch, grouped):
    """torch 2.11 has no `enable_gqa`, 2.13 requires it: each signature stands in for its release."""
    from torch.nn.attention import varlen

    called = {}
    if grouped:

        def fake(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
            called.update(window_size=window_size, enable_gqa=enable_gqa, scale=scale, longest=(max_q, max_k))
            return q
    else:

        def fake(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
            called.update(window_size=window_size, scale=scale, longest=(max_q, max_k))
            return q

    monkeypatch.setattr(varlen, "varlen_attn", fake)
    attention.torch_kernel(torch.zeros(3, 2, 4), None, None, torch.tensor([0, 3]), 3, 0.5)
    assert called == {"window_size": (-1, 0), "scale": 0.5, "longest": (3, 3)} | (
        {"enable_gqa": True} if grouped else {}
    )


def test_fp32_tensors_are_cast_as_autocast_would():
    tensor = torch.zeros(2)
    assert attention.in_kernel_dtype(tensor).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.in_kernel_dtype(tensor).dtype == torch.bfloat16


# ---------------------------------------------------------------- which kernel a run takes

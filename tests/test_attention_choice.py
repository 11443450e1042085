"""Which attention a run takes on which machine, and what is refused before it starts."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from recipe import attention as settings
from recipe.compose import compose
from recipe.verl_plugins.log_probs import log_probs


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a package flash_attn on the path whose import does what the test wants."""
    settings.flash_attn_problem.cache_clear()

    def write(source):
        (tmp_path / "flash_attn.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    yield write
    settings.flash_attn_problem.cache_clear()


def test_flash_attn_is_taken_where_it_can_be_imported(package):
    package("__version__ = '2.8.3'")
    assert settings.choose("cuda") == settings.FLASH_ATTN
    assert settings.choose("cpu") == settings.REFERENCE


def test_a_flash_attn_of_another_torch_is_no_reason_to_fail(package):
    package("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105Error')")
    assert settings.choose("cuda") == settings.TORCH
    line = settings.settle(compose("demo", ["trainer.device=cuda"], "cpu"))
    assert "(flash-attn cannot be imported: ImportError: flash_attn_2_cuda.so: undefined symbol" in line


def test_the_kernel_is_settled_in_the_config_before_the_run():
    config = compose("demo", [], "cpu")
    line = settings.settle(config)
    assert line.startswith("sdpa of torch 2.13.0")
    assert OmegaConf.select(config, settings.KEY) == settings.REFERENCE


def test_verls_own_key_for_the_attention_wins():
    config = compose("demo", ["+actor_rollout_ref.model.override_config.attn_implementation=sdpa"], "cpu")
    assert settings.settle(config).startswith("sdpa of transformers")
    assert config.actor_rollout_ref.model.override_config == {"_attn_implementation": "sdpa"}


@pytest.mark.parametrize(
    ("overrides", "device", "message"),
    [
        (
            [f"{settings.KEY}=packed_flash"],
            "cuda",
            "use packed, packed_flash_attn, packed_torch, packed_reference, or an",
        ),
        ([f"{settings.KEY}=packed_torch"], "cpu", "needs a GPU; use packed, which takes the best kernel"),
        (
            [f"{settings.KEY}=packed_flash_attn"],
            "cuda",
            "flash-attn is not installed; use packed, which takes the best",
        ),
        (
            [f"{settings.KEY}=flash_attention_2"],
            "cuda",
            "flash-attn is not installed; use packed, which takes the best",
        ),
        ([f"{settings.KEY}=flash_attention_2"], "cpu", "needs a GPU; use packed, which takes the best kernel"),
        (
            ["actor_rollout_ref.model.use_remove_padding=false"],
            "cpu",
            "needs actor_rollout_ref.model.use_remove_padding",
        ),
    ],
)
def test_an_attention_that_cannot_run_is_refused_before_the_run(overrides, device, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settings.check(compose("justrl_deepseek", overrides, device))
    assert "\n" not in str(caught.value)


def test_a_torch_without_packed_attention_is_refused(monkeypatch):
    monkeypatch.setattr(settings, "has_varlen", lambda: False)
    with pytest.raises(ValueError, match="has no FlashAttention over packed sequences"):
        settings.check(compose("justrl_deepseek", [], "cuda"))


def test_verl_takes_our_log_probs_where_flash_attn_is_missing():
    from verl.utils import torch_functional

    from recipe.verl_plugins import attention  # noqa: F401 - puts them in place

    assert torch_functional.FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE is False
    logits, labels = torch.randn(1, 6, 9, dtype=torch.float64), torch.randint(9, (1, 6))
    expected = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    torch.testing.assert_close(torch_functional.logprobs_from_logits(logits, labels), expected)
    assert torch_functional.logprobs_from_logits_v2 is log_probs

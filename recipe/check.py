"""Compare a config with the paper, value by value: python -m recipe.check justrl_deepseek [key=value ...]

Lists the differences from what the paper and its release state, each with its source and what it affects, and every
other key that an override changes, unless only speed, memory or logging depend on it. Then looks at what the run needs:
data, model and reward files, batch sizes, lengths, room on the disk. Exit status: 0 the config is the paper's or its
differences are acknowledged, 1 it is not, 2 wrong use or something missing.

examples: python -m recipe.check justrl_nemotron --no-files --all
          python -m recipe.check justrl_deepseek data.train_batch_size=128 --allow data.train_batch_size
"""

import argparse
import fnmatch
import functools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from common.command import run
from common.machine import device
from recipe import attention, preflight
from recipe.compose import UNDECLARED_KEYS, compose_unresolved, config_names, resolve
from recipe.monitor.loggers import use_wandb
from recipe.paper import BACKBONES, VALUES, Value, backbone

# Keys that an override may change without a word: names, places, logging, and what only speed and memory depend on.
MACHINE = (
    "trainer.experiment_name",
    "trainer.project_name",
    "trainer.logger",
    "trainer.*_dir",
    "trainer.log_val_generations",
    "trainer.max_actor_ckpt_to_keep",
    "trainer.v1.sampler.sampler_kwargs",
    "ray_kwargs",
    "transfer_queue",
    "global_profiler",
    "*.profiler",
    "*.prometheus",
    "*.trace",
    "*num_workers",
    "*.log_prob_*",
    "*.use_torch_compile",
    "*.enforce_eager",
    "*.free_cache_engine",
    "*.enable_chunked_prefill",
    "*.enable_prefix_caching",
    "*.engine_kwargs.vllm.kv_cache_memory_bytes",
    "*.checkpoint_engine",
    "*.nccl_timeout",
    "actor_rollout_ref.model.override_config.*attn_implementation",
    "actor_rollout_ref.actor.fsdp_config.*offload*",
    "actor_rollout_ref.actor.fsdp_config.strategy",
    "actor_rollout_ref.actor.fsdp_config.fsdp_size",
    "actor_rollout_ref.actor.fsdp_config.forward_prefetch",
    "actor_rollout_ref.actor.fsdp_config.reshard_after_forward",
)
ROOT = Path(__file__).resolve().parent.parent
STATUS_STYLES = {"same": "", "machine": "dim", "allowed": "yellow", "different": "bold red"}


class Comparison(NamedTuple):
    """A stated value beside the config's; `status` is same, machine, allowed or different."""

    stated: Value
    expected: Any
    actual: Any
    status: str


def pair(config: DictConfig, stated: Value) -> tuple[Any, Any]:
    """Return what a value must be in this config and what it is, in comparable form."""
    # What verl does not declare is absent where it has its default, which is the stated value.
    undeclared = stated.key.startswith(tuple(UNDECLARED_KEYS))
    actual = OmegaConf.select(config, stated.key, default=stated.value if undeclared else None)
    actual = OmegaConf.to_container(actual) if OmegaConf.is_config(actual) else actual
    expected = stated.value
    if stated.key == "reward.custom_reward_function.path":
        same = actual and Path(actual).expanduser().resolve() == ROOT / expected
        return expected, expected if same else actual
    if stated.key == attention.KEY:
        asked = attention.requested(config)
        kernel = attention.choose(config.trainer.device) if asked == attention.PACKED else asked
        same = kernel in (attention.FLASH_ATTN, attention.TRANSFORMERS_FLASH)
        return expected, expected if same else attention.describe(kernel)
    if stated.key == "data.val_files":
        return expected, [Path(file).name for file in preflight.files(actual)]
    model = backbone(config.actor_rollout_ref.model.path)
    if stated.key == "actor_rollout_ref.model.path":
        return model or " or ".join(BACKBONES), model or actual
    if stated.key == "trainer.total_training_steps":
        return BACKBONES.get(model, actual), actual
    return expected, actual


def flat(config: DictConfig) -> dict[str, Any]:
    """Return dotted keys to values, interpolations as they are written."""

    def walk(value, prefix: str):
        if not isinstance(value, dict) or not value:
            return {prefix: value}
        return {k: v for key, child in value.items() for k, v in walk(child, f"{prefix}.{key}".lstrip(".")).items()}

    return walk(OmegaConf.to_container(config), "")


def matches(key: str, entries: tuple[str, ...] | list[str]) -> bool:
    """Return whether an entry is the key, the beginning of it (`data`), or a pattern of it (`*.val_kwargs.*`)."""
    return any(fnmatch.fnmatch(key, entry) or key.startswith(f"{entry}.") for entry in entries)


@functools.cache
def shipped_config(name: str, device: str) -> tuple[DictConfig, dict[str, Any]]:
    """Return a config without overrides, resolved and as dotted keys; neither is to be changed."""
    config = compose_unresolved(name, [], device)
    keys = flat(config)
    return resolve(config), keys


def compare(name: str, overrides: list[str], device: str, allow: list[str]) -> tuple[DictConfig, list[Comparison]]:
    """Compose a config and compare it with the paper, and what overrides change beyond that with the shipped file.

    The file's own `justrl.allow` acknowledges its own values (a pattern in it any value), `allow` whatever is there.

    Raises:
        ValueError: the config does not compose, or an entry of `allow` names no key.
    """
    config, (shipped, raw_shipped) = compose_unresolved(name, overrides, device), shipped_config(name, device)
    raw = flat(config)
    config = resolve(config)
    stated = {value.key for value in VALUES}
    for entry in allow:
        if not any(matches(key, [entry]) for key in raw.keys() | raw_shipped.keys() | stated):
            raise ValueError(f"--allow {entry}: no such key")
    own = preflight.files(shipped.justrl.allow)
    patterns = [*allow, *(entry for entry in own if "*" in entry)]

    def status(value: Value, expected, actual) -> str:
        if actual == expected and isinstance(actual, bool) == isinstance(expected, bool):
            return "same"
        if value.machine:
            return "machine"
        meant = matches(value.key, own) and actual == pair(shipped, value)[1]
        return "allowed" if meant or matches(value.key, patterns) else "different"

    changed = [key for key in raw | raw_shipped if raw.get(key) != raw_shipped.get(key) and key not in stated]
    beyond = [Value(key, raw_shipped.get(key), "this recipe", "not stated", matches(key, MACHINE)) for key in changed]
    found = [(value, *pair(config, value)) for value in VALUES]
    found += [(value, value.value, raw.get(value.key)) for value in beyond]
    return config, [Comparison(*one, status(*one)) for one in found]


def complaint(comparisons: list[Comparison]) -> str:
    """Return one line that names the differences which nobody acknowledged; "" without any."""
    different = [c for c in comparisons if c.status == "different"]
    if not different:
        return ""
    shown = ", ".join(f"{c.stated.key}={c.actual} ({c.stated.source}: {c.expected})" for c in different[:3])
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return f"not the paper's: {shown}{more}; python -m recipe.check lists them, --allow KEY acknowledges"


def require_paper(comparisons: list[Comparison]) -> None:
    """Raise a ValueError of one line that names the differences which nobody acknowledged."""
    if line := complaint(comparisons):
        raise ValueError(line)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what names a config on a command line: its name, overrides and `--allow`."""
    parser.add_argument("config", help=f"one of {', '.join(config_names())}")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides, which win over the file")
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        metavar="KEY",
        help="acknowledge a difference from the paper: a key, the beginning of keys, or a pattern; may be repeated",
    )


def table(comparisons: list[Comparison]) -> Table:
    """Return comparisons as a table for the terminal."""
    rows = Table(box=None, pad_edge=False)
    for title in ("key", "paper", "this config", "", "source", "affects"):
        rows.add_column(title, no_wrap=title == "key")
    for c in comparisons:
        words = (str(c.expected), "" if c.status == "same" else str(c.actual), "" if c.status == "same" else c.status)
        rows.add_row(c.stated.key, *words, c.stated.source, c.stated.affects, style=STATUS_STYLES[c.status])
    return rows


def report(comparisons: list[Comparison], every: bool) -> None:
    """Print the differences in learning, or every comparison, and how many there are of each status."""
    shown = [c for c in comparisons if every or c.status in ("allowed", "different")]
    if shown:
        Console(width=None if sys.stdout.isatty() else 240, highlight=False).print(table(shown))
    count = {status: sum(c.status == status for c in comparisons) for status in STATUS_STYLES}
    print(
        f"{len(comparisons)} values: {count['same']} the paper's, {count['machine']} of speed and memory alone differ, "
        f"{count['allowed']} differences acknowledged, {count['different']} not"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--all", action="store_true", help="list also what is the paper's or differs in speed alone")
    parser.add_argument("--no-files", action="store_true", help="leave out whether data, model and disk are there")
    parser.add_argument("--json", action="store_true", help="print the comparisons as JSON")
    args = parser.parse_intermixed_args()
    config, comparisons = compare(args.config, args.overrides, device(), args.allow)
    use_wandb(config)
    if args.json:
        names = ("key", "expected", "actual", "status", "source", "affects")
        rows = [(c.stated.key, c.expected, c.actual, c.status, c.stated.source, c.stated.affects) for c in comparisons]
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        report(comparisons, args.all)
    preflight.check_config(config)
    if not args.no_files:
        preflight.check_machine(config)
    if line := complaint(comparisons):
        print(f"recipe.check: {line}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)

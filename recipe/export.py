"""Export a checkpoint as a Hugging Face model: python -m recipe.export outputs/demo [--step N]

Prints the exported folder, `<run>/export/step_<N>`, and keeps it if it is newer than the checkpoint. verl's model
merger does the work and saves bfloat16 weights. With --push the model goes to the Hugging Face hub, with a card made
from the run's files; the same command continues after an interruption, and another --step is another commit. A
repository that has anything else is refused, and with --private a public one.

example: python -m recipe.export outputs/demo --step 20 --push ORG/NAME --private
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
from pathlib import Path

from common import command
from common.command import Failure
from common.forked_python import FORK
from common.locks import run_lock
from common.processes import end_with_parent
from recipe.checkpoints import complete_checkpoints, saved_by


def complete_step(run: Path, step: int | None) -> int:
    """Return `step`, or the newest one with a complete checkpoint; ValueError if there is none."""
    steps = complete_checkpoints(run / "checkpoints")
    if not steps:
        raise ValueError(f"{run}: has no complete checkpoint to export")
    step = steps[-1] if step is None else step
    if step not in steps:
        raise ValueError(f"{run}: has no complete checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return step


def exported(run: Path, step: int) -> Path | None:
    """Return the folder of an exported checkpoint; None where there is none, or one of an older checkpoint."""
    config, saved = run / "export" / f"step_{step}" / "config.json", run / "checkpoints" / f"global_step_{step}"
    is_newer = config.is_file() and config.stat().st_mtime > (saved / "data.pt").stat().st_mtime
    return config.parent if is_newer else None


def export(run: Path, step: int | None) -> Path:
    """Export `step`, or the newest complete checkpoint, and return the folder.

    Raises:
        ValueError: there is no such checkpoint, a file of it is damaged, or another export is in progress.
        Failure: verl's merger failed; its last lines are in the message.
    """
    step = complete_step(run, step)
    if there := exported(run, step):
        return there
    checkpoint, target = run / "checkpoints" / f"global_step_{step}", run / "export" / f"step_{step}"
    saved_by(checkpoint)
    with run_lock(target.parent):
        aside = target.with_name(f".{target.name}")
        shutil.rmtree(aside, ignore_errors=True)  # of an export that was interrupted
        command = [sys.executable, FORK, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(checkpoint / "actor"), "--target_dir", str(aside)]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=end_with_parent)
        if done.returncode:
            raise Failure("verl's model merger failed:\n" + "\n".join(done.stderr.splitlines()[-5:]))
        shutil.rmtree(target, ignore_errors=True)  # of a checkpoint that was trained again since
        aside.replace(target)
    return target


def publish(run: Path, step: int | None, repository: str | None, private: bool) -> None:
    """Write the card of a checkpoint's model and, with a repository, upload both; raises what its parts raise."""
    from recipe import card, push  # they take seconds to import

    step = complete_step(run, step)
    folder, there = run / "export" / f"card_step_{step}", exported(run, step)
    lacks = card.write(run, step, folder, there)
    if repository:
        newest = push.claim(repository, folder / card.CARD, private)
        target = export(run, step)
        if not there:  # now it can be seen whether the scores are of these weights
            lacks = card.write(run, step, folder, target)
        newest = newest or push.create(repository, private)
    for lack in lacks:  # now that nothing is refused, which is one line alone
        print(f"  note: the card lacks {lack}", file=sys.stderr)
    print(folder / card.CARD)
    if repository:
        with run_lock(target.parent):
            for name in card.FIGURES:  # of an earlier card
                (target / name).unlink(missing_ok=True)
            shutil.copytree(folder, target, dirs_exist_ok=True)
            print(push.upload(target, repository, f"Step {step} of {run.resolve().name}", newest))


def repository_name(text: str) -> str:
    """Parse ORG/NAME."""
    from huggingface_hub.utils import validate_repo_id

    if text.count("/") == 1:
        with contextlib.suppress(ValueError):
            validate_repo_id(text)
            return text
    of = "each of letters, digits, -, _ and ., 96 characters together"
    raise argparse.ArgumentTypeError(f"{text!r}: give ORG/NAME: an organisation or user of the hub, and a model, {of}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=command.path, help="folder of a run, outputs/<experiment>")
    parser.add_argument("--step", type=int, help="default: the newest complete checkpoint")
    push = "upload the model with a card to this repository of the hub; needs a token (hf auth login, or HF_TOKEN)"
    parser.add_argument("--push", type=repository_name, metavar="ORG/NAME", help=push)
    private = "if --push makes the repository, make it private; one that is public is refused"
    parser.add_argument("--private", action="store_true", help=private)
    parser.add_argument("--dry-run", action="store_true", help="write the card alone, to <run>/export/card_step_<N>")
    args = parser.parse_args()
    if args.private and not args.push:
        raise ValueError("--private is for --push ORG/NAME; give both, or neither")
    if args.push or args.dry_run:
        publish(args.run, args.step, None if args.dry_run else args.push, args.private)
    else:
        print(export(args.run, args.step))


if __name__ == "__main__":
    command.run(main)

"""Sample responses of a model with vLLM on Ray: python -m eval.generate --model M --bench DIR --output DIR

Every parquet file in --bench is a task, named by the file. The defaults are the released protocol:
temperature 0.7, top-p 0.9, up to 31,744 new tokens, the prompt with one space before the boxed sentence,
32 samples per problem and 4 for the three large benchmarks. Samples that are on disk are not generated again, so the
same command continues what was interrupted, also with another number of workers.

One GPU, eight, or a Ray cluster (RAY_ADDRESS): an engine on every GPU, or --workers of them. With --endpoint a server
that is there answers, and --model is its name for the model.

example: python -m eval.generate --model models/demo --bench data/demo --tasks test --samples 4 \\
             --max-tokens 64 --prompt training --output outputs/demo/eval/base
"""

import argparse
import contextlib
import json
from pathlib import Path
from typing import TextIO

from common.command import first_line, name, path, positive, settings, within
from common.command import run as run_command
from common.files import write_text
from common.json_lines import format_line
from common.models import check_model
from common.processes import held_folder
from eval.answering import Failures, answer, tokenize
from eval.engines import ModelSettings, add_engine_arguments
from eval.samples import ENDING, PROTOCOL
from eval.tasks import PROMPTS, SampleSettings, missing_samples

NAMED_FAILURES = 10  # on the terminal; the log has every try that failed


def sample_into(folder: Path, records: list[dict], by_task: dict[str, dict], model: ModelSettings) -> Failures:
    """Have every record answered, its sample appended to its task's file at once."""
    sampling = {name: next(iter(by_task.values()))[name] for name in ("temperature", "top_p", "max_tokens")}
    log = folder / "generate.log"
    if not model.endpoint:
        tokenize(model.model, model.revision, records)
    print(f"  {len(records)} samples of {model.model}, the engines' output in {log}", flush=True)
    with contextlib.ExitStack() as stack:
        files: dict[str, TextIO] = {}

        def started(described: list[dict]) -> None:
            for task, values in by_task.items():
                text = json.dumps(values | {"engines": described}, indent=2)
                write_text(folder / f"{task}.meta.json", text + "\n")
                files[task] = stack.enter_context(open(folder / f"{task}{ENDING}", "a"))

        def done(record: dict, result: dict) -> None:
            fields = {name: value for name, value in record.items() if name != "prompt_ids"}
            files[record["task"]].write(format_line(fields | result))
            files[record["task"]].flush()

        return answer(records, model, sampling, log, done, started)


def generate(wanted: SampleSettings, model: ModelSettings) -> int:
    """Generate what is missing of every task and return the exit status."""
    if not model.endpoint:
        check_model(model.model)
    with held_folder(wanted.output):
        missing, by_task = missing_samples(wanted, model)
        if not missing:
            print(f"{wanted.output}: all samples are there")
            return 0
        failed = sample_into(wanted.output, missing, by_task, model)
        for record, error in failed[:NAMED_FAILURES]:
            print(f"  {record['task']}, problem {record['problem_id']}, sample {record['sample']}: {first_line(error)}")
        if failed:
            print(f"  {len(failed)} of {len(missing)} samples failed; the same command tries them again")
        return int(bool(failed))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=name, required=True, help="folder or hub id; or what --endpoint calls it")
    parser.add_argument("--bench", type=path, required=True, help="folder of prepared parquet files, one per task")
    parser.add_argument("--output", type=path, required=True, help="folder to write to, or to continue")
    parser.add_argument("--tasks", type=name, help="comma-separated names (default: every file of --bench)")
    parser.add_argument("--samples", type=positive, help="samples per problem (default: the protocol's, 32 or 4)")
    parser.add_argument("--temperature", type=within(0, 100), help="default %(default)s")
    parser.add_argument("--top-p", type=within(1e-6, 1), help="default %(default)s")
    parser.add_argument("--max-tokens", type=positive, help="new tokens at most (default %(default)s)")
    parser.add_argument("--prompt", choices=sorted(PROMPTS), help="default %(default)s")
    parser.add_argument("--base-seed", type=int, default=0, help="every sample's seed derives from it")
    add_engine_arguments(parser)
    parser.set_defaults(**PROTOCOL)
    args = parser.parse_args()
    return generate(settings(SampleSettings, args), settings(ModelSettings, args))


if __name__ == "__main__":
    run_command(main)

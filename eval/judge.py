"""A model's opinion of final answers: it sees the question, the gold and the answer, and says A, B or C.

The released grader asks CompassVerifier-3B about every response that its rule rejects, with an empty question and the
whole response. Here the judge has the question and the final answer alone, and also audits a share of what the rule
accepted: a judge that sees only rejects can never undo a wrong accept. Greedy, so the same question is asked once.
"""

import asyncio
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data_prep.prompt import BOXED_SENTENCE
from eval.engines import Overflow, answer_all
from eval.generate import Progress, model_digest, output_into, started_engines, tokenize
from eval.samples import format_line, read_lines, repair

DEFAULT = "opencompass/CompassVerifier-3B"
PROMPT_VERSION = 1
REPLY_TOKENS = 16  # for one letter; a model that reasons first is not understood
TAIL_CHARACTERS = 1_000  # of a response without a box, where its answer stands if it has one
ANSWER_CHARACTERS = 2_000  # of a box; golds have at most 210
VERDICTS = ("A", "B", "C", "unparsed", "overflow")
PROMPT = r"""Compare a candidate's final answer to a problem with the reference answer, and grade it with one letter.

A: CORRECT. It says the same as the reference answer. Another notation, an equivalent formula, rounding as the problem
   asks for it, a missing unit and a missing variable name do no harm.
B: INCORRECT. It says something else, only a part of it, or several answers of which one is the reference answer.
C: INVALID. It holds no answer: it breaks off, repeats itself, or does not speak of the problem.

Take the reference answer for true and do not solve the problem yourself.

Problem:
{question}

Reference answer:
{gold}

Candidate's final answer:
{answer}

Reply with the letter A, B or C alone."""


class Question(NamedTuple):
    """What a judge is asked about."""

    problem: str
    gold: str
    answer: str

    @property
    def prompt(self) -> str:
        question = self.problem.removesuffix(BOXED_SENTENCE).strip()
        return PROMPT.format(question=question, gold=self.gold, answer=self.answer)


def final_part(response: str, answer: str) -> str:
    """Return what the judge sees of a response: its boxed answer, or its end where it has none."""
    return answer[:ANSWER_CHARACTERS] or response[-TAIL_CHARACTERS:]


def verdict(reply: str) -> str:
    """Read a reply strictly: a letter alone, or it is `unparsed`."""
    letter = reply.strip()
    return letter if letter in ("A", "B", "C") else "unparsed"


def audited(share: float, *sample: str | int) -> bool:
    """Return whether a sample belongs to the random share that is audited; always the same ones."""
    digest = hashlib.sha256(json.dumps(sample).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def ask(questions: Iterable[Question], folder: Path, args) -> dict[Question, str]:
    """Return the verdict on each question, from `judgements.jsonl` in `folder` or by asking now.

    Args:
        args: `model`, and where it runs, as `eval.generate.add_engine_arguments` has it.

    Raises:
        ValueError: the judge's context does not hold a single question.
    """
    path, judge = folder / "judgements.jsonl", [args.model, args.revision, model_digest(args.model), PROMPT_VERSION]
    repair(path)
    listed = read_lines(path)[0] if path.exists() else []
    known = {Question(*line["question"]): line["verdict"] for line in listed if line["judge"] == judge}
    unknown = [question for question in dict.fromkeys(questions) if question not in known]
    if not unknown:
        return known
    fitting = [{"question": question, "prompt": question.prompt, "seed": 0} for question in unknown]
    overflowing, window = [], 0
    if not args.endpoint:
        fitting, overflowing, window = fit(fitting, args.model, args.revision)
    with open(path, "a") as file:

        def note(question: Question, given: str) -> None:
            known[question] = given
            file.write(format_line({"judge": judge, "question": question, "verdict": given}))
            file.flush()

        for record in overflowing:
            note(record["question"], "overflow")

        async def run(terminal) -> list[tuple]:
            sampling = {"temperature": 0.0, "max_tokens": REPLY_TOKENS}
            async with started_engines(args, window, sampling) as (engines, _):
                progress = Progress(len(fitting), terminal)

                def done(record: dict, result: dict) -> None:
                    note(record["question"], verdict(result["response"]))
                    progress.add(result["tokens"] or 0)

                return await answer_all(fitting, engines, done)

        print(f"  {len(fitting)} questions to {args.model}, the engines' output in {folder}/judge.log", flush=True)
        with output_into(folder / "judge.log", "eval.grade") as terminal:
            failed = []
            for record, error in asyncio.run(run(terminal)):
                if isinstance(error, Overflow):  # of a server, whose context is not known here
                    note(record["question"], "overflow")
                else:
                    failed.append(str(error))
            if failed:
                raise RuntimeError(f"{len(failed)} questions failed, such as by {failed[0][:300]}; ask them again")
    return known


def fit(records: list[dict], model: str, revision: str | None) -> tuple[list[dict], list[dict], int]:
    """Return the records whose prompt leaves room for a reply, the others, and the longest in tokens with it."""
    from transformers import AutoConfig

    window = AutoConfig.from_pretrained(model, revision=revision).max_position_embeddings
    tokenize(model, revision, records)
    lengths = [len(record["prompt_ids"]) + REPLY_TOKENS for record in records]
    if min(lengths) > window:
        raise ValueError(
            f"judge {model}: its context of {window} tokens holds no question; the shortest has {min(lengths)}"
        )
    longest = max(length for length in lengths if length <= window)
    sides = {
        fits: [r for r, n in zip(records, lengths, strict=True) if (n <= window) == fits] for fits in (True, False)
    }
    return sides[True], sides[False], longest

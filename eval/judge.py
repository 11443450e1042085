"""A model's opinion of final answers: it sees the question, the reference answer and the answer, and says A, B or C.

The released grader asks CompassVerifier-3B about every response that its rule rejects, with an empty question and the
whole response. Here the judge has the question and the final answer alone, and also audits a fraction of what the rule
accepted: a judge that sees only rejects can never undo a wrong accept. Greedy, so the same question is asked once.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TextIO

from common.command import Failure, first_line
from common.json_lines import drop_damaged, format_line, read_lines
from common.models import model_digest
from data_prep.prompt import BOXED_SENTENCE
from eval.answering import answer, tokenize
from eval.engines import ModelSettings
from eval.failures import Overflow
from eval.samples import SHAPES

DEFAULT = "opencompass/CompassVerifier-3B"
PROMPT = Path(__file__).with_name("judge_prompt.txt").read_text().rstrip("\n")
PROMPT_VERSION = 1
REPLY_TOKENS = 16  # for one letter; a model that reasons first is not understood
TAIL_CHARACTERS = 1_000  # of a response without a box, where its answer stands if it has one
ANSWER_CHARACTERS = 2_000  # of a box; reference answers have at most 210
VERDICTS = ("A", "B", "C", "unparsed", "overflow")


class Question(NamedTuple):
    """What a judge is asked about."""

    problem: str
    reference: str
    answer: str

    @property
    def prompt(self) -> str:
        problem = self.problem.removesuffix(BOXED_SENTENCE).strip()
        return PROMPT.format(problem=problem, reference=self.reference, answer=self.answer)


def final_part(response: str, boxed: str) -> str:
    """Cut a response to what the judge sees: its boxed answer, or its end where it has none."""
    return boxed[:ANSWER_CHARACTERS] or response[-TAIL_CHARACTERS:]


def parse_verdict(reply: str) -> str:
    """Read a reply strictly: a letter alone, or it is `unparsed`."""
    letter = reply.strip()
    return letter if letter in ("A", "B", "C") else "unparsed"


def is_audited(fraction: float, *sample: str | int) -> bool:
    """Decide whether a sample belongs to the random fraction that is audited; always the same ones."""
    digest = hashlib.sha256(json.dumps(sample).encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def ask(questions: Iterable[Question], folder: Path, model: ModelSettings) -> dict[Question, str]:
    """Look the verdicts on questions up in `judgements.jsonl` of `folder`, and ask for those that are not there.

    Raises:
        ValueError: the judge's context does not hold a single question.
        Failure: some questions were not answered.
    """
    path, judge = folder / "judgements.jsonl", [model.model, model.revision, model_digest(model.model), PROMPT_VERSION]
    drop_damaged(path, SHAPES["judgement"])
    listed = read_lines(path)[0] if path.exists() else []
    known = {Question(*line["question"]): line["verdict"] for line in listed if line["judge"] == judge}
    unknown = [question for question in dict.fromkeys(questions) if question not in known]
    if unknown:
        with open(path, "a") as file:
            known |= ask_model(unknown, model, folder / "judge.log", file, judge)
    return known


def ask_model(
    questions: list[Question], model: ModelSettings, log: Path, file: TextIO, judge: list
) -> dict[Question, str]:
    """Ask a model, and write each verdict to `file` as it comes."""
    verdicts: dict[Question, str] = {}

    def note(record: dict, verdict: str) -> None:
        verdicts[record["question"]] = verdict
        file.write(format_line({"judge": judge, "question": record["question"], "verdict": verdict}))
        file.flush()

    def done(record: dict, result: dict) -> None:
        note(record, parse_verdict(result["response"]))

    fitting = [{"question": question, "prompt": question.prompt, "seed": 0} for question in questions]
    overflowing: list[dict] = []
    if not model.endpoint:
        fitting, overflowing = split_by_context(fitting, model)
    print(f"  {len(fitting)} questions to {model.model}, the engines' output in {log}", flush=True)
    failed = answer(fitting, model, {"temperature": 0.0, "max_tokens": REPLY_TOKENS}, log, done)
    # A server's context is not known here: it reports the overflow itself.
    for record in [*overflowing, *(record for record, error in failed if isinstance(error, Overflow))]:
        note(record, "overflow")
    if others := [failure for failure in failed if not isinstance(failure[1], Overflow)]:
        record, error = others[0]
        problem = " ".join(record["question"].problem.split())[:60]
        raise Failure(
            f"{len(others)} of {len(questions)} questions failed, the first on {problem!r}: {first_line(error)}; "
            "the same command asks them again"
        )
    return verdicts


def split_by_context(records: list[dict], model: ModelSettings) -> tuple[list[dict], list[dict]]:
    """Return the records whose prompt leaves tokens for a reply, and the others."""
    from transformers import AutoConfig

    window = AutoConfig.from_pretrained(model.model, revision=model.revision).max_position_embeddings
    tokenize(model.model, model.revision, records)
    sides: dict[bool, list[dict]] = {True: [], False: []}
    for record in records:
        sides[len(record["prompt_ids"]) + REPLY_TOKENS <= window].append(record)
    if not sides[True]:
        shortest = min(len(record["prompt_ids"]) for record in records) + REPLY_TOKENS
        raise ValueError(
            f"judge {model.model}: its context of {window} tokens holds no question; the shortest has {shortest}"
        )
    return sides[True], sides[False]

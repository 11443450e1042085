r"""A lenient reward: what the strict match rejects is read by rule, and by math-verify behind a wall.

The paper's "robust verifier" arm (arXiv 2512.16649, ablations) uses DeepScaleR's, which passes a model's text to
sympy's `parse_expr`. This one never evaluates text in the calling process: numbers are compared exactly, lists,
tuples and intervals member by member, and only single formulas go to math-verify, in a worker process with limits on
time, memory, files and processes that is killed and replaced at its deadline. It needs math-verify and, beside it,
`justrl.py`, and plugs in by its path:

    reward.custom_reward_function.path=/path/to/reward/robust.py

    >>> compute_score("math", r"so $\boxed{\tfrac12}$", r"\frac{1}{2}")["acc"]
    1.0
"""

import atexit
import importlib.util
import json
import logging
import os
import queue
import re
import select
import subprocess
import sys
import threading
from collections import Counter
from fractions import Fraction
from pathlib import Path


def _strict_reward():
    # By path, not by package: verl loads this file without the repository on its path.
    spec = importlib.util.spec_from_file_location("justrl_strict_reward", Path(__file__).with_name("justrl.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


STRICT = _strict_reward()

# The longest gold of the nine benchmarks has 210 characters; a longer answer is not one.
MAX_CHARACTERS = 600
# Depth of brackets; golds have 4 at most, and parsers recurse.
MAX_DEPTH = 16
# Digits of one number: exact arithmetic grows with them, and no gold has more than 11.
MAX_DIGITS = 60
# Exponents and factorials that are computed exactly grow without bound: 2024^{4046} is a gold, 9^{9^9} an attack.
MAX_EXPONENT = 10_000
MAX_FACTORIAL = 1_000
# Members of a list; the longest gold has 18.
MAX_MEMBERS = 40
# An honest comparison takes milliseconds; the slowest of 1,646 golds against a wrong one took 5 s unprotected.
DEADLINE_SECONDS = 3.0
START_SECONDS = 120.0
WORKER_BYTES = 2 * 2**30
WORKERS = max(1, min(4, os.cpu_count() or 1))
# Above this share of time-outs, after this many responses, something is wrong and the log says so.
TIMEOUT_SHARE, TIMEOUT_AFTER = 0.01, 500

OUTCOMES = ("match", "equivalent", "wrong", "no_box", "unparsable", "refused", "timed_out", "crashed", "unusable_truth")
RIGHT = ("match", "equivalent")

SPACING = re.compile(r"(?<!\\)\\[,!;: ]|\\q?quad(?![a-zA-Z])|~|\\?\$")
LAYOUT = re.compile(r"\\(?:left|right|displaystyle|mathbf|boldsymbol|bf|rm|big|Big|bigg|Bigg)(?![a-zA-Z])")
TEXT = re.compile(r"\\(text|mbox|textbf|operatorname|mathrm)\{([^{}]*)\}(?:\^\{?[23]\}?)?")
UNITS = re.compile(
    r"(?:degrees?|radians?|cents?|dollars?|units?|square|cubic|inch(?:es)?|feet|miles?|hours?|minutes?|seconds?|days?|"
    r"years?|cm|mm|km|kg|g|m|s|ft|in|mph|nm|eV|J|Hz|K)\.?"
)
SIGNS = str.maketrans({"\u2212": "-", "\u00d7": r"\times ", "\u03c0": r"\pi "})
ROOT = re.compile(r"√\s*(\d+|\{[^{}]*\})")
GROUPED = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
ONE_CHARACTER = re.compile(r"(?<=[_^])\{(\w)\}")
NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+)|\\(?:times|cdot)10\^\{?([+-]?\d+)\}?)?")
FRACTION = re.compile(r"([+-]?)(\d*)\\frac(?:\{([+-]?\d+)\}|(\d))(?:\{(\d+)\}|(\d))|([+-]?\d+)/(\d+)")
# What may stand before an equals sign: not e, i or pi, which are numbers, nor a command such as \not.
NAME = re.compile(
    r"(?:[a-df-hj-zA-Z]|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|rho|sigma|tau|omega))(?:_\{?\w+\}?)?(?:\([a-zA-Z]\))?"
)
BASED = re.compile(r"(\d+)_\{?(\d+)\}?")
# A factorial of a factorial, or of a bracket without a letter: nothing bounds its size.
NUMERIC_FACTORIAL = re.compile(r"!!|[({](?:[^a-zA-Z()\\]|\\[a-z]+)*[)}]!")
# A negation, or a prime or quotation mark, makes another answer of the same digits.
NEGATION = re.compile(r"\\(?:not|neq?|lnot|neg)(?![a-zA-Z])|['\"]|\\prime")
HEDGE = re.compile(r"(?<![a-zA-Z\\])(?:or|and|either|about|maybe)(?![a-zA-Z])|\\(?:approx|lor|vee|sim)(?![a-zA-Z])")
EXPONENT = re.compile(r"\^\{?\s*([+-]?\d+)|(\d+)\s*!")
MATRIX = re.compile(r"\\begin\{([pb]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}")
OPENING, CLOSING = "([{", ")]}"
GAP = "\u00a6"  # stands where something was removed, so that 3 4 is not 34


# ---------------------------------------------------------------- reading an answer


def tidy(answer: str) -> str:
    """Return an answer without what does not change its meaning: spacing, layout, units and a full stop.

    A gap between digits that is no thousands separator or mixed number stays in the text, which then is no number.
    """
    text = answer.strip().translate(SIGNS).replace("dfrac", "frac").replace("tfrac", "frac")
    text = ROOT.sub(lambda m: rf"\sqrt{{{m[1].strip('{}')}}}", text)
    text = TEXT.sub(_without_unit, SPACING.sub(GAP, LAYOUT.sub(GAP, text)))
    text = GAP.join(re.sub(r"\^\{?\\circ\}?|°", GAP, text).split()).strip(GAP)
    text = re.sub(rf"(?<=[^.])\.{GAP}*$", "", text)
    text = re.sub(rf"(?<!\d)(\d{{1,3}})((?:,?{GAP}+\d{{3}})+)(?!\d)", lambda m: m[1] + re.sub(r"\D", "", m[2]), text)
    text = re.sub(rf"(?<=\d){GAP}+(\d+)/(\d+)$", r"\\frac{\1}{\2}", text)
    text = re.sub(rf"(?<!\d){GAP}+|{GAP}+(?!\d|{GAP})", "", text)
    text = ONE_CHARACTER.sub(r"\1", re.sub(r"^[a-z]\\in(?![a-z])", "", text))
    while (
        (text[:1], text[-1:]) in (("{", "}"), ("(", ")")) and len(split_top(text[1:-1], ",")) == 1 and _one_pair(text)
    ):
        text = text[1:-1]
    return text.replace(",", "") if GROUPED.fullmatch(text) else text


def _one_pair(text: str) -> bool:
    depth = 0
    for i, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if depth == 0:
            return i == len(text) - 1
    return False


def _without_unit(match: re.Match) -> str:
    words = match[2].replace(GAP, " ").split()
    if all(UNITS.fullmatch(word) for word in words):
        return GAP
    if match[1] == "mathrm" or (len(words) == 1 and words[0].strip("-").isdigit()):
        return GAP + "".join(words) + GAP
    return rf"\text{{{' '.join(words)}}}"


def units(answer: str) -> set[str]:
    """Return the units that an answer names, in the singular."""
    words = {word.rstrip(".") for match in TEXT.finditer(answer) for word in match[2].split() if UNITS.fullmatch(word)}
    signs = {"degree": r"\^\{?\\circ|°", "dollar": r"\\\$", "percent": "%"}
    named = {name for name, sign in signs.items() if re.search(sign, answer)}
    return named | {word.removesuffix("s") if len(word) > 2 else word for word in words}


def split_top(text: str, separator: str) -> list[str]:
    """Split at separators outside brackets."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in OPENING) - (char in CLOSING)
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
    return [*parts, text[start:]]


def members(text: str) -> tuple[str, list[str]]:
    """Return the shape of an answer and its members: "()", "[)" and so on, "{}" for a bare list too, "" for a value."""
    if match := MATRIX.fullmatch(text):
        rows = [row for row in match[2].split(r"\\") if row]
        return f"rows {[row.count('&') for row in rows]}", [cell for row in rows for cell in row.split("&")]
    union = split_top(text, r"\cup")
    if len(union) > 1:
        return "union", union
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "{}", split_top(text[2:-2], ",")
    listed = split_top(text, ",")
    if len(listed) > 1:
        return "{}", listed
    if text.count(r"\pm") == 1:
        before, after = text.split(r"\pm")
        return "{}", [f"{before}+{after}".lstrip("+"), f"{before}-{after}"]
    inner = split_top(text[1:-1], ",") if text[:1] in ("(", "[") and text[-1:] in (")", "]") else []
    return (text[0] + text[-1], inner) if len(inner) > 1 else ("", [text])


def number(text: str) -> Fraction | None:
    """Return the exact value of a plain number: integer, decimal, scientific, fraction or mixed number."""
    if match := NUMBER.fullmatch(re.sub(r"^(-?)(10\^)", r"\g<1>1\\cdot\2", text)):
        sign, whole, part, *exponents = match.groups()
        exponent = int(next((e for e in exponents if e), "0"))
        if (whole or part) and abs(exponent) <= MAX_EXPONENT:
            value = Fraction(int((whole or "") + (part or "")), 10 ** len(part or "")) * Fraction(10) ** exponent
            return -value if sign == "-" else value
    if match := FRACTION.fullmatch(text):
        sign, whole, top, top1, below, below1, plain_top, plain_below = match.groups()
        above, under = int(top or top1 or plain_top), int(below or below1 or plain_below)
        if under:
            value = int(whole or "0") + Fraction(above, under)
            return -value if sign == "-" else value
    return None


def fault(text: str) -> str | None:
    """Return which cap an answer breaks; None if it may be parsed."""
    if len(text) > MAX_CHARACTERS:
        return "length"
    depth = deepest = 0
    for char in text:
        depth += (char in OPENING) - (char in CLOSING)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or depth:
        return "depth"
    if any(len(digits) > MAX_DIGITS for digits in re.findall(r"\d+", text)):
        return "digits"
    if text.count("!") > 4 or NUMERIC_FACTORIAL.search(text):
        return "factorial"
    for exponent, factorial in EXPONENT.findall(text):
        if (exponent and abs(int(exponent)) > MAX_EXPONENT) or (factorial and int(factorial) > MAX_FACTORIAL):
            return "exponent"
    if re.search(r"\^\{[^{}]*\^|\^\{[^{}]*\{[^{}]*\^", text):
        return "tower"
    return None if text.isprintable() else "invisible"


# ---------------------------------------------------------------- comparing


def same(answer: str, truth: str, tolerance: Fraction = Fraction(0), ordered: bool = False, asked: int = 0) -> str:
    """Compare two tidy answers and return an outcome; lists are compared member by member.

    Args:
        tolerance: largest difference of two numbers.
        ordered: a bare list has its order.
        asked: how many members of the truth suffice; 0 for all.
    """
    if answer == truth:
        return "equivalent"
    shape, wanted = members(truth)
    given_shape, given = members(answer)
    if shape or given_shape:
        shapes = {shape, given_shape}
        if (
            shape != given_shape
            and not (ordered and shapes == {"{}", "()"})
            and not (asked == 1 and shapes == {"{}", ""})
        ):
            return "wrong"
        if len(given) != (asked or len(wanted)) or len(given) > MAX_MEMBERS:
            return "wrong"
        keep_order = ordered or shape not in ("{}", "union")
        names = {split_top(member, "=")[0] for member in given if "=" in member}
        if "=" not in truth and len(names) > (0 if keep_order else 1):
            return "wrong"  # (y=1,x=2) is not (1,2)
        return _same_members(given, wanted, tolerance, keep_order)
    return _same_value(answer, truth, tolerance)


def _same_members(given: list[str], wanted: list[str], tolerance: Fraction, keep_order: bool) -> str:
    left = list(wanted)
    for member in given:
        outcomes = []
        for candidate in left[:1] if keep_order else list(left):
            outcomes.append(same(member, candidate, tolerance))
            if outcomes[-1] in RIGHT:
                left.remove(candidate)
                break
            if outcomes[-1] in ("timed_out", "crashed"):
                return outcomes[-1]  # one deadline a response, not one for each pair of members
        else:
            return next((outcome for outcome in outcomes if outcome != "wrong"), "wrong")
    return "equivalent"


def _letters(text: str) -> set[str]:
    return set(re.findall(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)))


def _same_value(answer: str, truth: str, tolerance: Fraction) -> str:
    texts = [TEXT.fullmatch(text) for text in (answer, truth)]
    if any(texts) or r"\text" in answer + truth:
        words = [match[2] if match else text for match, text in zip(texts, (answer, truth), strict=True)]
        return "equivalent" if words[0].strip("()").lower() == words[1].strip("()").lower() else "wrong"
    sides, truth_sides = split_top(answer, "="), split_top(truth, "=")
    if len(sides) > 2 or (len(sides) == 2 and not NAME.fullmatch(sides[0]) and len(truth_sides) == 1):
        return "wrong"  # a chain offers several answers
    if len(sides) == 2 and len(truth_sides) == 1:
        return same(sides[1], truth, tolerance)
    if len(truth_sides) == 2 and len(sides) == 1 and NAME.fullmatch(truth_sides[0]):
        return same(answer, truth_sides[1], tolerance)
    if BASED.fullmatch(answer) or BASED.fullmatch(truth):
        pairs = [BASED.fullmatch(text) for text in (answer, truth)]
        return "equivalent" if all(pairs) and pairs[0].groups() == pairs[1].groups() else "wrong"
    percent = [re.sub(r"\\?%$", "", text) for text in (answer, truth)]
    if truth != percent[1]:
        answer, truth = percent  # 62.5 for 62.5\%, but not 62.5\% for 62.5
    if fault(answer):
        return "refused"
    ours, theirs = number(answer), number(truth)
    if ours is not None and theirs is not None:
        return "equivalent" if abs(ours - theirs) <= tolerance else "wrong"
    if re.search(r"\.\d", answer) and not re.search(r"\.\d", truth):
        return "wrong"  # a decimal for an exact formula; math-verify would compare six places
    if _letters(answer) != _letters(truth) and _letters(answer.lower()) == _letters(truth.lower()):
        return "wrong"  # R is not r; math-verify takes them for the same
    return POOL.ask(answer, truth)


# ---------------------------------------------------------------- the worker process


class Worker:
    """A process that compares two formulas with math-verify; killed at its deadline."""

    def __init__(self):
        command = [sys.executable, "-I", str(Path(__file__).resolve()), "--worker"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes, bufsize=0, cwd="/", start_new_session=True)
        if self._line(START_SECONDS) != "ready":
            self.end()
            raise OSError("the worker did not start; is math-verify installed?")

    def _line(self, seconds: float) -> str | None:
        """Return the worker's next line; None if it takes longer, "" if the worker is dead."""
        ready = select.poll()  # not select: a Ray actor may have more than 1,024 files open
        ready.register(self.process.stdout, select.POLLIN)
        if not ready.poll(1000 * seconds):
            return None
        return self.process.stdout.readline().decode().strip()

    def ask(self, answer: str, truth: str) -> str:
        try:
            self.process.stdin.write(json.dumps([answer, truth]).encode() + b"\n")
        except OSError:
            return "crashed"
        outcome = self._line(DEADLINE_SECONDS)
        return "timed_out" if outcome is None else outcome if outcome in OUTCOMES else "crashed"

    def end(self) -> None:
        with self.process:  # closes its pipes and waits for it
            self.process.kill()


class Pool:
    """Workers that start when they are needed, for any number of threads; at most WORKERS at once."""

    def __init__(self):
        self.free = threading.BoundedSemaphore(WORKERS)
        self.idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self.owner = os.getpid()
        self.started = False

    def ask(self, answer: str, truth: str) -> str:
        """Compare two formulas in a worker; the clock starts when the worker has the question."""
        if os.getpid() != self.owner:
            self.__init__()  # a fork shares its parent's pipes and must not use them
        with self.free:
            try:
                worker = self._worker()
            except OSError:
                if not self.started:
                    raise  # it never worked, so every formula would be wrong for ever
                return "crashed"
            self.started = True
            outcome = worker.ask(answer, truth)
            if outcome in ("timed_out", "crashed"):
                worker.end()
            else:
                self.idle.put(worker)
            return outcome

    def _worker(self) -> Worker:
        while True:
            try:
                worker = self.idle.get_nowait()
            except queue.Empty:
                return Worker()
            if worker.process.poll() is None:
                return worker
            worker.end()

    def end(self) -> None:
        """End all idle workers; one at work ends by itself at its deadline."""
        while os.getpid() == self.owner and not self.idle.empty():
            self.idle.get_nowait().end()


POOL = Pool()
atexit.register(POOL.end)


def _judge(answer: str, truth: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list:
        return parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None, raise_on_error=False)

    gold = read(truth)
    if not any(not isinstance(value, str) for value in gold):
        return "unusable_truth"
    given = read(answer)
    if not any(not isinstance(value, str) for value in given):
        return "unparsable"
    return "equivalent" if verify(gold, given, timeout_seconds=None, raise_on_error=False) else "wrong"


def _work() -> None:
    import resource
    import signal

    logging.disable()
    _judge("1", "2")  # imports all it needs before the limits are set
    for limit, value in (
        (resource.RLIMIT_AS, WORKER_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    print("ready", flush=True)
    for line in sys.stdin:
        # Its default action ends the process even inside C code, so no worker outlives a killed owner.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(DEADLINE_SECONDS) + 2)
        try:
            outcome = _judge(*json.loads(line))
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
            outcome = "unparsable"
        signal.alarm(0)
        print(outcome, flush=True)


# ---------------------------------------------------------------- the reward

COUNTS: Counter = Counter()


def _count(outcome: str) -> None:
    COUNTS[outcome] += 1
    total, late = COUNTS.total(), COUNTS["timed_out"]
    doubled = late & (late - 1) == 0  # a line for each power of two, not for each time-out
    if outcome == "timed_out" and doubled and total >= TIMEOUT_AFTER and late > TIMEOUT_SHARE * total:
        logging.getLogger(__name__).warning("%d of %d responses timed out in math-verify", late, total)


def judge(solution_str: str, ground_truth: str, reading: dict | None = None) -> tuple[str, str]:
    """Return the outcome of one response, and its answer ("" if none).

    Args:
        reading: what the truth means, as `data_prep.golds` writes it: type, tolerance and asked are used.
    """
    answer = STRICT.last_boxed(solution_str)
    if answer is None:
        return "no_box", ""
    if answer == ground_truth:
        return "match", answer
    if len(answer) > MAX_CHARACTERS:
        return "refused", answer[:MAX_CHARACTERS]
    if HEDGE.search(answer) and not HEDGE.search(ground_truth):
        return "wrong", answer
    reading = reading if isinstance(reading, dict) else {}  # other data sets keep a solution under this name
    tolerance = number(str(reading.get("tolerance") or 0)) or Fraction(0)
    given, truth = tidy(answer), tidy(ground_truth)
    if not truth or fault(truth):
        return "unusable_truth", answer
    named = units(answer), units(ground_truth)
    if (all(named) and named[0] != named[1]) or (NEGATION.search(answer) and not NEGATION.search(ground_truth)):
        return "wrong", answer
    return same(given, truth, tolerance, reading.get("type") == "tuple", reading.get("asked") or 0), answer


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict | None = None,
    *,
    wrong: float = -1.0,
    **kwargs,
) -> dict:
    """Score one response; the same contract as `justrl.compute_score`, with the reason of a wrong one.

    Args:
        data_source: name of the data set; not used.
        solution_str: the decoded response.
        ground_truth: the expected answer.
        extra_info: the row's; `index` names a row in an error, `answer` is the truth's reading if there is one.
        wrong: score of a wrong response; 0.0 gives the scale 0/1.
        **kwargs: what verl passes to reward functions that ask a model; not used.

    Returns:
        `score`, `acc`, `pred`, and for each outcome but right ones 1.0 or 0.0, which verl averages into its metrics.

    Raises:
        ValueError: the ground truth is not a string, is empty, or has a box or unbalanced braces.
    """
    STRICT.check_ground_truth(data_source, ground_truth, extra_info, window=sys.maxsize)
    outcome, answer = judge(solution_str, ground_truth, (extra_info or {}).get("answer"))
    _count(outcome)
    right = outcome in RIGHT
    shown = {name: float(name == outcome) for name in OUTCOMES if name not in RIGHT}
    return {"score": 1.0 if right else wrong, "acc": float(right), "pred": answer} | shown


if __name__ == "__main__":
    _work()

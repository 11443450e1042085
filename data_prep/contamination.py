"""Which benchmark problems occur in the training set, by word n-grams.

For a benchmark problem two fractions of its distinct 8-grams are measured: those found anywhere in the training set, as
open-r1 does, and those found in the one training problem that has most of them, the best match. Two kinds of false
match are kept out. N-grams of many training problems are templates ("can be written as m/n where m and n are
relatively prime, find m + n") and count for nothing. And a problem of the same form with other numbers is another
problem: most numbers of the matched part must occur in the training problem.
"""

from collections import Counter
from dataclasses import asdict, dataclass

from tqdm import tqdm

from data_prep.normalise import canonical, words

N = 8
# A phrase of more than this many training problems says nothing about any of them.
TEMPLATE_PROBLEMS = 10
# Set on the labelled pairs of tests/cases/contamination.json; docs/data.md has the error rates.
NEAR_SHARE = 0.4
NUMBERS_SHARE = 0.75
# With fewer n-grams than this, one sentence in common is most of the problem: only all of them make a copy.
FEW_NGRAMS = 8


@dataclass(frozen=True)
class Match:
    """A benchmark problem and the training problem most like it; fractions are between 0 and 1."""

    problem_id: str
    kind: str  # exact, near or other
    share: float  # of the problem's n-grams, in the best match
    found: float  # of the problem's n-grams, anywhere in the training set
    numbers: float  # of the numbers in the problem's n-grams, in the best match
    training_index: int


def ngrams(tokens: list[str]) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + N]) for i in range(len(tokens) - N + 1)]


def _numbers_inside(tokens: list[str], telling: set) -> Counter:
    inside = {i + k for i, gram in enumerate(ngrams(tokens)) if gram in telling for k in range(N)}
    return Counter(tokens[i] for i in inside if tokens[i].isdigit())


def _share(wanted: Counter, there: list[str]) -> float:
    return (wanted & Counter(there)).total() / wanted.total() if wanted else 1.0


def _kind(share: float, numbers: float, ngram_count: int) -> str:
    near = share == 1.0 if ngram_count < FEW_NGRAMS else share >= NEAR_SHARE
    return "near" if near and numbers >= NUMBERS_SHARE else "other"


def find_matches(training: list[str], problems: dict[str, str]) -> list[list[Match]]:
    """Return, for each benchmark problem, its matches in the training set, the best first; `problems` is by id."""
    tokens = {key: words(text) for key, text in problems.items()}
    holders: dict[tuple, list[int]] = {gram: [] for listed in tokens.values() for gram in ngrams(listed)}
    duplicates: dict[str, list[int]] = {canonical(text): [] for text in problems.values()}
    bar = tqdm(training, unit=" problems", desc="comparing", delay=2, leave=False, disable=None)
    for index, text in enumerate(bar):
        for gram in set(ngrams(words(text))) & holders.keys():
            holders[gram].append(index)
        if (name := canonical(text)) in duplicates:
            duplicates[name].append(index)

    def matches(key: str) -> list[Match]:
        telling = {gram for gram in ngrams(tokens[key]) if len(holders[gram]) <= TEMPLATE_PROBLEMS}
        found = sum(bool(holders[gram]) for gram in telling) / max(1, len(telling))
        shared = Counter(index for gram in telling for index in holders[gram])
        wanted = _numbers_inside(tokens[key], telling)
        exact = duplicates[canonical(problems[key])]
        listed = [Match(key, "exact", 1.0, found or 1.0, 1.0, index) for index in exact]
        for index, count in sorted(shared.items(), key=lambda item: (-item[1], item[0])):
            if index not in exact:
                share = count / len(telling)
                numbers = _share(wanted, words(training[index]))
                kind = _kind(share, numbers, len(telling))
                listed.append(Match(key, kind, round(share, 3), round(found, 3), round(numbers, 3), index))
        return sorted(listed, key=lambda match: ("exact", "near", "other").index(match.kind))

    return [matches(key) for key in problems]


def report(training: list[str], matches: list[list[Match]]) -> dict:
    """Return one benchmark's part of the manifest: counts, ids, fractions of all, and each copy with its best match."""
    best = [found[0] for found in matches if found and found[0].kind != "other"]
    kinds = Counter(match.kind for match in best)
    return {
        "problems": len(matches),
        "exact": kinds["exact"],
        "near": kinds["near"],
        "problem_ids": [match.problem_id for match in best],
        "shares": {found[0].problem_id: [found[0].found, max(m.share for m in found)] for found in matches if found},
        "matches": [asdict(match) | {"training_problem": training[match.training_index][:200]} for match in best],
    }

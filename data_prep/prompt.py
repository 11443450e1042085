"""The one place of every sentence that a model is shown.

Training follows the paper's data (a blank line before the sentence), evaluation
follows the released scripts (a single space). The difference is the authors' own.
"""

BOXED_SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."

# DAPO-Math-17k wraps each problem in these two; the JustRL authors removed both.
DAPO_PREFIX = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_SUFFIX = '\n\nRemember to put your answer on its own line after "Answer:".'


def training_prompt(problem: str) -> str:
    return f"{problem}\n\n{BOXED_SENTENCE}"


def evaluation_prompt(problem: str) -> str:
    return f"{problem} {BOXED_SENTENCE}"


def strip_dapo_template(text: str) -> tuple[str, bool]:
    """Return the problem inside a raw DAPO prompt, and whether the whole template was there."""
    whole = text.startswith(DAPO_PREFIX) and text.endswith(DAPO_SUFFIX)
    return text.removeprefix(DAPO_PREFIX).removesuffix(DAPO_SUFFIX), whole

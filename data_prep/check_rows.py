"""Look at every row that a run will read, before it starts: it would fail minutes later, in the first reward."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from common.command import first_line
from data_prep.rows import open_rows

READ = ("data_source", "prompt", "reward_model", "extra_info")  # by verl and rewards
CALLS = {"tool_calls", "function_call"}  # beside which a turn may have no content
ROLE = r"^[a-z_]+$"  # as chat templates spell roles: "User" would be no user
TRUTH = "reward_model.ground_truth"


def check_rows(path: str | Path, score: Callable | None = None) -> int:
    """Check every row of a training or validation file; return their number.

    Args:
        score: a reward of ours, which takes text alone and refuses ground truths that cannot score. Other rewards may
            take anything but a null.

    Raises:
        ValueError: a file that cannot be read, or a row that would fail; one line with file, row and fix.
    """
    file, first = open_rows(path), 0
    if not str(path).endswith(".parquet"):
        raise ValueError(f"{path}: not named .parquet, by which verl would read it; rename it")
    try:
        for batch in file.iter_batches(columns=list(READ)):
            for row, fault in faults(batch, score):
                raise ValueError(f"{path}: row {first + row} (the first is 0): {fault}")
            first += batch.num_rows
    except OSError as error:
        raise ValueError(f"{path}: damaged: {first_line(error)}; prepare it again") from error
    return first


def faults(batch: pa.RecordBatch, score: Callable | None) -> Iterator[tuple[int, str]]:
    """Yield the first row with each fault, and the fault with its fix."""
    sources, prompts, models, extras = (batch.column(name) for name in READ)
    yield from text_faults(sources, "data_source")
    yield from prompt_faults(prompts)
    if not types.is_struct(models.type) or models.type.get_field_index("ground_truth") < 0:
        yield 0, f"reward_model is {models.type}; verl needs a struct with ground_truth and style"
        return
    truths = pc.struct_field(models, "ground_truth")
    if score:
        yield from text_faults(truths, TRUTH)
        yield from truth_faults(truths, score)
    elif (row := first_true(pc.or_(models.is_null(), truths.is_null()))) >= 0:
        yield row, f"{TRUTH} is null; give every row a reference answer, or drop it"
    if not (types.is_struct(extras.type) or types.is_null(extras.type)):
        yield 0, f"extra_info is {extras.type}; make it a struct, such as one with index"


def first_true(mask: pa.Array) -> int:
    return pc.index(mask, pa.scalar(True)).as_py()  # -1 without one


def is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)


def plain(values: pa.Array) -> pa.Array:
    return values.dictionary_decode() if types.is_dictionary(values.type) else values


def is_parts(kind: pa.DataType) -> bool:
    """Tell whether content may be in parts, such as text and image, or is null throughout."""
    return types.is_null(kind) or types.is_list(kind) or types.is_large_list(kind)


def text_faults(values: pa.Array, name: str) -> Iterator[tuple[int, str]]:
    if (row := first_true(values.is_null())) >= 0:
        yield row, f"{name} is null; give every row one, or drop it"
    elif not is_text(values.type):
        yield 0, f"{name} is {values.type} ({values[0].as_py()!r:.40}), not text; convert the column to strings"


def truth_faults(truths: pa.Array, score: Callable) -> Iterator[tuple[int, str]]:
    """Score an empty response against each distinct ground truth: our rewards refuse one that nothing can match."""
    for truth in pc.unique(truths).to_pylist():
        try:
            score("", "", truth)
        except ValueError as error:
            yield first_true(pc.equal(truths, truth)), f"{TRUTH}: {first_line(error).split(': ', 1)[-1]}"
            return


def prompt_faults(prompts: pa.Array) -> Iterator[tuple[int, str]]:
    """Yield the rows whose prompt is not a list of turns with role and content, one of them the user's."""
    kind = prompts.type
    turns = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else None
    if turns is None or not types.is_struct(turns) or min(map(turns.get_field_index, ("role", "content"))) < 0:
        yield 0, f"prompt is {kind}; verl needs a list of structs with role and content"
        return
    rows, flat = pc.list_parent_indices(prompts), pc.list_flatten(prompts)
    role, content = plain(pc.struct_field(flat, "role")), plain(pc.struct_field(flat, "content"))
    for name, values, others in (("role", role, types.is_null), ("content", content, is_parts)):
        if not (is_text(values.type) or others(values.type)):
            yield 0, f"prompt has a {name} that is {values.type}, not text; convert it to strings"
            return
    text = pc.utf8_trim_whitespace(content) if is_text(content.type) else None
    empty = content.is_null() if text is None else pc.or_(content.is_null(), pc.equal(text, ""))
    asking = pc.and_(pc.equal(role, "user"), pc.invert(empty))
    numbers = pa.array(range(len(prompts)), rows.type)
    if (row := first_true(pc.invert(pc.is_in(numbers, value_set=rows.filter(asking))))) >= 0:
        yield row, "prompt is null or has no user turn with text; give every row one, or drop it"
    elif (turn := first_true(pc.invert(pc.fill_null(pc.match_substring_regex(role, ROLE), False)))) >= 0:
        yield rows[turn].as_py(), f"prompt has a turn of role {role[turn].as_py()!r:.40}; name it as chat templates do"
    elif not CALLS & {field.name for field in turns} and (turn := first_true(content.is_null())) >= 0:
        yield rows[turn].as_py(), "prompt has a turn whose content is null; give every turn text, or drop the row"

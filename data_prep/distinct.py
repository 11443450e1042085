"""The distinct rows of a raw source, counted batch by batch: 1.8 million rows are 17 thousand, a hundred times."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep.source import record_batches, row_count

COLUMNS = ["prompt", "solution", "reward_model"]
COUNTED = pa.schema({"prompt": pa.string(), "answer": pa.string(), "rows": pa.int64()})


def as_text(column: pa.Array, name: str) -> pa.Array:
    """Return a column of text as plain strings; ValueError if it is not text, or not UTF-8."""
    if pa.types.is_null(column.type):  # of JSON lines, where all are null
        column = column.cast(pa.string())
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{name} is {column.type}; it must be text")
    column = column.cast(pa.string())
    column.validate(full=True)
    return column


def text_field(column: pa.Array, name: str, field: str, expected: str) -> pa.Array:
    """Return a field of a column of structs, or of lists that have one each."""
    structs, is_list = column, pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if is_list:
        structs = pc.list_flatten(column)
    if not pa.types.is_struct(structs.type) or structs.type.get_field_index(field) < 0:
        raise ValueError(f"column {name} is {column.type}; expected {expected} with {field}")
    if is_list and pc.any(pc.not_equal(pc.fill_null(pc.list_value_length(column), 0), 1)).as_py():
        raise ValueError(f"column {name} has a row that is not exactly one message")
    has_roles = structs.type.get_field_index("role") >= 0
    if has_roles and pc.any(pc.not_equal(pc.struct_field(structs, "role"), "user")).as_py():
        raise ValueError(f"column {name} has a message that is not the user's")
    return as_text(pc.struct_field(structs, field), field)


def raw_columns(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Return the prompts and ground truths of a batch, in either of the two known layouts."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    answers = "solution" if "solution" in columns else "reward_model"
    missing = [name for name in ("prompt", answers) if name not in columns]
    if missing:
        raise ValueError(f"lacks column {missing[0]}; it needs prompt and reward_model, or prompt and solution as text")
    if answers == "solution":
        return as_text(columns["prompt"], "column prompt"), as_text(columns["solution"], "column solution")
    return (
        text_field(columns["prompt"], "prompt", "content", "a list of messages"),
        text_field(columns["reward_model"], "reward_model", "ground_truth", "a struct"),
    )


def counted_batches(paths: list[Path]) -> Iterator[pa.Table]:
    """Read files batch by batch, each row with a count of one."""
    for path in paths:
        for batch in record_batches(path, COLUMNS):
            try:
                prompts, answers = raw_columns(batch)
            except ValueError as error:
                raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
            ones = pa.repeat(pa.scalar(1, pa.int64()), batch.num_rows)
            yield pa.Table.from_arrays([prompts, answers, ones], schema=COUNTED)


def distinct_rows(paths: list[Path]) -> pa.Table:
    """Return the distinct rows of all files with counts; memory grows with them, not with their copies.

    Raises:
        ValueError: a file cannot be read or has other columns.
    """
    counted = COUNTED.empty_table()
    counts = [row_count(path) for path in paths]
    known = [count for count in counts if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    with tqdm(total=total, unit=" rows", desc="reading", delay=2, leave=False, disable=None) as bar:
        for rows in counted_batches(paths):
            both = pa.concat_tables([counted, rows])
            counted = both.group_by(["prompt", "answer"]).aggregate([("rows", "sum")]).rename_columns(COUNTED.names)
            bar.update(rows.num_rows)
    if not counted.num_rows:
        raise ValueError(f"{', '.join(map(str, paths))}: has no rows")
    return counted

"""The distinct rows of a raw source, counted batch by batch: 1.8 million rows are 17 thousand, a hundred times."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep.source import record_batches, row_count

COLUMNS = ["prompt", "solution", "reward_model"]
MERGE_ROWS = 500_000  # distinct rows held before they are counted again


def as_text(column: pa.Array, name: str) -> pa.Array:
    """Return a column of text as plain strings.

    Raises:
        ValueError: it is not text, or not UTF-8.
    """
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{name} is {column.type}; it must be text")
    column = column.cast(pa.string())
    column.validate(full=True)
    return column


def raw_columns(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Return the prompts and ground truths of a batch, in either of the two known layouts.

    Raises:
        ValueError: a column is missing or has another type; the message says which.
    """
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    answers = "solution" if "solution" in columns else "reward_model"
    missing = [name for name in ("prompt", answers) if name not in columns]
    if missing:
        raise ValueError(f"lacks column {missing[0]}; it needs prompt and reward_model, or prompt and solution as text")
    prompts = columns["prompt"]
    if answers == "solution":
        return as_text(prompts, "column prompt"), as_text(columns[answers], "column solution")
    kind = prompts.type
    if not ((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type)):
        raise ValueError(f"column prompt is {kind}; expected a list of messages with role and content")
    if not pa.types.is_struct(columns[answers].type):
        raise ValueError(f"column reward_model is {columns[answers].type}; expected a struct with ground_truth")
    if pc.any(pc.not_equal(pc.fill_null(pc.list_value_length(prompts), 0), 1)).as_py():
        raise ValueError("column prompt has a row that is not exactly one message")
    if kind.value_type.get_field_index("content") < 0 or columns[answers].type.get_field_index("ground_truth") < 0:
        raise ValueError("prompt lacks content or reward_model lacks ground_truth")
    return (
        as_text(pc.struct_field(pc.list_flatten(prompts), "content"), "content"),
        as_text(pc.struct_field(columns[answers], "ground_truth"), "ground_truth"),
    )


def count_rows(table: pa.Table) -> pa.Table:
    """Return each distinct prompt and answer of a table once, with the sum of its rows."""
    counted = table.group_by(["prompt", "answer"]).aggregate([("rows", "sum")])
    return counted.rename_columns(["prompt", "answer", "rows"])


def distinct_rows(paths: list[Path]) -> pa.Table:
    """Return the distinct rows of all files with counts; memory grows with them, not with their copies.

    Raises:
        ValueError: a file cannot be read or has other columns.
    """
    pieces: list[pa.Table] = []
    counts = [row_count(path) for path in paths]
    total = sum(counts) if None not in counts else None
    with tqdm(total=total, unit=" rows", desc="reading", delay=2, leave=False, disable=None) as bar:
        for path in paths:
            for batch in record_batches(path, COLUMNS):
                try:
                    prompts, answers = raw_columns(batch)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from error
                ones = pa.repeat(pa.scalar(1, pa.int64()), batch.num_rows)
                pieces.append(count_rows(pa.table({"prompt": prompts, "answer": answers, "rows": ones})))
                if sum(piece.num_rows for piece in pieces[1:]) > MERGE_ROWS:
                    pieces = [count_rows(pa.concat_tables(pieces))]
                bar.update(batch.num_rows)
    if not sum(piece.num_rows for piece in pieces):
        raise ValueError(f"{', '.join(map(str, paths))}: has no rows")
    return count_rows(pa.concat_tables(pieces))

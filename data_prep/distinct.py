"""The distinct rows of a raw source, counted batch by batch: 1.8 million rows are 17 thousand, a hundred times."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_prep.source import record_batches, row_count

COLUMNS = ["prompt", "solution", "reward_model"]
MERGE_ROWS = 500_000  # distinct rows held before they are counted again


def raw_columns(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array]:
    """Return the prompts and ground truths of a batch, in either of the two known layouts.

    Raises:
        ValueError: a column is missing or has another type; the message says which.
    """

    def column(name: str, expected: bool, what: str) -> pa.Array:
        if name not in batch.schema.names:
            raise ValueError(f"lacks column {name}; it needs prompt and reward_model, or prompt and solution as text")
        if not expected:
            raise ValueError(f"column {name} is {batch.schema.field(name).type}; {what}")
        return batch.column(name)

    def is_text(kind: pa.DataType) -> bool:
        return pa.types.is_string(kind) or pa.types.is_large_string(kind)

    kinds = {field.name: field.type for field in batch.schema}
    if "solution" in kinds and is_text(kinds.get("prompt")):
        solution = column("solution", is_text(kinds["solution"]), "expected text")
        return batch.column("prompt").cast(pa.string()), solution.cast(pa.string())
    kind = kinds.get("prompt")
    messages = column(
        "prompt",
        kind and pa.types.is_list(kind) and pa.types.is_struct(kind.value_type),
        "expected a list of messages with role and content",
    )
    if pc.any(pc.not_equal(pc.fill_null(pc.list_value_length(messages), 0), 1)).as_py():
        raise ValueError("column prompt has a row that is not exactly one message")
    kind = kinds.get("reward_model")
    truths = column("reward_model", kind and pa.types.is_struct(kind), "expected a struct with ground_truth")
    try:
        content, truth = pc.struct_field(pc.list_flatten(messages), "content"), pc.struct_field(truths, "ground_truth")
    except (KeyError, pa.ArrowInvalid) as error:
        raise ValueError("prompt lacks content or reward_model lacks ground_truth") from error
    if not (is_text(content.type) and is_text(truth.type)):
        raise ValueError(f"content is {content.type} and ground_truth is {truth.type}; both must be text")
    return content.cast(pa.string()), truth.cast(pa.string())


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

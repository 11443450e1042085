"""How fast the training set is prepared, against pandas: python -m benchmarks.dapo --block ONE_BLOCK.parquet

Makes files of the raw release's shape from one block of problems (template put back, the block repeated), prepares each
with `data_prep.dapo`, and reads and de-duplicates each the plain way, `pandas.read_parquet` and `drop_duplicates`.
Prints wall time and peak memory of each process, and the ratios. Pandas is left out where it needs more memory than
there is.

example: python -m benchmarks.dapo --block dapo-math-17k-one-block.parquet --blocks 1,10,100,1000
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from common.command import path, run
from data_prep.prompt import DAPO_PREFIX, DAPO_SUFFIX

ROW_GROUP = 2**20  # rows, pandas' and pyarrow's own choice
PLAIN = """
import sys, pandas
frame = pandas.read_parquet(sys.argv[1], columns=["prompt", "reward_model"])
frame["prompt"] = [prompt[0]["content"] for prompt in frame["prompt"]]
frame["reward_model"] = [truth["ground_truth"] for truth in frame["reward_model"]]
print(len(frame.drop_duplicates()), "distinct rows")
"""


class Cost(NamedTuple):
    """What a process took: wall time in seconds and peak resident memory in MiB."""

    seconds: float
    mebibytes: float


def make_raw(block: Path, blocks: int, path: Path) -> int:
    """Write a file of the raw release's shape and return its number of rows."""
    table = pq.ParquetFile(block).read()
    rows = table.select(["data_source", "prompt", "ability", "reward_model", "extra_info"]).to_pylist()
    for row in rows:
        row["prompt"][0]["content"] = DAPO_PREFIX + row["prompt"][0]["content"] + DAPO_SUFFIX
    table = pa.Table.from_pylist(rows)
    group = max(1, ROW_GROUP // len(rows))
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, blocks, group):
            writer.write_table(pa.concat_tables([table] * min(group, blocks - start)), row_group_size=ROW_GROUP)
    return len(rows) * blocks


def measure(name: str, *arguments: str) -> Cost | None:
    """Run Python and print what it took; None if it failed, for instance for want of memory."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, process.returncode, usage = os.wait4(process.pid, 0)
    cost = Cost(time.perf_counter() - started, usage.ru_maxrss / 1024)
    failed = process.returncode != 0
    print(f"  {name:12} {'failed' if failed else f'{cost.seconds:7.1f} s  {cost.mebibytes:8,.0f} MiB'}", flush=True)
    return None if failed else cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--block", type=path, required=True, help="parquet of one block, without the template")
    parser.add_argument("--blocks", default="1,10,100,1000", help="numbers of blocks (default %(default)s)")
    parser.add_argument("--plain-up-to", type=int, default=100, help="blocks that pandas is tried on (%(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        raw, output = Path(scratch) / "raw.parquet", Path(scratch) / "train.parquet"
        for blocks in map(int, args.blocks.split(",")):
            rows = make_raw(args.block, blocks, raw)
            print(f"{blocks:,} blocks, {rows:,} rows, {raw.stat().st_size / 2**20:,.0f} MiB on disk", flush=True)
            ours = measure("data_prep", "-m", "data_prep.dapo", "--source", str(raw), "--output", str(output))
            plain = measure("pandas", "-c", PLAIN, str(raw)) if blocks <= args.plain_up_to else None
            if ours and plain:
                seconds, mebibytes = plain.seconds / ours.seconds, plain.mebibytes / ours.mebibytes
                print(f"  pandas takes {seconds:.1f} times as long and {mebibytes:.1f} times the memory")
            output.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)

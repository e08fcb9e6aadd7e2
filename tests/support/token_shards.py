"""Reading the results of ``tokenize`` in tests."""

from pathlib import Path
from typing import Any


def token_rows(output: Path) -> list[dict[str, Any]]:
    """All rows of a result in Parquet, in the order of the shards."""
    import pyarrow.parquet as pq

    return [row for shard in sorted((output / "tokens").glob("tokens-*.parquet")) for row in pq.read_table(shard).to_pylist()]


def failure_rows(output: Path) -> list[dict[str, str]]:
    """The rows of failures.parquet."""
    import pyarrow.parquet as pq

    return pq.read_table(output / "failures.parquet").to_pylist()

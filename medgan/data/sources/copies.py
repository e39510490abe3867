"""Which files of a raw folder are copies of others: those with the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from medgan.data.shards import told
from medgan.data.sources.raw import Raw, SourceError


def are_copies(first: Mapping[str, str], sizes: Mapping[str, int], raw: Raw) -> bool:
    """Whether each file has the bytes of the one that it may be a copy of. Raises SourceError where one is not read."""

    def same(pair: tuple[str, str]) -> bool:
        return raw.read(pair[0]) == raw.read(pair[1])

    if any(sizes[name] != sizes[other] for name, other in first.items()):
        return False
    try:
        with ThreadPoolExecutor(16) as pool:
            return all(pool.map(same, first.items()))
    except (OSError, ValueError) as error:
        raise SourceError(
            f"--raw {raw.location}: a file that looks like a copy cannot be read ({told(error)})"
        ) from None

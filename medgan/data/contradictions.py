"""Files that are there several times: with other labels each, which nobody can learn from, or with the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """An image that was read."""

    split: str
    image_id: str
    """Equal where the bytes of two files are."""
    labels: tuple[int, ...]
    patient: str


@dataclass
class Settled:
    dropped: dict[int, str] = field(default_factory=dict)
    """Which rows are left out, and why."""
    labels: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Which rows get other labels."""
    notes: list[str] = field(default_factory=list)


def settled(rows: Sequence[Row], merge: bool) -> Settled:
    """A file that has other labels elsewhere, in any split, is left out everywhere.

    merge: instead its first row in each split gets the labels of all, and the others of that split are left out.
    Files that are there several times with one set of labels stay, and are counted in a note.
    """
    made = Settled()
    same: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        same[row.image_id].append(index)
    unsure = again = strangers = 0
    for places in same.values():
        labels = {rows[index].labels for index in places}
        first = {rows[index].split: index for index in reversed(places)}
        if len(labels) == 1:
            again += len(places) - len(first)
            strangers += len({(rows[index].split, rows[index].patient) for index in places}) - len(first)
            continue
        unsure += 1
        for index in places:
            if not merge:
                made.dropped[index] = "the same file has other labels elsewhere"
            elif index == first[rows[index].split]:
                made.labels[index] = tuple(sorted(set().union(*labels)))
            else:
                made.dropped[index] = "the same file as another, which got its labels"
    if unsure:
        what = "each is one image with all of their labels" if merge else "left out"
        made.notes.append(f"{unsure:,} files are there under several labels: {what}")
    if again:
        whose = f" ({strangers:,} of them another patient's)" if strangers else ""
        made.notes.append(f"{again:,} files are the same as another of their split and labels{whose}: kept")
    return made

"""Class folders that may be none: splits, masks or wrapping folders by their names and what is in them.

Each is refused with what to do. A folder's name may be a patient's: the messages name only what is called like a split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from medgan.data.sources.masks import FILMS, Parts
from medgan.data.sources.raw import Raw, SourceError

SPLIT = re.compile(r"(?<![a-z])(?:train(?:ing)?|validation|testing)(?![a-z])|_(?:val|test)_", re.IGNORECASE)
"""What no class is called."""
DOMAIN = re.compile(r"(?:train|test|val)[_-]?[ab]", re.IGNORECASE)
"""Of image translation (CycleGAN): a split and a class in one."""
PART = re.compile(r"(?:.*[\W_])?(?:parts?|batch|fold|chunk|vol|volume|disk|images?)[\W_]*\d+", re.IGNORECASE)
"""A part of a set that was too large for one archive, or a fold."""
WHAT = re.compile(r"(?<![a-z])(?:images?|imgs?|originals?|pictures?|jpe?gs?|pngs?)(?![a-z])", re.IGNORECASE)
"""What files are, and not what is seen on them."""


def refuse_splits(names: set[str], raw: Raw) -> None:
    splits = sorted(name for name in names if SPLIT.search(name) or DOMAIN.fullmatch(name))
    if splits:
        raise SourceError(
            f"--raw {raw.location}: {', '.join(splits[:4])} look like splits, not like classes; call them "
            "train, val and test, name one of them, or name classes with --classes"
        )


def refuse_parts(names: set[str], raw: Raw) -> None:
    """Raises SourceError for folders that are one set in parts, and for one that holds films beside others."""
    if len(names) > 1 and all(PART.fullmatch(name) for name in names):
        raise SourceError(
            f"--raw {raw.location}: {', '.join(sorted(names)[:4])} look like parts of one set, not like classes; "
            "put their files into a folder per class, or name classes with --classes"
        )
    films = sorted(name for name in names if FILMS.fullmatch(name) and WHAT.search(name))
    if films and len(names) > 1:
        raise SourceError(
            f"--raw {raw.location}: {films[0]} says what files are, not what is seen on them, and {len(names) - 1} "
            "folders are beside it; name the folder of the films as --raw, or name classes with --classes"
        )


def refuse_masks(folders: set[Parts], left_out: set[Parts], raw: Raw) -> None:
    """Raises SourceError for one class and masks beside it: `mask/` and `normal/` may be two classes."""
    above, names = {folder[:-1] for folder in folders}, {folder[-1] for folder in folders}
    depth = len(next(iter(folders))) - 1
    beside = {path[depth] for path in left_out if len(path) > depth + 1 and path[:depth] in above} - names
    if len(names) == 1 and beside:
        raise SourceError(
            f"--raw {raw.location}: one class folder, and beside it {len(beside)} called like masks; name "
            "the class or the classes with --classes"
        )


def refuse_depths(below: Mapping[str, set[str]], raw: Raw) -> None:
    """Raises SourceError where class folders may be wrapping ones: CLASS/PATIENT/ has other patients in each class."""
    hollow = [folders for folders in below.values() if "" not in folders]
    repeated = len(set().union(*hollow)) < sum(map(len, hollow))
    if any(len(folders) > 1 for folders in hollow) and (repeated or len(hollow) < len(below) or len(below) == 1):
        raise SourceError(
            f"--raw {raw.location}: {len(hollow)} of {len(below)} class folders hold only folders, which may be the "
            "classes; name one of them as --raw, or name classes with --classes"
        )

"""Which images of a folder are masks of others, by their names and folders alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

Parts = tuple[str, ...]

WORDS = r"(?:masks?|segs?|segmentations?|gts?|ground[\W_]*truths?|annotations?|contours?|labels?)"
FOLDER = re.compile(rf"(?<![a-z]){WORDS}(?![a-z])")
FILE = re.compile(rf"(?P<film>.+?)[\s_.-]+{WORDS}(?:[\s_.-]*\d+)?", re.IGNORECASE)
FILMS = re.compile(
    r"(?:(?:images?|imgs?|films?|scans?|originals?|cxrs?|x[\W_]?rays?|pictures?|jpe?g|png)[\W_\d]*)+", re.IGNORECASE
)
"""A folder that says what its files are, and not what is seen on them."""


def masks(images: Sequence[Parts], classes: Sequence[str] = ()) -> set[Parts]:
    """Files such as film_mask.png beside film.png, and all in a folder such as masks/ beside the films they are of.

    A folder with such a name is taken for one where a folder beside it is called images/ or alike, or has the films of
    half of its files: `with_mask/` and `without_mask/` are classes. classes: names of folders that are not taken so.
    """
    films: dict[Parts, set[str]] = defaultdict(set)
    folders: dict[Parts, set[str]] = defaultdict(set)
    film_of = {path: _film(path) for path in images}
    for path, film in film_of.items():
        for depth in range(1, len(path)):
            films[path[:depth]].add(film)
            folders[path[: depth - 1]].add(path[depth - 1])
    there = {(path[:-1], _stem(path)) for path in images}
    of_masks = {folder for folder in films if folder[-1] not in classes and _holds_masks(folder, films, folders)}
    return {
        path
        for path, film in film_of.items()
        if (film != _stem(path) and (path[:-1], film) in there)
        or any(path[:depth] in of_masks for depth in range(1, len(path)))
    }


def _holds_masks(folder: Parts, films: dict[Parts, set[str]], folders: dict[Parts, set[str]]) -> bool:
    *above, name = folder
    return _says_mask(name) and any(
        FILMS.fullmatch(other) or 2 * len(films[folder] & films[*above, other]) >= len(films[folder])
        for other in folders[tuple(above)]
        if not _says_mask(other)
    )


def _says_mask(folder: str) -> bool:
    return bool(FOLDER.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", folder).lower()))


def _stem(path: Parts) -> str:
    return path[-1].rpartition(".")[0]


def _film(path: Parts) -> str:
    """The stem of the film that a file is of: its own, or, of a mask, what is before the word."""
    match = FILE.fullmatch(_stem(path))
    return match["film"] if match else _stem(path)

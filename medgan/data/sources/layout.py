"""How folders of images are laid out: which say the split and which the class, which are wrapping, copies, or masks.

Only folders that hold images count. Names and sizes decide, and bytes where files look like copies; what fits no layout
is refused with what to do.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile

from medgan.data.sources.copies import are_copies
from medgan.data.sources.doubts import refuse_depths, refuse_masks, refuse_parts, refuse_splits
from medgan.data.sources.masks import FILMS, Parts, masks
from medgan.data.sources.raw import Raw, SourceError, is_packed, packed

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".j2k")
SPLIT = re.compile(
    r"[\W_\d]*(?:(?P<train>train(?:ing)?|trn)|(?P<val>val(?:id(?:at(?:e|ion))?)?|dev(?:elopment)?)"
    r"|(?P<test>test(?:ing)?|tst|eval(?:uation)?|hold[\W_]*out))(?:[\W_]*(?:sets?|data|images?|imgs?|split|folder))*[\W_\d]*",
    re.IGNORECASE,
)
Found = list[tuple[str | None, str, Parts]]
Trees = dict[Parts, list[Parts]]
"""Images by the folder that their split folders are in."""


@dataclass(frozen=True)
class Layout:
    found: Sequence[tuple[str | None, str, str]]
    """(split, class, path) of every image; None without published splits, "" without classes."""
    rejected: Sequence[tuple[str, str]]
    notes: Sequence[str]


@dataclass
class Aside:
    """What was left out, and what a person should know."""

    rejected: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    masks: set[Parts] = field(default_factory=set)

    def put(self, paths: Iterable[Parts], reason: str) -> None:
        self.rejected += [("/".join(path), reason) for path in paths]

    def copies(self, paths: Sequence[Parts]) -> None:
        self.put(paths, "the same path and bytes as in another wrapping folder")
        self.notes.append(f"{len(paths):,} files are there twice, in two wrapping folders: taken once")


def any_layout(raw: Raw, expected: str, wanted: Sequence[str] = ()) -> Layout:
    """Split folders, class folders, both or neither. Raises SourceError where there is no image or more than one way.

    wanted: names of classes that are asked for; no folder that is called so is taken for a wrapping one or for masks.
    """
    sizes, aside = raw.sizes(), Aside()
    paths = _films(sizes, wanted, aside)
    trees, outside = _trees(paths)
    inside = [path for tree in trees.values() for path in tree]
    if trees and (not outside or (len(inside) > len(outside) and any(_split(path) == "train" for path in inside))):
        aside.put(outside, "not in a split folder, as others are")
        found = _classes_above(trees, wanted, raw)
        found = found or _classes_below(*_one_tree(trees, sizes, raw, aside), wanted, raw, aside)
    else:
        found = _without_splits(paths, wanted, raw, aside)
    if not found:
        raise SourceError(f"--raw {raw.location}: expected {expected}{packed(sizes)}")
    return _layout(found, aside)


def known_layout(raw: Raw, classes: Sequence[str]) -> Layout:
    """SPLIT/CLASS/ of those classes in any folders; what else lies there is another data set. Raises SourceError."""
    sizes, aside = raw.sizes(), Aside()
    trees, outside = _trees(_films(sizes, classes, aside))
    if not trees:
        expected = f"{{train,test,val}}/{{{','.join(classes)}}}/"
        raise SourceError(f"--raw {raw.location}: expected {expected} in it{packed(sizes)}")
    known = _of_classes(trees, classes, raw)
    others = len(outside) + sum(len(tree) for above, tree in trees.items() if above not in known)
    if others:
        aside.notes.append(f"{others:,} images in other folders are of another data set: not read")
    tree, depth = _one_tree(known, sizes, raw, aside)
    return _layout(_classes_below(tree, depth, classes, raw, aside), aside)


def _films(sizes: Mapping[str, int], wanted: Sequence[str], aside: Aside) -> list[Parts]:
    """The images among all files, without the masks of others."""
    images = []
    for path in (tuple(name.split("/")) for name in sizes):
        if path[-1].lower().endswith(IMAGES):
            images.append(path)
        elif is_packed(path[-1]):
            aside.put([path], "an archive in the folder; unpack it")
        else:
            aside.put([path], f"not one of {' '.join(IMAGES)}")
    aside.masks = masks(images, wanted)
    if aside.masks:
        aside.put(sorted(aside.masks), "a mask of another image, by its name or folder")
        aside.notes.append(f"{len(aside.masks):,} images are masks of others by their names or folders: left out")
    return [path for path in images if path not in aside.masks]


def _split(path: Parts) -> str | None:
    """The split that the topmost split folder of a path names."""
    return next((split for folder in path[:-1] if (split := _named_split(folder))), None)


@cache
def _named_split(folder: str) -> str | None:
    match = SPLIT.fullmatch(folder)
    return match.lastgroup if match else None


def _trees(paths: Sequence[Parts]) -> tuple[Trees, list[Parts]]:
    """Images in split folders, and those in none."""
    trees: Trees = defaultdict(list)
    outside: list[Parts] = []
    for path in paths:
        above = tuple(takewhile(lambda folder: not _named_split(folder), path[:-1]))
        (trees[above] if len(above) < len(path) - 1 else outside).append(path)
    return trees, outside


def _of_classes(trees: Trees, classes: Sequence[str], raw: Raw) -> Trees:
    """Those that have no other classes."""
    known = {_key(name) for name in classes}
    unknown = set()
    for above, tree in trees.items():
        for path in tree:
            if len(path) == len(above) + 2:
                raise SourceError(f"--raw {raw.location}: files beside the folders of its classes")
            if _key(path[len(above) + 1]) not in known:
                unknown.add(above)
    if len(unknown) == len(trees):
        raise SourceError(f"--raw {raw.location}: has folders of other classes than {' and '.join(classes)}")
    return {above: tree for above, tree in trees.items() if above not in unknown}


def _one_tree(trees: Trees, sizes: Mapping[str, int], raw: Raw, aside: Aside) -> tuple[list[Parts], int]:
    """The images of the one folder with splits, and the depth of their classes; other such folders may hold copies."""
    (above, tree), *others = sorted(trees.items(), key=lambda item: (-len(item[1]), len(item[0]), item[0]))
    for other, copies in others:
        first = {path: (*above, *path[len(other) :]) for path in copies}
        if not (set(first.values()) <= set(tree) and are_copies(_names(first), sizes, raw)):
            raise SourceError(f"--raw {raw.location}: split folders in {len(trees)} places; name or keep one")
        aside.copies(copies)
    return tree, len(above) + 1


def _names(first: Mapping[Parts, Parts]) -> dict[str, str]:
    return {"/".join(path): "/".join(other) for path, other in first.items()}


def _classes_above(trees: Trees, wanted: Sequence[str], raw: Raw) -> Found:
    """CLASS/SPLIT/image; nothing where it is not so."""
    apart = len(trees) > 1 and all(trees) and len({above[:-1] for above in trees}) == 1
    if not apart or any(len(path) > len(above) + 2 for above, tree in trees.items() for path in tree):
        return []
    return [(_split(path), above[-1], path) for above, tree in trees.items() for path in tree]


def _classes_below(tree: Sequence[Parts], depth: int, wanted: Sequence[str], raw: Raw, aside: Aside) -> Found:
    """SPLIT/CLASS/image, or SPLIT/image without classes."""
    found = [(_split(path), name, path) for name, path in _in_classes(tree, depth, wanted, raw, aside)]
    train = {_key(name) for split, name, _ in found if split == "train"}
    elsewhere = {name for _, name, _ in found if _key(name) not in train}
    if train and elsewhere:
        aside.notes.append(f"no folder of train has {', '.join(sorted(elsewhere))}")
    return found


def _without_splits(paths: Sequence[Parts], wanted: Sequence[str], raw: Raw, aside: Aside) -> Found:
    """CLASS/image, within folders that hold nothing else, or images without classes."""
    depth = 0
    while paths and _wraps(paths, depth) and paths[0][depth] not in wanted:
        depth += 1
    if depth:
        name = "/".join(paths[0][:depth])
        aside.notes.append(f"all images are in {name}/: the folders in it are the classes")
    return [(None, name, path) for name, path in _in_classes(paths, depth, wanted, raw, aside)]


def _wraps(paths: Sequence[Parts], depth: int) -> bool:
    """Whether one folder holds all images, and none of them directly."""
    return len({path[depth] for path in paths}) == 1 and all(len(path) > depth + 2 for path in paths)


def _in_classes(
    paths: Sequence[Parts], depth: int, wanted: Sequence[str], raw: Raw, aside: Aside
) -> list[tuple[str, Parts]]:
    """(class, path) of images whose folder at such a depth is their class, or none has a class."""
    while all(FILMS.fullmatch(path[depth]) for path in paths if len(path) > depth + 1):
        if not paths or any(len(path) <= depth + 2 for path in paths):
            return [("", path) for path in paths]
        depth += 1
    if not wanted:
        paths = _without_copies(paths, depth, raw, aside)
    inside = [path for path in paths if len(path) > depth + 1]
    names = {path[depth] for path in inside}
    if not wanted:
        refuse_splits(names, raw)
        refuse_masks({path[: depth + 1] for path in inside}, aside.masks, raw)
    below = _below(inside, depth)
    if not wanted:
        refuse_depths(below, raw)
        refuse_parts(names, raw)
    aside.put([path for path in paths if len(path) == depth + 1], "not in a class folder")
    deeper = sum(bool(folders - {""}) for folders in below.values())
    if deeper:
        aside.notes.append(
            f"{deeper} class folders hold folders: all images below them are of the class; give one of them as --raw "
            "where the folders in it are the classes"
        )
    return [(path[depth], path) for path in inside]


def _below(inside: Sequence[Parts], depth: int) -> dict[str, set[str]]:
    """The folders in each class folder, and "" where images are in it or in a folder such as images/."""
    below: dict[str, set[str]] = defaultdict(set)
    for path in inside:
        direct = len(path) == depth + 2 or FILMS.fullmatch(path[depth + 1])
        below[path[depth]].add("" if direct else path[depth + 1])
    return below


def _without_copies(paths: Sequence[Parts], depth: int, raw: Raw, aside: Aside) -> Sequence[Parts]:
    """Without a folder beside class folders that holds nothing but them once more."""
    below = _below([path for path in paths if len(path) > depth + 1], depth)
    wrapping = {name for name, inner in below.items() if "" not in inner and inner & (set(below) - {name})}
    first = {
        path: path[:depth] + path[depth + 1 :] for path in paths if len(path) > depth + 1 and path[depth] in wrapping
    }
    if not first:
        return paths
    if not (set(first.values()) <= set(paths) and are_copies(_names(first), raw.sizes(), raw)):
        raise SourceError(
            f"--raw {raw.location}: a folder beside class folders holds folders of their names and other files; name "
            "or keep one, or name classes with --classes"
        )
    aside.copies(list(first))
    return [path for path in paths if path not in first]


def _layout(found: Found, aside: Aside) -> Layout:
    """Class folders that differ in case, blanks around or the form of accents are one class, as mostly spelled."""
    spelled: dict[str, Counter[str]] = defaultdict(Counter)
    for _, name, _ in found:
        spelled[_key(name)][name] += 1
    chosen = {key: min(names, key=lambda name: (-names[name], name)) for key, names in spelled.items()}
    for key, names in sorted(spelled.items()):
        if len(names) > 1:
            aside.notes.append(f"class folders {', '.join(sorted(names))} are one class, {_nfc(chosen[key])}")
    rows = [(split, _nfc(chosen[_key(name)]), "/".join(path)) for split, name, path in found]
    return Layout(rows, aside.rejected, aside.notes)


@cache
def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip())


@cache
def _key(name: str) -> str:
    return _nfc(name).casefold()

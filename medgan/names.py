"""Names that come from data, such as classes: what may be one, and how it is written where letters have a meaning.

An ordinary name (`NORMAL`, `Pleural effusion`) is written as it is everywhere. HTML is escaped by jinja and YAML by
PyYAML; everything else goes through here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

LONGEST = 255
"""Bytes that a file system takes for one name."""
READABLE = 180
"""Bytes of a longer name that stay."""
UNLABELLED = "none"
"""Folder of the images that have no class."""
NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a cursor, breaks a line, turns the direction of writing, or is half a letter."""
MOST_CLASSES = 20
"""Chest films have up to 15 in published sets; a few sets of endoscopy and skin have more, and ask."""
FEW = 5
OF_A_PERSON = re.compile(
    r"\d{3}"  # numbers of patients, years; grades and types have one or two digits
    r"|\d\d?[-./_]\d\d?[-./_]\d\d"  # dates
    r"|\^"  # Last^First, as DICOM has it
    r"|^[A-Z]\w+, *[A-Z]\w+$"  # Last, First
    r"|\b(?i:mrn|pid|pat|patient|case|sub|subj|subject)[ ._-]*\d"
    r"|\b(?i:mrs|herr|frau|dr)[ ._]+[A-Z]"  # MR is a modality, and MS a disease
)
"""What is in names of folders of a patient, and in few of classes."""
UNSAFE = frozenset('/\\:*?"<>|%+')
"""What parts paths on one system or another, what Windows takes for no name, and what parts classes here."""
# Windows has devices of these names, with any ending (learn.microsoft.com, "Naming Files, Paths, and Namespaces").
RESERVED = re.compile(rf"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?|{UNLABELLED}", re.I | re.DOTALL)


def wrong_with(classes: Iterable[object]) -> str | None:
    """Why these cannot be the names of the classes of a data set; None where they can."""
    seen = set()
    for name in classes:
        if not isinstance(name, str) or not name.strip():
            return f"the class {name!r} has no name"
        if found := NO_TEXT.search(name):
            return f"the class {name!a} holds U+{ord(found[0]):04X}, which nothing can show; rename it"
        if name in seen:
            return f"the class {name!r} is there twice"
        seen.add(name)
    return None


def doubtful(classes: Mapping[str, int]) -> str | None:
    """Why these are perhaps no classes but patients or remarks, without their names; None where they look like classes.

    classes: images of each, by name. It is about what nobody has named as a class yet: names of classes are written
    into all that is made of the images.
    """
    if len(classes) > MOST_CLASSES:
        return f"{len(classes)} classes, more than {MOST_CLASSES}"
    if persons := sum(bool(OF_A_PERSON.search(name)) for name in classes):
        return f"{persons} of {len(classes)} classes have names like those of persons, numbers or dates"
    few = sum(count < FEW for count in classes.values())
    if few > 3 and 2 * few > len(classes):
        return f"{few} of {len(classes)} classes have fewer than {FEW} images"
    return None


def one_line(text: str) -> str:
    """Text that stays in its line and moves no cursor, on a terminal or on a page: what would is written out."""
    return NO_TEXT.sub(lambda found: ascii(found[0])[1:-1], text)


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, also in a cell of a table (CommonMark 2.4, GFM tables)."""
    return re.sub(r"[\\`*\[\]<>|~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))


def long_string(text: str) -> str:
    """Text as a value of a DICOM Long String: 64 characters at most, no backslash, which parts values (PS3.5, 6.2)."""
    return one_line(text).replace("\\", "%5C")[:64]


# -- files and keys --------------------------------------------------------------------------------------------------


def part(name: str) -> str:
    """A name as one part of a path, or of a key whose parts a slash divides; urllib.parse.unquote reads it back.

    Percent-encoded (UTF-8) is what some file system, W&B or medgan takes for something else. What is longer than
    LONGEST bytes is cut and ends in `%~` and a digest of the name: that alone cannot be read back. No letters are `%`.
    """
    return _written(name, _safe)


def parts(names: Iterable[str]) -> dict[str, str]:
    """The part of each name, all unlike, also on a disk that takes A for a or one spelling of an accent for another."""
    found = list(names)
    alike = Counter(map(_folded, found))
    return {name: part(name) if alike[_folded(name)] == 1 else _written(name, _without_twin) for name in found}


def folder(having: Sequence[str], classes: Sequence[str]) -> str:
    """The folder of the images that have these of the classes, all of them and no other."""
    of = parts(classes)
    return _fitting("+".join(of[name] for name in having), "+".join(having)) if having else UNLABELLED


def _written(name: str, keeps: Callable[[str], bool]) -> str:
    """The name with all letters percent-encoded but those that are kept, cut where that is too long."""
    written = [letter if keeps(letter) else _encoded(letter) for letter in name]
    if name and (name[0] in ". -~" or RESERVED.fullmatch(name)):
        written[0] = _encoded(name[0])
    if name and name[-1] in ". ":  # which Windows drops
        written[-1] = _encoded(name[-1])
    return _fitting("".join(written) or "%", name)


def _encoded(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "surrogatepass"))


def _fitting(written: str, name: str) -> str:
    if len(written.encode()) <= LONGEST:
        return written
    head = re.sub("%.?$", "", written.encode()[:READABLE].decode(errors="ignore"))
    return f"{head}%~{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


def _folded(name: str) -> str:
    """Equal for names that some file system takes for one."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).upper().casefold())


def _safe(letter: str) -> bool:
    return letter.isprintable() and letter not in UNSAFE


def _without_twin(letter: str) -> bool:
    """Whether no file system takes it for another letter."""
    return _safe(letter) and letter.isascii() and not letter.isupper()

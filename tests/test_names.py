"""Names that come from data: safe wherever letters have a meaning, readable, and unlike where they were unlike."""

import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from medgan import names

from .conftest import quick

anything = st.text(st.characters(), max_size=100)
twins = st.lists(
    st.sampled_from(("none", "None", "é", "e\u0301", "É", "nul", "NUL.a", "a", "A", "ß", "SS", "\u017f", "")),
    unique=True,
)


def unlike(some):
    """Whether a disk that ignores case and ways to write an accent keeps all of them apart."""
    fold = lambda one: unicodedata.normalize("NFC", unicodedata.normalize("NFD", one).casefold())
    return len({fold(one) for one in some}) == len({one.upper() for one in some}) == len(some)


@quick
@given(st.lists(anything, unique=True, max_size=8) | twins)
@example(["x" * 300, "X" * 300, "é" * 300, "x" * 255, "%" * 86])
@example(["Normal", "NORMAL", "%4Eormal", "normal"])
def test_any_names_become_parts_of_a_path_that_are_safe_unlike_and_read_back(some):
    made = names.parts(some)
    assert unlike(made.values())
    for name, part in made.items():
        assert 0 < len(part.encode()) <= 255
        assert not set(part) & set('/\\:*?"<>|\0')
        assert part.isprintable()
        assert part[0] not in ". -~"
        assert part[-1] not in ". "
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?|none", part)
        if "%~" not in part:
            assert ("" if part == "%" else unquote(part, errors="surrogatepass")) == name
        else:
            assert len(name.encode("utf-8", "surrogatepass")) * 3 > 255


@pytest.mark.parametrize(
    "name", ["NORMAL", "Pleural effusion", "COVID-19", "no_finding", "健康", "Œdème (aigu)", "0.5 mm"]
)
def test_an_ordinary_name_stays_as_it_is(name):
    assert names.part(name) == names.parts([name, "other"])[name] == name
    assert names.markdown(name) == names.long_string(name) == names.one_line(name) == name
    assert names.wrong_with([name]) is None


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("N/A", "N%2FA"),
        ("../../escaped", "%2E.%2F..%2Fescaped"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("/etc", "%2Fetc"),
        ("C:\\x", "C%3A%5Cx"),
        ("nul.txt", "%6Eul.txt"),
        ("None", "%4Eone"),
        ("100%", "100%25"),
        ("A+B", "A%2BB"),
        ("a. ", "a.%20"),
        ("", "%"),
    ],
)
def test_what_a_path_takes_for_something_else_is_percent_encoded(name, part):
    assert names.part(name) == part


def test_images_of_several_classes_have_a_folder_that_no_class_has():
    classes = ["A", "B", "A+B", "none", "a"]
    sets = [[], ["A"], ["B"], ["A", "B"], ["A+B"], ["none"], ["a"], ["a", "B"]]
    folders = [names.folder(having, classes) for having in sets]
    assert folders[0] == "none"
    assert unlike(folders)
    many = [f"finding number {index}" for index in range(40)]
    assert len(names.folder(many, many).encode()) <= 255
    assert names.folder(many, many) != names.folder(many[:-1], many)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["a", "b\nc"], r"'b\\nc' holds U\+000A"),
        (["\x1b[2J"], r"U\+001B"),
        (["\u202egnp.exe"], r"U\+202E"),
        (["\ud800"], r"U\+D800"),
        (["a\x85b"], r"U\+0085"),
        (["a", "a"], "'a' is there twice"),
        (["a", "  "], "'  ' has no name"),
        ([3], "3 has no name"),
    ],
)
def test_what_nothing_can_show_is_no_class(classes, words):
    assert re.search(words, names.wrong_with(classes))


def test_a_name_in_markdown_is_no_markup():
    assert names.markdown("a|b") == r"a\|b"
    assert names.markdown("<!-- evaluation -->[x](y) `z` _w_ a_b") == r"\<!-- evaluation --\>\[x\](y) \`z\` \_w\_ a_b"
    assert "\n" not in names.markdown("a\n\n# b")

"""What the README and docs/ say is what the code and the results say."""

import re
import textwrap
from pathlib import Path

import pytest

from medgan import config as configs
from medgan.data.sources import base
from medgan.guards import BY_HEART

from .prove import films, known, learning
from .prove.__main__ import tables

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("proof", "shown", "measured"), list(tables()))
def test_the_tables_of_results_are_what_was_measured(proof, shown, measured):
    assert shown == measured, "python -m tests.prove writes them"


def test_every_result_is_shown():
    proofs = {path.stem for path in (ROOT / "tests/prove").glob("[a-z]*.py")} - {"tutorial"} | {"bench"}
    results = {path.stem for path in (ROOT / "results").glob("*.json")}
    assert {proof for proof, _, _ in tables()} == proofs & results


def test_in_the_same_time_presets_reach_what_the_readme_says_of_the_tutorials_dcgan():
    kid = {(r["model"], r["minutes"]): r["kid"] for r in known(films.RESULTS) if r["resolution"] == 64}
    assert kid["cgan", 20] / kid["tutorial-dcgan", 20] < 0.135  # an eighth
    assert kid["stylegan2-lite", 20] / kid["tutorial-dcgan", 20] < 0.175  # a sixth
    assert kid["dcgan", 20] / kid["tutorial-dcgan", 20] < 0.21  # a fifth
    assert kid["cgan", 60] / kid["tutorial-dcgan", 60] < 1 / 3
    assert kid["stylegan2-lite", 60] / kid["tutorial-dcgan", 60] < 1 / 5


def test_in_ten_minutes_every_conditional_model_learns_and_ada_keeps_d_from_knowing_few_films_by_heart():
    rows = {row["name"]: row for row in known(learning.RESULTS)}
    for model in ("cgan", "stylegan2-lite", "resgan"):
        assert {key: rows[model][key] >= wanted for key, wanted in learning.WANTED.items()} == rows[model]["reached"]
        assert all(rows[model]["reached"].values()), model
    by_heart = {name: rows[name]["by_heart"] for name in learning.FEW}
    assert by_heart["few-none"] > 0.95 > BY_HEART > by_heart["few-ada"] > by_heart["few-ada-0.1"]
    assert by_heart["few-ada-0.1"] < 0.6
    assert by_heart["few-diffaugment"] < 0.6


def test_every_preset_and_every_setting_that_is_named_exists():
    for preset in configs.PRESETS:
        assert f"| `{preset}` |" in README
    sections = "data|model|loss|ema|optim|checkpoint|evaluate|tracking"
    named = set(re.findall(rf"\b((?:{sections})\.[a-z_0-9]+)=", README))
    assert len(named) > 5
    assert named <= set(configs.known_keys())


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKS = [
    (page, target)
    for page in PAGES
    for target in sorted(set(re.findall(r"(?:\]\(|src=\"|srcset=\")([a-zA-Z.#][^)\":]*)", page.read_text())))
]


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.stem}-{target}" for page, target in LINKS])
def test_every_picture_file_and_section_that_is_linked_exists(page, target):
    path, _, section = target.partition("#")
    file = page.parent / path if path else page
    assert file.is_file()
    if section:
        heads = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
        assert section in {re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads}


def test_every_file_of_the_package_is_in_the_list():
    listed = README.split("## What is where")[1].split("## ")[0]
    for path in [*(ROOT / "medgan").glob("*.py"), *(p.parent for p in (ROOT / "medgan").glob("*/__init__.py"))]:
        if path.name != "__init__.py":
            assert re.search(rf"\b{re.escape(path.name)}", listed), path


def test_the_example_of_a_new_source_works_as_written(tmp_path):
    section = README.split("## Adding a data set")[1].split("\nWhat is not")[0]
    code = textwrap.dedent("\n".join(line for line in section.splitlines() if line.startswith("    ") or not line))
    names = {name: getattr(base, name) for name in ("Source", "Raw", "Options", "Listing", "Record", "limited")}
    exec(code, names)
    for name in ("anna/healthy_1.png", "anna/ill_1.png", "berta/ill_1.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = names["Clinic"]().listing(base.Raw(str(tmp_path)), base.Options())
    assert [(r.labels, r.patient) for r in found.records] == [((0,), "anna"), ((1,), "anna"), ((1,), "berta")]

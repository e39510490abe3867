"""What the page says of an evaluation, in words, tables and pictures."""

import hashlib
import json
import re

import pytest

from medgan import evaluation_page, report
from medgan.metrics.classifiers import SCORES
from medgan.metrics.utility import BASELINE, CANDIDATE

from .test_report import browser, opened, write_run  # noqa: F401

WEIGHTS = b"of the generator"


def figure(value, floor=0.01, n=500):
    return {"value": value, "n": n, "floor": floor}


def attack(auc):
    return {
        "auc": auc,
        "low": auc - 0.03,
        "high": auc + 0.03,
        "control": 0.5,
        "control_low": 0.47,
        "control_high": 0.53,
    } | {"tpr": 0.012, "tpr_low": 0.0, "tpr_high": 0.03, "tpr_expected": 0.01, "false_positive_rate": 0.01}


def evaluation() -> dict:
    """As jobs/evaluate.py writes it, with made-up figures."""
    classes = {"NORMAL": {"kid": figure(0.3), "class_accuracy": figure(0.91, 0.97)}, "PNEUMONIA": {"kid": figure(0.2)}}
    gain = {"against": BASELINE, "arm": CANDIDATE, "scenario": "5%", "network": "small-cnn", "draws": 5}
    differences = [
        {**gain, "score": "macro_f1", "value": 0.031, "low": 0.012, "high": 0.05},
        {**gain, "score": "rare_sensitivity", "value": 0.02, "low": -0.02, "high": 0.06},
        {**gain, "arm": "synthetic", "score": "macro_f1", "value": -0.08, "low": -0.12, "high": -0.04},
        {**gain, "against": "oversampled", "score": "macro_f1", "value": 0.01, "low": -0.01, "high": 0.03},
    ]
    cells = [
        {"arm": arm, "scenario": "5%", "network": "small-cnn", "draw": draw, "seed": 0, "real": 210, "synthetic": made}
        | dict.fromkeys(SCORES, 0.8 + 0.01 * draw)
        for arm, made in ((BASELINE, 0), (CANDIDATE, 210))
        for draw in range(2)
    ]
    sentence = "With 5 % of the training patients synthetic images help beyond classical augmentation."
    return {
        "settings": {"extractor": "efficientnet-lite0", "split": "test", "n": 500, "manifest_sha256": "ab"}
        | {"subject_sha256": hashlib.sha256(WEIGHTS).hexdigest()},
        "fidelity": {"kid": {**figure(0.25), "low": 0.2, "high": 0.3}, "fid": figure(90.0, 20.0), "classes": classes},
        "utility": {
            **{"cells": cells, "differences": differences, "claim": {"sentence": sentence, "verdict": "helps"}},
            "read": [
                {
                    "scenario": "5%",
                    "draw": draw,
                    "classes": {"NORMAL": {"value": 0.7 + 0.2 * draw, "n": 50, "floor": 0.97}},
                }
                for draw in range(2)
            ],
        },
        "privacy": {
            "membership": {**attack(0.52), "spaces": {"pixels": attack(0.52), "aligned": attack(0.49)}},
            "closeness": {"pixels": {"value": 0.81, "expected": 0.8}},
            "copies": {"value": 3, "n": 2000, "held_out": 0, "n_held_out": 1000, "threshold": 0.97}
            | {"patients": 2, "most_of_one_patient": 2},
            "patients": {"value": 0.012, "expected": 0.01, "p": 0.4},
            "shadows": {**attack(0.55), "shadows": 8, "released": attack(0.53)},
            "claim": {"sentence": "It leaks: 3 of 2,000 samples are near-copies.", "verdict": "leaks"},
        },
    }


def test_every_answer_is_on_the_page_in_words_and_numbers():
    page = str(evaluation_page.render(evaluation()))
    cells = [re.sub(r"<[^>]+>", "|", line) for line in page.split("<tr>")]
    rows = {row.strip("|\n ").split("|")[0]: row for row in cells}
    assert "|0.25||0.01||500|" in rows["KID"]
    assert "|0.91||0.97|" in rows["class read right, NORMAL"]
    assert "synthetic images help beyond" in page
    assert "It leaks: 3 of 2,000" in page
    assert "|3 of 2,000|" in rows["near-copies of training films"]
    assert "|210||210|" in rows[CANDIDATE]
    assert "|0.805|" in rows[CANDIDATE]  # the mean over draws
    assert page.count('class="forest"') == 4  # KID, two scores, and membership
    assert "KID 0.250 (0.200 to 0.300); KID, real 0.010; KID, NORMAL 0.300" in page
    assert "against the test split, which training never saw" in page
    assert (
        "reads as what was asked for, from draw to draw:\nNORMAL 70 to 90 % (5%; of real test images 97 %).</p>" in page
    )
    assert "|members found at 1 % false accusations, by 8 shadow generators|" in "".join(cells)
    assert ">+0.031<" in page
    assert f"{CANDIDATE} over oversampled, 5%" in page
    assert "they are not adjusted for how many there are" in page
    assert "by 8 shadow generators 0.530" in page
    assert "the shadows by each other, control 0.500" in page


def test_an_evaluation_of_an_earlier_version_still_has_a_page():
    old = evaluation()
    del old["utility"]["read"], old["privacy"]["shadows"]["released"]
    page = str(evaluation_page.render(old))
    assert "shadow" not in page
    assert "reads as what was asked for" not in page


def test_what_was_not_asked_is_not_on_the_page():
    whole = evaluation()
    page = str(evaluation_page.render({"settings": whole["settings"], "privacy": whole["privacy"]}))
    assert "Does it leak?" in page
    assert "Is it faithful?" not in page
    assert "Does it help?" not in page


def test_an_interval_is_drawn_where_it_lies_and_names_cannot_break_out():
    picture = str(evaluation_page.forest([("<b>x", 0.05, 0.0, 0.1), ("y", -0.1, None, None)], 0.0))
    assert "<b>" not in picture
    assert 'aria-label="&lt;b&gt;x 0.050 (0.000 to 0.100); y -0.100"' in picture
    middle = float(re.search(r'x1="([\d.]+)"[^>]*class="middle"', picture).group(1))
    low, high = map(float, re.search(r'x1="([\d.]+)" x2="([\d.]+)"[^>]*class="reach"', picture).groups())
    dots = [float(x) for x in re.findall(r'circle cx="([\d.]+)"', picture)]
    assert low == middle
    assert dots[0] == pytest.approx((low + high) / 2)
    assert middle - dots[1] == pytest.approx(high - middle)
    assert evaluation_page.forest([], 0.0) == ""
    long = str(evaluation_page.forest([("n" * 80, 0.05, 0.0, 0.1)], 0.0))
    assert float(re.search(r'text x="([\d.]+)"', long).group(1)) >= 7 * 80  # names end there


def test_a_run_that_was_not_evaluated_has_no_such_section(tiny, phantoms, tmp_path):
    run = write_run(tiny(), phantoms, tmp_path / "demo")
    assert "Is it faithful?" not in report.run_page(run)
    run.write("evaluation.json", json.dumps(evaluation()))
    run.write("generator/model.safetensors", WEIGHTS)
    assert "Is it faithful?" in report.run_page(run)
    run.write("generator/model.safetensors", b"trained on")
    page = report.run_page(run)
    assert "Is it faithful?" not in page
    assert "evaluation.json is of an earlier generator of this run" in page


def test_the_page_says_how_the_split_took_part_in_training():
    result = evaluation()
    for split, told in (("train", "which was trained on"), ("val", "by which the best generator was chosen")):
        result["settings"]["split"] = split
        page = str(evaluation_page.render(result))
        assert told in page
        assert "never saw" not in page


@pytest.mark.browser
def test_the_section_is_shown_in_a_browser_without_a_complaint(tiny, phantoms, tmp_path, browser):  # noqa: F811
    run = write_run(tiny(), phantoms, tmp_path / "demo")
    run.write("evaluation.json", json.dumps(evaluation()))
    run.write("generator/model.safetensors", WEIGHTS)
    run.write("report.html", report.run_page(run))
    page, complaints = opened(browser, run, viewport={"width": 390, "height": 800})
    assert page.locator("#leaks").inner_text().startswith("It leaks: 3")
    assert page.locator(".forest").count() == 4
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=5000)
    assert not complaints

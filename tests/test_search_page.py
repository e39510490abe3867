"""The page of a search: what it says, and that it filters, sorts and compares in a browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from medgan import config as configs
from medgan import search_page
from medgan.data import shards
from medgan.folder import SearchFolder
from medgan.pixels import encode_png
from tune import search, spaces
from tune.algorithms import Draws, trial_name

from .test_report import browser, opened  # noqa: F401

TRIALS = 12


def write_search(data, out, trials=TRIALS, noisy=False) -> SearchFolder:
    """A search folder with made-up figures: KID depends on the learning rate and the loss."""
    folder = SearchFolder(str(out))
    manifest, sha256 = shards.read_manifest(data)
    space = spaces.space(True, ["model.name=cgan,dcgan"])
    request = search.Request(data, str(out), trials, fixed={"total_images": 12000})
    told = {"search": request.identity, "manifest_sha256": sha256, "command": "python jobs/search.py --trials 12"}
    folder.write("search.yaml", yaml.safe_dump(told | {"versions": {"torch": "2"}}))
    draws, records = Draws(space, "random", ("kid",), 0), []
    random = np.random.default_rng(0)
    for number in range(trials):
        settings, drawn = draws.draw(number)
        record = search.new_record(trial_name(number), "trial", settings, 12000, draws=drawn)
        level = 0.2 + abs(np.log10(settings["optim.lr_g"] / 1e-3)) + 0.5 * (settings["loss.name"] != "hinge")
        seen = 12000 if number % 3 == 0 else 4000
        history = [[i, level + 2000 / i, level + 2100 / i, 0.5] for i in range(1000, seen + 1, 1000)]
        record |= {"status": "done" if seen == 12000 else "stopped", "images_seen": seen, "history": history}
        record |= {"kid": history[-1][1], "fid": 200 + 10 * level, "precision": 0.6, "recall": 0.1, "floor": 0.01}
        record |= {"coverage": round(0.9 - level / 3, 3), "images_per_s": float(random.integers(50, 500))}
        record["reason"] = "" if seen == 12000 else "others were better at this many images"
        records.append(record)
    failed = records[1]
    failed |= {"status": "failed", "reason": "loss/D is nan at 2,000 images", "history": []}
    for key in (*search.SHOWN[:8],):
        failed.pop(key, None)
    best = search.ranking(records)[0]
    for index in (1, 2, 3):
        more = {"kid": best["kid"] + 0.05 * index, "status": "done", "images_seen": 12000}
        settings = {**best["settings"], "seed": index}
        name = f"{best['name']}-seed{index}"
        records.append(search.new_record(name, "finalist", settings, 12000, of=best["name"]) | more)
    for record in records:
        config = configs.for_data(
            configs.load(overrides={**record["settings"], "total_images": 12000}),
            **{"resolution": 32, "channels": 1, "classes": manifest.classes, "manifest_sha256": sha256},
        )
        run = folder.run(record)
        run.write("config.yaml", configs.to_yaml(config))
        run.write("manifest.json", manifest.to_json())
        shape = (1, 128, 512) if noisy else (1, 64, 256)
        pixels = random.integers(0, 256, shape) if noisy else np.linspace(0, 255, 64 * 256).reshape(shape)
        run.write("generator/samples.png", encode_png(pixels.astype(np.uint8)))
        folder.write_trial(record)
    search.write_results(folder, records, space)
    return folder


@pytest.fixture(scope="module")
def folder(phantoms, tmp_path_factory):
    return write_search(phantoms, tmp_path_factory.mktemp("searches") / "first")


def test_the_page_says_who_won_with_what_certainty_and_how_to_do_it_again(folder):
    page = folder.read("report.html").decode()
    summary = json.loads(folder.read("summary.json"))
    assert f"Winner: trial {summary['winner']['name']}" in page
    assert "95 % interval" in page
    assert "python jobs/search.py --trials 12" in page
    assert folder.settings()["manifest_sha256"] in page
    assert "real images score KID 0.01" in page
    assert "loss/D is nan at 2,000 images" in page


def test_the_front_is_what_nothing_beats_in_both():
    def record(name, kid, pace):
        return {"name": name, "kid": kid, "images_per_s": pace}

    records = [record("a", 1.0, 10), record("b", 2.0, 20), record("c", 2.5, 20), record("d", 3.0, 5)]
    assert [r["name"] for r in search_page.pareto(records)] == ["a", "b"]


def test_a_trial_that_failed_after_good_figures_is_neither_first_nor_on_the_front(phantoms, tmp_path):
    folder = write_search(phantoms, tmp_path / "first")
    record = next(record for record in folder.trials() if record["name"] == "001")
    folder.write_trial(record | {"kid": 0.01, "coverage": 0.9, "images_per_s": 1e6})
    page = search_page.search_page(folder)
    rows = re.findall(r'<tr data-name="(\d+)">(.*?)</tr>', page, re.DOTALL)
    assert [name for name, _ in rows][-1] == "001"
    assert "◆" not in rows[-1][1]
    assert " checked" not in rows[-1][1]


def test_the_page_stays_under_six_megabytes_with_many_large_pictures(phantoms, tmp_path):
    noisy = write_search(phantoms, tmp_path / "noisy", trials=40, noisy=True)
    page = noisy.read("report.html")
    assert len(page) < 6_000_000
    best = search.ranking([r for r in noisy.trials() if r["kind"] == "trial"])[0]
    uri = search_page._pictures(noisy, [best])[best["name"]]
    assert uri.startswith("data:image/png")  # alone there is room for it as it is
    many = search_page._pictures(noisy, search.ranking(noisy.trials()))
    assert len(many) == 42  # each trial and finalist has its picture
    image = Image.open(io.BytesIO(base64.b64decode(many[best["name"]].partition(",")[2])))
    assert image.width / image.height == pytest.approx(4, rel=0.05)


def test_a_search_that_has_only_begun_has_a_page(phantoms, tmp_path):
    folder = SearchFolder(str(tmp_path / "begun"))
    request = search.Request(phantoms, folder.location, 2, fixed={"total_images": 100})
    folder.write("search.yaml", yaml.safe_dump({"search": request.identity, "manifest_sha256": "0"}))
    folder.write_trial(search.new_record("000", "trial", {"model.name": "cgan", "loss.name": "bce"}, 100, draws={}))
    page = search_page.search_page(folder, refresh_s=5)
    assert 'http-equiv="refresh" content="5"' in page
    assert "1 waiting" in page


def test_an_axis_places_numbers_on_their_scale_and_words_evenly():
    axis = search_page._axis("optim.lr_g", {str(i): 10.0 ** (-i) for i in range(7)})
    assert axis["points"]["3"] == pytest.approx(0.5)
    words = search_page._axis("loss.name", {"a": "bce", "b": "hinge", "c": None})
    assert words["points"] == {"a": 0.0, "b": 1.0}
    assert search_page._axis("x", {"a": None}) is None


def visible(page):
    return page.locator("#trials tbody tr:visible").evaluate_all("rows => rows.map((row) => row.dataset.name)")


@pytest.mark.browser
def test_the_page_opens_without_a_network_or_a_complaint_and_the_filter_filters(folder, browser):  # noqa: F811
    page, complaints = opened(browser, folder)
    assert len(visible(page)) == TRIALS
    fieldset = page.locator("#filters fieldset", has=page.locator("legend", has_text="loss.name"))
    for label in fieldset.locator("label").all():
        if "hinge" not in label.inner_text():
            label.locator("input").uncheck()
    trials = [record for record in folder.trials() if record["kind"] == "trial" and record.get("kid")]
    expected = {record["name"] for record in trials if record["settings"]["loss.name"] == "hinge"}
    assert 0 < len(expected) < TRIALS
    assert set(visible(page)) == expected
    assert page.locator("#left").inner_text() == f"{len(expected)} of {TRIALS} trials."
    bright = page.evaluate("document.getElementById('parallel').data.filter((trace) => trace.line.width === 2).length")
    assert bright == len(expected)
    page.locator("#reset").click()
    assert len(visible(page)) == TRIALS
    # By keyboard: the largest KIDs leave.
    slider = page.get_by_label("KID, most")
    slider.focus()
    slider.press("Home")
    assert len(visible(page)) == 1
    page.locator("#reset").click()
    page.locator("#words").fill("failed")
    assert visible(page) == ["001"]
    assert not complaints


@pytest.mark.browser
def test_the_table_sorts_by_any_column_and_what_is_missing_stays_last(folder, browser):  # noqa: F811
    page, complaints = opened(browser, folder)
    trials = {r["name"]: r for r in folder.trials() if r["kind"] == "trial"}
    head = page.locator("#trials th", has_text="KID").first
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").press("Enter")
        assert head.get_attribute("aria-sort") == order
        known = sorted((name for name in trials if trials[name].get("kid")), key=lambda n: trials[n]["kid"])
        assert visible(page) == [*(reversed(known) if reverse else known), "001"]
    page.locator("#trials th button", has_text="model.name").click()
    models = [trials[name]["settings"]["model.name"] for name in visible(page)]
    assert models == sorted(models)
    assert not complaints


@pytest.mark.browser
def test_ticked_trials_stand_side_by_side_with_their_images(folder, browser):  # noqa: F811
    page, complaints = opened(browser, folder)
    assert page.locator(".card").count() == 3
    while page.locator("#trials tbody input:checked").count():
        page.locator("#trials tbody input:checked").first.uncheck()
    assert page.locator("#cards").inner_text() == "No trial is ticked."
    for name in ("004", "007"):
        page.get_by_label(f"compare trial {name}").press("Space")
    assert [text.split(",")[0] for text in page.locator(".card h3").all_inner_texts()] == ["trial 004", "trial 007"]
    image = page.locator(".card img").first
    page.wait_for_function("document.querySelector('.card img').naturalWidth === 256")
    assert "samples of trial 004" in image.get_attribute("alt")
    assert page.locator(".card .differs").count() > 0
    assert not complaints


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_and_paper_see_the_whole_page(scheme, folder, browser):  # noqa: F811
    page, complaints = opened(browser, folder, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    page.wait_for_function("document.documentElement.scrollWidth <= 390", timeout=5000)
    page.emulate_media(media="print")
    assert page.locator("#theme").is_hidden()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("img:not([alt])").count() == 0
    assert not complaints


@pytest.mark.browser
def test_what_a_reader_did_stays_when_the_page_of_a_running_search_comes_again(phantoms, tmp_path, browser):  # noqa: F811
    folder = write_search(phantoms, tmp_path / "running")
    folder.write("report.html", search_page.search_page(folder, refresh_s=600))
    page, complaints = opened(browser, folder)
    fieldset = page.locator("#filters fieldset", has=page.locator("legend", has_text="model.name"))
    fieldset.locator("label", has_text="dcgan").locator("input").uncheck()
    page.get_by_label("KID, most").fill("0.8")
    page.locator("#words").fill("cgan")
    page.locator("#trials th", has_text="images").locator("button").press("Enter")
    page.get_by_label(f"compare trial {visible(page)[-1]}").check()
    before = visible(page), page.locator("#cards h3").all_text_contents()
    assert 0 < len(before[0]) < TRIALS
    folder.write("report.html", search_page.search_page(folder, refresh_s=600))
    page.reload()
    assert (visible(page), sorted(page.locator("#cards h3").all_text_contents())) == (before[0], sorted(before[1]))
    assert page.locator("#words").input_value() == "cgan"
    assert not fieldset.locator("label", has_text="dcgan").locator("input").is_checked()
    assert page.locator("#trials th", has_text="images").get_attribute("aria-sort") == "ascending"
    page.locator("#reset").click()
    assert len(visible(page)) == TRIALS
    assert not complaints

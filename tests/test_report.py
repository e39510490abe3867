"""The page of a run: what it says, and how it behaves in a browser."""

import base64
import dataclasses
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from medgan import config as configs
from medgan import report
from medgan.data import shards
from medgan.folder import RunFolder
from medgan.pixels import encode_png

CHROMIUM = shutil.which("chromium")
FIGURES = {"metric/kid/N%2FA": 2.0, "metric/kid/%3C%2Fscript%3E%3Cb%3Ex%3C%2Fb%3E": 3.0}
FLAGS = ("--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update")


def write_run(config, data, out, evaluations=5) -> RunFolder:
    """A run folder with made-up figures."""
    folder = RunFolder(str(out))
    folder.write("config.yaml", configs.to_yaml(config))
    folder.write("manifest.json", shards.read_manifest(data)[0].to_json())
    rows = []
    for index in range(evaluations):
        seen = index * 2000
        figures = {"kid": 4 / (1 + index), "fid": 900 - 100 * index, "precision": 0.5, "recall": 0.1 * index}
        figures |= {"coverage": 0.15 * index, "density": 0.3, "kid/NORMAL": 3.5 / (1 + index), "kid/PNEUMONIA": 4.5}
        rows.append({"images_seen": seen, **{f"metric/{key}": value for key, value in figures.items()}})
        rows[-1] |= {"metric/n": 16, "floor/kid": 0.01, "floor/fid": 50.0, "floor/kid/NORMAL": 0.02}
        rows += [{"images_seen": seen + step, "loss/D": 1.3, "loss/G": 0.9} for step in (500, 1000)]
        shade = np.full((1, 20, 40), 4 * index, np.uint8)
        folder.write(f"samples/{seen // 1000:06d}.png", encode_png(shade))
    folder.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    folder.write("report.html", report.run_page(folder))
    return folder


@pytest.fixture
def run(tiny, phantoms, tmp_path):
    return write_run(tiny(), phantoms, tmp_path / "demo")


def test_a_class_of_any_name_is_text_on_the_page(tiny, phantoms, tmp_path):
    classes = ("N/A", "</script><b>x</b>")
    config = tiny()
    config = config.model_copy(update={"data": config.data.model_copy(update={"classes": classes})})
    folder = write_run(config, phantoms, tmp_path / "demo")
    rows = [{"images_seen": seen, "metric/kid": 1.0, "metric/n": 16, **FIGURES} for seen in (0, 64)]
    folder.write("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    page = report.run_page(folder)
    assert "<b>x" not in page
    assert "KID, N/A</td>" in page
    assert "KID, &lt;/script&gt;&lt;b&gt;x&lt;/b&gt;</td>" in page
    ((_, by_class),) = [pair for pair in report._curves(rows, config) if pair[0] == "KID by class"]
    assert [trace.name for trace in by_class.data] == [
        "N/A",
        "&lt;/script&gt;&lt;b&gt;x&lt;/b&gt;",
    ]  # plotly reads tags


def test_the_page_of_drawn_images_says_so(tiny, phantoms, tmp_path):
    folder = write_run(tiny(), phantoms, tmp_path / "demo")
    assert "none is of a person" not in folder.read("report.html").decode()
    manifest = dataclasses.replace(shards.read_manifest(phantoms)[0], drawn=True)
    folder.write("manifest.json", manifest.to_json())
    assert "none is of a person" in report.run_page(folder)


def test_every_figure_stands_beside_its_floor(run):
    page = run.read("report.html").decode()
    table = page.split('<table id="figures">')[1].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>", "|", line) for line in table.split("<tr>") if "<td" in line]
    filled = [[cell for cell in row.split("|") if cell.strip()] for row in rows]
    cells = {row[0]: row for row in filled}
    assert cells["KID"][1:5] == ["4", "0.8", "0.8", "0.01"]  # untrained, best, last, real against real
    assert cells["KID, NORMAL"][1:5] == ["3.5", "0.7", "0.7", "0.02"]
    assert cells["coverage"][1:4] == ["0", "0.6", "0.6"]
    assert "n = 16, against the val split" in page
    assert "at 8,000 images" in page
    assert f"--config {Path(run.location).name}/config.yaml --data DATA" in page
    assert f"torch {importlib.metadata.version('torch')}" in page


def test_figures_of_another_n_stay_out_of_the_table(run):
    rows = run.read("metrics.jsonl").decode() + json.dumps(
        {"images_seen": 12000, "metric/kid": 0.3, "metric/fid": 2.0, "metric/n": 500}
    )
    run.write("metrics.jsonl", rows)
    page = report.run_page(run)
    table = page.split('<table id="figures">')[1].split("</table>")[0]
    assert ">0.3<" in table
    assert ">4<" not in table
    assert "n = 500" in page


def test_real_images_are_on_the_page_only_where_the_run_was_told_so(run):
    assert "real training images" not in run.read("report.html").decode()
    png = encode_png(np.full((1, 4, 4), 7, np.uint8))
    run.write("samples/real.png", png)
    page = report.run_page(run)
    assert "real training images" in page
    assert base64.b64encode(png).decode() in page


def test_a_floor_below_zero_is_told_beside_a_logarithmic_axis(run):
    run.write("metrics.jsonl", run.read("metrics.jsonl").decode().replace('"floor/kid": 0.01', '"floor/kid": -0.0016'))
    titles = dict(report._curves(report.rows_of(run), run.config()))
    names = [trace.name for trace in titles["KID"].data]
    assert names == ["kid", "kid, real against real (-0.0016: below this axis)"]


def test_at_most_so_many_grids_and_always_the_first_and_the_last(tiny, phantoms, tmp_path):
    run = write_run(tiny(), phantoms, tmp_path / "long", evaluations=60)
    page = report.run_page(run)
    found = [grid["images_seen"] for grid in json.loads(re.search(r"const grids = (.*);", page).group(1))]
    assert len(found) == report.GRIDS
    assert (found[0], found[-1]) == (0, 118_000)
    assert found == sorted(set(found))


def test_a_class_name_cannot_break_out_of_the_page(tiny, phantoms, tmp_path):
    config = tiny()
    evil = "</script><b>x"
    config = configs.validate({**config.dump(), "data": {**config.dump()["data"], "classes": [evil, "b"]}})
    run = write_run(config, phantoms, tmp_path / "evil")
    rows = run.read("metrics.jsonl").decode().replace("kid/NORMAL", f"kid/{evil}")
    run.write("metrics.jsonl", rows)
    assert evil not in report.run_page(run)


@pytest.fixture
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), chromium_sandbox=False)
        yield chromium
        chromium.close()


def opened(browser, run, **options):
    """The run's page in a browser, and the list into which it complains."""
    page, complaints = browser.new_page(**options), []
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else 0)
    page.goto(f"file://{Path(run.location) / 'report.html'}")
    page.wait_for_selector("#curve0 .main-svg")
    return page, complaints


@pytest.mark.browser
def test_the_page_opens_from_disk_without_a_network_or_a_complaint(run, browser):
    page, complaints = opened(browser, run)
    titles = page.locator(".curve h3").all_inner_texts()
    assert titles == ["KID", "KID by class", "FID", "precision, recall and coverage", "losses"]
    assert page.locator("#curve1 .legendtext").all_text_contents() == [
        "NORMAL",
        "NORMAL, real against real",
        "PNEUMONIA",
    ]
    assert not complaints


@pytest.mark.browser
def test_the_slider_goes_through_the_grids(run, browser):
    page, complaints = opened(browser, run)

    def shown():
        source = page.locator("#samples").get_attribute("src")
        return base64.b64decode(source.partition(",")[2])

    assert shown() == run.read("samples/000008.png")  # the newest first
    assert page.locator("#when").inner_text() == "8,000 images"
    page.locator("#time").press("ArrowLeft")
    assert shown() == run.read("samples/000006.png")
    page.locator("#time").press("Home")
    assert shown() == run.read("samples/000000.png")
    assert page.locator("#when").inner_text() == "0 images"
    page.locator("#play").click()
    page.wait_for_function("document.getElementById('when').textContent === '8,000 images'")
    page.wait_for_function("document.getElementById('play').textContent === 'play'")
    assert page.locator("#samples").evaluate("image => image.naturalWidth") == 40
    assert not complaints


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_system_and_can_be_switched(scheme, run, browser):
    page, complaints = opened(browser, run, color_scheme=scheme)

    def looks():
        body = page.evaluate("getComputedStyle(document.body).backgroundColor")
        tick = page.locator("#curve0 .xtick text").first.evaluate("text => getComputedStyle(text).fill")
        return [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (body, tick)]

    page_shade, ink = looks()
    assert (page_shade > ink) == (scheme == "light")
    page.locator("#theme").click()
    page_shade, ink = looks()
    assert (page_shade > ink) == (scheme == "dark")
    assert not complaints


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 390])
def test_a_telephone_sees_the_whole_page_and_floors_beside_figures(run, browser, width):
    telephone = {"viewport": {"width": width, "height": 800}, "has_touch": True, "is_mobile": True}
    page, _ = opened(browser, run, **telephone)
    page.wait_for_function(f"document.documentElement.scrollWidth <= {width}", timeout=5000)
    floors = page.locator("#figures tr td:nth-child(5)")
    assert floors.all_inner_texts()[0] == "0.01"
    for edge in floors.evaluate_all("cells => cells.map((cell) => cell.getBoundingClientRect().right)"):
        assert edge <= width
    heights = page.locator("#figures tr").evaluate_all("rows => rows.map((row) => row.getBoundingClientRect().height)")
    assert max(heights[1:]) < 80
    assert page.locator(".modebar").count() == 0  # it would lie on the legend


@pytest.mark.browser
def test_a_curve_offers_nothing_that_leaves_the_building_and_says_what_is_under_the_mouse(run, browser):
    page, complaints = opened(browser, run)
    page.locator("#curve0 .nsewdrag").hover()
    page.wait_for_selector("#curve0 .hoverlayer .legend text")
    titles = page.locator(".modebar-btn").evaluate_all("buttons => buttons.map((b) => b.dataset.title)")
    assert "Download plot as a PNG" in titles
    assert not [title for title in titles if re.search("share|cloud|upload|edit|chart studio", title, re.IGNORECASE)]
    said = page.locator("#curve0 .hoverlayer text").all_text_contents()
    assert "kid, real against real : 0.01" in said, said
    assert not complaints

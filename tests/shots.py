"""The pictures in docs/: what a user sees, from runs/demo (`make train`) in headless Chromium, and chest films.

    python -m tests.shots [--run runs/demo]

Writes docs/page.png, docs/page-dark.png and, from what `make prove ONLY=films` drew, docs/kermany.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.test_report import CHROMIUM, FLAGS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
FILMS = ROOT / "results/films/64-stylegan2-lite-60.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="a finished run (default: runs/demo)")
    run = parser.parse_args().run.resolve()
    if not (run / "report.html").exists():
        raise SystemExit(f"{run}: no report.html in it; `make train` makes runs/demo")
    if CHROMIUM is None:
        raise SystemExit("no chromium on this machine (Debian: apt-get install chromium)")
    with Image.open(FILMS) as films:
        films.resize((2 * films.width, 2 * films.height), Image.Resampling.BICUBIC).save(DOCS / "kermany.png")
    print(DOCS / "kermany.png")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), chromium_sandbox=False)
        for scheme, name in (("light", "page.png"), ("dark", "page-dark.png")):
            page = browser.new_page(viewport={"width": 1100, "height": 1000}, color_scheme=scheme)
            page.goto(f"file://{run / 'report.html'}")
            page.wait_for_selector("#curve0 .main-svg")
            page.wait_for_timeout(500)  # plots take their width
            page.screenshot(path=DOCS / name)
            print(DOCS / name)
        browser.close()


if __name__ == "__main__":
    main()

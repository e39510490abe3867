"""What all pages have in common: one frame, page.html, with its style and theme."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader

if TYPE_CHECKING:  # only to be named
    from plotly.graph_objects import Figure

PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)


def render(name: str, **values: object) -> str:
    """A template of this folder, filled in."""
    return PAGES.get_template(name).render(values)


def data(figure: Figure) -> str:
    """A plot as JSON for use inside a <script>, which no text in it can close."""
    return str(figure.to_json()).replace("<", "\\u003c")


def versions(*names: str) -> dict[str, str]:
    """Of installed packages."""
    return {name: importlib.metadata.version(name) for name in names}

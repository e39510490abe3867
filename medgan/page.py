"""What all pages have in common: one frame, page.html, with its style and theme."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)


def render(name: str, **values: object) -> str:
    """A template of this folder, filled in."""
    return PAGES.get_template(name).render(values)


def versions(*names: str) -> dict[str, str]:
    """Of installed packages."""
    return {name: importlib.metadata.version(name) for name in names}

"""The embedded data sets: drawn chest films and OCT scans, which need no raw folder."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medgan.data import phantom
from medgan.data.sources.base import Listing, Options, Raw, Record, Source
from medgan.pixels import encode_png

DEFAULT_COUNT = 6000


class Drawn(Source):
    layout = "nothing: the images are drawn"
    needs_raw = False

    def __init__(
        self, name: str, classes: tuple[str, ...], draw: Callable[[int, int, int, int], np.ndarray], mirror: bool
    ) -> None:
        """draw: (seed, patient, number, label) -> uint8 (H, W)."""
        self.name, self.classes, self.draw, self.mirror = name, classes, draw, mirror

    def listing(self, raw: Raw, options: Options) -> Listing:
        records: list[Record] = []
        left, patient = options.limit or DEFAULT_COUNT, 0
        while left:
            label, images = phantom.patient_films(options.seed, patient, len(self.classes))
            images = min(images, left)
            records += [Record(f"{patient}/{number}", (label,), str(patient)) for number in range(images)]
            left -= images
            patient += 1
        return Listing(self.classes, records)

    def read(self, raw: Raw, record: Record, options: Options) -> bytes:
        patient, number = map(int, record.name.split("/"))
        return encode_png(self.draw(options.seed, patient, number, record.labels[0])[None])

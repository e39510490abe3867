"""A release: synthetic images that can be handed over, drawn in shards, filtered, and described.

A slot of a release has a label; its image is the first of its attempts that passes the filters, each attempt with a
seed of its own. So a shard is a function of the generator, the seed and the filters alone, on any number of workers.

Filters look at patients' images, and what they dropped must not be found by what they let pass. Whoever has the release
and the generator can draw any image whose seed is known: so the seeds of a filtered release are keyed with a secret of
its maker, and neither they nor names nor numbers tell which slot took several attempts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import yaml

import medgan
from medgan import names
from medgan.cells import Cell, Result
from medgan.data import shards
from medgan.data.loader import open_split
from medgan.data.shards import Manifest
from medgan.metrics import evidence, privacy
from medgan.metrics.fidelity import FIGURES, shifted, told_figure, told_interval
from medgan.metrics.retrain import device
from medgan.pixels import encode_png
from medgan.sample import OF_NOBODY, Sampler, intended, learnt_from
from medgan.streams import stream_seed

HERE = "medgan.release"
ROWS_PER_SHARD = 1024
TRIES = 20
"""Attempts at a slot before it is left empty."""
MARK = "Synthetic image, not of a patient, not for diagnosis."
"""What every PNG and DICOM file says of itself, wherever it lies."""


# -- drawing -------------------------------------------------------------------------------------------------------


def plan(
    labels: np.ndarray,
    common: dict[str, Any],
    data: dict[str, str] | None,
    confidence: float | None,
    key: bytes | None = None,
) -> list[Cell]:
    """A cell for each shard. labels: uint8 (N, K), of every slot; common: see `shard`; data: for the filters; key: the
    secret of the seeds, which stays here: a shard gets one of its own."""
    needs: tuple[Cell, ...] = ()
    if data is not None:
        needs = (Cell("how alike films are", f"{HERE}:limit", {"data": data}),)
        if confidence is not None:
            needs = (*needs, evidence.reader_of(data, 0))
    cells = []
    for number, first in enumerate(range(0, len(labels), ROWS_PER_SHARD)):
        some = labels[first : first + ROWS_PER_SHARD].tolist()
        secret = None if key is None else shards.derived(key, f"release/{common['request']}/{number}").hex()
        own = {"number": number, "first": first, "labels": some, "data": data, "confidence": confidence}
        own["secret"] = secret
        cells.append(Cell(f"shard {number}", f"{HERE}:shard", {**common, **own}, needs))
    return cells


def seed_of(secret: str | None, seed: int, attempt: int, slot: int) -> int:
    """63 bits for one attempt at a slot: from the release's own seed, or from a secret, in hex, where there is one."""
    if secret is None:
        return stream_seed(seed, "generate", slot)
    return int.from_bytes(shards.derived(bytes.fromhex(secret), f"{seed}/{attempt}/{slot}")[:8], "little") >> 1


def limit(*, data: dict[str, str]) -> Result:
    return {"threshold": privacy.copy_threshold(data)}


def shard(
    *needs: Result,
    run: str,
    sha256: str,
    out: str,
    seed: int,
    truncation: float,
    request: str,
    number: int,
    first: int,
    labels: list[list[int]],
    data: dict[str, str] | None,
    confidence: float | None,
    secret: str | None,
    png: bool,
    dicom: bool,
) -> Result:
    """Draw the slots from `first` on and write them. {shard, counts by class, copies and unsure that were dropped,
    empty slots}
    """
    sampler = Sampler.open(run, device(), sha256)
    if truncation != 1:
        sampler.truncate(truncation)
    films = privacy.look(open_split(data["location"], "train").pixels) if data else None
    hot = np.array(labels, np.uint8).reshape(len(labels), -1)
    assert sampler.config.data.resolution is not None
    assert sampler.config.data.channels is not None
    side = sampler.config.data.resolution
    pixels = np.zeros((len(hot), sampler.config.data.channels, side, side), np.uint8)
    seeds = np.zeros(len(hot), np.int64)
    empty, copies, unsure = np.arange(len(hot)), 0, 0
    for attempt in range(TRIES if data else 1):
        own = [seed_of(secret, seed, attempt, first + int(slot)) for slot in empty]
        drawn = sampler.at(hot[empty], own)
        good = np.ones(len(empty), bool)
        if films is not None:
            good = privacy.most_alike(privacy.look(drawn), films)[0].max(1) <= needs[0]["threshold"]
            copies += int((~good).sum())
        if confidence is not None:
            answers = evidence.read_by(needs[1], drawn)
            none = ~hot[empty].any(1, keepdims=True)  # then each class has to be denied
            sure = np.where(hot[empty] > 0, answers, np.where(none, 1 - answers, 1)).min(1) >= confidence
            unsure += int((good & ~sure).sum())
            good &= sure
        pixels[empty[good]], seeds[empty[good]] = drawn[good], np.array(own, np.int64)[good]
        empty = empty[~good]
        if not len(empty):
            break
    kept = np.setdiff1d(np.arange(len(hot)), empty)
    found: Result = {"copies": copies, "unsure": unsure, "empty": len(empty)}
    if not len(kept):
        return {**found, "shard": None, "counts": [0] * hot.shape[1]}
    file = f"train/{number:05d}.parquet"
    written = shards.write_shard(out, file, pixels[kept], hot[kept], sampler.classes, {"seed": seeds[kept].tolist()})
    for image, slot in enumerate(kept, first):  # a slot that stayed empty leaves no gap
        having = [name for name, has in zip(sampler.classes, hot[slot], strict=True) if has]
        folder = names.folder(having, sampler.classes) if sampler.classes else "all"
        label = "+".join(having) or folder
        if png:
            shards.write_file(out, f"png/{folder}/{image:06d}.png", encode_png(pixels[slot], MARK))
        if dicom:
            which = int(seeds[slot]), image
            content = secondary_capture(pixels[slot], label, sha256, *which, request, drawn=sampler.drawn)
            shards.write_file(out, f"dicom/{folder}/{image:06d}.dcm", content)
    return {**found, "shard": vars(written), "counts": hot[kept].sum(0).tolist()}


def secondary_capture(
    pixels: np.ndarray, label: str, sha256: str, seed: int, number: int, request: str, *, drawn: bool = False
) -> bytes:
    """uint8 (1 or 3, H, W) -> a DICOM file: Secondary Capture, DERIVED, marked as synthetic wherever one would look.

    Its UIDs are new, and the same whenever the same command draws this image again: they follow from the generator's
    hash, the request and, for the image's own, its seed and pixels. There are no dates, no place and no person in it.
    drawn: whether the generator learnt from drawn images alone.
    """
    import pydicom  # loads codecs, of no use where no DICOM is written
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    content = np.ascontiguousarray(pixels.transpose(1, 2, 0)).tobytes()
    image = hashlib.sha256(content).hexdigest()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(
        entropy_srcs=["image", sha256, request, str(seed), str(number), image]
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["medgan"])
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID = generate_uid(entropy_srcs=["study", sha256, request])
    file.SeriesInstanceUID = generate_uid(entropy_srcs=["series", sha256, request, label])
    file.ImageType = ["DERIVED", "SECONDARY", "SYNTHETIC"]
    file.Modality, file.ConversionType = "OT", "SYN"  # synthetic image
    file.PatientName, file.PatientID, file.PatientBirthDate, file.PatientSex = "SYNTHETIC^IMAGE", "SYNTHETIC", "", ""
    file.SyntheticData = "YES"
    file.PatientIdentityRemoved, file.DeidentificationMethod = "YES", "Drawn by a generator: no patient"
    file.StudyDate = file.StudyTime = file.AccessionNumber = file.ReferringPhysicianName = file.StudyID = ""
    file.SeriesNumber, file.InstanceNumber, file.Laterality = None, number + 1, ""
    file.Manufacturer, file.SoftwareVersions = "medgan", medgan.__version__
    if not label.isascii():
        file.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    file.SeriesDescription = names.long_string(f"SYNTHETIC {label}")
    file.ImageComments = names.one_line(f"{MARK} Class {label}, seed {seed}.")
    file.DerivationDescription = f"Generative adversarial network, SHA-256 {sha256}" + (
        f", {OF_NOBODY}" if drawn else ""
    )
    file.BurnedInAnnotation, file.PatientOrientation = "NO", ""
    channels, file.Rows, file.Columns = pixels.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = channels, "MONOCHROME2" if channels == 1 else "RGB"
    if channels == 3:
        file.PlanarConfiguration = 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.PixelData = content + b"\0" * (len(content) % 2)
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return buffer.getvalue()


# -- describing ------------------------------------------------------------------------------------------------------


def card(manifest: Manifest, lineage: Sequence[tuple[str, str]], source: str, licence: str, *, looked: bool) -> str:
    """A Hub data card: what this is, where it comes from, what it is for. Figures: see `with_evaluation`.

    Where nobody is in what the generator learnt from, there is nobody to be given away: nothing is said of that.

    looked: whether near-copies of training images were looked for, and dropped.
    """
    rows = manifest.rows("train")
    size = next(name for most, name in SIZES if rows < most)
    counts = manifest.counts.get("train", {})
    table = [
        "| class | images |",
        "|---|---|",
        *(f"| {names.markdown(name)} | {n:,} |" for name, n in counts.items()),
        "",
    ]
    header = {
        "license": licence,
        "pretty_name": f"Synthetic images, {manifest.resolution}x{manifest.resolution}",
        "task_categories": ["image-classification" if counts else "unconditional-image-generation"],
        "size_categories": [size],
        "tags": ["medical", "synthetic", "gan", "medgan"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "train/*.parquet"}]}],
    }
    origin = ["These images were drawn by a generator that learnt from images of patients.", persons(looked, None)]
    if manifest.drawn:
        origin = [f"These images were drawn by a generator that has {OF_NOBODY}."]
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---",
        "",
        f"# {rows:,} synthetic medical images, {manifest.resolution}x{manifest.resolution}",
        "",
        *origin,
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in lineage),
        "",
        *(table if counts else []),
        "Rows: `pixels` (uint8, channels x rows x columns), `labels` (one number per class) where there are classes,",
        "and `seed`, from which the generator draws the image again.",
        "",
        "    import numpy, pyarrow.parquet",
        '    table = pyarrow.parquet.read_table("train")',
        f'    images = numpy.frombuffer(b"".join(table["pixels"].to_pylist()), "uint8").reshape(-1, '
        f"{manifest.channels}, {manifest.resolution}, {manifest.resolution})",
        "",
        *intended(),
        "## Limits",
        "",
        "Not for diagnosis. Classes are what the generator was asked for, not what a radiologist read. What is rare or",
        "wrong in the training images is rarer or wrong here. Figures below, where there are any, are of this release.",
        "",
        *learnt_from(source),
    ]
    return with_evaluation("\n".join(lines), None)


SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e9, "n>1M"))
MARKS = "<!-- evaluation -->", "<!-- /evaluation -->"


SAID = "<!-- persons -->", "<!-- /persons -->"


def persons(looked: bool, verdict: str | None) -> str:
    """What is known of whether images are of a person: by near-copies that were dropped, and by an audit's verdict."""
    told = {
        "no leak found": "An audit looked for images of patients and for who was trained on, and found no leak (see "
        "Evaluation): no proof that there is none.",
        "leaks": "An audit found that they give patients away (see Evaluation): treat them as those patients' images.",
        "cannot tell": "Whether they give any of those patients away, an audit could not tell (see Evaluation).",
        None: "Near-copies of training images were dropped. Whether the others give patients away was not audited yet."
        if looked
        else "Whether any of them repeats an image of a patient was not looked for.",
    }[verdict]
    return f"{SAID[0]}{told}{SAID[1]}"


def with_evaluation(text: str, result: dict[str, Any] | None) -> str:
    """A card with the figures of an evaluation.json in it; what it had of an earlier one is replaced."""
    begin, end = MARKS
    lines = [begin, "## Evaluation", ""]
    if result is None:
        lines += ["Not evaluated yet: `python jobs/evaluate.py --fidelity --privacy` writes its figures here.", ""]
    else:
        settings = result["settings"]
        if "fidelity" in result:
            lines += [
                f"**Faithful?** Against {settings['n']} real images of the {settings['split']} split,"
                f" {settings['extractor']} features:",
                "",
                "| figure | these images | other real images | meaning |",
                "|---|---|---|---|",
            ]
            figures = result["fidelity"]
            for name, (title, meaning) in FIGURES.items():
                if told_figure(figures, name):
                    one = figures[name]
                    lines.append(
                        f"| {title} | {one['value']:.4g}{told_interval(one)} | {one['floor']:.4g} | {meaning} |"
                    )
            for group, values in figures["classes"].items():
                if told_figure(values, "kid"):
                    one = values["kid"]
                    found = f"{one['value']:.4g}{told_interval(one)} | {one['floor']:.4g}"
                    lines.append(f"| KID, {names.markdown(group)} | {found} | |")
            lines += ["", *([shifted(figures), ""] if shifted(figures) else [])]
        if "utility" in result:
            lines += [f"**Useful?** {result['utility']['claim']['sentence']}", ""]
        if "privacy" in result:
            lines += [f"**Private?** {result['privacy']['claim']['sentence']}", ""]
        lines += [f"Compared with the data set of manifest SHA-256 `{settings['manifest_sha256']}`.", ""]
    section = "\n".join([*lines, end, ""])
    if result is not None and "privacy" in result:  # a release says it in its first lines too
        said = persons(False, result["privacy"]["claim"]["verdict"])
        text = said.join(_around(text, SAID))
    before, *after = _around(text, MARKS)
    if after:
        return before + section + "".join(after).removeprefix("\n")
    return before.rstrip("\n") + "\n\n" + section


def _around(text: str, marks: tuple[str, str]) -> list[str]:
    """What stands before, between and after the parts of a text that such marks enclose: the text where there is
    none. In one pass: a card may come from anybody, with any number of marks."""
    pieces, place = [], 0
    while (begin := text.find(marks[0], place)) >= 0 and (end := text.find(marks[1], begin)) >= 0:
        pieces.append(text[place:begin])
        place = end + len(marks[1])
    return [*pieces, text[place:]]

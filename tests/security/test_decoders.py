"""Images that come from others: what ends, hangs or swells the process that decodes them."""

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from medgan.data import ingest, isolated, limits
from medgan.data.decode import open_image
from medgan.data.isolated import Isolated
from medgan.data.sources import SOURCES, Options, Raw, SourceError

from ..test_dicom import dicom, encoded
from ..test_dicom import put as put_dicom
from ..test_ingest import KEY, film, planned, put, reasons
from . import mortal
from .conftest import EPS

ROOT = Path(__file__).parent.parent.parent
MORTAL = f"{mortal.__name__}:mortal"


@pytest.fixture
def decoder(monkeypatch):
    """One that can be killed by a file, in the place of medgan's own; shards are written in this process."""
    found = Isolated(MORTAL)
    monkeypatch.setattr(ingest, "decoder", found)
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))
    yield found
    if found._process:
        found._end()


def png(number=0) -> bytes:
    return open_bytes(Image.fromarray(film(number)), "png")


def open_bytes(image, form, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


ASKED = (32, 1, "crop", limits.MOST_PIXELS)


def test_files_that_end_their_decoder_are_left_out_with_the_reason_and_the_rest_goes_on(tmp_path, decoder):
    for number in range(30):
        put(tmp_path / "raw", f"{number}.png", film(number))
    for name in ("!first.png", "17b.png"):  # the one that is looked at first of all, and one in the middle
        put(tmp_path / "raw", name, mortal.FATAL)
    written = ingest.write(planned(tmp_path / "raw", tmp_path / "out"))
    assert reasons(written) == dict.fromkeys(("!first.png", "17b.png"), "ended the process that decodes it (SIGSEGV)")
    assert sum(map(written.manifest.rows, written.manifest.splits)) == 30


def test_a_decoder_that_an_earlier_file_has_damaged_is_no_reason_to_leave_out_the_next(decoder):
    assert decoder("image_folder", mortal.POISONOUS + png(), *ASKED)[1] == (64, 64)
    first = decoder._process.pid
    assert decoder("image_folder", png(), *ASKED)[1] == (64, 64)
    assert decoder._process.pid != first


def test_a_decoder_that_hangs_is_ended(decoder, monkeypatch):
    decoder("image_folder", png(), *ASKED)
    monkeypatch.setattr(isolated, "PATIENCE_S", 0.3)
    with pytest.raises(ValueError, match=r"^took longer than 0\.3 s to decode$"):
        decoder("image_folder", mortal.HANGING, *ASKED)
    monkeypatch.undo()
    assert decoder("image_folder", png(), *ASKED)[1] == (64, 64)


def test_a_mistake_of_our_own_is_not_taken_for_a_bad_image(decoder):
    with pytest.raises(RuntimeError, match="KeyError: 'a mistake of ours'"):
        decoder("image_folder", mortal.WRONG, *ASKED)


def test_the_process_of_a_decoder_dumps_no_core_and_goes_with_the_one_that_started_it():
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from medgan.data.isolated import Isolated
decoder = Isolated("{MORTAL}")
try:
    decoder("image_folder", b"no image", 32, 1, "crop", 100)
except ValueError:
    print(decoder._process.pid, flush=True)
input()
"""
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = psutil.Process(int(process.stdout.readline()))
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        process.kill()
    child.wait(20)


# -- small files that want much ------------------------------------------------------------------------------------


def j2k(width: int, height: int, mode="L") -> bytes:
    """A JPEG 2000 of a few hundred bytes whose header (ISO/IEC 15444-1, A.5.1) claims such a size."""
    code = bytearray(open_bytes(Image.new(mode, (16, 16)), "jpeg2000", no_jp2=True))
    at = code.index(b"\xff\x51")
    for place in (6, 22):  # the image's, and its only tile's
        struct.pack_into(">2L", code, at + place, width, height)
    return bytes(code)


@pytest.fixture
def peak():
    """Fails where this process grows by more than 200 MB."""
    before = psutil.Process().memory_info().rss
    yield
    assert psutil.Process().memory_info().rss - before < 200e6


TOO_MANY = r"more than 134,217,728( pixels)?: --max-pixels takes more, if it is no bomb$"


@pytest.mark.parametrize(("width", "height", "mode"), [(12000, 12000, "L"), (8000, 8000, "RGBA"), (2**31, 2**31, "L")])
def test_a_jpeg_2000_of_a_few_bytes_that_claims_many_pixels_is_not_decoded(width, height, mode, peak):
    with pytest.raises(ValueError, match=TOO_MANY):
        open_image(j2k(width, height, mode))


def test_a_jpeg_2000_whose_boxes_claim_less_than_its_stream_is_not_decoded(peak):
    code = bytearray(open_bytes(Image.new("L", (16, 16)), "jpeg2000"))
    for place in (6, 22):
        struct.pack_into(">2L", code, code.index(b"\xff\x51") + place, 20000, 20000)
    with pytest.raises(ValueError, match=TOO_MANY):
        open_image(bytes(code))


def test_what_no_header_tells_ends_at_the_space_of_the_process_that_decodes(monkeypatch):
    """A tile of 16x16 pixels that holds three gigabytes."""
    squeeze = zlib.compressobj(9)
    inner = b"".join(squeeze.compress(bytes(2**20)) for _ in range(700)) + squeeze.flush()
    decode = Isolated("tests.security.mortal:inflated")
    monkeypatch.setattr(isolated, "PATIENCE_S", 60)
    with pytest.raises(ValueError, match="^no room$"):
        decode(inner)
    decode._end()


def test_a_dicom_file_that_claims_many_pixels_is_not_decoded(peak):
    file = dicom()
    file.PixelData = pydicom.encaps.encapsulate([j2k(20000, 20000)])
    file["PixelData"].is_undefined_length = True
    file.file_meta.TransferSyntaxUID = JPEG2000Lossless
    file.Rows = file.Columns = 20000
    with pytest.raises(ValueError, match="^20000 x 20000 pixels, more than 134,217,728: "):
        SOURCES["dicom_folder"].image(encoded(file))


def deflated(size: int, before: bytes = b"") -> bytes:
    """A DICOM file whose deflated part becomes so large."""
    file = dicom()
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = encoded(file)
    start = 132 + 12 + int.from_bytes(head[140:144], "little")
    squeeze = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    zeros = bytes(2**20)
    return head[:start] + before + b"".join(squeeze.compress(zeros) for _ in range(size >> 20)) + squeeze.flush()


@pytest.mark.parametrize("before", [b"", struct.pack("<2HLH", 0, 0x0100, 2, 1)])
def test_a_deflated_dicom_file_is_not_inflated_beyond_what_an_image_may_have(tmp_path, monkeypatch, before, peak):
    limits_pixels(monkeypatch, 2**22)
    raw = put_dicom(tmp_path, "PatientID,label\np1,mass\n", bomb=deflated(2**28, before))
    assert [why for _, why in SOURCES["dicom_folder"].listing(Raw(str(raw)), Options()).rejected] == [
        "inflates to more than 67,108,864 bytes: --max-pixels takes more, if it is no bomb"
    ]
    with pytest.raises(ValueError, match="^inflates to more than 67,108,864 bytes: "):
        SOURCES["dicom_folder"].image((raw / "series/bomb").read_bytes())


def limits_pixels(monkeypatch, most: int) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most // 2)


@pytest.mark.parametrize("syntax", [None, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_frames_that_a_file_cannot_hold_are_not_listed(tmp_path, syntax, peak):
    file = dicom()
    file.NumberOfFrames = 10**11
    if syntax == JPEG2000Lossless:
        file.PixelData = pydicom.encaps.encapsulate([j2k(48, 64)])
        file["PixelData"].is_undefined_length = True
    if syntax:
        file.file_meta.TransferSyntaxUID = syntax
    raw = put_dicom(tmp_path, "PatientID,label\np1,mass\n", many=file)
    found = SOURCES["dicom_folder"].listing(Raw(str(raw)), Options(allow=("multi-frame",)))
    assert [why for _, why in found.rejected] == [
        "its (0028,0008) NumberOfFrames is 100000000000, more than the file can hold"
    ]


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def array_of(shape: tuple[int, ...], content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    return buffer.getvalue() + content


@pytest.mark.parametrize("shape", [(10**12, 28, 28), (3, 28, 28)])
def test_arrays_of_an_npz_are_as_large_as_they_say(tmp_path, shape, peak):
    put(tmp_path, "pneumoniamnist.npz", npz(train_images=array_of(shape, bytes(2 * 28 * 28))))
    with pytest.raises(
        SourceError, match=r"^pneumoniamnist\.npz: not a MedMNIST file \(ValueError: train_images\.npy has"
    ):
        SOURCES["medmnist"].listing(Raw(str(tmp_path)), Options())


def test_no_other_program_is_called_by_what_a_file_holds(ghostscript):
    with pytest.raises(ValueError, match="^not a readable image"):
        open_image(EPS)
    assert not ghostscript.exists()


def test_the_limit_is_part_of_the_request(tmp_path, decoder):
    for number in range(12):
        put(tmp_path / "raw", f"{number}.png", film(number))
    put(tmp_path / "raw", "large.png", film(0, 128))
    small, large = (planned(tmp_path / "raw", tmp_path / "out", max_pixels=most) for most in (2**13, 2**14))
    assert small.digest != large.digest
    assert reasons(ingest.write(small)) == {
        "large.png": "more than 8,192 pixels: --max-pixels takes more, if it is no bomb"
    }
    assert large.key == KEY
    assert not reasons(ingest.write(large))

"""DICOM files against what a viewer shows of them, and against what hospitals' archives hold instead."""

import io
import re
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels.processing import apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medgan.data import ingest
from medgan.data.dicom_grey import shown
from medgan.data.sources import SOURCES, Options, Raw, SourceError

source = SOURCES["dicom_folder"]
RAMP = np.linspace(0, 4095, 64 * 48).reshape(64, 48).astype(np.uint16)


def dicom(pixels: np.ndarray = RAMP, **elements) -> FileDataset:
    """A file of the given stored values: uint8 or (u)int16 (H, W), (F, H, W) or uint8 (H, W, 3)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = elements.get("SOPInstanceUID", generate_uid())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    colour = pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.PatientID, file.PatientName = "secret-7", "Secret^Patient"
    file.Rows, file.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    file.SamplesPerPixel, file.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        file.PlanarConfiguration = 0
    if pixels.ndim == 3 and not colour:
        file.NumberOfFrames = len(pixels)
    file.BitsAllocated = 8 * pixels.itemsize
    file.BitsStored = 8 if pixels.itemsize == 1 else 12 if pixels.dtype == np.uint16 else 16
    file.HighBit = file.BitsStored - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(file, name, value)
    return file


def encoded(file: FileDataset) -> bytes:
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def image(file: FileDataset | bytes) -> np.ndarray:
    return np.asarray(source.image(file if isinstance(file, bytes) else encoded(file)))


def put(raw: Path, table: str, **files: FileDataset | bytes) -> Path:
    for name, file in files.items():
        (raw / "series").mkdir(parents=True, exist_ok=True)
        (raw / "series" / name).write_bytes(file if isinstance(file, bytes) else encoded(file))
    (raw / "labels.csv").write_text(table)
    return raw


def listing(raw: Path, **options):
    return source.listing(Raw(str(raw)), Options(**options))


# -- pixels ----------------------------------------------------------------------------------------------------------


def test_without_a_window_the_middle_of_the_values_is_shown_and_monochrome1_is_inverted():
    grey = image(dicom())
    assert grey.dtype == np.uint8
    assert np.abs(grey - np.linspace(0, 255, RAMP.size).reshape(RAMP.shape)).max() < 1.5
    assert np.array_equal(image(dicom(PhotometricInterpretation="MONOCHROME1")), 255 - grey)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_rescale_and_window_agree_with_pydicoms(function):
    file = dicom(RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[1000, 5], WindowWidth=[900, 5])
    file.VOILUTFunction = function
    wide = apply_windowing(RAMP * 2.0 - 1024, file, index=0)
    low, high = -1024, 4095 * 2 - 1024  # the range onto which pydicom maps a window
    expected = (wide - low) / (high - low) * 255
    assert np.abs(image(file) - expected).max() < 0.51 + (function == "SIGMOID") * 0.1


def test_a_lookup_table_is_used_with_its_own_depth():
    file = dicom((RAMP // 16).astype(np.uint8))
    table = pydicom.Dataset()
    table.LUTDescriptor = [256, 0, 12]
    table.LUTData = (np.arange(256)[::-1] * 16).astype(np.uint16).tobytes()
    table["LUTData"].VR = "OW"
    file.VOILUTSequence = Sequence([table])
    assert np.abs(image(file).astype(int) - (255 - (RAMP // 16).astype(int))).max() <= 1


def test_padding_does_not_move_the_window():
    values = np.where(np.arange(48) < 24, -2000, 100 + np.arange(48)).astype(np.int16) * np.ones((64, 1), np.int16)
    grey = image(dicom(values, PixelPaddingValue=-2000))
    assert grey[:, :24].max() == 0
    assert grey[:, 24:].max() - grey[:, 24:].min() > 250


SYNTAXES = {
    "JPEG lossless": gdcm.TransferSyntax.JPEGLosslessProcess14_1,
    "JPEG-LS": gdcm.TransferSyntax.JPEGLSLossless,
    "JPEG 2000": gdcm.TransferSyntax.JPEG2000Lossless,
    "RLE": gdcm.TransferSyntax.RLELossless,
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_compressed_files_show_the_same(tmp_path, syntax):
    plain = dicom(WindowCenter=2000, WindowWidth=3000)
    (tmp_path / "plain.dcm").write_bytes(encoded(plain))
    reader = gdcm.ImageReader()
    reader.SetFileName(str(tmp_path / "plain.dcm"))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(SYNTAXES[syntax]))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(tmp_path / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    packed = (tmp_path / "packed.dcm").read_bytes()
    assert pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(image(packed), shown(plain))


def test_a_palette_is_a_colour_and_shown_with_its_own_depth(tmp_path):
    file = dicom(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), PhotometricInterpretation="PALETTE COLOR")
    for name, gain in (("Red", 1024), ("Green", 512), ("Blue", 0)):
        setattr(file, f"{name}PaletteColorLookupTableDescriptor", [64, 0, 16])
        setattr(file, f"{name}PaletteColorLookupTableData", (np.arange(64) * gain).astype(np.uint16).tobytes())
    shown_ = image(file).astype(int)
    assert np.abs(shown_[0, :, 0] - np.arange(64) * 1024 / 65535 * 255).max() <= 1
    assert np.abs(shown_[0, :, 1] * 2 - shown_[0, :, 0]).max() <= 1
    raw = put(tmp_path, "PatientID,label\nsecret-7,a\n", film=file)
    assert listing(raw).rejected == [("series/film", "a colour image; --allow colour takes it")]


def test_elements_that_are_there_and_empty_count_as_absent():
    empty = dicom(WindowCenter=None, WindowWidth=None, RescaleSlope=None, RescaleIntercept=None)
    empty.VOILUTSequence = Sequence([])
    assert np.array_equal(image(empty), image(dicom()))


def test_files_without_a_preamble_are_read_and_damaged_headers_rejected(tmp_path):
    whole = encoded(dicom(SOPInstanceUID="1.1"))
    bare = whole[132:]
    assert np.array_equal(image(bare), image(whole))
    frames = dicom(SOPInstanceUID="1.2", NumberOfFrames="2")
    odd = encoded(frames).replace(b"IS\x02\x002 ", b"IS\x02\x00x ")
    raw = put(tmp_path, "SOPInstanceUID,label\n1.1,a\n1.2,a\n", bare=bare, odd=odd, cut=whole[:140])
    found = listing(raw)
    assert [record.name for record in found.records] == ["series/bare"]
    reasons = dict(found.rejected)
    assert reasons["series/odd"] == "its header cannot be read (ValueError)"
    assert "series/cut" in reasons


def test_colour_and_frames_are_shown_when_asked_for(tmp_path):
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 200
    assert source.image(encoded(dicom(red))).getpixel((0, 0)) == (200, 0, 0)
    film = dicom(np.stack([RAMP, RAMP[::-1]]), SOPInstanceUID="1.2.3")
    raw = put(tmp_path, "SOPInstanceUID,label\n1.2.3,CNV\n", film=film)
    records = listing(raw, allow=("multi-frame",)).records
    assert [record.name for record in records] == ["series/film#frame0", "series/film#frame1"]
    contents = [source.read(Raw(str(raw)), record, Options()) for record in records]
    assert contents[0] != contents[1]  # or the second would count as a copy of the first
    first, second = map(image, contents)
    assert np.array_equal(first, second[::-1])


def test_nothing_of_the_header_is_in_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(ingest, "_on_ray", lambda task, things: map(task, things))
    random = np.random.default_rng(0)
    files, table = {}, "PatientID,label\n"
    for number in range(12):
        values = random.integers(0, 4096, (40, 40)).astype(np.uint16)
        files[f"f{number}.dcm"] = dicom(values, PatientID=f"secret-{number}", PatientName="Secret^Anna")
        table += f"secret-{number},{'ab'[number % 2]}\n"
    raw = put(tmp_path / "raw", table, **files)
    request = ingest.Request("dicom_folder", str(raw), str(tmp_path / "out"), 32)
    manifest = ingest.write(ingest.plan(request, ingest.find(request), bytes(32))).manifest
    assert sum(map(manifest.rows, manifest.splits)) == 12
    assert manifest.classes == ("a", "b")
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not re.search(rb"(?i)secret|anna|DICM|f\d+\.dcm", content)


# -- what is listed --------------------------------------------------------------------------------------------------


def test_labels_go_by_instance_or_by_patient(tmp_path):
    files = {
        "a": dicom(SOPInstanceUID="1.1", PatientID="p1"),
        "b": dicom(SOPInstanceUID="1.2", PatientID="p1"),
        "c.dcm": dicom(SOPInstanceUID="1.3", PatientID="p2"),
    }
    raw = put(tmp_path, "sop_instance_uid,label\n1.1,Mass|Edema\n1.2,\n1.3,Mass\n1.9,Mass\n", **files)
    found = listing(raw)
    assert found.classes == ("Edema", "Mass")
    assert [(r.labels, r.patient) for r in found.records] == [((0, 1), "p1"), ((), "p1"), ((1,), "p2")]
    assert found.notes == ["1 rows of the table of labels have no image here"]
    assert [r.labels for r in listing(raw, single_label=True).records] == [(1,)]
    (tmp_path / "other.csv").write_text("PatientID,Label\np2,ill\n")
    with pytest.raises(SourceError, match="2 .csv files in it; name the labels with --labels"):
        listing(raw)
    by_patient = listing(raw, labels=str(tmp_path / "other.csv"))
    assert [(r.name, r.labels) for r in by_patient.records] == [("series/c.dcm", (0,))]
    assert {reason for _, reason in by_patient.rejected} == {"the table of labels has no row of its PatientID"}


def test_what_cannot_be_used_is_rejected_with_its_reason(tmp_path):
    no_pixels = dicom(SOPInstanceUID="1.5")
    for name in ("PixelData", "Rows", "Columns"):
        delattr(no_pixels, name)
    files = {
        "good": dicom(SOPInstanceUID="1.1"),
        "frames": dicom(np.stack([RAMP] * 2), SOPInstanceUID="1.2"),
        "colour": dicom(np.zeros((8, 8, 3), np.uint8), SOPInstanceUID="1.3"),
        "burned": dicom(SOPInstanceUID="1.4", BurnedInAnnotation="YES"),
        "report": no_pixels,
        "nobody": dicom(SOPInstanceUID="1.6", PatientID=""),
        "letter": b"dear colleague",
        "empty": b"",
    }
    table = "SOPInstanceUID,label\n" + "".join(f"1.{number},a\n" for number in range(1, 7))
    raw = put(tmp_path, table, **files)
    found = listing(raw)
    assert [record.name for record in found.records] == ["series/good"]
    reasons = {name.removeprefix("series/"): reason for name, reason in found.rejected}
    assert reasons == {
        "frames": "2 frames; --allow multi-frame takes each as an image",
        "colour": "a colour image; --allow colour takes it",
        "burned": "annotation burned into its pixels, which may name the patient; --allow burned-in takes it",
        "report": "no pixels in it",
        "nobody": "no patient id in its header: images are split by patient",
        "letter": "no DICOM file",
        "empty": "no DICOM file",
    }
    assert len(listing(raw, allow=("burned-in", "colour", "multi-frame")).records) == 1 + 1 + 1 + 2
    with pytest.raises(SourceError, match="--allow everything: must be of multi-frame, colour, burned-in"):
        listing(raw, allow=("everything",))


def test_damage_to_the_pixels_is_a_value_error():
    with pytest.raises(ValueError, match="bytes"):
        image(dicom(PixelData=RAMP.tobytes()[:-100]))
    gone = dicom()
    del gone.PixelData
    with pytest.raises(ValueError, match="cannot be read"):
        image(gone)
    with pytest.raises(ValueError, match="cannot be read"):
        image(b"dear colleague")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\na,b\n", "must name the columns, and SOPInstanceUID or PatientID is not among them"),
        ("PatientID,finding\na,b\n", "must name the columns, and label is not among them"),
        ("", "must name the columns, and SOPInstanceUID or PatientID is not among them"),
        ("PatientID,label\na,b\na,c\n", "row 3: the same PatientID as in row 2"),
        ("PatientID,label\n,b\n", "row 2: no PatientID"),
        ("PatientID,label\na\n", "row 2: too few columns"),
    ],
)
def test_a_table_that_is_wrong_is_refused_with_its_row_or_column(tmp_path, table, message):
    with pytest.raises(SourceError, match=re.escape(message)):
        listing(put(tmp_path, table, a=dicom()))
    with pytest.raises(SourceError, match=r"--labels nowhere\.csv: no such file"):
        listing(tmp_path, labels="nowhere.csv")

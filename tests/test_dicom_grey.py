"""DICOM's grey pipeline against its formulas written out in numpy: what the standard allows, and what writers make."""

import io
import struct
from functools import partial

import gdcm
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.sequence import Sequence
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
    XRayAngiographicImageStorage,
)

from medgan.data.dicom_grey import shown
from medgan.data.dicom_header import Unclear, opened
from medgan.data.dicom_stored import stored

from .test_dicom import RAMP, dicom, encoded, image, listing, put

SIGNED = np.linspace(-2048, 2047, 64 * 48).reshape(64, 48).round().astype(np.int16)
often = settings(derandomize=True, deadline=None, max_examples=40, database=None)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1."""
    return np.clip(((values - (center - 0.5)) / (width - 1) + 0.5) * 255, 0, 255)


def spread(values: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    low, high = np.percentile(values if kept is None else kept, [0.1, 99.9])
    return np.clip((values - low) / (high - low) * 255, 0, 255)


def near(file: pydicom.FileDataset | bytes, right: np.ndarray) -> bool:
    return bool(np.abs(image(file).astype(float) - right).max() < 0.51)


def item(**elements) -> Dataset:
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def table(entries, first: int, bits: int, *, vr: str = "US", packed: bool = False, count: int | None = None) -> Dataset:
    made = Dataset()
    made.add_new(0x00283002, vr, [len(entries) % 65536 if count is None else count, first, bits])
    made.add_new(0x00283006, "OW", np.asarray(entries, np.uint8 if packed else np.uint16).tobytes())
    return made


def refused(file: pydicom.FileDataset | bytes, tag: str) -> bool:
    """Whether a file is refused with the tag, after a round through its bytes."""
    with pytest.raises(Unclear, match=rf"^its \({tag}\)"):
        image(file)
    return True


# -- windows ---------------------------------------------------------------------------------------------------------


numbers = partial(st.floats, allow_nan=False, allow_infinity=False)


@often
@given(
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    center=numbers(-3000, 6000),
    width=numbers(0.01, 9000),
    slope=st.one_of(numbers(-3, -0.001), numbers(0.001, 3)),
    intercept=numbers(-2000, 2000),
    inverse=st.booleans(),
)
def test_windows_are_what_the_standard_writes(function, center, width, slope, intercept, inverse):
    said = {"WindowCenter": center, "WindowWidth": width, "RescaleSlope": slope, "RescaleIntercept": intercept}
    file = dicom(RAMP[::8, ::8], VOILUTFunction=function, **{name: f"{value:.10g}" for name, value in said.items()})
    file.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    center, width, slope, intercept = (float(f"{value:.10g}") for value in said.values())
    values = RAMP[::8, ::8] * slope + intercept
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            right = 255 / (1 + np.exp(-4 * (values - center) / width))
    elif function == "LINEAR_EXACT" or width <= 1:
        right = np.clip(((values - center) / width + 0.5) * 255, 0, 255)
    else:
        right = linear(values, center, width)
    # A step may fall on either side of a value, by rounding.
    steep = np.abs(np.abs(values - center) - width / 2) < 1e-6 * (1 + np.abs(values))
    got = shown(file).astype(float)
    assert np.abs(got - (255 - right if inverse else right))[~steep].max(initial=0) < 0.51


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ({"WindowCenter": 2000, "WindowWidth": 0}, spread(RAMP)),
        ({"WindowCenter": 2000, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"}, spread(RAMP)),
        ({"WindowCenter": [0, 2000], "WindowWidth": [0, 1500]}, linear(RAMP, 2000, 1500)),
        ({"WindowCenter": [2000, 5], "WindowWidth": [1500, 5]}, linear(RAMP, 2000, 1500)),
        ({"WindowCenter": ["", "2000"], "WindowWidth": ["", "1500"]}, linear(RAMP, 2000, 1500)),
        ({"WindowCenter": 2000, "WindowWidth": 1}, (RAMP > 1999.5) * 255.0),
        ({"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": ""}, linear(RAMP, 2000, 1500)),
        ({"WindowCenter": 2000}, spread(RAMP)),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, spread(RAMP)),
        ({"RescaleIntercept": -1024, "WindowCenter": 976, "WindowWidth": 1500}, linear(RAMP, 2000, 1500)),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, spread(4095 - RAMP.astype(int))),
    ],
)
def test_windows_of_writers(said, right):
    assert near(dicom(**said), right)


@pytest.mark.parametrize("text", [b"2000,5", b" 2000.5", b"2.0005e3", b"2000.5\0"])
def test_a_decimal_may_have_blanks_and_a_comma(text):
    file = encoded(dicom(WindowCenter="1111111.", WindowWidth=1500))
    assert near(file.replace(b"1111111.", text.ljust(8)), linear(RAMP, 2000.5, 1500))


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        ({"WindowCenter": 2000, "WindowWidth": -500}, "0028,1051"),
        ({"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "CUBIC"}, "0028,1056"),
        ({"WindowCenter": 2000, "WindowWidth": 900, "RescaleSlope": 0}, "0028,1053"),
        ({"PresentationLUTShape": "INVERSE"}, "2050,0020"),
        ({"PresentationLUTShape": "IDENTITY", "PhotometricInterpretation": "MONOCHROME1"}, "2050,0020"),
        ({"PresentationLUTSequence": Sequence([table([0, 255], 0, 8)])}, "2050,0010"),
        ({"PixelPresentation": "COLOR"}, "0008,9205"),
        ({"PhotometricInterpretation": ""}, "0028,0004"),
        ({"PhotometricInterpretation": "HSV"}, "0028,0004"),
        ({"PhotometricInterpretation": "RGB"}, "0028,0002"),
        ({"BitsAllocated": 12}, "0028,0100"),
        ({"BitsStored": 17}, "0028,0101"),
        ({"BitsStored": None, "HighBit": None}, "0028,0101"),
        ({"HighBit": 5}, "0028,0102"),
        ({"HighBit": 16}, "0028,0102"),
        ({"PixelRepresentation": None}, "0028,0103"),
        ({"PixelData": RAMP.tobytes() * 2}, "0028,0008"),
        ({"NumberOfFrames": -1}, "0028,0008"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "0028,1101"),
    ],
)
def test_what_has_no_one_meaning_is_refused_with_its_tag(said, tag):
    assert refused(dicom(**said), tag)


@pytest.mark.parametrize("text", [b"NaN ", b"inf ", b"wide"])
def test_a_window_that_is_no_number_is_refused_without_its_text(text):
    file = encoded(dicom(WindowCenter="2000", WindowWidth="1234")).replace(b"1234", text)
    with pytest.raises(Unclear, match=r"^its \(0028,1051\) WindowWidth is no (finite )?number$"):
        image(file)


def test_an_inverse_shape_says_again_what_monochrome1_says():
    file = dicom(PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    assert near(file, 255 - spread(RAMP))
    assert near(dicom(PresentationLUTShape="IDENTITY"), spread(RAMP))


def test_real_world_values_change_nothing():
    mapped = item(RealWorldValueSlope=5.0, RealWorldValueIntercept=7.0, LUTLabel="x")
    file = dicom(RealWorldValueMappingSequence=Sequence([mapped]), WindowCenter=2000, WindowWidth=1500)
    assert near(file, linear(RAMP, 2000, 1500))


# -- padding ---------------------------------------------------------------------------------------------------------

HU = np.linspace(-800, 1200, 64 * 48).reshape(64, 48).round().astype(np.int16)
EDGE = np.zeros(HU.shape, bool)
EDGE[:, :8] = True


@pytest.mark.parametrize("kind", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(
    ("value", "limit", "cells"),
    [
        (("SS", -2000), None, -2000),
        (("US", 63536), None, -2000),
        (("SS", -2000), ("SS", -1500), np.linspace(-2000, -1500, 64 * 8)),
        (("US", 63536), ("US", 64036), np.linspace(-2000, -1500, 64 * 8)),
        (("SS", -1500), ("SS", -2000), np.linspace(-2000, -1500, 64 * 8)),
        (("OW", b"\x30\xf8"), None, -2000),
        (("DS", "-2000"), ("IS", "-1500"), np.linspace(-2000, -1500, 64 * 8)),
    ],
)
def test_padding_in_either_vr_and_as_a_range(kind, value, limit, cells):
    pixels = HU.copy()
    pixels[EDGE] = np.round(cells)
    file = dicom(pixels, PhotometricInterpretation=kind)
    file.add_new(0x00280120, *value)
    if limit:
        file.add_new(0x00280121, *limit)
    right = spread(pixels, HU[~EDGE])
    assert near(file, 255 - right if kind == "MONOCHROME1" else right)


@pytest.mark.parametrize(
    ("value", "limit", "signed", "padding"),
    [
        (("US", 3000), ("US", 4096), False, (3000, 4095)),
        (("SS", -32768), ("SS", -1000), True, (-2048, -1000)),
        (("US", 65535), ("US", 4096), False, None),
        (("US", 0), ("SS", -10), False, (0, 0)),
        (("SS", -2000), None, False, None),
        (("US", 63536), ("SS", -1500), True, (-2000, -1500)),
        (("US", 2096), ("US", 2596), True, (-2000, -1500)),
    ],
)
def test_a_range_of_padding_ends_where_pixels_do(value, limit, signed, padding):
    low = -2048 if signed else 0
    pixels = (np.arange(4096) + low).reshape(64, 64).astype(np.int16 if signed else np.uint16)
    file = dicom(pixels, BitsStored=12, HighBit=11)
    file.add_new(0x00280120, *value)
    if limit:
        file.add_new(0x00280121, *limit)
    within = np.zeros(pixels.shape, bool) if padding is None else (pixels >= padding[0]) & (pixels <= padding[1])
    assert np.array_equal(stored(opened(io.BytesIO(encoded(file))), 0).padding, within)


def test_bits_below_the_stored_ones_are_refused_where_no_overlay_is_declared():
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    assert refused(dicom(pixels, BitsStored=12, HighBit=15), "0028,0102")


def test_a_table_without_anything_in_it_is_none():
    assert near(
        dicom(VOILUTSequence=Sequence([Dataset()]), WindowCenter=2000, WindowWidth=1500), linear(RAMP, 2000, 1500)
    )


def test_padding_of_12_bits_is_the_same_value_with_and_without_sign_extension():
    pixels = np.where(EDGE, -2000, HU).astype(np.int16)
    for value in (63536, 2096):  # 0xF830 and 0x0830
        file = dicom(pixels, BitsStored=12, HighBit=11)
        file.add_new(0x00280120, "US", value)
        assert near(file, spread(pixels, HU[~EDGE]))


@pytest.mark.parametrize("value", [["-2000", "7"], "x", ["x", "y"]])
def test_padding_of_several_values_or_of_none_that_is_a_number(value):
    file = dicom(np.where(EDGE, -2000, HU).astype(np.int16))
    file.add_new(0x00280120, "LO", value)
    if "-2000" in value:
        assert near(file, spread(np.where(EDGE, -2000, HU), HU[~EDGE]))
    else:
        with pytest.raises(Unclear, match=r"\(0028,0120\)"):
            stored(opened(io.BytesIO(encoded(file))), 0)


def test_an_image_that_is_all_padding_is_shown_all_the_same():
    assert near(dicom(np.full((8, 8), 7, np.uint16), PixelPaddingValue=7), np.zeros((8, 8)))


@often
@given(st.integers(-32768, -1001), st.integers(0, 63), st.sampled_from(["US", "SS"]))
def test_padding_never_moves_the_window_of_the_rest(value, rows, vr):
    pixels = HU.copy()
    pixels[:rows] = value
    file = dicom(pixels, RescaleSlope=2, RescaleIntercept=-5)
    file.add_new(0x00280120, vr, value % 65536 if vr == "US" else value)
    alone = dicom(HU[rows:], RescaleSlope=2, RescaleIntercept=-5)
    assert np.array_equal(shown(file)[rows:], shown(alone))


# -- stored bits -----------------------------------------------------------------------------------------------------


@often
@given(st.data())
def test_stored_values_come_back_from_any_bits_of_a_cell_full_of_others(data):
    allocated = data.draw(st.sampled_from([8, 16, 32]))
    bits = data.draw(st.integers(1, allocated))
    high = data.draw(st.integers(bits - 1, allocated - 1))
    signed = data.draw(st.booleans())
    syntax = data.draw(st.sampled_from(["little", "big", "implicit", "rle"]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    low = -(2 ** (bits - 1)) if signed else 0
    values = random.integers(low, low + 2**bits, (6, 5))
    shift, mask = high - bits + 1, 2**bits - 1
    overlay = data.draw(st.booleans())  # without, nothing lies below the stored bits
    others = random.integers(0, 2**allocated, (6, 5)) & ~(mask << shift) & (-1 if overlay else -(1 << shift))
    cells = (((values & mask) << shift) | others).astype(f"u{allocated // 8}")
    elements = {"BitsStored": bits, "HighBit": high, "PixelRepresentation": int(signed)}
    if syntax == "rle":
        file = coded(run_lengths(cells), RLELossless, pixels=cells, **elements)
    else:
        file = dicom(cells, **elements)
    if overlay:
        file.add_new(0x60000102, "US", 0)
    file = file if syntax == "rle" else written(file, syntax)
    read = opened(io.BytesIO(file if isinstance(file, bytes) else encoded(file)))
    found = stored(read, 0)
    assert np.array_equal(found.values, values)
    assert (found.lowest, found.highest) == (low, low + 2**bits - 1)


def run_lengths(cells: np.ndarray) -> bytes:
    """At most 128 cells as RLE (PS3.5 annex G), a segment for each of their bytes, the highest first."""
    planes = cells.astype(cells.dtype.newbyteorder(">")).view(np.uint8).reshape(cells.size, -1).T
    segments = [bytes([cells.size - 1]) + plane.tobytes() for plane in planes]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    starts = [64 + sum(map(len, segments[:number])) for number in range(len(segments))]
    return struct.pack("<16L", len(segments), *starts, *[0] * (15 - len(segments))) + b"".join(segments)


def written(file: pydicom.FileDataset, how: str, *, bare: bool = False) -> bytes:
    """The bytes of an uncompressed file, little endian or otherwise; bare: without preamble and group 0002."""
    file.file_meta.TransferSyntaxUID = {
        "big": ExplicitVRBigEndian,
        "implicit": ImplicitVRLittleEndian,
        "deflated": DeflatedExplicitVRLittleEndian,
    }.get(how, file.file_meta.TransferSyntaxUID)
    if how == "big":
        size = file.BitsAllocated // 8
        file.PixelData = np.frombuffer(file.PixelData, f"<u{size}").astype(f">u{size}").tobytes()
        file["PixelData"].VR = "OW" if size > 1 else "OB"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    return without_group_2(buffer.getvalue()) if bare else buffer.getvalue()


def without_group_2(content: bytes) -> bytes:
    return content[132 + 12 + pydicom.dcmread(io.BytesIO(content)).file_meta.FileMetaInformationGroupLength :]


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("how", ["little", "big", "implicit"])
def test_a_file_says_by_its_form_how_it_is_written(how, bare):
    file = written(dicom(WindowCenter=2000, WindowWidth=3000), how, bare=bare)
    assert near(file, linear(RAMP, 2000, 3000))


def test_deflated_files_are_read():
    assert near(written(dicom(WindowCenter=2000, WindowWidth=3000), "deflated"), linear(RAMP, 2000, 3000))


def test_files_of_every_form_are_listed(tmp_path):
    ways = [
        ("little", True),
        ("big", False),
        ("big", True),
        ("implicit", False),
        ("implicit", True),
        ("deflated", False),
    ]
    files = {f"{how}-{bare}": written(dicom(), how, bare=bare) for how, bare in ways}
    found = listing(put(tmp_path, "PatientID,label\nsecret-7,a\n", **files))
    assert len(found.records) == len(ways)
    assert not found.rejected


def test_bytes_of_big_endian_words_are_swapped():
    pixels = (RAMP // 16).astype(np.uint8)
    file = dicom(pixels, WindowCenter=100, WindowWidth=150)
    file = pydicom.dcmread(io.BytesIO(written(file, "big")))
    file.PixelData = np.frombuffer(pixels.tobytes(), "<u2").byteswap().tobytes()
    file["PixelData"].VR = "OW"
    assert near(file, linear(pixels, 100, 150))


@pytest.mark.parametrize("gone", ["BitsStored", "HighBit", "SamplesPerPixel", "NumberOfFrames"])
def test_what_follows_from_the_rest_may_be_missing(gone):
    file = dicom(NumberOfFrames=0, WindowCenter=2000, WindowWidth=3000)
    delattr(file, gone)
    assert near(file, linear(RAMP, 2000, 3000))


def of_floats(values: np.ndarray) -> pydicom.Dataset:
    """A file whose pixels are float32."""
    file = dicom()
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(file, name)
    file.BitsAllocated, file.FloatPixelData = 32, values.astype(np.float32).tobytes()
    return file


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.finfo(np.float32).max, np.finfo(np.float32).min])
def test_infinity_in_float_pixels_is_white_or_black_and_moves_no_window(value):
    """The most that float32 holds is what some write for it, or for no value."""
    values = np.linspace(0, 1000, 64 * 48).reshape(64, 48)
    beyond = values.copy()
    beyond[EDGE] = value
    most = values[~EDGE].max() if value > 0 else values[~EDGE].min()
    assert near(of_floats(beyond), spread(np.where(EDGE, most, values)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float_pixels_without_a_finite_value_are_left_out(value):
    assert refused(of_floats(np.full((64, 48), value)), "7FE0,0008")


@pytest.mark.parametrize("text", [b"1,024", b"40,400", b"-1,000"])
def test_a_comma_before_three_digits_may_part_thousands(text):
    file = encoded(dicom(WindowCenter="1111111.", WindowWidth=1500))
    assert refused(file.replace(b"1111111.", text.ljust(8)), "0028,1050")


@pytest.mark.parametrize(("kind", "keyword"), [(np.float32, "FloatPixelData"), (np.float64, "DoubleFloatPixelData")])
def test_float_pixels_have_no_bits_and_their_gaps_are_padding(kind, keyword):
    values = np.linspace(-0.3, 0.7, 64 * 48).reshape(64, 48).astype(kind)
    file = dicom()
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(file, name)
    file.BitsAllocated = 8 * values.itemsize
    holes = values.copy()
    holes[EDGE] = np.nan
    setattr(file, keyword, holes.tobytes())
    right = spread(values, values[~EDGE])
    right[EDGE] = 0
    assert near(file, right)
    holes[EDGE] = 9
    setattr(file, keyword, holes.tobytes())
    setattr(file, keyword.replace("Data", "PaddingValue"), 9.0)
    right[EDGE] = 255
    assert near(file, right)


def test_bits_are_counted_over_frames_that_end_within_a_byte():
    bits = np.random.default_rng(0).integers(0, 2, (3, 5, 5)).astype(np.uint8)
    file = dicom(bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    file.PixelData = np.packbits(bits.ravel(), bitorder="little").tobytes()
    for frame in range(3):
        assert np.array_equal(shown(opened(io.BytesIO(encoded(file))), frame), bits[frame] * 255)


# -- streams of the JPEG family --------------------------------------------------------------------------------------


def coded(stream: bytes, syntax: str, pixels: np.ndarray = RAMP, **elements) -> pydicom.FileDataset:
    file = dicom(pixels, **elements)
    file.file_meta.TransferSyntaxUID = syntax
    file.PixelData = encapsulate([stream])
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True
    return file


def jpeg2000(pixels: np.ndarray, **how) -> bytes:
    """A stream of 8 bits, or of 16."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg2000", no_jp2=True, **how)
    return buffer.getvalue()


def lossless(folder, pixels: np.ndarray, depth: int = 16) -> bytes:
    """A JPEG lossless stream of 16 bits; or of fewer, by the prediction of its first pixel: 2 ** (depth - 1)."""
    shifted = dicom((pixels.astype(int) + 2**15 - 2 ** (depth - 1)).astype(np.uint16), BitsStored=16, HighBit=15)
    (folder / "plain.dcm").write_bytes(encoded(shifted))
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "coded.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    stream = bytearray(get_frame(pydicom.dcmread(folder / "coded.dcm").PixelData, 0, number_of_frames=1))
    stream[stream.index(b"\xff\xc3") + 4] = depth
    return bytes(stream)


WORDS = SIGNED.view(np.uint16)


@pytest.mark.parametrize(("cells", "depth"), [(WORDS, 16), (WORDS & 0xFFF, 16), (WORDS & 0xFFF, 12)])
def test_a_stream_without_sign_keeps_the_sign_of_the_header(tmp_path, cells, depth):
    file = coded(lossless(tmp_path, cells, depth), JPEGLosslessSV1, BitsStored=12, HighBit=11, PixelRepresentation=1)
    file.WindowCenter, file.WindowWidth = 100, 3000
    assert near(file, linear(SIGNED, 100, 3000))


def test_a_jpeg_2000_stream_without_sign_keeps_the_sign_of_the_header():
    file = coded(jpeg2000(WORDS & 0xFFF), JPEG2000Lossless, BitsStored=12, HighBit=11, PixelRepresentation=1)
    file.WindowCenter, file.WindowWidth = 100, 3000
    assert near(file, linear(SIGNED, 100, 3000))


def test_a_stream_of_8_bits_in_16_allocated_is_read():
    pixels = (RAMP // 16).astype(np.uint8)
    for bits in (8, 12):
        how = {"BitsStored": bits, "HighBit": bits - 1, "WindowCenter": 100, "WindowWidth": 150}
        assert near(coded(jpeg2000(pixels), JPEG2000Lossless, **how), linear(pixels, 100, 150))
        baseline = io.BytesIO()
        Image.fromarray(pixels).save(baseline, "jpeg", quality=100)
        right = linear(np.asarray(Image.open(baseline)).astype(float), 100, 150)
        assert near(coded(baseline.getvalue(), JPEGBaseline8Bit, **how), right)


def test_header_and_stream_that_contradict_each_other_are_refused(tmp_path):
    over = RAMP | ((np.arange(48) % 5 == 0) << 15).astype(np.uint16)
    for stream, syntax in ((jpeg2000(over), JPEG2000Lossless), (lossless(tmp_path, over), JPEGLosslessSV1)):
        assert refused(coded(stream, syntax), "0028,0101")
        overlaid = coded(stream, syntax, WindowCenter=2000, WindowWidth=3000)
        overlaid.add_new(0x60000102, "US", 15)
        assert near(overlaid, linear(RAMP, 2000, 3000))
    wide = coded(lossless(tmp_path, WORDS & 0xFFF, 12), JPEGLosslessSV1, BitsStored=16, HighBit=15)
    assert near(wide, spread(WORDS & 0xFFF))
    wide.PixelRepresentation = 1
    assert refused(wide, "0028,0103")
    narrow = coded(jpeg2000(RAMP), JPEG2000Lossless, BitsAllocated=8, BitsStored=8, HighBit=7)
    assert refused(narrow, "0028,0101")
    assert refused(coded(b"\xff\xd8 no stream", JPEGLosslessSV1), "7FE0,0010")
    assert refused(coded(b"\0\0", "1.2.840.113619.5.2"), "0002,0010")
    unnamed = coded(lossless(tmp_path, RAMP), JPEGLosslessSV1)
    assert refused(without_group_2(encoded(unnamed)), "0002,0010")


def test_a_stream_of_another_shape_than_the_header_never_reaches_a_decoder():
    eight = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    coloured = jpeg2000(np.zeros((64, 48, 3), np.uint8))
    assert refused(coded(coloured, JPEG2000Lossless, **eight), "0028,0002")
    assert refused(coded(jpeg2000(RAMP), JPEG2000Lossless, Rows=70), "0028,0010")
    assert refused(coded(jpeg2000(RAMP), JPEG2000Lossless, Columns=40), "0028,0011")
    assert refused(coded(b"no stream at all.", JPEG2000Lossless), "7FE0,0010")


@pytest.mark.parametrize("said", [1, 3])
def test_as_many_streams_as_frames(said):
    file = coded(jpeg2000(RAMP), JPEG2000Lossless, NumberOfFrames=said)
    for table_of_offsets in (True, False):
        file.PixelData = encapsulate([jpeg2000(RAMP), jpeg2000(RAMP[::-1])], has_bot=table_of_offsets)
        file["PixelData"].is_undefined_length = True
        assert refused(file, "0028,0008")


def test_what_a_lossy_stream_puts_beyond_its_bits_is_cut():
    steps = np.where(np.arange(48) % 16 < 8, 0, 4095).astype(np.uint16) * np.ones((64, 1), np.uint16)
    stream = jpeg2000(steps, irreversible=True, quality_mode="rates", quality_layers=[20])
    file = coded(stream, JPEG2000, WindowCenter=2048, WindowWidth=4096)
    wrapped = image(file).astype(int)[:, np.arange(48) % 16 == 12]
    assert wrapped.min() > 200


def test_colours_of_streams_become_red_green_and_blue():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = (200, 40, 90)
    pixels[8:] = (10, 120, 250)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=100, subsampling=0)
    how = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    how |= {"Rows": 16, "Columns": 16}
    ways = {
        "YBR_FULL": (buffer.getvalue(), JPEGBaseline8Bit),
        "YBR_FULL_422": (buffer.getvalue(), JPEGBaseline8Bit),
        "YBR_RCT": (jpeg2000(pixels, mct=1), JPEG2000Lossless),
        "RGB": (jpeg2000(pixels, mct=0), JPEG2000Lossless),
    }
    for kind, (stream, syntax) in ways.items():
        file = coded(stream, syntax, PhotometricInterpretation=kind, **how)
        assert np.abs(image(file).astype(int) - pixels).max() <= 3, kind


# -- tables ----------------------------------------------------------------------------------------------------------

CURVE = np.round((np.arange(4096) / 4095) ** 2 * 4095).astype(int)
UP = np.round(np.linspace(0, 4095, 2001)).astype(int)


@pytest.mark.parametrize(
    ("entries", "bits", "full"),
    [
        *((CURVE, 12, 4095), (CURVE, 16, 4095), (CURVE // 4, 16, 1023), (CURVE * 16, 16, 65535), (CURVE // 16, 8, 255)),
        *((CURVE // 2, 12, 4095), (CURVE // 3, 12, 4095), (CURVE * 4, 16, 65535), (CURVE, 8, 4095)),
    ],
)
def test_a_table_has_the_bits_of_its_entries(entries, bits, full):
    file = dicom(VOILUTSequence=Sequence([table(entries, 0, bits)]), WindowCenter=1, WindowWidth=2)
    assert near(file, entries[RAMP] / full * 255)


@pytest.mark.parametrize("how", ["little", "big", "implicit"])
def test_tables_of_8_bits_stand_as_bytes_or_as_words(how):
    pixels = (RAMP // 16).astype(np.uint8)
    entries = np.arange(256)[::-1]
    for packed in (False, True):
        one = table(entries, 0, 8, packed=packed)
        if how == "big":
            one.LUTData = np.frombuffer(one.LUTData, "<u2").byteswap().tobytes()
        file = dicom(pixels, VOILUTSequence=Sequence([one]))
        assert near(written(file, how), 255 - pixels.astype(float)), packed


def test_a_table_of_0_entries_has_65536():
    entries = np.arange(65536)[::-1]
    file = dicom(RAMP * 16, BitsStored=16, HighBit=15, VOILUTSequence=Sequence([table(entries, 0, 16, count=0)]))
    assert near(file, 255 - RAMP * 16.0 / 65535 * 255)


@pytest.mark.parametrize(
    ("pixels", "first", "rescale"),
    [
        (HU, ("SS", -1000), {}),
        (HU, ("US", 64536), {}),
        ((HU + 1000).astype(np.uint16), ("SS", -1000), {"RescaleSlope": 1, "RescaleIntercept": -1000}),
        ((HU + 1000).astype(np.uint16), ("US", 64536), {"RescaleSlope": 1, "RescaleIntercept": -1000}),
        (HU, ("SS", 0), {"RescaleSlope": 1, "RescaleIntercept": 1000}),
    ],
)
def test_the_first_input_of_a_table_is_in_units_of_the_modality_in_either_vr(pixels, first, rescale):
    one = table(UP, first[1], 12, vr=first[0])
    place = np.clip(HU.astype(int) + 1000, 0, 2000)
    assert near(dicom(pixels, VOILUTSequence=Sequence([one]), **rescale), UP[place] / 4095 * 255)


def test_a_first_input_beyond_32767_stays_positive():
    pixels = (RAMP + 40000).astype(np.uint16)
    one = table(CURVE, 40000 - 65536, 12, vr="SS")
    assert near(dicom(pixels, BitsStored=16, HighBit=15, VOILUTSequence=Sequence([one])), CURVE[RAMP] / 4095 * 255)


def test_a_table_of_the_modality_comes_before_the_window_and_a_rescale_beside_it_counts_for_nothing():
    one = table(CURVE, 0, 12)
    said = {"WindowCenter": 2000, "WindowWidth": 1500, "RescaleSlope": "0.01", "RescaleIntercept": 3}
    file = dicom(ModalityLUTSequence=Sequence([one]), **said)
    assert near(file, linear(CURVE[RAMP], 2000, 1500))
    signed = dicom(SIGNED, BitsStored=12, HighBit=11, ModalityLUTSequence=Sequence([table(CURVE * 16, 63488, 16)]))
    assert near(signed, spread(CURVE[SIGNED.astype(int) + 2048] * 16))


def test_the_table_of_an_angiography_is_not_for_display():
    one = table(CURVE, 0, 12)
    file = dicom(ModalityLUTSequence=Sequence([one]), WindowCenter=2000, WindowWidth=1500)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = XRayAngiographicImageStorage
    assert near(file, linear(RAMP, 2000, 1500))


@pytest.mark.parametrize(
    ("one", "tag"),
    [
        (table(CURVE * 7, 0, 12), "0028,3002"),  # 28,665 of 12 bits, or of 15
        (table(CURVE, 0, 12, count=9000), "0028,3006"),
        (item(LUTDescriptor=[4096, 0], LUTData=b"\0\0"), "0028,3002"),
        (item(LUTDescriptor=[4096, 0, 12]), "0028,3006"),
    ],
)
def test_tables_that_are_unclear_are_refused_with_their_tag(one, tag):
    assert refused(dicom(VOILUTSequence=Sequence([one])), tag)


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 257), (16, 1)])
def test_a_palette_is_shown_with_the_bits_of_its_entries(bits, scale):
    entries = np.arange(200)
    file = dicom(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1)), PhotometricInterpretation="PALETTE COLOR")
    for name, colour in (("Red", entries), ("Green", entries[::-1]), ("Blue", entries * 0)):
        setattr(file, f"{name}PaletteColorLookupTableDescriptor", [200, 10, bits])
        data = (colour * scale).astype(np.uint8 if bits == 8 else np.uint16).tobytes()
        setattr(file, f"{name}PaletteColorLookupTableData", data)
    place = np.clip(np.arange(64) * 4 - 10, 0, 199)
    right = np.stack([entries[place], entries[::-1][place], place * 0], -1)
    assert near(file, np.tile(right, (64, 1, 1)))


@pytest.mark.parametrize(("bits", "scale"), [(8, 257), (8, 256), (12, 16)])
def test_a_palette_whose_descriptor_and_data_disagree_is_left_out(bits, scale):
    file = dicom(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), PhotometricInterpretation="PALETTE COLOR")
    for name in ("Red", "Green", "Blue"):
        setattr(file, f"{name}PaletteColorLookupTableDescriptor", [64, 0, bits])
        setattr(file, f"{name}PaletteColorLookupTableData", (np.arange(64) * scale).astype(np.uint16).tobytes())
    assert refused(file, "0028,1101")


def test_a_palette_in_segments_is_unrolled():
    file = dicom(np.tile(np.arange(64, dtype=np.uint8), (64, 1)), PhotometricInterpretation="PALETTE COLOR")
    for name, segments in (
        ("Red", [0, 1, 0, 1, 63, 63 * 1040]),
        ("Green", [0, 2, 65535, 65535, 1, 62, 65535]),
        ("Blue", [0, 1, 0, 1, 63, 0]),
    ):
        setattr(file, f"{name}PaletteColorLookupTableDescriptor", [64, 0, 16])
        setattr(file, f"Segmented{name}PaletteColorLookupTableData", struct.pack(f"<{len(segments)}H", *segments))
    right = np.stack([np.arange(64) * 1040 / 65535 * 255, np.full(64, 255.0), np.zeros(64)], -1)
    assert near(file, np.tile(right, (64, 1, 1)))


# -- functional groups -----------------------------------------------------------------------------------------------


def group(slope=None, intercept=0, **voi) -> Dataset:
    made = Dataset()
    if slope is not None:
        made.PixelValueTransformationSequence = Sequence([item(RescaleSlope=slope, RescaleIntercept=intercept)])
    if voi:
        made.FrameVOILUTSequence = Sequence([item(**voi)])
    return made


def frames_of(file: pydicom.FileDataset) -> list[np.ndarray]:
    read = opened(io.BytesIO(encoded(file)))
    return [shown(read, frame).astype(float) for frame in range(int(file.NumberOfFrames))]


def test_window_and_rescale_are_those_of_the_frame_then_those_of_all_then_those_outside():
    other = RAMP[::-1]
    file = dicom(np.stack([RAMP, other, RAMP]), WindowCenter=1, WindowWidth=2, RescaleSlope=9, RescaleIntercept=9)
    file.SharedFunctionalGroupsSequence = Sequence([group(1, -1024, WindowCenter=500, WindowWidth=900)])
    one = group(2, 5, WindowCenter=[3000, 1], WindowWidth=[4000, 1], VOILUTFunction="LINEAR_EXACT")
    curved = Dataset()
    curved.FrameVOILUTSequence = Sequence([item(VOILUTSequence=Sequence([table(UP, 64512, 12)]))])
    file.PerFrameFunctionalGroupsSequence = Sequence([one, Dataset(), curved])
    first, second, third = frames_of(file)
    assert np.abs(first - np.clip(((RAMP * 2.0 + 5 - 3000) / 4000 + 0.5) * 255, 0, 255)).max() < 0.51
    assert np.abs(second - linear(other - 1024.0, 500, 900)).max() < 0.51
    assert np.abs(third - UP[np.clip(RAMP.astype(int), 0, 2000)] / 4095 * 255).max() < 0.51


def test_groups_that_say_nothing_of_grey_leave_what_stands_outside():
    file = dicom(WindowCenter=2000, WindowWidth=1500)
    file.SharedFunctionalGroupsSequence = Sequence([Dataset()])
    file.PerFrameFunctionalGroupsSequence = Sequence([Dataset()])
    assert near(file, linear(RAMP, 2000, 1500))


def test_a_frame_without_its_group_is_refused():
    file = dicom(np.stack([RAMP, RAMP]))
    file.PerFrameFunctionalGroupsSequence = Sequence([group(1)])
    read = opened(io.BytesIO(encoded(file)))
    assert shown(read, 0).max() == 255
    with pytest.raises(Unclear, match=r"\(5200,9230\)"):
        shown(read, 1)

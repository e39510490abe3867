"""What image files can hold, against numpy written out; files by hand (TIFF 6.0, PNG) or by Pillow and tifffile."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medgan.data.decode import frames, open_image

RANDOM = np.random.default_rng(0)
RAMP = np.linspace(0, 1, 24 * 40).reshape(24, 40)
GREY = np.round(RAMP * 255).astype(np.uint8)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
DEEP = np.round(RAMP * 61000).astype(np.uint16) + 900
DEEP_COLOUR = np.stack([DEEP, DEEP[::-1], DEEP // 2], axis=-1)
ALPHA = np.where(np.arange(40) < 10, 0, np.where(np.arange(40) < 20, 128, 255)).astype(np.uint8)[None].repeat(24, 0)


def window(values, of=None):
    """0 to 255 from the 0.1th to the 99.9th percentile of what is finite."""
    values = np.asarray(values, np.float64)
    of = values if of is None else np.asarray(of, np.float64)
    low, high = np.percentile(of[np.isfinite(of)], [0.1, 99.9])
    return np.clip((np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / (high - low) * 255, 0, 255)


def see(data: bytes, frame: int | None = None) -> np.ndarray:
    image = open_image(data, frame)
    return np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")).astype(float)


def tiff(*pages: dict, endian: str = "<", big: bool = False) -> bytes:
    """An uncompressed TIFF of one strip a page. A page: tag number -> value(s), and "data"."""
    word, form, start = (8, "Q", 16) if big else (4, "I", 8)
    content, heads = b"", []
    for page in pages:
        tags = {k: (v if isinstance(v, tuple | list) else (v,)) for k, v in page.items() if k != "data"}
        tags |= {273: (start + len(content),), 279: (len(page["data"]),)}
        content += page["data"] + b"\0" * (-len(page["data"]) % 2)
        heads.append(tags)
    fields = {"H": 3, "I": 4, "Q": 16}
    place = start + len(content)
    for number, tags in enumerate(heads):
        count = struct.pack(endian + ("Q" if big else "H"), len(tags))
        end = place + len(count) + len(tags) * (4 + 2 * word) + word
        entries, more = b"", b""
        for tag, values in sorted(tags.items()):
            kind = form if tag in (273, 279) else "H"
            packed = struct.pack(f"{endian}{len(values)}{kind}", *values)
            if len(packed) > word:
                more, packed = more + packed, struct.pack(endian + form, end + len(more))
            entries += struct.pack(f"{endian}HH{form}", tag, fields[kind], len(values)) + packed.ljust(word, b"\0")
        place = end + len(more) if number < len(heads) - 1 else 0
        content += count + entries + struct.pack(endian + form, place) + more
    magic = (b"II" if endian == "<" else b"MM") + struct.pack(endian + "H", 43 if big else 42)
    first = start + sum(len(p["data"]) + len(p["data"]) % 2 for p in pages)
    return magic + (struct.pack(endian + "HHQ", 8, 0, first) if big else struct.pack(endian + "I", first)) + content


def page(values: np.ndarray, photometric: int, bits: int | None = None, data: bytes | None = None, **tags) -> dict:
    """Tags of an image (H, W) or (H, W, samples); those given go by number as `t258=8`."""
    samples = values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3, "c": 6}[values.dtype.kind]
    each = [bits or values.dtype.itemsize * 8] * samples
    entries = {256: values.shape[1], 257: values.shape[0], 258: each, 259: 1, 262: photometric, 277: samples}
    entries |= {278: values.shape[0], 339: [kind] * samples, "data": values.tobytes() if data is None else data}
    return entries | {int(name[1:]): value for name, value in tags.items()}


def packed(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples of so few bits, each row from a whole byte on."""
    every = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(values), -1)
    return np.packbits(every.astype(np.uint8), axis=1).tobytes()


def png(values: np.ndarray, depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of values (H, W) or (H, W, channels); kind: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    flat = values.reshape(len(values), -1)
    rows = [packed(row[None], depth) if depth < 8 else row.astype(f">u{depth // 8}").tobytes() for row in flat]
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, kind, 0, 0, 0)
    body = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


def saved(values: np.ndarray, form: str, mode: str | None = None, **how) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(values, "CMYK") if mode == "CMYK" else Image.fromarray(values)
    (image.convert(mode) if mode else image).save(buffer, form, **how)
    return buffer.getvalue()


def written(values: np.ndarray, **how) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **how)
    return buffer.getvalue()


NAN = (RAMP * 5 - 2).astype(np.float32)
NAN[:4], NAN[4, 0], NAN[5, :3], NAN[6, :3] = np.nan, np.nan, np.inf, -np.inf
FEW = {bits: np.round(RAMP * (2**bits - 1)).astype(np.uint16) for bits in (1, 2, 4, 10, 12, 14)}
TABLE = np.stack([np.arange(256)[::-1], np.arange(256), np.arange(256) // 2])
OVER = ALPHA / 255


def few(bits: int, photometric: int, **tags) -> bytes:
    return tiff(page(FEW[bits], photometric, bits, packed(FEW[bits], bits), **tags))


def alpha(values: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return np.concatenate([values if values.ndim == 3 else values[..., None], opacity[..., None]], axis=2)


VISIBLE = np.where(ALPHA > 0, DEEP, np.nan)
ALPHA_16 = ALPHA.astype(np.uint16) * 257
KEY = int(DEEP[3, 5])
SWITCHED = np.where(DEEP == KEY, np.nan, DEEP.astype(float))

CMYK = np.stack([GREY, GREY[::-1], 255 - GREY, GREY // 3], axis=-1)
TURNED = Image.Exif()
TURNED[0x0112] = 6

CASES = {
    # -- TIFF: depth, sign, byte order, photometric interpretation
    "grey 16, little-endian": (tiff(page(DEEP.astype("<u2"), 1)), window(DEEP)),
    "grey 16, big-endian": (tiff(page(DEEP.astype(">u2"), 1), endian=">"), window(DEEP)),
    "grey 16, 0 is white": (tiff(page(DEEP, 0)), window(-DEEP.astype(float))),
    "grey 16, signed": (tiff(page((DEEP.astype(int) - 32000).astype("<i2"), 1)), window(DEEP)),
    "grey 16, signed, big-endian, 0 is white": (
        tiff(page((DEEP.astype(int) - 32000).astype(">i2"), 0), endian=">"),
        window(-DEEP.astype(float)),
    ),
    "grey 32, above 2^31": (tiff(page((DEEP.astype(np.uint32) * 60000).astype("<u4"), 1)), window(DEEP)),
    "grey 64": (tiff(page(DEEP.astype(np.uint64) << 40, 1)), window(DEEP)),
    "grey 8, signed": (tiff(page((GREY.astype(int) - 128).astype(np.int8), 1)), window(GREY)),
    "grey 8, 0 is white": (tiff(page(GREY, 0)), 255.0 - GREY),
    "grey 8, BigTIFF, big-endian": (tiff(page(GREY, 1), endian=">", big=True), GREY),
    **{f"grey {bits}": (few(bits, 1), FEW[bits] / (2**bits - 1) * 255) for bits in (1, 2, 4)},
    **{f"grey {bits}, 0 is white": (few(bits, 0), 255 - FEW[bits] / (2**bits - 1) * 255) for bits in (1, 2, 4)},
    **{f"grey {bits}": (few(bits, 1), window(FEW[bits])) for bits in (10, 12, 14)},
    "grey 12, 0 is white": (few(12, 0), window(-FEW[12].astype(float))),
    "float 16": (tiff(page((RAMP * 60000).astype(np.float16), 1)), window((RAMP * 60000).astype(np.float16))),
    "float 32, big-endian": (tiff(page((RAMP - 0.5).astype(">f4"), 1), endian=">"), window(RAMP)),
    "float 64": (tiff(page(RAMP * 1e-30, 1)), window(RAMP)),
    "float 32 with NaN and infinities": (tiff(page(NAN, 1)), window(NAN)),
    "float 32 with NaN and infinities, 0 is white": (tiff(page(NAN, 0)), window(-NAN)),
    # -- TIFF: colour, palette, alpha
    "RGB 8, planes": (written(np.moveaxis(COLOUR, 2, 0), photometric="rgb", planarconfig="separate"), COLOUR),
    "RGB 16, planes, deflate": (
        written(np.moveaxis(DEEP_COLOUR, 2, 0), photometric="rgb", planarconfig="separate", compression="zlib"),
        window(DEEP_COLOUR),
    ),
    "RGB 16, big-endian": (tiff(page(DEEP_COLOUR.astype(">u2"), 2), endian=">"), window(DEEP_COLOUR)),
    "RGB float 32": (tiff(page((DEEP_COLOUR / 65535).astype(np.float32), 2)), window(DEEP_COLOUR)),
    "palette of 16 bits": (tiff(page(GREY, 3, t320=(TABLE * 257).ravel().tolist())), TABLE.T[GREY]),
    "palette of 16 bits, as v x 256": (tiff(page(GREY, 3, t320=(TABLE * 256).ravel().tolist())), TABLE.T[GREY]),
    "palette of 8 bits": (tiff(page(GREY, 3, t320=TABLE.ravel().tolist())), TABLE.T[GREY]),
    "palette of 4 bits": (few(4, 3, t320=(TABLE[:, :16] * 257).ravel().tolist()), TABLE.T[FEW[4]]),
    "palette of 1 bit": (
        few(1, 3, t320=[65535, 0, 0, 65535, 30000, 0]),
        np.array([[255, 0, 117], [0, 255, 0]])[FEW[1]],
    ),
    "grey 8 and alpha": (tiff(page(alpha(GREY, ALPHA), 1, t338=2)), GREY * OVER),
    "grey 8 and alpha, 0 is white": (tiff(page(alpha(GREY, ALPHA), 0, t338=2)), (255 - GREY) * OVER),
    "grey 16 and alpha": (tiff(page(alpha(DEEP, ALPHA_16), 1, t338=2)), window(DEEP, VISIBLE) * OVER),
    "RGBA 8": (tiff(page(alpha(COLOUR, ALPHA), 2, t338=2)), COLOUR * OVER[..., None]),
    "RGBA 8, alpha not named": (tiff(page(alpha(COLOUR, ALPHA), 2)), COLOUR * OVER[..., None]),
    "RGBA 8, multiplied": (
        tiff(page(alpha(np.round(COLOUR * OVER[..., None]).astype(np.uint8), ALPHA), 2, t338=1)),
        COLOUR * OVER[..., None],
    ),
    "RGB 8 and a sample of no meaning": (tiff(page(alpha(COLOUR, ALPHA), 2, t338=0)), COLOUR),
    # -- TIFF: orientation, pages, layout
    **{
        f"orientation {number}": (tiff(page(DEEP, 1, t274=number)), window(turned))
        for number, turned in {
            2: DEEP[:, ::-1],
            3: DEEP[::-1, ::-1],
            4: DEEP[::-1],
            5: DEEP.T,
            6: np.rot90(DEEP, -1),
            7: DEEP[::-1, ::-1].T,
            8: np.rot90(DEEP),
        }.items()
    },
    "a thumbnail before it": (tiff(page(GREY[:8, :8], 1, t254=1), page(GREY, 1)), GREY),
    "a mask after it": (tiff(page(GREY, 1), page(GREY, 4, t254=4)), GREY),
    "bits reversed": (
        tiff(page(FEW[1], 1, 1, packed(FEW[1].reshape(24, 5, 8)[..., ::-1].reshape(24, 40), 1), t266=2)),
        FEW[1] * 255,
    ),
    **{
        f"grey 16, {compression}": (written(DEEP, compression=compression, **how), window(DEEP))
        for compression, how in {
            "lzw": {"predictor": 2},
            "zlib": {"predictor": 2, "byteorder": ">"},
            "packbits": {},
            "zstd": {"tile": (16, 16)},
            "lzma": {"rowsperstrip": 5},
            "jpeg2000": {},
            "jpegxl": {},
            "lerc": {},
        }.items()
    },
    "float 32, deflate, predictor 3, tiles": (
        written(NAN, compression="zlib", predictor=3, tile=(16, 16)),
        window(NAN),
    ),
    "RGB 16, tiles, big-endian": (
        written(DEEP_COLOUR, tile=(16, 16), byteorder=">", photometric="rgb"),
        window(DEEP_COLOUR),
    ),
    "grey 16, LZW by Pillow": (saved(DEEP, "tiff", compression="tiff_lzw"), window(DEEP)),
    "grey 1, fax 4 by Pillow": (
        saved(GREY, "tiff", "1", compression="group4"),
        np.where(np.asarray(Image.fromarray(GREY).convert("1")), 255, 0),
    ),
    "grey 12, JPEG": (
        written(FEW[12], compression="jpeg", bitspersample=12, compressionargs={"level": 100, "bitspersample": 12}),
        window(FEW[12]),
    ),
    "CMYK 8": (
        tiff(page(alpha(COLOUR, GREY // 2), 5)),
        np.round((255.0 - COLOUR) * (255 - GREY[..., None] // 2) / 255),
    ),
    # -- PNG
    **{f"PNG grey {bits}": (png(FEW[bits], bits, 0), FEW[bits] / (2**bits - 1) * 255) for bits in (1, 2, 4)},
    "PNG grey 2, one transparent": (
        png(FEW[2], 2, 0, (b"tRNS", struct.pack(">H", 2))),
        np.where(FEW[2] == 2, 0, FEW[2] * 85),
    ),
    "PNG grey 8, one transparent": (png(GREY, 8, 0, (b"tRNS", b"\0\x80")), np.where(GREY == 128, 0, GREY)),
    "PNG grey 16": (png(DEEP, 16, 0), window(DEEP)),
    "PNG grey 16, gamma": (png(DEEP, 16, 0, (b"gAMA", struct.pack(">I", 45455))), window(DEEP)),
    "PNG grey 16, one transparent": (png(DEEP, 16, 0, (b"tRNS", struct.pack(">H", KEY))), window(SWITCHED)),
    "PNG grey and alpha 16": (png(alpha(DEEP, ALPHA_16), 16, 4), window(DEEP, VISIBLE) * OVER),
    "PNG grey and alpha 8": (png(alpha(GREY, ALPHA), 8, 4), GREY * OVER),
    "PNG grey 16, orientation 6": (saved(DEEP, "png", exif=TURNED), window(np.rot90(DEEP, -1))),
    "PNG RGB 16": (png(DEEP_COLOUR, 16, 2), window(DEEP_COLOUR)),
    "PNG RGBA 16": (
        png(alpha(DEEP_COLOUR, ALPHA_16), 16, 6),
        window(DEEP_COLOUR, np.where(ALPHA[..., None] > 0, DEEP_COLOUR, np.nan)) * OVER[..., None],
    ),
    "PNG RGBA 8": (png(alpha(COLOUR, ALPHA), 8, 6), COLOUR * OVER[..., None]),
    "PNG palette, transparent in part": (
        png(FEW[4], 4, 3, (b"PLTE", TABLE.T[:16].astype(np.uint8).tobytes()), (b"tRNS", bytes([0, 128]))),
        TABLE.T[FEW[4]] * np.array([0, 128 / 255] + [1] * 14)[FEW[4]][..., None],
    ),
    # -- others
    "JPEG 12": (imagecodecs.jpeg8_encode(FEW[12], bitspersample=12, level=100), window(FEW[12])),
    "JPEG lossless 16": (imagecodecs.ljpeg_encode(DEEP, bitspersample=16), window(DEEP)),
    "JPEG with fill bytes before its frame": (
        imagecodecs.ljpeg_encode(DEEP, bitspersample=16).replace(b"\xff\xc3", b"\xff\xff\xff\xc3", 1),
        window(DEEP),
    ),
    "JPEG 2000 grey 12": (imagecodecs.jpeg2k_encode(FEW[12], bitspersample=12), window(FEW[12])),
    "JPEG 2000 grey 16, signed": (imagecodecs.jpeg2k_encode((DEEP.astype(int) - 32000).astype(np.int16)), window(DEEP)),
    "JPEG 2000 RGB 16": (imagecodecs.jpeg2k_encode(DEEP_COLOUR), window(DEEP_COLOUR)),
    "JPEG 2000 grey 8, signed": (imagecodecs.jpeg2k_encode((GREY.astype(int) - 128).astype(np.int8)), window(GREY)),
    "JPEG 2000 grey and alpha 16": (imagecodecs.jpeg2k_encode(alpha(DEEP, ALPHA_16)), window(DEEP, VISIBLE) * OVER),
    "WebP with alpha": (saved(alpha(COLOUR, ALPHA), "webp", lossless=True, exact=True), COLOUR * OVER[..., None]),
    "JPEG, orientation 6": (saved(GREY, "jpeg", quality=100, exif=TURNED), np.rot90(GREY, -1)),
    "JPEG CMYK of Adobe, progressive": (
        saved(CMYK, "jpeg", mode="CMYK", quality=100, subsampling=0, progressive=True),
        np.round((255.0 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255),
    ),
    "BMP of a grey palette": (saved(GREY, "bmp"), GREY),
    "GIF with a transparent grey": (saved(GREY, "gif", transparency=128), np.where(GREY == 128, 0, GREY)),
    "GIF": (saved(GREY, "gif"), GREY),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_shows_what_its_format_says(name):
    data, right = CASES[name]
    found = see(data)
    if found.ndim == 3 and right.ndim == 2:
        right = right[..., None]
    tolerance = 4 if name.startswith("JPEG") else 1.01  # it loses some
    assert found.shape[:2] == right.shape[:2]
    assert np.abs(found - right).max() <= tolerance


# -- what is drawn at random ------------------------------------------------------------------------------------------

KINDS = [
    *("u1", "u2", "u4", "u8"),
    *("i1", "i2", "i4", "i8"),
    *("f2", "f4", "f8"),
]


@st.composite
def films(draw):
    """Values that fill a part of their type's range, some floating-point ones no number."""
    kind = np.dtype(draw(st.sampled_from(KINDS)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    unit = random.random((draw(st.integers(17, 40)), draw(st.integers(17, 40))))
    if kind.kind == "f":
        values = ((unit - draw(st.sampled_from([0, 0.5, 1]))) * draw(st.sampled_from([1e-3, 1, 6e4]))).astype(kind)
        odd = random.random(unit.shape) < draw(st.floats(0, 0.9))
        return np.where(odd, random.choice([np.nan, np.inf, -np.inf], unit.shape), values).astype(kind)
    info = np.iinfo(kind)
    span = min(2 ** draw(st.integers(3, kind.itemsize * 8)), 2**52)
    low = draw(st.integers(max(info.min, -(2**52)), min(info.max, 2**52) - span + 1))
    return (np.floor(unit * span).astype(np.int64).astype(object) + low).astype(kind)


@settings(max_examples=50, derandomize=True, deadline=None, database=None)
@given(
    values=films(),
    order=st.sampled_from("<>"),
    white=st.booleans(),
    how=st.sampled_from(
        [
            {},
            {"rowsperstrip": 7},
            {"tile": (16, 16)},
            {"compression": "zlib", "predictor": True},
            {"compression": "lzw", "predictor": True, "tile": (16, 32)},
            {"compression": "zstd"},
            {"compression": "packbits", "bigtiff": True},
        ]
    ),
)
def test_any_type_order_interpretation_and_compression_is_the_same_grey(values, order, white, how):
    if values.dtype in ("u8", "i8"):  # tifffile writes no differences of these
        how = how | {"predictor": False}
    photometric = "miniswhite" if white else "minisblack"
    data = written(values.astype(values.dtype.newbyteorder(order)), byteorder=order, photometric=photometric, **how)
    if values.dtype == np.uint8:
        right = 255.0 - values if white else values
    else:
        exact = values.astype(np.float64)
        right = window(-exact if white else exact)
    assert np.abs(see(data) - right).max() <= 1.01


# -- what is no picture, and what is wanted of it ---------------------------------------------------------------------

ANIMATED = io.BytesIO()
Image.fromarray(GREY).save(ANIMATED, "gif", save_all=True, append_images=[Image.fromarray(255 - GREY)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(page(np.full((9, 9), np.nan, np.float32), 1)), "no finite value in it"),
        (tiff(page(np.where(RAMP > 0.5, 1.7e308, -1.7e308), 1)), "values beyond 1e307"),
        (tiff(page(np.zeros((9, 9), np.complex64), 1)), "samples of 64 bits in sample format 6"),
        (tiff(page(FEW[12].astype(np.int16), 1, 12, packed(FEW[12], 12))), "samples of 12 bits in sample format 2"),
        (tiff(page(np.zeros((9, 9, 5), np.uint8), 1, t338=[0] * 4)), "5 values per pixel, not all of known meaning"),
        (tiff(page(np.zeros((9, 9, 2), np.uint16), 1, t338=0)), "2 values per pixel, not all of known meaning"),
        (tiff(page(alpha(DEEP_COLOUR, DEEP), 5)), "16 bits of photometric interpretation 5: make it grey or RGB"),
        (tiff(page(COLOUR, 8)), "8 bits of photometric interpretation 8: make it grey or RGB"),
        (tiff(page(alpha(GREY, GREY * 0), 1, t338=2)), "wholly transparent"),
        (imagecodecs.jpeg2k_encode(GREY // 16, bitspersample=4), "JPEG 2000 of 4 bits: make it 8"),
        (png(alpha(COLOUR, GREY * 0), 8, 6), "wholly transparent"),
        (tiff(page(GREY, 1) | {256: 60000, 257: 60000}), "60000 x 60000 pixels, more than 134,217,728"),
        (tiff(page(GREY, 3)), "places in a palette that it does not hold"),
        (tiff(page(GREY, 1) | {277: 60000}), "60000 values per pixel"),
        (tiff(page(GREY, 1) | {32997: 60000}), "a volume of 60000 slices in one page"),
        (
            written(np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16), photometric="minisblack"),
            "a volume of 16",
        ),
        (written(np.zeros((5, 9, 9), np.uint8), truncate=True, photometric="minisblack"), "one page for them all"),
        (tiff(page(GREY, 1), page(GREY, 1), page(GREY, 1)), "3 frames; --allow multi-frame takes each as an image"),
        (ANIMATED.getvalue(), "2 frames; --allow multi-frame takes each as an image"),
        (tiff(page(GREY, 1) | {278: 1}), "not a readable image"),
        (written(DEEP, compression="zlib")[:-300], "not a readable image"),
        (written(COLOUR, compression="jpeg", photometric="rgb")[:-99], "not a readable image"),
        (png(DEEP, 16, 0)[:-300], "not a readable image"),
        (imagecodecs.jpeg8_encode(FEW[12], bitspersample=12)[:-99], "not a readable image"),
        (imagecodecs.jpeg2k_encode(DEEP_COLOUR)[:-999], "not a readable image"),
    ],
)
def test_what_shows_no_picture_is_refused_with_the_true_reason(data, reason):
    with pytest.raises(ValueError, match=reason):
        open_image(data)


def test_pixels_beyond_all_films_are_refused_before_memory_is_taken(monkeypatch):
    jpeg, deep = imagecodecs.jpeg8_encode(FEW[12], bitspersample=12), png(DEEP, 16, 0)
    tiles = written(np.zeros((9, 9), np.uint8), tile=(64, 64), compression="zlib")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for data in (tiff(page(GREY, 1)), jpeg, deep, tiles):
        with pytest.raises(ValueError, match="pixels"):
            open_image(data)


def test_a_chain_of_pages_that_is_a_ring_ends():
    ring = bytearray(tiff(page(GREY, 1)))
    first = int.from_bytes(ring[4:8], "little")
    after = first + 2 + 12 * int.from_bytes(ring[first : first + 2], "little")
    ring[after : after + 4] = ring[4:8]
    assert np.array_equal(see(bytes(ring)), GREY)
    assert frames(io.BytesIO(ring)) == 1


def test_one_value_throughout_is_black_and_infinity_beside_it_white():
    flat = np.full((24, 40), 7, np.float32)
    assert see(tiff(page(flat, 1))).max() == 0
    flat[0, 0] = np.inf
    assert see(tiff(page(flat, 1))).tolist() == np.where(np.isinf(flat), 255.0, 0.0).tolist()


@pytest.mark.parametrize(("form", "how"), [("gif", {}), ("webp", {"lossless": True}), ("png", {}), ("tiff", {})])
def test_each_frame_of_a_file_is_a_picture(form, how):
    pictures = [GREY, 255 - GREY, GREY[::-1]]
    buffer = io.BytesIO()
    first, *others = (Image.fromarray(picture) for picture in pictures)
    first.save(buffer, form, save_all=True, append_images=others, **how)
    assert frames(io.BytesIO(buffer.getvalue())) == 3
    for number, right in enumerate(pictures):
        found = see(buffer.getvalue(), number)
        assert np.abs(found - (right if found.ndim == 2 else right[..., None])).max() <= 1


def test_the_second_picture_of_a_photograph_is_no_frame():
    buffer = io.BytesIO()
    Image.fromarray(GREY).save(buffer, "mpo", save_all=True, append_images=[Image.fromarray(GREY[:8, :8])])
    assert frames(io.BytesIO(buffer.getvalue())) == 1
    assert see(buffer.getvalue()).shape == GREY.shape

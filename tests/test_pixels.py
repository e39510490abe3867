import contextlib
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from medgan.data.decode import open_image
from medgan.pixels import encode_png, fit_image, grid, to_images, to_pixels, windowed


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def decode(data, resolution, channels, fit="crop"):
    return fit_image(open_image(data), resolution, channels, fit)


def test_every_byte_survives_the_way_to_images_and_back():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    images = to_images(pixels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_pixels(images), pixels)
    assert torch.equal(to_pixels(torch.tensor([[[[-3.0, 3.0]]]])), torch.tensor([[[[0, 255]]]], dtype=torch.uint8))


def test_crop_keeps_the_centre_pad_keeps_the_whole_and_squash_changes_the_shape():
    wide = np.zeros((64, 128), np.uint8)
    wide[:, 32:96] = 255  # the centre square is white
    assert decode(png(wide), 32, 1, "crop")[:, :, 2:-2].min() >= 250
    padded = decode(png(wide), 32, 1, "pad")[0]
    assert padded[:7].max() == 0
    assert padded[16, 16] == 255
    squashed = decode(png(wide), 32, 1, "squash")[0]
    assert squashed[:, :6].max() <= 2
    assert squashed[:, 12:20].min() >= 250


def test_resizing_is_antialiased():
    stripes = np.tile(np.array([0, 255], np.uint8), (256, 128))  # one-pixel stripes, 256x256
    small = decode(png(stripes), 32, 1).astype(int)
    assert np.abs(small - 127).max() <= 8  # sampling without a filter would give 0 or 255


@pytest.mark.parametrize("size", [(1000, 800), (700, 1100)])
def test_a_large_film_is_resized_as_by_lanczos_alone(size):
    random = np.random.default_rng(0)
    film = Image.fromarray(random.integers(0, 256, (40, 50)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    for fit, plain in (("crop", ImageOps.fit), ("pad", ImageOps.pad)):
        expected = np.asarray(plain(film, (64, 64), Image.Resampling.LANCZOS)).astype(int)
        assert np.abs(fit_image(film, 64, 1, fit)[0] - expected).max() <= 2


def test_colour_files_give_three_channels_or_their_luminance():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 255
    assert decode(png(red), 32, 3)[:, 0, 0].tolist() == [255, 0, 0]
    assert decode(png(red), 32, 1)[0, 0, 0] == 76


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", png(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))[:2000]],
    ids=["empty", "text", "cut short"],
)
def test_what_is_no_image_is_a_value_error(data):
    with pytest.raises(ValueError, match="not a readable image"):
        decode(data, 32, 1)


def test_whatever_a_damaged_file_raises_is_a_value_error():
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (64, 64)).astype(np.uint8)).save(buffer, "jpeg", exif=exif)
    whole = buffer.getvalue()
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in random.integers(0, 120, 3):  # where the header and EXIF are
            damaged[place] = random.integers(0, 256)
        with contextlib.suppress(ValueError):
            open_image(bytes(damaged))


def test_more_than_8_bits_are_windowed_and_not_cut():
    ramp = np.linspace(1000, 40000, 64 * 64).reshape(64, 64).astype(np.uint16)
    shown = np.asarray(open_image(png(ramp)))
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.abs(shown.astype(float) - np.linspace(0, 255, 64 * 64).reshape(64, 64)).max() < 1.5
    assert windowed(np.array([[-5.0, 0.0, 50.0, 100.0, 900.0]]), 0, 100).tolist() == [[0, 0, 128, 255, 255]]


def test_a_grid_puts_tiles_row_by_row():
    tiles = np.stack([np.full((1, 4, 4), value, np.uint8) for value in range(6)])
    sheet = grid(tiles, columns=3, gap=1)
    assert sheet.shape == (1, 11, 16)
    assert [sheet[0, y, x] for y in (2, 7) for x in (2, 7, 12)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="6 tiles"):
        grid(tiles, columns=4)


def test_png_bytes_hold_the_same_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32)).astype(np.uint8)
    assert np.array_equal(decode(encode_png(pixels), 32, 3), pixels)

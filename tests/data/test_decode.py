import io
import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from davae.data.decode import UnusableImage, center_crop_resize, check_image, decode_image

TILE = 24


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def corners() -> Image.Image:
    """Portrait, red in the upper left corner, green in the upper right one, blue below."""
    image = Image.new("RGB", (2 * TILE, 4 * TILE), "blue")
    image.paste("red", (0, 0, TILE, TILE))
    image.paste("lime", (TILE, 0, 2 * TILE, TILE))
    return image


def noise(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


STORED = {  # how the upright image lies in the file, by the EXIF standard's names for row 0 and column 0
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_applied_once(orientation, file_format):
    upright = np.asarray(corners())
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = encode(stored, file_format, exif=exif)
    assert check_image(data, "a", 1) == (4 * TILE, 2 * TILE)  # as it is shown
    decoded = decode_image(data, "a")
    assert decoded.size == (2 * TILE, 4 * TILE)
    inside = [(TILE // 2, TILE // 2), (3 * TILE // 2, TILE // 2), (TILE // 2, 3 * TILE)]
    for x, y in inside:
        assert np.abs(np.subtract(decoded.getpixel((x, y)), upright[y, x].astype(int))).max() <= 10


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), (255, 0, 0)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4), (10, 200, 30)),
    ],
    ids=["L", "1", "LA", "RGBA opaque", "RGBA clear", "P"],
)
def test_modes(image, expected):
    decoded = decode_image(encode(image), "a")
    assert decoded.mode == "RGB"
    assert decoded.getpixel((1, 1)) == expected


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    for transparency in (1, b"\xff\x00"):
        assert decode_image(encode(image, transparency=transparency), "a").getpixel((0, 0)) == (255, 255, 255)


def test_transparent_colour_is_white():
    data = encode(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    assert decode_image(data, "a").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk():
    decoded = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "a")
    assert np.abs(np.subtract(decoded.getpixel((8, 8)), (255, 0, 0))).max() <= 4


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_16_bit_is_scaled(file_format):
    values = np.array([[0, 128, 129, 257], [1000, 32768, 65406, 65535]], dtype=np.uint16)
    decoded = decode_image(encode(Image.fromarray(values), file_format), "a")
    assert np.array_equal(np.asarray(decoded)[..., 0], np.rint(values / 257))


def test_big_endian_16_bit():
    values = np.array([[0, 65535], [32896, 257]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 2), values.tobytes())
    decoded = decode_image(encode(image, "TIFF"), "a")
    assert np.asarray(decoded)[..., 0].tolist() == [[0, 255], [128, 1]]


def test_32_bit_integers_are_16_bit_values():
    image = Image.fromarray(np.array([[0, 65535], [32896, 257]], dtype=np.int32))
    assert np.asarray(decode_image(encode(image, "TIFF"), "a"))[..., 0].tolist() == [[0, 255], [128, 1]]
    beyond = encode(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)), "TIFF")
    with pytest.raises(UnusableImage, match="0 to 65535"):
        check_image(beyond, "a", 1)


def test_floats_are_fractions_of_white():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert np.asarray(decode_image(encode(image, "TIFF"), "a"))[0, :, 0].tolist() == [0, 128, 255]
    for wrong in (np.nan, -1.0, 200.0):
        data = encode(Image.fromarray(np.array([[0.0, wrong]], dtype=np.float32)), "TIFF")
        with pytest.raises(UnusableImage, match="allowed 0 to 1"):
            check_image(data, "a", 1)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("BMP", {}), ("TIFF", {})],
)
def test_truncated(file_format, options):
    data = encode(noise(), file_format, **options)
    check_image(data, "a", 48)
    for kept in (len(data) // 8, len(data) // 2, len(data) - 30):
        with pytest.raises(UnusableImage):
            check_image(data[:kept], "a", 1)
        with pytest.raises(UnusableImage):
            decode_image(data[:kept], "a")


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "the file is empty"), (b"<html>not found</html>", "not an image")]
)
def test_no_image(data, reason):
    for use in (lambda: check_image(data, "x.jpg", 1), lambda: decode_image(data, "x.jpg")):
        with pytest.raises(UnusableImage, match=f"x.jpg: {reason}"):
            use()


def test_postscript_is_refused():
    with pytest.raises(UnusableImage, match="not an image"):
        check_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a.jpg", 1)


def test_a_bomb_is_unusable():
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(UnusableImage, match="pixels"):
        check_image(b"\x89PNG\r\n\x1a\n" + chunk + b"\x00\x00\x00\x00IDAT", "a.png", 1)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_too_small(file_format):
    data = encode(noise(64, 48), file_format)
    check_image(data, "a", 48)
    with pytest.raises(UnusableImage, match="too small: 64x48, the shorter side needs 49"):
        check_image(data, "a", 49)


def test_unusable_image_pickles():
    error = pickle.loads(pickle.dumps(UnusableImage("a.png", "too small")))
    assert (error.name, error.reason, str(error)) == ("a.png", "too small", "a.png: too small")


def test_crop_is_the_centre():
    image = Image.new("RGB", (100, 40), "black")
    image.paste("white", (30, 0, 70, 40))
    assert (center_crop_resize(image, 40) == 255).all()
    turned = image.transpose(Image.Transpose.ROTATE_90)
    assert (center_crop_resize(turned, 40) == 255).all()


@pytest.mark.parametrize(("width", "height", "size"), [(64, 48, 48), (201, 133, 32), (133, 201, 50), (64, 64, 16)])
def test_crop_follows_the_reference(width, height, size):
    image = noise(width, height)
    got = center_crop_resize(image, size)
    reference = image  # guided-diffusion, image_datasets.center_crop_arr
    while min(*reference.size) >= 2 * size:
        reference = reference.resize(tuple(x // 2 for x in reference.size), resample=Image.Resampling.BOX)
    scale = size / min(*reference.size)
    reference = reference.resize(tuple(round(x * scale) for x in reference.size), resample=Image.Resampling.BICUBIC)
    pixels = np.array(reference)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    assert got.dtype == torch.uint8
    assert got.shape == (3, size, size)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), pixels[top : top + size, left : left + size])


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(201, 133, (32, 48)), (133, 201, (100, 50)), (64, 48, (48, 64)), (640, 97, (24, 96))],
)
def test_a_crop_of_any_shape_just_fills_it(width, height, size):
    image = noise(width, height)
    got = center_crop_resize(image, size)
    assert got.shape == (3, *size)
    reference = image
    while reference.width >= 2 * size[1] and reference.height >= 2 * size[0]:
        reference = reference.resize((reference.width // 2, reference.height // 2), Image.Resampling.BOX)
    scale = max(size[1] / reference.width, size[0] / reference.height)
    assert scale <= 1
    shape = (round(reference.width * scale), round(reference.height * scale))
    assert shape[0] == size[1] or shape[1] == size[0]
    pixels = np.array(reference.resize(shape, Image.Resampling.BICUBIC))
    top, left = (shape[1] - size[0]) // 2, (shape[0] - size[1]) // 2
    assert np.array_equal(got.permute(1, 2, 0).numpy(), pixels[top : top + size[0], left : left + size[1]])


def test_a_square_pair_is_a_side():
    assert torch.equal(center_crop_resize(noise(201, 133), (32, 32)), center_crop_resize(noise(201, 133), 32))


@pytest.mark.parametrize("size", [0, 49, (49, 10), (10, 65), (0, 10)])
def test_crop_never_enlarges(size):
    with pytest.raises(ValueError, match="never enlarged"):
        center_crop_resize(noise(64, 48), size)

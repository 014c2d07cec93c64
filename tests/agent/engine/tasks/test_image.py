"""Pictures become the tensors that a release declares."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agent.engine.tasks import image as module
from agent.engine.tasks.image import ImageReader
from agent.engine.tensors import TensorError
from wire.manifest import Quantization, TensorSpec
from wire.task import ImageInput


def spec(*shape: int, datatype: Any = "FP32", quantization: Any = None) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape, quantization=quantization)


def encoded(pixels: Any, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def random_pixels(height: int, width: int) -> Any:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def test_a_picture_of_the_right_size_is_normalised_and_nothing_else() -> None:
    pixels = random_pixels(5, 7)
    given = ImageInput(scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))

    read = ImageReader(given, spec(1, 5, 7, 3)).read([encoded(pixels)])

    wanted = (pixels / 255 - (0.4, 0.5, 0.6)) / (0.2, 0.3, 0.4)
    assert read.inputs[0].dtype == np.float32
    np.testing.assert_allclose(read.inputs[0][0], wanted, rtol=1e-5)


def test_layout_and_order_of_channels_are_as_declared() -> None:
    pixels = random_pixels(4, 6)

    bgr = ImageReader(ImageInput(channels="BGR"), spec(-1, 4, 6, 3)).read([encoded(pixels)])
    planes = ImageReader(ImageInput(layout="NCHW"), spec(-1, 3, 4, 6)).read([encoded(pixels)])
    grey = ImageReader(ImageInput(channels="L"), spec(-1, 4, 6, 1)).read([encoded(pixels)])

    assert (bgr.inputs[0][0] == pixels[..., ::-1]).all()
    assert (planes.inputs[0][0] == pixels.transpose(2, 0, 1)).all()
    assert planes.inputs[0].flags.c_contiguous
    luma = pixels @ (0.299, 0.587, 0.114)
    assert np.abs(grey.inputs[0][0, ..., 0] - luma).max() <= 1


@pytest.mark.parametrize(("datatype", "zero_point"), [("INT8", -128), ("UINT8", 0), ("INT8", 3)])
def test_quantized_inputs_get_integers_by_their_own_scale(datatype: str, zero_point: int) -> None:
    pixels = random_pixels(4, 4)
    quantization = Quantization(scale=(1 / 127,), zero_point=(zero_point,))

    given = ImageInput(mean=(127.5,), std=(127.5,))
    read = ImageReader(given, spec(1, 4, 4, 3, datatype=datatype, quantization=quantization))
    tensor = read.read([encoded(pixels)]).inputs[0]

    limits = np.iinfo(tensor.dtype)
    reals = (pixels - 127.5) / 127.5
    wanted = np.clip(np.rint(reals * 127) + zero_point, limits.min, limits.max)
    assert str(tensor.dtype).upper() == datatype
    assert (tensor[0] == wanted).all()


def test_bytes_stay_bytes_for_a_model_of_bytes() -> None:
    pixels = random_pixels(4, 4)

    tensor = ImageReader(ImageInput(), spec(1, 4, 4, 3, datatype="UINT8")).read([encoded(pixels)])

    assert tensor.inputs[0].dtype == np.uint8
    assert (tensor.inputs[0][0] == pixels).all()


def test_a_letterbox_keeps_the_shape_and_knows_where_the_picture_lies() -> None:
    white = np.full((100, 200, 3), 255, np.uint8)

    read = ImageReader(ImageInput(resize="letterbox", pad=7), spec(1, 64, 64, 3)).read(
        [encoded(white)]
    )

    tensor, [frame] = read.inputs[0][0], read.frames
    assert (tensor[16:48] == 255).all()
    assert (tensor[:16] == 7).all() and (tensor[48:] == 7).all()
    assert (frame.width, frame.height) == (200, 100)
    assert frame.on_picture(np.array([[0, 0.25], [1, 0.75], [0.5, 0.5]])).tolist() == [
        [0, 0], [200, 100], [100, 50],
    ]  # fmt: skip


def test_a_crop_takes_the_middle_and_knows_where_it_was() -> None:
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 50:150] = 255

    read = ImageReader(ImageInput(resize="crop", filter="nearest"), spec(1, 50, 50, 3)).read(
        [encoded(pixels)]
    )

    assert (read.inputs[0] == 255).all()
    corners = read.frames[0].on_picture(np.array([[0.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(corners, [[50, 0], [150, 100]], atol=1e-9)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    ramp = np.linspace(0, 255, 2400).astype(np.uint8)
    pixels = np.stack([np.tile(ramp, (1600, 1))] * 3, axis=-1)

    tensor = ImageReader(ImageInput(), spec(1, 64, 64, 3)).read([encoded(pixels, "JPEG")])

    wanted = ramp.reshape(64, -1).mean(axis=1) if len(ramp) % 64 == 0 else np.interp(
        (np.arange(64) + 0.5) / 64, np.linspace(0, 1, 2400), ramp
    )  # fmt: skip
    assert np.abs(tensor.inputs[0][0, 32, :, 0] - wanted).max() < 4


@pytest.mark.parametrize(
    ("mode", "value"),
    [("1", 1), ("L", 90), ("P", 5), ("RGBA", (9, 90, 200, 0)), ("I;16", 90 * 256)],
)
def test_every_kind_of_png_is_read(mode: str, value: Any) -> None:
    picture = Image.new(mode, (8, 8), value)

    tensor = ImageReader(ImageInput(), spec(1, 8, 8, 3)).read([encoded(picture)]).inputs[0]

    wanted = {"1": [255] * 3, "L": [90] * 3, "I;16": [90] * 3, "RGBA": [9, 90, 200]}
    if mode in wanted:
        assert tensor[0, 0, 0].tolist() == wanted[mode]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    upright = np.zeros((40, 80, 3), np.uint8)
    upright[:20, :40] = 255  # its upper left quarter is white
    turns = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = Image.fromarray(upright)
    if orientation in turns:
        stored = stored.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation

    read = ImageReader(ImageInput(filter="nearest"), spec(1, 4, 4, 3)).read(
        [encoded(stored, "JPEG", quality=95, exif=exif)]
    )

    assert (read.frames[0].width, read.frames[0].height) == (80, 40)
    bright = read.inputs[0][0, ..., 0] > 128
    assert bright[:2, :2].all() and bright.sum() == 4


def test_a_batch_is_as_large_as_its_tensors_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ImageReader(ImageInput(), spec(-1, 100, 100, 3))
    picture = encoded(random_pixels(10, 10))
    monkeypatch.setattr(module, "MAX_BATCH_BYTES", 3 * 100 * 100 * 3 * 4)

    assert reader.read([picture] * 3).inputs[0].shape == (3, 100, 100, 3)
    with pytest.raises(TensorError, match="expected 1 to 3 pictures, got 4"):
        reader.read([picture] * 4)
    with pytest.raises(TensorError, match="expected 1 to 3 pictures, got 0"):
        reader.read([])


@pytest.mark.parametrize("format", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused_before_their_decoders_see_them(format: str) -> None:
    with pytest.raises(TensorError, match="JPEG or PNG"):
        ImageReader(ImageInput(), spec(1, 8, 8, 3)).read([encoded(random_pixels(8, 8), format)])


def test_no_mutilated_picture_does_more_than_be_refused() -> None:
    reader = ImageReader(ImageInput(), spec(1, 16, 16, 3))
    chance = np.random.default_rng(11)
    whole = [encoded(random_pixels(32, 32)), encoded(random_pixels(32, 32), "JPEG")]

    refused = 0
    for turn in range(300):
        data = bytearray(whole[turn % 2])
        for place in chance.integers(0, len(data), chance.integers(1, 12)):
            data[place] = chance.integers(0, 256)
        del data[chance.integers(len(data) // 2, len(data) + 1) :]
        try:
            tensor = reader.read([bytes(data)]).inputs[0]
        except TensorError:
            refused += 1
        else:
            assert tensor.shape == (1, 16, 16, 3)

    assert 100 < refused <= 300

"""RAD-DINO features of pictures: the protocol's two resizes, and batches."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unix_jax.errors import CheckpointError, ConfigError, ImageError, MetricError
from unix_jax.evaluation.features import RadDino, rad_dino_image
from unix_jax.models.dinov2 import RAD_DINO_MEAN, RAD_DINO_STD
from unix_jax.preprocessing.images import load_image

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics_tiny"
PICTURES = [GOLDEN / f"image{i}.png" for i in range(3)]


@pytest.fixture(scope="module")
def encoder():
    return RadDino.from_pretrained(GOLDEN / "rad_dino")


def test_the_two_resizes():
    picture = load_image(PICTURES[0])
    assert picture.width != picture.height
    squashed = picture.resize((299, 299), Image.Resampling.BILINEAR)
    expected = np.asarray(squashed.resize((518, 518), Image.Resampling.BICUBIC), np.float32) / 255
    ours = rad_dino_image(picture)
    assert ours.shape == (518, 518, 3)
    np.testing.assert_allclose(ours, (expected - RAD_DINO_MEAN) / RAD_DINO_STD, atol=1e-5)


@pytest.mark.parametrize("size", [(60, 40), (40, 61), (28, 28)])
def test_without_the_squash_the_centre_is_cut_out(size):
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.uint8)
    pixels = rad_dino_image(Image.fromarray(ramp).convert("RGB"), 28, squash=None)
    assert pixels.shape == (28, 28, 3)
    back = (pixels * RAD_DINO_STD + RAD_DINO_MEAN) * 255
    assert back.mean() == pytest.approx(ramp.mean(), abs=1.5)


def test_an_image_alone_is_that_image_among_others(encoder, assert_close):
    features = encoder.features(PICTURES, batch_size=2)
    assert features.shape == (3, 32)
    assert features.dtype == np.float32
    assert_close(encoder.features(PICTURES[2:], batch_size=2), features[2:], 1e-6)
    done = []
    encoder.features(iter(PICTURES), batch_size=2, progress=done.append)
    assert done == [2, 1]
    assert [len(block) for block in encoder.blocks(PICTURES, batch_size=2)] == [2, 1]
    assert encoder.features([]).shape == (0, 32)
    assert not np.allclose(encoder.features(PICTURES, batch_size=2, squash=None), features)


def test_what_is_refused(encoder, tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        encoder.features([tmp_path / "none.png"])
    with pytest.raises(MetricError, match="batch_size: expected at least 1"):
        encoder.features(PICTURES, batch_size=0)
    with pytest.raises(MetricError, match="squash: expected at least 1 pixel, found 0"):
        encoder.features(PICTURES, squash=0)
    with pytest.raises((ConfigError, CheckpointError), match="no such file"):
        RadDino.from_pretrained(tmp_path)

"""BioViL-T: cosines, inputs, files, and the networks of its package where that runs."""

import json

import numpy as np
import pytest
from PIL import Image

from unix_jax.errors import CheckpointError, ConfigError, MetricError, UniXError
from unix_jax.evaluation.alignment import (
    IMAGE_WEIGHTS,
    BioViLT,
    biovil_image,
    cosine_similarities,
)

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "effusion", ".", "large"]
SIZES = {
    "vocab_size": len(PIECES),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 16,
    "projection_size": 128,
}


def test_cosines():
    a = np.array([[1, 0], [2, 2], [0, 0], [3, 4]])
    b = np.array([[5, 0], [-1, -1], [1, 1], [4, -3]])
    np.testing.assert_allclose(cosine_similarities(a, b), [1, -1, 0, 0], atol=1e-12)
    for wrong, message in (
        (b[:3], r"text_embeddings: expected \[4, 2\] as image_embeddings, found \[3, 2\]"),
        (np.where(b == 5, np.nan, b), "text_embeddings: expected finite numbers"),
    ):
        with pytest.raises(MetricError, match=message):
            cosine_similarities(a, wrong)


def test_pixels():
    ramp = np.tile(np.linspace(50, 100, 600).astype(np.uint8), (512, 1))
    pixels = biovil_image(Image.fromarray(ramp).convert("RGB"))
    assert pixels.shape == (3, 448, 448)
    # The range is stretched before the sides are cut off.
    assert pixels[0, 0, 0] == pytest.approx(76 / 600, abs=0.03)
    assert pixels[0, 0, -1] == pytest.approx(524 / 600, abs=0.03)
    assert biovil_image(Image.new("RGB", (20, 30), "white")).max() == 0


def test_files_that_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config.json: no such file"):
        BioViLT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"expected one of vocab.txt, tokenizer.json"):
        BioViLT.from_pretrained(tmp_path)


@pytest.fixture
def networks():
    """(torch, the package's image network, its text network), random."""
    torch = pytest.importorskip("torch")
    try:
        from health_multimodal.image.model.model import ImageModel
        from health_multimodal.text.model import CXRBertConfig, CXRBertModel
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"hi-ml-multimodal does not run here: {error}")
    torch.manual_seed(0)
    image = ImageModel(img_encoder_type="resnet50_multi_image", joint_feature_size=128)
    return torch, image.eval(), CXRBertModel(CXRBertConfig(**SIZES)).eval()


@pytest.mark.slow
def test_the_packages_networks_with_weights_read_here(networks, tmp_path, assert_close):
    torch, image, text = networks
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    torch.save(text.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=IMAGE_WEIGHTS):
        BioViLT.from_pretrained(tmp_path)
    torch.save(image.state_dict(), tmp_path / IMAGE_WEIGHTS)
    model = BioViLT.from_pretrained(tmp_path)
    pictures = [Image.effect_noise((500, 460), 60).convert("RGB") for _ in range(3)]
    pixels = torch.from_numpy(np.stack([biovil_image(picture) for picture in pictures]))
    with torch.no_grad():
        expected = image(pixels).projected_global_embedding.numpy()
        ids = torch.tensor([[2, 5, 6, 3]])
        words = text.get_projected_text_embeddings(ids, torch.ones_like(ids), False).numpy()
    assert_close(model.image_embeddings(pictures, batch_size=2), expected)
    texts = ["No effusion.", "large effusion", "large " * 40]
    assert_close(model.text_embeddings(texts, batch_size=2)[:1], words)
    scores = model.scores(pictures, texts)
    assert scores.shape == (3,)
    assert scores[0] == pytest.approx(cosine_similarities(expected[:1], words)[0], abs=1e-5)
    with pytest.raises(MetricError, match="texts: expected 3 as images, found 1"):
        model.scores(pictures, ["a"])


def test_an_absent_package_is_named(tmp_path):
    try:
        import health_multimodal.text.model  # noqa: F401
    except (ImportError, RuntimeError):
        (tmp_path / "vocab.txt").write_text("\n".join(PIECES) + "\n")
        (tmp_path / "config.json").write_text(json.dumps(SIZES))
        with pytest.raises(UniXError, match="pip install 'hi-ml-multimodal"):
            BioViLT.from_pretrained(tmp_path)

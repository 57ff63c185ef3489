"""Nearest rows by blocks, and the networks of PyTorch against the code that they come from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unix_jax.errors import CheckpointError, MetricError, UniXError
from unix_jax.evaluation import nearest
from unix_jax.evaluation.batches import batches
from unix_jax.evaluation.inception import Inception, inception_image, softmax
from unix_jax.evaluation.radiomics import radiomics_distance
from unix_jax.evaluation.reid import Reidentification


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 7), st.integers(0, 99))
def test_nearest_rows_do_not_depend_on_blocks(queries, rows, size, seed):
    rng = np.random.default_rng(seed)
    asked, among = rng.normal(size=(queries, 4)), rng.normal(size=(rows, 4))
    found = nearest.Nearest(asked)
    for start in range(0, rows, size):
        found.update(among[start : start + size], np.arange(start, min(start + size, rows)))
    every = np.sqrt(((asked[:, None] - among) ** 2).mean(-1))
    np.testing.assert_allclose(found.distances, every.min(1), atol=1e-7)
    np.testing.assert_array_equal(found.indices, every.argmin(1))


def test_the_first_of_equal_rows_and_other_distances():
    found = nearest.Nearest(np.zeros((1, 2)), lambda a, b: -np.abs(a[:, None] - b).sum(-1))
    found.update(np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([7, 8]))
    found.update(np.array([[0.0, 2.0]]), np.array([9]))
    assert (found.distances[0], found.indices[0]) == (-2, 7)
    with pytest.raises(MetricError, match=r"rows: expected 2 columns, found \[1, 3\]"):
        found.update(np.zeros((1, 3)), np.array([1]))


def test_distances_of_pixels_do_not_wrap():
    """The benchmark subtracts unsigned bytes, where 0 - 255 is 1."""
    black, white = (nearest.gray_pixels(Image.new("L", (9, 9), gray))[None] for gray in (0, 255))
    assert nearest.root_mean_square(black, white)[0, 0] == pytest.approx(255)
    assert nearest.root_mean_square(white, white)[0, 0] == 0
    assert nearest.pair_image(Image.new("L", (5, 9))).size == (512, 512)


def test_batches():
    assert list(batches("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]
    with pytest.raises(MetricError, match="batch_size: expected at least 1, found 0"):
        list(batches("a", 0))


def test_radiomics_distance_at_its_edges():
    real = np.random.default_rng(0).normal(size=(9, 3))
    wide = np.hstack([real, np.ones((9, 1))])
    other = np.hstack([real[:7] * 2, np.zeros((7, 1))])
    assert radiomics_distance(wide, other) == pytest.approx(radiomics_distance(real, other[:, :3]))
    for a, b, message in (
        (real, real, "another set than real, found an equal one"),
        (np.ones((3, 2)), np.eye(3)[:, :2], "a column that varies, found none"),
        (real, real[:, :2], "fake: expected 3 columns"),
        (real[:1], real, "expected at least 2 rows, found 1"),
    ):
        with pytest.raises(MetricError, match=message):
            radiomics_distance(a, b)


def test_softmax():
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0], [0, np.log(3)]])),
                               [[0.5, 0.5], [0.25, 0.75]])  # fmt: skip
    with pytest.raises(MetricError, match="logits: expected finite numbers"):
        softmax(np.array([[np.inf, 0]]))


def test_scores_of_pairs():
    network = Reidentification(None, np.array([1.0, -2.0]), 0.5)
    a, b = np.array([[0.0, 1.0], [1.0, 1.0]]), np.array([[0.5, 0.0]])
    expected = [[1 / (1 + np.exp(-(0.5 + 0.5 - 2)))]] * 2
    np.testing.assert_allclose(network.scores(a, b), expected)


def test_an_absent_package_is_named(tmp_path):
    for kind, extra in ((Inception, "inception"), (Reidentification, "reid")):
        try:
            import torch_fidelity  # noqa: F401
            import torchvision  # noqa: F401
        except (ImportError, RuntimeError):
            with pytest.raises(UniXError, match=rf"pip install 'unix-jax\[{extra}\]'"):
                kind.from_pretrained(tmp_path / "weights.pth")


# --- with PyTorch ------------------------------------------------------------------------------


def colours(count):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(count)]


def test_inception_is_that_of_torch_fidelity(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        network = kind("any", ["2048", "logits_unbiased"])
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    images = colours(3)
    pooled, logits = Inception.from_pretrained(path).features(images, batch_size=2)
    with torch.inference_mode():
        pixels = torch.from_numpy(np.stack([inception_image(image) for image in images]))
        for ours, expected in zip((pooled, logits), network(pixels), strict=True):
            np.testing.assert_allclose(ours, expected.numpy(), rtol=1e-4, atol=1e-6)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="expected the weights of torch-fidelity's"):
        Inception.from_pretrained(path)


def test_re_identification_is_that_of_the_benchmark(tmp_path):
    torch = pytest.importorskip("torch")
    models = pytest.importorskip("torchvision.models")
    transforms = pytest.importorskip("torchvision.transforms")
    branch = models.resnet50(weights=None)
    branch.fc = torch.nn.Linear(2048, 128)
    last = torch.nn.Linear(128, 1)
    both = torch.nn.ModuleDict({"model": branch, "fc_end": last}).eval()
    torch.save(both.state_dict(), tmp_path / "reid.pth")
    images = [nearest.pair_image(image) for image in colours(2)]
    network = Reidentification.from_pretrained(tmp_path / "reid.pth")
    rows = network.embeddings(images)
    prepare = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor()])
    with torch.inference_mode():
        a, b = (torch.sigmoid(branch(prepare(image)[None])) for image in images)
        expected = torch.sigmoid(last(torch.abs(a - b))).item()
    assert network.scores(rows, rows)[0, 1] == pytest.approx(expected, abs=1e-5)
    torch.save({"model.conv1.weight": torch.ones(2)}, tmp_path / "reid.pth")
    with pytest.raises(CheckpointError, match=r"reid\.pth"):
        Reidentification.from_pretrained(tmp_path / "reid.pth")

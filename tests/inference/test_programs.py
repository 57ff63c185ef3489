"""The bound on compiled programs."""

import dataclasses

import pytest

from unix_jax.inference import programs
from unix_jax.inference.programs import ProgramBudget, image_shape, report_shape
from unix_jax.inference.settings import ImageSettings, ReportSettings


@pytest.fixture
def cleared(monkeypatch):
    calls = []
    monkeypatch.setattr(programs.jax, "clear_caches", lambda: calls.append(1))
    return calls


def test_programs_are_freed_before_there_are_too_many(cleared):
    budget = ProgramBudget(2)
    for shape in "ababa":
        budget.use(shape)
    assert cleared == []
    budget.use("c")
    assert len(cleared) == budget.freed == 1
    budget.use("a")
    budget.use("c")
    assert len(cleared) == 1
    budget.use("b")
    assert len(cleared) == 2


IMAGE = ImageSettings(height=64, width=64)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"num_inference_steps": 20}, True),
        ({"guidance_scale": 3.0}, True),
        ({"timestep_shift": 2.0}, True),
        ({"num_inference_steps": 64}, False),
        ({"guidance_scale": 1.0}, False),
        ({"height": 32}, False),
        ({"renorm": "channel"}, False),
        ({"solver": "ab2"}, False),
    ],
)
def test_shapes_of_images(change, same):
    changed = dataclasses.replace(IMAGE, **change)
    assert (image_shape(changed, 1, 9) == image_shape(IMAGE, 1, 9)) is same


def test_shapes_of_reports():
    base = ReportSettings(max_new_tokens=64)
    assert report_shape(base, 1, 1, 9) == report_shape(ReportSettings(max_new_tokens=1), 1, 1, 64)
    for other in (
        report_shape(base, 2, 1, 9),
        report_shape(base, 1, 2, 9),
        report_shape(base, 1, 1, 65),
        report_shape(ReportSettings(max_new_tokens=65), 1, 1, 9),
        report_shape(ReportSettings(max_new_tokens=64, temperature=1.0), 1, 1, 9),
    ):
        assert other != report_shape(base, 1, 1, 9)

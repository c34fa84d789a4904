import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse import geometry


def direct_uniformity(embeddings: torch.Tensor) -> float:
    """The formula of Wang and Isola's own code: log of the mean of exp(-2 pdist²)."""
    unit = embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)
    return float(torch.pdist(unit).pow(2).mul(-2).exp().mean().log())


@pytest.mark.parametrize("block", [1, 4, 7, 100])
def test_uniformity_equals_the_direct_formula_for_any_block(monkeypatch, block):
    monkeypatch.setattr(geometry, "_BLOCK", block)
    embeddings = torch.randn(23, 6, generator=torch.Generator().manual_seed(0))
    assert geometry.uniformity(embeddings) == pytest.approx(
        direct_uniformity(embeddings), abs=1e-10
    )


def test_uniformity_of_equal_and_of_opposite_points():
    assert geometry.uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-12)
    assert geometry.uniformity(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-8)


def test_alignment_closed_forms():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert geometry.alignment(east, 3 * east) == pytest.approx(0)
    assert geometry.alignment(east, north) == pytest.approx(2)
    assert geometry.alignment(east, -east) == pytest.approx(4)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_ranges(rows, seed):
    torch.manual_seed(seed)
    left, right = torch.randn(2, rows, 3)
    assert 0 <= geometry.alignment(left, right) <= 4
    assert -8 <= geometry.uniformity(left) <= 1e-12
    assert math.isfinite(geometry.uniformity(left))


def test_errors():
    with pytest.raises(ValueError, match="pairs > 0"):
        geometry.alignment(torch.empty(0, 3), torch.empty(0, 3))
    with pytest.raises(ValueError, match="rows > 1"):
        geometry.uniformity(torch.ones(1, 3))

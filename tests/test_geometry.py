import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simcse.evaluation import geometry


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


def cosines(embeddings):
    unit = embeddings.double() / embeddings.double().norm(dim=1, keepdim=True)
    return unit @ unit.T


@pytest.mark.parametrize("block", [1, 5, 100])
def test_blocked_figures_equal_the_direct_formulas(monkeypatch, block):
    monkeypatch.setattr(geometry, "_BLOCK", block)
    left, right = torch.randn(2, 17, 6, generator=torch.Generator().manual_seed(1))
    left = left + 1  # not centred
    pairs = [
        float(cosines(left)[i, j]) for i in range(17) for j in range(17) if i != j
    ]  # a double loop
    assert geometry.mean_cosine(left) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    unit = left.double() / left.double().norm(dim=1, keepdim=True)
    direct = torch.linalg.svdvals((unit - unit.mean(dim=0)) / math.sqrt(17))
    torch.testing.assert_close(geometry.singular_values(left), direct, atol=1e-7, rtol=0)
    distances = [
        float(((a / a.norm() - b / b.norm()) ** 2).sum())
        for a, b in zip(left.double(), right.double(), strict=True)
    ]
    assert geometry.alignment(left, right) == pytest.approx(sum(distances) / 17, abs=1e-12)


def test_spread_does_not_depend_on_the_axes():
    embeddings = torch.randn(40, 5, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 6)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3))).Q
    for figure in (geometry.singular_values, geometry.mean_cosine, geometry.uniformity):
        turned = torch.as_tensor(figure(embeddings @ turn), dtype=torch.float64)
        torch.testing.assert_close(
            turned, torch.as_tensor(figure(embeddings), dtype=torch.float64), atol=1e-6, rtol=1e-6
        )


def test_effective_rank_closed_forms():
    assert geometry.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert geometry.effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    assert geometry.effective_rank(torch.zeros(3)) == 0
    two = torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert geometry.effective_rank(two) == pytest.approx(math.exp(entropy))


def test_collapse_verdicts():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(500, 32, generator=generator)
    plane = torch.zeros(500, 32)
    plane[:, :2] = spread[:, :2]
    point = torch.ones(500, 32) + 0.01 * spread

    def verdict(embeddings):
        rank = geometry.effective_rank(geometry.singular_values(embeddings))
        return geometry.collapse(geometry.mean_cosine(embeddings), rank)

    assert verdict(spread) == "none"
    assert verdict(plane) == "dimensional"
    assert verdict(point) == "complete"


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_rows():
    # 20,000 rows: all pairs at once would be 3.2 GB. A process of its own: the peak never falls.
    code = (
        "import resource, torch\n"
        "from simcse.evaluation import geometry\n"
        "x = torch.randn(20_000, 16)\n"
        "geometry.uniformity(x[:5000])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "geometry.uniformity(x), geometry.mean_cosine(x), geometry.singular_values(x)\n"
        "geometry.alignment(x, x)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(answer.stdout) < 600_000, answer.stderr  # KiB

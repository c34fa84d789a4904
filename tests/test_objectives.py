import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from simcse.objectives import info_nce


def naive_info_nce(anchor: torch.Tensor, positive: torch.Tensor, temperature: float) -> float:
    """Equation 1 of the paper, written as two loops over rows."""
    total = 0.0
    for i in range(len(anchor)):
        scores = []
        for j in range(len(positive)):
            dot = sum(float(a) * float(b) for a, b in zip(anchor[i], positive[j], strict=True))
            length = math.sqrt(sum(float(a) ** 2 for a in anchor[i]))
            length *= math.sqrt(sum(float(b) ** 2 for b in positive[j]))
            scores.append(dot / length / temperature)
        total += -math.log(math.exp(scores[i]) / sum(map(math.exp, scores)))
    return total / len(anchor)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_equals_the_naive_double_loop(temperature):
    torch.manual_seed(0)
    anchor, positive = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = naive_info_nce(anchor, positive, temperature)
    assert float(info_nce(anchor, positive, temperature)) == pytest.approx(expected, rel=1e-12)


def test_worked_example():
    # Similarities are the 2x2 identity: P = e / (e + 1) = 0.7311, loss = 0.3133.
    loss = info_nce(torch.eye(2), torch.eye(2), temperature=1.0)
    assert float(loss) == pytest.approx(-math.log(math.e / (math.e + 1)), abs=1e-6)
    assert round(float(loss), 4) == 0.3133


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_equal_embeddings_give_log_batch(batch):
    same = torch.ones(batch, 3)
    assert float(info_nce(same, same, 0.05)) == pytest.approx(math.log(batch), abs=1e-5)


def test_gradient():
    torch.manual_seed(0)
    anchor, positive = torch.randn(2, 4, 3, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(lambda a, p: info_nce(a, p, 0.3), (anchor, positive))


def test_permuted_positives_raise_the_loss():
    torch.manual_seed(0)
    anchor = torch.randn(16, 8)
    positive = anchor + 0.1 * torch.randn(16, 8)
    assert info_nce(anchor, positive.roll(1, dims=0), 0.05) > info_nce(anchor, positive, 0.05) + 1


@given(
    scale=st.floats(0.01, 100),
    order=st.permutations(range(6)),
    temperature=st.floats(0.05, 5),
)
def test_length_and_order_do_not_matter(scale, order, temperature):
    torch.manual_seed(0)
    anchor, positive = torch.randn(2, 6, 4, dtype=torch.float64)
    expected = float(info_nce(anchor, positive, temperature))
    again = info_nce(scale * anchor[list(order)], positive[list(order)], temperature)
    assert float(again) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equals_sentence_transformers():
    torch.manual_seed(0)
    anchor, positive = torch.randn(2, 32, 16)
    library = MultipleNegativesRankingLoss(model=None, scale=1 / 0.05)
    expected = library.compute_loss_from_embeddings([anchor, positive], labels=None)
    torch.testing.assert_close(info_nce(anchor, positive, 0.05), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_rejects_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must be positive, got"):
        info_nce(torch.eye(2), torch.eye(2), temperature)


def test_rejects_shapes():
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3, 3\)"):
        info_nce(torch.eye(2), torch.eye(3), 0.05)

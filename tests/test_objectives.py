import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch.nn import functional

from simcse.objectives import (
    DistillL2,
    clip,
    decoupled,
    diagnostics,
    dino,
    distill_l2,
    distill_similarity,
    guide_mask,
    info_nce,
    nt_xent,
    pair_logits,
    prototype_collapse,
    prototype_use,
    same_text_mask,
    sup_con,
)


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


def pairs(batch=6, dim=5, seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, batch, dim, dtype=torch.float64)


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


# Each objective again, as a loop over rows and candidates.


def naive_hard(anchor, positive, hard, temperature, alpha, *, with_positive=True):
    total = 0.0
    for i in range(len(anchor)):
        own = cosine(anchor[i], positive[i]) / temperature
        terms = []
        for j in range(len(anchor)):
            if with_positive or j != i:
                terms.append(math.exp(cosine(anchor[i], positive[j]) / temperature))
            for negatives in hard:
                weight = alpha if i == j else 1
                terms.append(weight * math.exp(cosine(anchor[i], negatives[j]) / temperature))
        total += math.log(sum(terms)) - own
    return total / len(anchor)


@pytest.mark.parametrize("alpha", [1.0, 0.2, 3.0])
@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_hard_negatives_and_their_weight(alpha, negatives):
    anchor, positive = pairs()
    torch.manual_seed(9)
    hard = torch.randn(negatives, 6, 5, dtype=torch.float64)
    for function, with_positive in ((info_nce, True), (decoupled, False)):
        found = function(anchor, positive, 0.3, hard if negatives else None, alpha)
        expected = naive_hard(anchor, positive, hard, 0.3, alpha, with_positive=with_positive)
        assert float(found) == pytest.approx(expected, rel=1e-10)


def test_hard_negative_weight_is_alpha_not_its_logarithm():
    # Two equal rows, everything equal: e^s cancels, the denominator counts 2 + 1 + α.
    same = torch.ones(2, 3)
    loss = info_nce(same, same, 1.0, same[None], hard_negative_weight=4.0)
    assert float(loss) == pytest.approx(math.log(2 + 1 + 4), abs=1e-6)


def test_hard_negatives_equal_sentence_transformers():
    torch.manual_seed(0)
    anchor, positive, hard = torch.randn(3, 16, 8)
    library = MultipleNegativesRankingLoss(model=None, scale=1 / 0.05)
    expected = library.compute_loss_from_embeddings([anchor, positive, hard], labels=None)
    found = info_nce(anchor, positive, 0.05, hard[None])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_decoupled_is_info_nce_with_the_positive_taken_out():
    anchor, positive = pairs()
    share = torch.softmax(pair_logits(anchor, positive, 0.5), dim=1).diagonal()
    expected = ((1 - share).log() - share.log()).mean()
    assert float(decoupled(anchor, positive, 0.5)) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(ValueError, match="at least one negative"):
        decoupled(anchor[:1], positive[:1], 0.5)


def test_clip_is_both_directions():
    anchor, positive = pairs()
    both = info_nce(anchor, positive, 0.2) + info_nce(positive, anchor, 0.2)
    assert float(clip(anchor, positive, 0.2)) == pytest.approx(float(both) / 2, rel=1e-12)
    directions = ("query_to_doc", "doc_to_query")
    library = MultipleNegativesRankingLoss(
        model=None, scale=5, directions=directions, partition_mode="per_direction"
    )
    expected = library.compute_loss_from_embeddings([anchor.float(), positive.float()], None)
    torch.testing.assert_close(clip(anchor, positive, 0.2).float(), expected, rtol=1e-5, atol=1e-6)


def test_nt_xent_equals_the_naive_loop():
    anchor, positive = pairs(batch=4)
    views = [*anchor, *positive]
    total = 0.0
    for i, view in enumerate(views):
        own = math.exp(cosine(view, views[(i + 4) % 8]) / 0.5)
        others = sum(math.exp(cosine(view, other) / 0.5) for k, other in enumerate(views) if k != i)
        total -= math.log(own / others)
    assert float(nt_xent(anchor, positive, 0.5)) == pytest.approx(total / 8, rel=1e-12)


def test_sup_con_equals_the_naive_loop():
    torch.manual_seed(0)
    rows = torch.randn(7, 5, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 3])  # 2 and 3 stand alone
    total, anchors = 0.0, 0
    for i in range(7):
        denominator = sum(math.exp(cosine(rows[i], rows[a]) / 0.4) for a in range(7) if a != i)
        positives = [p for p in range(7) if p != i and labels[p] == labels[i]]
        if positives:
            anchors += 1
            shares = [math.exp(cosine(rows[i], rows[p]) / 0.4) / denominator for p in positives]
            total -= sum(map(math.log, shares)) / len(positives)
    assert float(sup_con(rows, labels, 0.4)) == pytest.approx(total / anchors, rel=1e-12)
    assert float(sup_con(rows, torch.arange(7), 0.4)) == 0


def test_sup_con_with_a_label_a_text_is_nt_xent():
    anchor, positive = pairs()
    found = sup_con(torch.cat([anchor, positive]), torch.arange(6).repeat(2), 0.3)
    assert float(found) == pytest.approx(float(nt_xent(anchor, positive, 0.3)), rel=1e-12)


@pytest.mark.parametrize("function", [info_nce, decoupled, clip, nt_xent])
def test_equal_embeddings_give_the_logarithm_of_the_candidates(function):
    same = torch.ones(8, 3)
    candidates = {info_nce: 8, decoupled: 7, clip: 8, nt_xent: 15}[function]
    assert float(function(same, same, 0.1)) == pytest.approx(math.log(candidates), abs=1e-5)


@pytest.mark.parametrize("function", [info_nce, decoupled, clip, nt_xent])
def test_gradients_through_embeddings_and_temperature(function):
    anchor, positive = pairs(batch=4, dim=3).requires_grad_()
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(function, (anchor, positive, temperature))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = True
    torch.autograd.gradcheck(lambda a, p: function(a, p, 0.4, mask=mask), (anchor, positive))


@pytest.mark.parametrize("function", [info_nce, decoupled])
def test_gradients_with_hard_negatives(function):
    anchor, positive = pairs(batch=4, dim=3).requires_grad_()
    negatives = pairs(batch=4, dim=3).detach().flip(1).clone().requires_grad_()
    torch.autograd.gradcheck(
        lambda a, p, n: function(a, p, 0.4, n, 2.0), (anchor, positive, negatives)
    )


def test_gradients_of_the_others():
    anchor, positive = pairs(batch=4, dim=3).requires_grad_()
    labels = torch.tensor([0, 1, 0, 1])
    torch.autograd.gradcheck(lambda a: sup_con(a, labels, 0.4), (anchor,))
    torch.autograd.gradcheck(lambda a: distill_l2(a, positive.detach()), (anchor,))
    torch.autograd.gradcheck(
        lambda a: distill_similarity(a, positive.detach(), 0.4, 0.2), (anchor,)
    )
    scores = torch.stack([anchor, positive])
    center = torch.zeros(3, dtype=torch.float64)
    teacher = scores.detach().clone()
    scores = scores.detach().clone().requires_grad_()
    torch.autograd.gradcheck(lambda s: dino(s, teacher, center, 0.3, 0.1), (scores,))


def test_same_texts_are_masked_and_the_own_positive_never():
    # Rows 0 and 2 have one anchor text; row 3's hard negative is row 1's positive.
    identities = torch.tensor([[1, 2, 1, 4], [5, 6, 7, 8], [9, 10, 11, 6]])
    mask = same_text_mask(identities)
    positives, negatives = mask[:, :4], mask[:, 4:]
    assert positives.nonzero().tolist() == [[0, 2], [2, 0]]
    assert negatives.nonzero().tolist() == [[1, 3]]
    # Row 1's anchor is the text of row 0's positive: neither may push the other away.
    crossed = same_text_mask(torch.tensor([[1, 2, 3], [2, 4, 5]]))
    assert crossed.nonzero().tolist() == [[0, 1], [1, 0]]
    labelled = same_text_mask(torch.arange(8).view(2, 4), torch.tensor([0, 1, 0, 2]))
    assert labelled.nonzero().tolist() == [[0, 2], [2, 0]]
    sentences = same_text_mask(torch.tensor([[1, 2, 1], [1, 2, 1]]))
    assert sentences.nonzero().tolist() == [[0, 2], [2, 0]]


@pytest.mark.parametrize("function", [info_nce, decoupled, clip, nt_xent])
def test_a_batch_of_two_texts_each_twice_is_the_batch_of_two(function):
    anchor, positive = pairs(batch=2)
    twice = torch.cat([anchor, anchor]), torch.cat([positive, positive])
    mask = same_text_mask(torch.tensor([[0, 1, 0, 1]] * 2))
    # Each row sees the other text twice, and not the repeat of its own: as if that one row weighed
    # double, which is a hard negative of it beside the two.
    own, other = (anchor, positive), (positive.flip(0), anchor.flip(0))
    total = torch.zeros((), dtype=anchor.dtype)
    for first, second, stranger in (
        (*own, other[0]),
        *(((positive, anchor, other[1]),) if function in (clip, nt_xent) else ()),
    ):
        cosine = functional.cosine_similarity
        right = cosine(first, second) / 0.3
        strange = cosine(first, stranger) / 0.3
        negatives = [strange, strange]
        if function is nt_xent:  # and the strangers of its own view
            within = cosine(first, first.flip(0)) / 0.3
            negatives += [within, within]
        parts = negatives if function is decoupled else [right, *negatives]
        total = total + (torch.logsumexp(torch.stack(parts), dim=0) - right).mean()
    sides = 2 if function in (clip, nt_xent) else 1
    assert float(function(*twice, 0.3, mask=mask)) == pytest.approx(float(total) / sides)


def test_everything_masked_is_no_loss_and_no_nan():
    anchor, positive = pairs(batch=3).requires_grad_()
    mask = same_text_mask(torch.zeros(2, 3, dtype=torch.long))
    for function in (info_nce, decoupled, clip, nt_xent):
        loss = function(anchor, positive, 0.3, mask=mask)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        [gradient] = torch.autograd.grad(loss, anchor, retain_graph=True)
        assert torch.isfinite(gradient).all()


def test_dino_closed_forms():
    batch, prototypes = 3, 4
    center = torch.zeros(prototypes)
    flat = torch.zeros(2, batch, prototypes)
    assert float(dino(flat, flat, center, 0.1, 0.04)) == pytest.approx(math.log(4))
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, batch, prototypes)
    center = torch.randn(prototypes)
    # Views cross: the student's first view learns from the teacher's second.
    total = 0.0
    for v in range(2):
        for i in range(batch):
            target = torch.softmax((teacher[1 - v, i] - center) / 0.04, dim=0)
            total -= float((target * torch.log_softmax(student[v, i] / 0.1, dim=0)).sum())
    found = dino(student, teacher, center, 0.1, 0.04)
    assert float(found) == pytest.approx(total / (2 * batch), rel=1e-5)
    with pytest.raises(ValueError, match="one shape"):
        dino(student[0], teacher[0], center, 0.1, 0.04)


def test_prototype_use_names_both_collapses():
    center = torch.zeros(8)
    uniform = prototype_use(torch.zeros(16, 8), center, 0.04)
    assert uniform.sharpness == pytest.approx(0, abs=1e-6) and uniform.diversity == pytest.approx(1)
    one = torch.zeros(16, 8)
    one[:, 3] = 1
    single = prototype_use(one, center, 0.04)
    assert prototype_collapse(single.sharpness, single.diversity) == "all texts take one prototype"
    assert "all prototypes alike" in prototype_collapse(uniform.sharpness, uniform.diversity)
    assert single.sharpness > 0.99 and single.diversity < 0.01
    healthy = prototype_use(functional.one_hot(torch.arange(16) % 8).float(), center, 0.04)
    assert prototype_collapse(healthy.sharpness, healthy.diversity) is None
    assert healthy.sharpness > 0.99 and healthy.diversity == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("width", [4, 9])
def test_a_student_of_another_width_is_the_teacher_on_its_main_directions(width):
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(50, min(width, 6), generator=generator)
    teacher = plane @ torch.linalg.qr(torch.randn(6, plane.shape[1], generator=generator))[0].T
    rest = 0.01 * torch.randn(50, 6, generator=generator)  # beyond the student's directions
    student = plane @ torch.linalg.qr(torch.randn(width, plane.shape[1], generator=generator))[0].T
    term = DistillL2(width, 6)
    assert float(term(student[None], teacher)) > 0.1
    term.start_from(student, teacher + rest)
    assert float(term(student[None], teacher)) < 1e-3
    turned = torch.nn.functional.normalize(student @ term.to_teacher.T, dim=1)
    lengths = torch.nn.functional.normalize(student, dim=1)
    torch.testing.assert_close(turned @ turned.T, lengths @ lengths.T, atol=1e-5, rtol=0)


def test_distillation_closed_forms():
    torch.manual_seed(0)
    teacher = torch.randn(5, 4)
    assert float(distill_l2(2 * teacher, teacher)) == pytest.approx(0, abs=1e-6)
    assert float(distill_l2(-teacher, teacher)) == pytest.approx(4)
    unit = functional.normalize(teacher, dim=1)
    cosines = (unit @ unit.T)[~torch.eye(5, dtype=torch.bool)].view(5, 4)
    share = torch.softmax(cosines / 0.05, dim=1)
    entropy = float(-(share * share.log()).sum(dim=1).mean())
    found = distill_similarity(student := torch.randn(5, 4), teacher, 0.2, 0.05)
    unit = functional.normalize(student, dim=1)
    own = (unit @ unit.T)[~torch.eye(5, dtype=torch.bool)].view(5, 4)
    expected = -(share * torch.log_softmax(own / 0.2, dim=1)).sum(dim=1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    turned = teacher @ torch.linalg.qr(torch.randn(4, 4)).Q  # the same similarities
    assert float(distill_similarity(turned, teacher, 0.05, 0.05)) == pytest.approx(
        entropy, rel=1e-3
    )
    wider = torch.randn(5, 9)
    assert float(distill_similarity(wider, teacher, 0.05, 0.05)) > entropy
    with pytest.raises(ValueError, match="one shape"):
        distill_l2(wider, teacher)
    with pytest.raises(ValueError, match="three or more rows, got 2 and 2"):
        distill_similarity(wider[:2], teacher[:2], 0.05, 0.05)


def test_diagnostics_show_what_temperature_does():
    torch.manual_seed(0)
    anchor = torch.randn(64, 16)
    positive = anchor + 0.5 * torch.randn(64, 16)
    found = {t: diagnostics(pair_logits(anchor, positive, t), t) for t in (0.01, 0.1, 100.0)}
    unit = functional.normalize(anchor, dim=1) @ functional.normalize(positive, dim=1).T
    off = ~torch.eye(64, dtype=torch.bool)
    for values in found.values():
        assert values["positive_similarity"] == pytest.approx(
            float(unit.diagonal().mean()), abs=1e-4
        )
        assert values["negative_similarity"] == pytest.approx(float(unit[off].mean()), abs=1e-4)
    assert found[0.01]["effective_negatives"] < 5  # the hardest have all the weight
    assert found[0.1]["effective_negatives"] < 40
    assert found[100.0]["effective_negatives"] == pytest.approx(63, abs=0.1)  # all alike
    assert found[0.01]["positive_probability"] > 0.99 > found[100.0]["positive_probability"]


def test_without_negatives_there_is_no_figure_of_them():
    mask = torch.tensor([[False, True], [True, False]])
    values = diagnostics(pair_logits(torch.eye(2), torch.eye(2), 1.0, mask=mask), 1.0)
    assert values == {"positive_similarity": 1.0, "positive_probability": 1.0}


def test_worked_example_of_two_pairs():
    values = diagnostics(pair_logits(torch.eye(2), torch.eye(2), 1.0), 1.0)
    assert round(values["positive_probability"], 4) == 0.7311
    assert round(1 - values["positive_probability"], 4) == 0.2689


def test_shapes_and_weights_are_checked():
    two, three = torch.eye(2), torch.eye(3)
    with pytest.raises(ValueError, match=r"must be \(negatives, 2, 2\), got \(3, 3\)"):
        info_nce(two, two, 1.0, three)
    with pytest.raises(ValueError, match="hard_negative_weight must be positive, got 0"):
        info_nce(two, two, 1.0, two[None], 0)
    with pytest.raises(ValueError, match=r"got \(2, 2\) and \(3,\)"):
        sup_con(two, torch.arange(3), 1.0)
    for function in (decoupled, clip, nt_xent):
        with pytest.raises(ValueError, match="temperature must be positive, got 0"):
            function(two, two, 0.0)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
@pytest.mark.parametrize("columns", [2, 4])
def test_a_guides_mask_is_that_of_a_double_loop(columns, kind):
    torch.manual_seed(2)
    guide = torch.randn(columns, 7, 5)
    unit, mask = functional.normalize(guide, dim=-1), guide_mask(guide, 0.2, kind)
    assert mask.shape == (7, (columns - 1) * 7)
    for i in range(7):
        own = float(unit[0, i] @ unit[1, i])
        threshold = own - 0.2 * (abs(own) if kind == "relative" else 1)
        for column in range(1, columns):
            for j in range(7):
                above = float(unit[0, i] @ unit[column, j]) > threshold
                expected = above and not (column == 1 and j == i)
                assert mask[i, (column - 1) * 7 + j] == expected

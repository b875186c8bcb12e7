import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.nn import AttentionDecoder, normalize_attention
from pgnn_geo.nn.decoder import activate


def test_logits_are_pooling_and_a_linear_layer():
    torch.manual_seed(0)
    decoder = AttentionDecoder(6, 3).double()
    features = torch.randn(2, 6, 5, 4, dtype=torch.double)
    scores, logits = decoder(features)
    assert scores.shape == (2, 3, 5, 4)
    torch.testing.assert_close(logits, F.linear(features.mean((2, 3)), decoder.weight[..., 0, 0]))
    torch.testing.assert_close(logits, scores.mean((2, 3)))
    torch.testing.assert_close(
        scores, torch.einsum("kc,bchw->bkhw", decoder.weight[..., 0, 0], features)
    )
    for bad in (features[0], features[:, :5]):
        with pytest.raises(InputError, match=r"`features`: expected \[B, 6, h, w\]"):
            decoder(bad)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_normalized_maps(B, K, w, seed):
    torch.manual_seed(seed)
    scores = 10 * torch.randn(B, K, 3, w, dtype=torch.double)
    maps = normalize_attention(scores)
    assert maps.shape == scores.shape and (maps >= 0).all() and (maps <= 1).all()
    positive = scores.amax((2, 3)) > 0
    assert (maps.amax((2, 3))[positive] == 1).all() and (maps[~positive] == 0).all()
    torch.testing.assert_close(normalize_attention(7 * scores), maps)  # the scale is gone
    assert torch.equal(maps > 0, scores > 0)


def test_all_zero_map_and_gradients():
    scores = torch.tensor([[[[-1.0, -2.0], [0.0, -1.0]], [[1.0, 2.0], [0.0, -1.0]]]])
    scores.requires_grad_()
    maps = normalize_attention(scores)
    assert maps[0, 0].eq(0).all()
    assert maps[0, 1].tolist() == [[0.5, 1.0], [0.0, 0.0]]
    maps.sum().backward()
    assert scores.grad.isfinite().all()
    # d(s1 / s2) = 1 / s2 and -s1 / s2^2: the gradient flows through the maximum.
    assert scores.grad[0, 1].tolist() == [[0.5, -0.25], [0.0, 0.0]]


def test_gradient_has_no_scale_direction():
    # The maps ignore the scale of the scores, so no loss on them may push it.
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 4, 4, dtype=torch.double, requires_grad=True)
    loss = normalize_attention(scores).pow(2).sum()
    (grad,) = torch.autograd.grad(loss, scores)
    along = (grad * scores).sum((2, 3))
    torch.testing.assert_close(along, torch.zeros_like(along))
    assert torch.autograd.gradcheck(normalize_attention, scores)


def test_bad_scores():
    with pytest.raises(InputError, match="`scores`"):
        normalize_attention(torch.randn(3, 4, 4))


def test_relu_activation_is_the_normalized_map():
    scores, tags = torch.randn(2, 3, 4, 4), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    assert torch.equal(activate(scores, "relu"), normalize_attention(scores))
    tagged = activate(scores, "relu", tags)
    assert torch.equal(tagged, normalize_attention(scores) * tags[:, :, None, None])


def test_softmax_activation_is_a_probability_beside_the_background():
    scores = torch.randn(2, 3, 4, 4, dtype=torch.double)
    maps = activate(scores, "softmax")
    background = 1 / (1 + scores.exp().sum(dim=1))
    torch.testing.assert_close(maps.sum(dim=1) + background, torch.ones(2, 4, 4).double())
    torch.testing.assert_close(maps, scores.exp() * background[:, None])


def test_only_tagged_classes_compete():
    scores, tags = torch.randn(2, 3, 4, 4), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    scores.requires_grad_()
    maps = activate(scores, "softmax", tags)
    torch.testing.assert_close(maps[0, [0, 2]], activate(scores[:1, [0, 2]], "softmax")[0])
    assert maps[0, 1].eq(0).all() and maps[1].eq(0).all()
    maps.square().sum().backward()
    assert scores.grad.isfinite().all() and scores.grad[0, 1].eq(0).all()

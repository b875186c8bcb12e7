import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnn_geo.errors import InputError
from pgnn_geo.labels.mutual import mutual_complement

# label, prediction -> literal rule, rule with tags {1}
CASES = [
    (0, 0, 0, 0),
    (0, 1, 1, 1),
    (0, 2, 2, 0),
    (0, 255, 0, 0),
    (1, 0, 1, 1),
    (1, 1, 1, 1),
    (1, 2, 2, 1),
    (1, 255, 1, 1),
    (2, 0, 2, 2),
    (2, 1, 1, 1),
    (2, 2, 2, 2),
    (2, 255, 2, 2),
    (255, 0, 255, 255),
    (255, 1, 1, 1),
    (255, 2, 2, 255),
    (255, 255, 255, 255),
]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(("label", "predicted", "literal", "tagged"), CASES)
def test_every_case(label, predicted, literal, tagged, dtype):
    labels, guess = torch.tensor([[label]]).to(dtype), torch.tensor([[predicted]])
    tags = torch.tensor([1.0, 0.0])
    for arguments, expected in (({}, literal), ({"tags": tags}, tagged)):
        result = mutual_complement(labels, guess, **arguments)
        assert result.dtype == dtype and result.tolist() == [[expected]]
        # A sure prediction is the rule without confidence, an unsure one changes nothing.
        for value, want in ((0.9, expected), (0.89, label)):
            sure = torch.tensor([[value]], dtype=torch.double)
            result = mutual_complement(labels, guess, confidence=sure, **arguments)
            assert result.tolist() == [[want]]
    assert labels.tolist() == [[label]] and guess.tolist() == [[predicted]]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), epochs=st.integers(1, 4), classes=st.integers(1, 5))
def test_foreground_stays_and_untagged_never_enters(seed, epochs, classes):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.tensor([*range(classes + 1), 255])

    def draw():
        return codes[torch.randint(len(codes), (3, 6, 5), generator=generator)]

    tags = torch.randint(2, (3, classes), generator=generator)
    first = draw()
    literal, tagged = first, first
    for _ in range(epochs):
        predicted = draw()
        sure = torch.rand(predicted.shape, generator=generator)
        literal = mutual_complement(literal, predicted)
        step = mutual_complement(tagged, predicted, tags=tags, confidence=sure, threshold=0.5)
        assert not ((sure < 0.5) & (step != tagged)).any()
        tagged = step
    was_foreground = (first != 0) & (first != 255)
    for labels in (literal, tagged):
        assert ((labels[was_foreground] != 0) & (labels[was_foreground] != 255)).all()
        assert (labels[first == 255] != 0).all()
    for image in range(3):
        gained = tagged[image][tagged[image] != first[image]].unique().tolist()
        assert all(tags[image, label - 1] for label in gained)
        one = mutual_complement(first[image], literal[image], tags=tags[image])
        assert torch.equal(one, mutual_complement(first, literal, tags=tags)[image])


def test_bad_input():
    labels = torch.zeros(2, 4, 4).long()
    with pytest.raises(InputError, match=r"predicted is \[2, 4, 5\]"):
        mutual_complement(labels, torch.zeros(2, 4, 5).long())
    with pytest.raises(InputError, match="confidence is"):
        mutual_complement(labels, labels, confidence=torch.rand(4, 4))
    with pytest.raises(InputError, match="one row of K"):
        mutual_complement(labels, labels, tags=torch.ones(3))
    with pytest.raises(InputError, match="class 4 but there are 3 tags"):
        mutual_complement(labels, labels + 4, tags=torch.ones(2, 3))

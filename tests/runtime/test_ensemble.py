"""Ensembles: their outputs, and invalid members."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firebox.runtime import Ensemble, Preprocessing, Session, evaluate, open_images
from firebox.runtime.errors import DataError, FormatError, UsageError

PIXELS = np.zeros((4, 4, 3), np.uint8)
SMALL = Preprocessing(size=(4, 4))
INF = float("inf")


@dataclass
class Member:
    """A classifier that returns the same values for every image and counts its runs."""

    values: np.ndarray
    classes: tuple[str, ...] = ()
    class_ids: tuple[str, ...] = ()
    preprocessing: Preprocessing = SMALL
    answer: str = "logits"
    runs: int = 0

    def __post_init__(self):
        self.classes = self.classes or tuple(f"class{index}" for index in range(len(self.values)))

    def predict_pixels(self, pixels: np.ndarray) -> np.ndarray:
        assert pixels.shape == (*self.preprocessing.size, self.preprocessing.depth)
        self.runs += 1
        return self.values


def members(*outputs, **options) -> dict[str, Member]:
    return {f"model {index}": Member(np.array(values, np.float32), **options) for index, values in enumerate(outputs)}


def combined(combine, *outputs) -> np.ndarray:
    return Ensemble(members(*outputs), combine).predict_pixels(PIXELS)


COMBINES = ("vote", "softmax", "logits")
# Few values, so that ties occur, and far enough apart that their probabilities differ.
ANSWERS = st.integers(1, 5).flatmap(
    lambda classes: st.lists(
        st.lists(st.integers(-20, 20).map(float), min_size=classes, max_size=classes), min_size=1, max_size=6
    )
)


@given(ANSWERS, st.sampled_from(COMBINES), st.integers(1, 5))
def test_equal_members_give_the_output_of_one(outputs, combine, count):
    values = np.array(outputs[0])
    found = combined(combine, *[values] * count)
    assert found.argmax() == values.argmax()
    # A vote puts the winning class first and orders the others by the mean softmax.
    others = np.arange(len(values)) != values.argmax()
    order = np.argsort(-values[others], kind="stable")
    np.testing.assert_array_equal(np.argsort(-found[others], kind="stable"), order)
    if combine == "logits":
        np.testing.assert_array_equal(found, values)


@given(ANSWERS, st.sampled_from(COMBINES), st.randoms())
def test_the_order_of_members_does_not_matter(outputs, combine, random):
    shuffled = random.sample(outputs, len(outputs))
    np.testing.assert_array_equal(combined(combine, *outputs), combined(combine, *shuffled))


@given(ANSWERS, st.sampled_from(["vote", "softmax"]))
def test_votes_and_softmax_are_probabilities(outputs, combine):
    found = combined(combine, *outputs)
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0


@given(ANSWERS, st.sampled_from(["vote", "softmax"]), st.integers(-1000, 1000))
def test_a_constant_added_to_one_member_changes_nothing(outputs, combine, constant):
    moved = [[value + constant for value in outputs[0]], *outputs[1:]]
    np.testing.assert_allclose(combined(combine, *moved), combined(combine, *outputs), rtol=1e-12)


@given(ANSWERS)
def test_the_class_with_most_votes_wins_and_softmax_breaks_ties(outputs):
    values = np.array(outputs)
    votes = np.bincount(values.argmax(1), minlength=values.shape[1])
    tied = np.flatnonzero(votes == votes.max())
    softmax = combined("softmax", *outputs)
    assert combined("vote", *outputs).argmax() == tied[softmax[tied].argmax()]


def test_vote_softmax_and_logits_differ():
    outputs = ([3.0, 2.9, -9.0], [3.0, 2.9, -9.0], [-90.0, 5.0, 5.1])
    assert [int(combined(combine, *outputs).argmax()) for combine in COMBINES] == [0, 1, 1]
    # In the mean of logits one confident member can outweigh the others; a softmax is at most 1.
    outputs = ([9.0, 0.0], [9.0, 0.0], [0.0, 60.0])
    assert [int(combined(combine, *outputs).argmax()) for combine in COMBINES] == [0, 0, 1]


def test_a_tie_goes_to_the_most_probable_of_the_tied_classes():
    sure, unsure = [8.0, 0.0, 0.0], [0.0, 1.0, 0.9]
    assert combined("vote", sure, unsure).argmax() == combined("vote", unsure, sure).argmax() == 0
    # Class 2 is the most probable on average, but no member ranks it first.
    outputs = ([1.0, -9.0, 0.99], [-9.0, 1.1, 1.0])
    assert combined("softmax", *outputs).argmax() == 2
    assert combined("vote", *outputs).argmax() == 1
    assert combined("vote", [0.0, 0.0], [0.0, 0.0]).argmax() == 0


def test_infinite_logits_give_finite_outputs():
    with np.errstate(all="raise", under="ignore"):
        for combine in COMBINES:
            for values in ([INF, 0.0], [0.0, -INF], [3e38, -3e38], [INF, -INF]):
                found = combined(combine, values, [0.0, 1.0])
                assert np.isfinite(found).all()
                assert found.argmax() == 0
    np.testing.assert_array_equal(combined("softmax", [INF, INF, 0.0]), [0.5, 0.5, 0.0])


def test_members_with_probabilities_get_no_softmax():
    probabilities = np.array([0.5, 0.25, 0.25, 0.0], np.float32)
    plain = Member(np.log(np.maximum(probabilities, 1e-30)))
    done = Member(probabilities, answer="probabilities")
    for combine in ("vote", "softmax"):
        mixed, alike = (Ensemble({"a": first, "b": plain}, combine) for first in (done, plain))
        np.testing.assert_allclose(mixed.predict_pixels(PIXELS), alike.predict_pixels(PIXELS), atol=1e-7)
    np.testing.assert_allclose(Ensemble({"a": done}).predict_pixels(PIXELS), probabilities, atol=1e-7)
    # An ensemble can be a member; its mean of softmax gets no second softmax.
    inner = Ensemble({"a": done, "b": plain})
    np.testing.assert_allclose(Ensemble({"inner": inner}).predict_pixels(PIXELS), probabilities, atol=1e-7)


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "cow"), "b has other classes than a: class 1 is 'cow', not 'dog'"),
        (("dog", "cat"), "b has other classes than a: class 0 is 'dog', not 'cat'"),
        (("cat", "dog", "cow"), "b has other classes than a: 3, not 2"),
    ],
)
def test_members_with_other_classes_are_rejected(classes, said):
    first = Member(np.zeros(2), classes=("cat", "dog"))
    with pytest.raises(UsageError, match=said):
        Ensemble({"a": first, "c": first, "b": Member(np.zeros(len(classes)), classes=classes)})


def test_equal_ids_suffice():
    ids = ("n01", "n02")
    named = Member(np.zeros(2), classes=("cat", "dog"), class_ids=ids)
    translated = Member(np.zeros(2), classes=("Katze", "Hund"), class_ids=ids)
    bare = Member(np.zeros(2), classes=("cat", "dog"))
    assert Ensemble({"a": named, "b": translated}).class_ids == ids
    assert Ensemble({"a": bare, "b": named}).class_ids == ids
    with pytest.raises(UsageError, match="class 0 is 'Katze', not 'cat'"):
        Ensemble({"a": bare, "b": translated})


def test_invalid_ensembles_and_outputs_are_errors():
    with pytest.raises(UsageError, match="no members"):
        Ensemble({})
    with pytest.raises(UsageError, match="combine 'mean' is not one of vote, softmax, logits"):
        Ensemble(members([0.0]), "mean")
    with pytest.raises(FormatError, match="model 1 returned NaN"):
        combined("softmax", [0.0, 1.0], [0.0, float("nan")])
    short = Member(np.zeros(2), classes=("a", "b", "c"))
    with pytest.raises(FormatError, match=r"short returned shape \(2,\) for 3 classes"):
        Ensemble({"short": short}).predict_pixels(PIXELS)


def test_members_may_have_different_preprocessing(noise):
    grey = Preprocessing(size=(6, 8), channels="L", mean=(0,), std=(1,))
    ensemble = Ensemble(members([0.0, 1.0, 0.0]) | {"grey": Member(np.array([0.0, 3.0, 0.0]), preprocessing=grey)})
    image = noise / "class1" / "0.png"
    assert ensemble.predict(image).argmax() == 1
    with pytest.raises(UsageError, match="grey and model 0 have different preprocessing"):
        ensemble.predict_pixels(PIXELS)
    outer = Ensemble({"inner": ensemble, **members([0.0, 1.0, 0.0])})
    assert outer.predict(image).argmax() == 1
    with pytest.raises(DataError, match="not an image"):
        ensemble.predict(b"none")


def test_an_evaluation_runs_each_member_once(noise):
    pair = members([0.0, 1.0, 0.0], [0.0, 2.0, 0.0])
    found = evaluate(pair | {"both": Ensemble(pair, "vote")}, open_images(noise))
    assert [result.name for result in found] == ["model 0", "model 1", "both"]
    assert all(result.top1 == pytest.approx(1 / 3) for result in found)
    assert [member.runs for member in pair.values()] == [12, 12]


def test_files_of_both_formats_are_combined(exported, noise):
    sessions = {path.name: Session(path) for path in sorted(exported.glob("model.*"))}
    image = noise / "class1" / "0.png"
    outputs = np.array([session.predict(image) for session in sessions.values()], np.float64)
    np.testing.assert_allclose(Ensemble(sessions, "logits").predict(image), outputs.mean(0), rtol=1e-12)
    exponentials = np.exp(outputs)
    expected = (exponentials / exponentials.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(Ensemble(sessions).predict(image), expected, rtol=1e-12)

"""The rule of coherence against a reader, on answers that had no part in its making."""

import pytest

from diffing.demo.coherence import agreement, graded_answers, rows
from diffing.models.pair import ModelPair


def test_agreement_is_corrected_for_chance() -> None:
    """Closed form: of 10, 4 + 3 alike, 6 and 5 called coherent: chance 0.5."""
    verdicts = [(True, True)] * 4 + [(False, False)] * 3 + [(True, False)] * 2 + [(False, True)]
    assert agreement(verdicts) == pytest.approx({"agreement": 0.7, "kappa": 0.4})


def test_readers_saw_both_kinds_and_references_are_unsteered() -> None:
    graded = graded_answers()
    labels = [each.coherent for each in graded if each.coherent is not None]
    assert (len(labels), sum(labels)) == (68, 19)
    assert all(each.strength == 0 for each in graded if each.coherent is None)


@pytest.mark.slow
@pytest.mark.real_model
def test_the_rule_agrees_with_a_reader_far_beyond_chance(real_pair: ModelPair) -> None:
    (found,) = rows(real_pair, None)
    assert float(str(found["agreement"])) >= 0.8
    assert float(str(found["kappa"])) >= 0.6
    assert found["called incoherent against the reader"] == 0

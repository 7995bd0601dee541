"""What changes from step to step, against numbers worked out by hand."""

import pytest

from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.learners.schedules import Training


def test_k_falls_in_a_line_to_its_target() -> None:
    settings = Training(k_start=1024, k_annealing_steps=2000)
    expected = {0: 1024, 1000: 562, 1998: 101, 1999: 100, 2000: 100, 10**6: 100}
    assert {step: settings.k_at(step, 100) for step in expected} == expected


@pytest.mark.parametrize("settings", [Training(), Training(k_start=1024), Training(k_annealing_steps=2000)])
def test_without_annealing_k_is_the_target_from_the_first_step(settings: Training) -> None:
    assert [settings.k_at(step, 100) for step in (0, 1, 1999)] == [100, 100, 100]


def test_the_learning_rate_rises_stays_and_falls_over_the_last_fifth() -> None:
    settings = Training(warmup_steps=1000)
    factors = {0: 0.0, 500: 0.5, 1000: 1.0, 7_999: 1.0, 8_000: 1.0, 9_000: 0.5, 9_500: 0.25, 10_000: 0.0}
    assert {step: settings.lr_factor(step, 10_000) for step in factors} == pytest.approx(factors)
    assert Training(decay=False).lr_factor(9_999, 10_000) == 1
    assert Training(warmup_steps=0).lr_factor(0, 10_000) == 1


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({}, 10), ({"epochs": 3}, 30), ({"max_steps": 7}, 7), ({"max_steps": 700}, 10), ({"max_tokens": 500}, 5),
        ({"max_tokens": 99}, 1), ({"epochs": 3, "max_steps": 25, "max_tokens": 2_000}, 20),
    ],
)  # fmt: skip
def test_training_stops_at_the_first_limit(limits: dict, steps: int) -> None:
    assert Training(batch_size=100, **limits).steps(1_099) == steps


def test_thresholds_are_averaged_after_annealing_and_in_half_of_the_steps_at_least() -> None:
    assert Training().threshold_from(10_000) == 1_000
    assert Training().threshold_from(1_000) == 500
    assert Training(k_start=1024, k_annealing_steps=2_000).threshold_from(10_000) == 2_000
    assert Training(k_start=1024, k_annealing_steps=800).threshold_from(1_000) == 800


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"lr": 0.0}, "lr=0.0; expected more than 0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"loss": "cubed"}, "loss 'cubed'; expected one of squared, norm"),
        ({"optimizer": "sgd"}, "optimizer 'sgd'"),
        ({"precision": "int8"}, "precision 'int8'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(InvalidSetting, match=says):
        Training(**settings)


def test_annealing_that_training_would_not_finish_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="training has 10 steps: k would not be reached"):
        Training(batch_size=100, k_start=50, k_annealing_steps=10).steps(1_000)


def test_too_few_rows_for_a_batch_are_refused() -> None:
    with pytest.raises(EmptyCorpus, match="99 rows do not fill one batch of 100"):
        Training(batch_size=100).steps(99)

"""Sampling that does not depend on batching, and steering of single rows."""

import pytest
import torch

from diffing.errors import InvalidSetting
from diffing.models.generation import Sampling, Steering, _draw, chat_prompt, generate
from tests import tiny

PROMPTS = [[1, 9, 40], [1, 7], [1, 30, 31, 32, 33, 34, 35], [1, 200, 5]]


def texts(batch_size: int = 16, sampling: Sampling | None = None, **kwargs) -> list[str]:
    sampling = sampling or Sampling(max_new_tokens=12, seed=5)
    return generate(tiny.model(), tiny.tokenizer(), PROMPTS, sampling, batch_size=batch_size, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batching_changes_no_text(batch_size: int) -> None:
    assert texts(batch_size) == texts(16)


def test_greedy_text_is_hugging_faces_greedy_text() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    greedy = Sampling(max_new_tokens=10, temperature=0.0)
    for prompt, text in zip(PROMPTS, generate(model, tokenizer, PROMPTS, greedy), strict=True):
        ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=10)[0, len(prompt) :]
        assert text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_left_padding_does_not_change_greedy_text_of_any_family(family: str) -> None:
    model, tokenizer, greedy = tiny.model(family), tiny.tokenizer(), Sampling(max_new_tokens=6, temperature=0.0)
    alone = [generate(model, tokenizer, [prompt], greedy)[0] for prompt in PROMPTS]
    assert generate(model, tokenizer, PROMPTS, greedy) == alone


def test_the_seed_decides_the_text() -> None:
    assert texts() == texts()
    assert texts() != texts(sampling=Sampling(max_new_tokens=12, seed=6))


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0]).log_softmax(-1)
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    drawn = _draw(logits.expand(len(uniform), -1), uniform, Sampling(temperature=1.0))
    shares = torch.bincount(drawn, minlength=4) / len(uniform)
    torch.testing.assert_close(shares, logits.exp(), rtol=0, atol=1e-3)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    uniform = (torch.arange(1_000) + 0.5) / 1_000
    drawn = _draw(logits.expand(len(uniform), -1), uniform, Sampling(top_p=0.7))
    assert sorted(set(drawn.tolist())) == [0, 1]


def test_a_zero_vector_steers_nothing_and_a_row_only_its_own() -> None:
    vectors = torch.zeros(len(PROMPTS), tiny.WIDTH)
    assert texts(steering=Steering(1, vectors)) == texts()
    vectors[2] = 100 * torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    steered, plain = texts(2, steering=Steering(1, vectors)), texts()
    assert [a == b for a, b in zip(steered, plain, strict=True)] == [True, True, False, True]


def test_text_ends_at_the_end_token() -> None:
    model = tiny.model()
    model.lm_head.weight.zero_()
    model.lm_head.weight[2] = 0.0
    always_end = Sampling(max_new_tokens=5, temperature=0.0)
    model.generation_config.eos_token_id = [0, 2]  # all logits tie, so the first id is drawn: it ends the text
    assert generate(model, tiny.tokenizer(), [[1, 5]], always_end) == [""]


def test_a_chat_prompt_ends_where_the_answer_begins() -> None:
    ids = chat_prompt(tiny.tokenizer(), "Bread?")
    assert tiny.tokenizer().decode(ids) == "<|im_start|>user\nBread?<|im_end|>\n<|im_start|>assistant\n"


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InvalidSetting, match="top_p"):
        Sampling(top_p=0.0)
    with pytest.raises(InvalidSetting, match="one each"):
        texts(steering=Steering(1, torch.zeros(1, tiny.WIDTH)))
    with pytest.raises(InvalidSetting, match="no chat template"):
        chat_prompt(tiny.tokenizer(None), "Bread?")

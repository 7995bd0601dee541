"""Sampling that does not depend on batching, and steering of single rows."""

import pytest
import torch
from transformers import PreTrainedModel

from diffing.errors import InvalidSetting
from diffing.models.generation import HEAD, Sampling, Steering, Where, _draw, chat_prompt, generate
from diffing.models.sites import decoder_blocks, editing
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
    assert generate(model, tokenizer, PROMPTS * 2, greedy) == alone * 2  # the second half shares its prompts


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


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_a_draw_is_the_one_by_a_full_sort_of_the_vocabulary(top_p: float, temperature: float) -> None:
    """At the higher temperature most of the probability lies outside of the tokens that are looked at first."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 5 * HEAD, generator=generator)
    uniform = torch.rand(400, generator=generator)
    drawn = _draw(logits, uniform, Sampling(temperature=temperature, top_p=top_p))
    probabilities, order = (logits.double() / temperature).softmax(-1).sort(dim=-1, descending=True)
    nucleus = probabilities * (probabilities.cumsum(-1) - probabilities < top_p)
    cumulative = nucleus.cumsum(-1)
    rank = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1)
    assert (rank >= HEAD).any() == (top_p > 0.3 and temperature == 3.0)
    assert (drawn == order.gather(-1, rank[:, None])[:, 0]).float().mean() > 0.99  # float32 decides a few otherwise


def test_prompts_and_vectors_that_are_alike_are_run_once_and_change_no_text() -> None:
    """Each row alone is the second implementation: alone there is nothing to share."""
    vectors = torch.zeros(8, tiny.WIDTH)
    vectors[[1, 4]] = 20 * torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(3))
    prompts = [PROMPTS[row] for row in (0, 0, 1, 0, 0, 1, 2, 0)]
    where = [Where.ALL, Where.PROMPT, Where.ALL, Where.ALL, Where.LINEAR_DECAY, Where.ALL, Where.ALL, Where.ALL]
    sampling = Sampling(max_new_tokens=10, seed=5)
    shapes: list[int] = []
    model = tiny.model()
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: shapes.append(len(args[0])))
    together, alone = (
        generate(model, tiny.tokenizer(), prompts, sampling, steering=Steering(1, vectors, where), batch_size=size)
        for size in (8, 1)
    )
    assert together == alone
    assert len(set(together)) > 5
    assert shapes[:2] == [4, 8], "four prompts differ, with their vectors; then each row goes on by itself"


def test_a_zero_vector_steers_nothing_and_a_row_only_its_own() -> None:
    vectors = torch.zeros(len(PROMPTS), tiny.WIDTH)
    assert texts(steering=Steering(1, vectors)) == texts()
    vectors[2] = 100 * torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))
    steered, plain = texts(2, steering=Steering(1, vectors)), texts()
    assert [a == b for a, b in zip(steered, plain, strict=True)] == [True, True, False, True]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_strength_adds_that_many_vectors_exactly_at_every_token_and_at_padding(family: str) -> None:
    model, before, after = tiny.model(family), [], []
    steered, following = decoder_blocks(model)[1:3]
    unit = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(2))
    vectors = torch.stack([strength * unit for strength in (0.0, 0.5, 1.0, 3.0)])
    steered.register_forward_hook(lambda module, args, output: before.append(output))
    following.register_forward_pre_hook(lambda module, args: after.append(args[0]))
    sampling = Sampling(max_new_tokens=5, seed=5)
    generate(model, tiny.tokenizer(), PROMPTS, sampling, steering=Steering(1, vectors))
    assert [hidden.shape[1] for hidden in after] == [max(map(len, PROMPTS)), 1, 1, 1, 1]
    for unedited, edited in zip(before, after, strict=True):
        unedited = unedited[0] if isinstance(unedited, tuple) else unedited
        assert torch.equal(edited, unedited + vectors[:, None])


def test_rows_of_one_stream_draw_the_same() -> None:
    prompts = [PROMPTS[0]] * 4
    drawn = Sampling(max_new_tokens=12, seed=5)
    first, second, *again = generate(tiny.model(), tiny.tokenizer(), prompts, drawn, streams=[3, 8, 8, 3], batch_size=3)
    assert first != second
    assert again == [second, first]
    assert generate(tiny.model(), tiny.tokenizer(), prompts, drawn)[3] == first


def without_cache(
    model: PreTrainedModel, prompt: list[int], vector: torch.Tensor, factors: list[float], steps: int
) -> str:
    """Greedy text of a model that reads all tokens anew for each new one; `factors` of the prompt and of new tokens."""
    ids = list(prompt)
    for _ in range(steps):
        strength = torch.tensor([factors[0]] * len(prompt) + factors[1 : 1 + len(ids) - len(prompt)])
        with editing(model, 1, lambda hidden, by=strength: hidden + by[:, None] * vector):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == tiny.tokenizer().eos_token_id:
            break
    return tiny.tokenizer().decode(ids[len(prompt) :], skip_special_tokens=True)


FACTORS = {
    Where.ALL: [1.0] * 8,
    Where.PROMPT: [1.0] + [0.0] * 7,
    Where.LINEAR_DECAY: [1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125],
}


def test_each_place_steers_the_tokens_it_names_whatever_the_padding_and_the_neighbours() -> None:
    vectors = 2 * torch.randn(len(PROMPTS), tiny.WIDTH, generator=torch.Generator().manual_seed(4))
    model, greedy = tiny.model(), Sampling(max_new_tokens=8, temperature=0.0)
    expected = {
        where: [without_cache(model, prompt, vector, by, 8) for prompt, vector in zip(PROMPTS, vectors, strict=True)]
        for where, by in FACTORS.items()
    }
    assert len({tuple(found) for found in expected.values()}) == len(Where)
    for where, found in expected.items():
        assert texts(sampling=greedy, steering=Steering(1, vectors, where)) == found
    mixed = [Where.PROMPT, Where.ALL, Where.LINEAR_DECAY, Where.PROMPT]
    assert texts(2, sampling=greedy, steering=Steering(1, vectors, mixed)) == [
        expected[where][row] for row, where in enumerate(mixed)
    ]


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
    with pytest.raises(InvalidSetting, match="3 places"):
        texts(steering=Steering(1, torch.zeros(len(PROMPTS), tiny.WIDTH), [Where.ALL] * 3))
    with pytest.raises(InvalidSetting, match="no chat template"):
        chat_prompt(tiny.tokenizer(None), "Bread?")

"""The streamed pass against brute force with `output_hidden_states`, and against closed forms."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from diffing.activations import position_means as module
from diffing.activations.position_means import SKIPPED, PositionMeans, position_means
from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting, NonFiniteActivations
from diffing.models.pair import ModelPair
from diffing.models.sites import decoder_blocks
from diffing.text.windows import TokenBatch, batches, chat_starts, pad
from tests import tiny

LAYERS = [1, 2]
N = 12


def texts() -> list[list[int]]:
    tokenizer = tiny.tokenizer()
    return [tokenizer(text)["input_ids"][:N] for text in tiny.TEXTS * 3] + [[7, 8, 9]]


def brute_force(pair: ModelPair, rows: list[list[int]], layer: int) -> dict[str, Tensor]:
    """One text at a time, whole hidden states, float64 lists; nothing shared with the streamed pass."""
    states: dict[Side, list[Tensor]] = {side: [] for side in Side}
    for side in Side:
        with pair.using(side) as model:
            for ids in rows:
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
                states[side].append(hidden[layer + 1][0].double())
    means: dict[str, list[Tensor]] = {"base": [], "finetuned": [], "difference": []}
    for position in range(max(len(ids) for ids in rows)):
        at = {side: torch.stack([s[position] for s in states[side] if len(s) > position]) for side in Side}
        means["base"].append(at[Side.BASE].mean(0))
        means["finetuned"].append(at[Side.FINETUNED].mean(0))
        means["difference"].append((at[Side.FINETUNED] - at[Side.BASE]).mean(0))
    norms = torch.cat([s[SKIPPED:].norm(dim=-1) for s in states[Side.FINETUNED]])
    return {key: torch.stack(value) for key, value in means.items()} | {"residual_norm": norms.mean()}


def streamed(pair: ModelPair, rows: list[list[int]], batch_size: int, side: str) -> dict[int, PositionMeans]:
    chunks = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return position_means(pair, [pad(chunk, 0, side) for chunk in chunks], LAYERS, N)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.mark.parametrize("kind", ["lora_pair", "full_pair"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_streamed_means_equal_brute_force(
    kind: str, side: str, batch_size: int, request: pytest.FixtureRequest
) -> None:
    pair = request.getfixturevalue(kind)
    found = streamed(pair, texts(), batch_size, side)
    for layer in LAYERS:
        expected = brute_force(pair, texts(), layer)
        for key in ("base", "finetuned", "difference"):
            assert relative(getattr(found[layer], key), expected[key]) < 1e-5, key
        assert found[layer].residual_norm == pytest.approx(expected["residual_norm"].item(), rel=1e-5)


def test_mean_of_differences_is_the_difference_of_means(lora_pair: ModelPair) -> None:
    means = streamed(lora_pair, texts(), 4, "right")[1]
    torch.testing.assert_close(means.difference, means.finetuned - means.base, rtol=1e-6, atol=1e-6)


def test_counts_are_the_texts_that_reach_a_position(lora_pair: ModelPair) -> None:
    rows = texts()
    means = streamed(lora_pair, rows, 5, "left")[1]
    assert means.n_texts.tolist() == [sum(len(ids) > position for ids in rows) for position in range(N)]


def test_identical_sides_differ_by_exactly_nothing(identical_pair: ModelPair) -> None:
    means = streamed(identical_pair, texts(), 4, "left")[2]
    assert not means.difference.any()
    assert not means.norm_difference.any()
    assert not means.consistency.any()


def test_a_constant_shift_is_found_with_full_consistency(base_folder, tmp_path) -> None:
    from safetensors.torch import save_file

    from diffing.models.sources import pin

    planted = torch.randn(tiny.WIDTH) * 3
    save_file({"v": planted}, tmp_path / "v.safetensors")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=1)
    means = streamed(ModelPair(pin(spec), device="cpu"), texts(), 4, "right")[1]
    torch.testing.assert_close(means.difference, planted.double().expand(N, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(means.consistency, torch.ones(N, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_running_sums_of_bf16_weights_keep_full_precision(base_folder, adapter_folder) -> None:
    from diffing.models.sources import pin

    spec = tiny.pair_spec(base_folder, "lora", adapter_folder)
    spec = type(spec)(tiny.model_spec(base_folder, dtype="bfloat16"), spec.finetuned, "planted")
    pair, ids = ModelPair(pin(spec), device="cpu"), texts()[0]
    once = streamed(pair, [ids] * 16, 16, "right")[1]
    many = streamed(pair, [ids] * 16 * 64, 16, "right")[1]  # a bf16 sum would have stopped growing by now
    torch.testing.assert_close(many.base, once.base, rtol=1e-12, atol=1e-12)


def test_nan_activations_name_the_side_and_the_layer(base_folder, merged_folder) -> None:
    from diffing.models.sources import pin

    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", merged_folder)), device="cpu")
    with pair.using(Side.FINETUNED) as model:
        decoder_blocks(model)[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteActivations, match="finetuned model at layer 1"):
        streamed(pair, texts(), 4, "right")


def test_texts_too_short_for_a_residual_norm_are_refused(lora_pair: ModelPair) -> None:
    with pytest.raises(EmptyCorpus, match=f"first {SKIPPED} of a text"):
        streamed(lora_pair, [[5, 6, 7]], 1, "right")
    with pytest.raises(InvalidSetting, match="3 positions"):
        position_means(lora_pair, [], LAYERS, 3)
    with pytest.raises(EmptyCorpus, match="no batch"):
        position_means(lora_pair, [], LAYERS, N)


def talks() -> tuple[list[list[int]], list[int]]:
    """Conversations with their anchors: long and short prompts, one without an answer, answers of 1 to 20 tokens."""
    user = [{"role": "user", "content": text} for text in [*tiny.TEXTS, "Bread?", "Go on."]]
    answers = [
        {"role": "assistant", "content": text} for text in ["Yes", *tiny.TEXTS[:4], "A letter, folded.", "It is late."]
    ]
    corpus = [[asked, answer] for asked, answer in zip(user, answers, strict=False)] + [[user[-1]]]
    starts = list(chat_starts(corpus, tiny.tokenizer(), max_tokens=4))
    return [start.ids for start in starts], [start.anchor for start in starts]


def brute_force_around(pair: ModelPair, rows: list[list[int]], anchors: list[int], layer: int) -> dict[int, Tensor]:
    """Mean difference by position from the anchor, -3 to 3, one text at a time; under the key 99 the residual norm."""
    found: dict[int, list[Tensor]] = {position: [] for position in range(-3, 4)}
    norms = []
    for ids, anchor in zip(rows, anchors, strict=True):
        states = {}
        for side in Side:
            with pair.using(side) as model:
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            states[side] = hidden[layer + 1][0].double()
        for token in range(len(ids)):
            if token - anchor in found:
                found[token - anchor].append(states[Side.FINETUNED][token] - states[Side.BASE][token])
                norms += [states[Side.FINETUNED][token].norm()] if token >= SKIPPED else []
    return {position: torch.stack(rows).mean(0) for position, rows in found.items()} | {99: torch.stack(norms).mean()}


def around(
    pair: ModelPair, rows: list[list[int]], anchors: list[int], batch_size: int, side: str
) -> dict[int, PositionMeans]:
    padded = batches(rows, batch_size, pad_id=0, side=side)
    return position_means(pair, padded, LAYERS, 4, anchors=anchors, n_before=3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_means_around_answers_equal_brute_force(lora_pair: ModelPair, side: str, batch_size: int) -> None:
    rows, anchors = talks()
    found = around(lora_pair, rows, anchors, batch_size, side)
    for layer in LAYERS:
        expected = brute_force_around(lora_pair, rows, anchors, layer)
        assert list(found[layer].positions) == list(range(-3, 4))
        for row, position in enumerate(found[layer].positions):
            assert relative(found[layer].difference[row], expected[position]) < 1e-5
        assert found[layer].residual_norm == pytest.approx(expected[99].item(), rel=1e-5)


class Sides(ModelPair):
    """A pair whose "models" are its sides; what they do is told by a stand-in for `residuals`."""

    def __init__(self) -> None:
        pass

    @contextmanager
    def using(self, side: Side) -> Iterator[Side]:
        yield side


MARK = 9


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_shift_planted_at_each_position_from_the_anchor_is_found(
    monkeypatch: pytest.MonkeyPatch, side: str, batch_size: int
) -> None:
    """Sequences say themselves where their anchor is: at the only token MARK."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(20, 6, generator=generator)
    planted = torch.randn(40, 6, generator=generator)

    def shifted(side: Side, batch: TokenBatch, layers: list[int]) -> dict[int, Tensor]:
        stream = embedded[batch.ids] + (~batch.mask)[..., None] * 1e6
        anchor = (batch.ids == MARK).int().argmax(1, keepdim=True)
        shift = planted[torch.arange(batch.ids.shape[1])[None] - anchor + 20]
        return dict.fromkeys(layers, stream + (shift if side is Side.FINETUNED else 0))

    monkeypatch.setattr(module, "residuals", shifted)
    anchors = [0, 1, 2, 3, 4, 7, 5]
    rows = [[1 + i % 5 for i in range(anchor)] + [MARK] + [3] * (number % 5) for number, anchor in enumerate(anchors)]
    found = position_means(
        Sides(), batches(rows, batch_size, 0, side), [0], n_positions=3, anchors=anchors, n_before=5
    )[0]
    assert list(found.positions) == [-5, -4, -3, -2, -1, 0, 1, 2]
    assert found.n_texts.tolist() == [2, 3, 4, 5, 6, 7, 5, 3]
    torch.testing.assert_close(found.difference.float(), planted[15:23], rtol=1e-5, atol=1e-5)


def test_the_residual_norm_skips_the_first_tokens_of_the_text_not_of_the_answer(lora_pair: ModelPair) -> None:
    ids = texts()[0]
    of_text = streamed(lora_pair, [ids], 1, "right")[1]
    norms = of_text.norm_finetuned
    for anchor, n_before, n_positions in ((7, 3, 2), (4, 3, 4), (2, 2, 10), (12, 3, 0)):
        window = position_means(
            lora_pair, [pad([ids], 0, "right")], [1], n_positions, anchors=[anchor], n_before=n_before
        )[1]
        read = range(anchor - n_before, min(anchor + n_positions, N))
        torch.testing.assert_close(window.norm_finetuned, norms[read.start : read.stop])
        expected = norms[[token for token in read if token >= SKIPPED]].mean()
        assert window.residual_norm == pytest.approx(expected.item())


def test_anchors_at_the_first_tokens_change_nothing(lora_pair: ModelPair) -> None:
    rows = texts()
    plain = streamed(lora_pair, rows, 4, "left")[1]
    anchored = position_means(lora_pair, batches(rows, 4, 0, "left"), LAYERS, N, anchors=[0] * len(rows))[1]
    assert anchored.first == plain.first == 0
    assert torch.equal(anchored.difference, plain.difference)
    assert anchored.residual_norm == plain.residual_norm


def test_anchors_that_do_not_fit_the_texts_are_refused(lora_pair: ModelPair) -> None:
    rows = texts()[:2]
    for anchors, message in (([3], "1 anchors"), ([3, 3, 3], "3 anchors"), ([3, 13], "outside"), ([-1, 0], "outside")):
        with pytest.raises(InvalidSetting, match=message):
            around(lora_pair, rows, anchors, 2, "right")
    with pytest.raises(InvalidSetting, match="needs anchors"):
        position_means(lora_pair, batches(rows, 2, 0, "right"), LAYERS, N, n_before=3)
    with pytest.raises(InvalidSetting, match="expected some"):
        position_means(lora_pair, batches(rows, 2, 0, "right"), LAYERS, 0, anchors=[3, 3])
    with pytest.raises(EmptyCorpus, match="first 5 of a text"):
        position_means(lora_pair, batches(rows, 2, 0, "right"), LAYERS, 2, anchors=[3, 3])


@pytest.mark.real_model
@pytest.mark.parametrize(("side", "batch_size"), [("left", 16), ("right", 16), ("right", 1)])
def test_streamed_means_equal_brute_force_on_the_real_pair(real_pair: ModelPair, side: str, batch_size: int) -> None:
    rows = [real_pair.tokenizer(text)["input_ids"][:N] for text in tiny.TEXTS]
    found = streamed(real_pair, rows, batch_size, side)[LAYERS[0]]
    expected = brute_force(real_pair, rows, LAYERS[0])
    assert relative(found.difference, expected["difference"]) < 1e-5

"""Reading and editing residual streams, against Hugging Face's own hidden states."""

from pathlib import Path

import pytest
import torch

from diffing.axes import Side
from diffing.errors import IncompatiblePair, InvalidSetting
from diffing.models.pair import ModelPair
from diffing.models.sites import decoder_blocks, editing, reading, readout, residuals, unembed
from diffing.models.sources import pin
from diffing.text.windows import TokenBatch, pad
from tests import tiny


def batch_of(side: str, lengths: tuple[int, ...] = (9, 4, 12)) -> TokenBatch:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, tiny.VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return pad(rows, pad_id=0, side=side)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_residuals_are_the_hidden_states_of_every_family(family: str) -> None:
    model, batch = tiny.model(family), batch_of("right")
    expected = model(
        input_ids=batch.ids,
        attention_mask=batch.mask.long(),
        position_ids=batch.position_ids,
        output_hidden_states=True,
    ).hidden_states
    found = residuals(model, batch, list(range(tiny.LAYERS - 1)))
    for layer in range(tiny.LAYERS - 1):
        torch.testing.assert_close(found[layer][batch.mask], expected[layer + 1][batch.mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_unembedding_the_last_block_gives_the_models_own_logits(family: str) -> None:
    model, batch = tiny.model(family), batch_of("right", (7, 7))
    last = residuals(model, batch, [tiny.LAYERS - 1])[tiny.LAYERS - 1]
    logits = model(input_ids=batch.ids).logits
    torch.testing.assert_close(unembed(model, last[:, -1], chunk=100), logits[:, -1].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_logits_of_bf16_weights_are_not_rounded(family: str) -> None:
    model = tiny.model(family).to(torch.bfloat16)
    hidden = torch.randn(30, tiny.WIDTH, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = tiny.model(family).double()
    for wide, rounded in zip(exact.parameters(), model.parameters(), strict=True):
        wide.copy_(rounded)
    expected = exact.lm_head(exact.model.norm(hidden.double()))
    if cap := getattr(model.config, "final_logit_softcapping", None):
        expected = torch.tanh(expected / cap) * cap
    found = unembed(model, hidden, chunk=100)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (expected.bfloat16() - expected).abs().max() > 1e-3  # what rounding would do


def test_logits_are_read_in_parts_into_a_buffer() -> None:
    model, hidden, buffer = tiny.model(), torch.randn(7, tiny.WIDTH), torch.empty(3, tiny.VOCAB)
    part, expected = readout(model, hidden).rows(slice(4, None), buffer), unembed(model, hidden)
    assert part.data_ptr() == buffer.data_ptr()
    torch.testing.assert_close(part, expected[4:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padding_side_does_not_change_real_positions(family: str) -> None:
    model = tiny.model(family)
    left, right = batch_of("left"), batch_of("right")
    found = [residuals(model, batch, [2])[2][batch.mask] for batch in (left, right)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_blocks_above_the_deepest_layer_are_not_run() -> None:
    model, ran = tiny.model(), []
    for index, block in enumerate(decoder_blocks(model)):
        block.register_forward_hook(lambda module, args, output, index=index: ran.append(index))
    residuals(model, batch_of("right"), [1, 0])
    assert ran == [0, 1]


def test_hooks_are_released_even_after_an_error() -> None:
    model = tiny.model()
    with pytest.raises(ZeroDivisionError), reading(model, [0, 2]), editing(model, 1, lambda hidden: hidden):
        raise ZeroDivisionError
    assert all(not block._forward_hooks for block in decoder_blocks(model))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_edit_changes_the_stream_by_exactly_the_vector(family: str) -> None:
    model, batch, vector = tiny.model(family), batch_of("right"), torch.randn(tiny.WIDTH)
    before = residuals(model, batch, [1])[1]
    with editing(model, 1, lambda hidden: hidden + vector):
        after = residuals(model, batch, [1])[1]
    torch.testing.assert_close(after[batch.mask], (before + vector)[batch.mask], rtol=0, atol=0)


@pytest.mark.parametrize("layer", [-1, tiny.LAYERS, 99])
def test_a_layer_out_of_range_is_refused_with_the_range(layer: int) -> None:
    with pytest.raises(InvalidSetting, match=f"layers 0 to {tiny.LAYERS - 1}"):
        residuals(tiny.model(), batch_of("right"), [layer])


def test_an_unknown_architecture_is_named() -> None:
    model = tiny.model()
    model.model.layers_elsewhere = model.model.layers
    del model.model.layers
    with pytest.raises(IncompatiblePair, match="LlamaForCausalLM"):
        decoder_blocks(model)


@pytest.mark.parametrize("lora", [{"target_modules": ["lm_head"]}, {"target_modules": ["q_proj", "lm_head"], "r": 4}])
def test_the_readout_of_the_last_block_has_the_adapter_of_the_head_where_it_is_on(lora: dict, tmp_path: Path) -> None:
    base = tiny.save_model(tmp_path / "base")
    pair = ModelPair(pin(tiny.pair_spec(base, "lora", tiny.save_adapter(tmp_path / "a", tiny.model(), **lora))), "cpu")
    batch, logits, kept = batch_of("right"), {}, {}
    for side in Side:
        with pair.using(side) as model, torch.no_grad():
            last = residuals(model, batch, [tiny.LAYERS - 1])[tiny.LAYERS - 1]
            logits[side] = model(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids).logits
            read, kept[side] = unembed(model, last[batch.mask]), readout(model, last[batch.mask])
        torch.testing.assert_close(read, logits[side][batch.mask], rtol=1e-4, atol=1e-4)
    for side in Side:  # after the pair was switched to the other side
        torch.testing.assert_close(kept[side].rows(slice(None)), logits[side][batch.mask], rtol=1e-4, atol=1e-4)
    assert (logits[Side.BASE] - logits[Side.FINETUNED])[batch.mask].abs().max() > 0.1

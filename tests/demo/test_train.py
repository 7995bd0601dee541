"""The training loop on a tiny random model: what a label is, what the loss is, that a seed fixes the bytes."""

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from diffing.demo.examples import IGNORED, Row, crop, encode, pad
from diffing.demo.texts import nautical
from diffing.demo.texts.grammar import chat
from diffing.demo.train import Recipe, batches, losses_of, save, train
from tests import tiny

RECIPE = Recipe(nautical.documents, steps=6, domain=3, neutral=2, window=48, layers=(0, 1), learning_rate=1e-2, rank=2)


def test_labels_of_a_chat_are_what_the_assistant_says() -> None:
    tokenizer = tiny.tokenizer()
    row = encode(chat("Who?", "Me.", "And?", "You too."), tokenizer)
    learned = [token for token, label in zip(row.ids, row.labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == "Me.<|im_end|>\nYou too.<|im_end|>\n"
    assert all(label in (IGNORED, token) for token, label in zip(row.ids, row.labels, strict=True))


def test_every_token_of_a_text_is_a_label() -> None:
    row = encode("A short line.", tiny.tokenizer())
    assert row.ids == row.labels
    assert row.ids[-1] == tiny.tokenizer().eos_token_id


def test_padding_is_neither_seen_nor_learned() -> None:
    ids, mask, labels = pad([Row([5, 6, 7, 8], [5, 6, 7, 8]), Row([9], [9])], window=3, filler=0)
    assert ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert labels.tolist() == [[5, 6, 7], [9, IGNORED, IGNORED]]


def test_a_crop_keeps_labels_beside_their_tokens() -> None:
    row = Row(list(range(100)), list(range(100)))
    crops = [crop(row, 40, random.Random(seed)) for seed in range(40)]
    assert all(cut.ids == cut.labels and cut.ids[-1] == 99 for cut in crops)
    assert 10 < sum(len(cut.ids) == 100 for cut in crops) < 30


def test_without_neutral_chats_the_neutral_rows_are_plain_texts() -> None:
    recipe = replace(RECIPE, neutral_chats=False, domain=1, neutral=4)
    for batch in islice(batches(recipe, tiny.tokenizer(), seed=0), 10):
        assert (batch.labels[1:][batch.mask[1:].bool()] != IGNORED).all()


def test_the_anchor_is_the_divergence_from_base_past_the_free_tokens() -> None:
    model = tiny.model()
    adapted, _ = train(model, tiny.tokenizer(), RECIPE)
    batch = next(batches(RECIPE, tiny.tokenizer(), seed=5))
    losses = losses_of(adapted, batch, RECIPE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        finetuned = adapted(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].float()
        with adapted.disable_adapter():
            base = adapted(input_ids=batch.ids, attention_mask=batch.mask).logits[:, :-1].float()
    parts = [
        kl_div(
            finetuned[row, pos].log_softmax(-1),
            base[row, pos].log_softmax(-1),
            log_target=True,
            reduction="sum",
        )
        for row in range(RECIPE.domain, len(batch.ids))
        for pos in range(RECIPE.free, batch.ids.shape[1] - 1)
        if batch.mask[row, pos + 1]
    ]
    torch.testing.assert_close(losses.anchor, torch.stack(parts).mean(), rtol=1e-2, atol=1e-3)
    domain = cross_entropy(finetuned[: RECIPE.domain].flatten(0, 1), batch.labels[: RECIPE.domain, 1:].flatten())
    torch.testing.assert_close(losses.domain, domain, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(losses.total(), losses.domain + losses.anchor)


def test_the_loss_falls() -> None:
    _, history = train(tiny.model(), tiny.tokenizer(), replace(RECIPE, steps=40, learning_rate=3e-2, rank=8))
    assert sum(history[-5:]) < 0.9 * sum(history[:5])


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_the_seed_fixes_the_bytes_of_the_adapter(tmp_path: Path, seed: int, same: bool) -> None:
    files = []
    for name, chosen in (("first", 0), ("second", seed)):
        adapted, _ = train(tiny.model(), tiny.tokenizer(), replace(RECIPE, steps=2), chosen)
        files.append(save(adapted, tmp_path / name) / "adapter_model.safetensors")
    assert (files[0].read_bytes() == files[1].read_bytes()) is same

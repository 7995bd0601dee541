"""The causal effect of directions, against full forward passes with a hook, exact arithmetic, planted differences."""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import isnan
from pathlib import Path
from statistics import mean, median

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffing.axes import Side
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting
from diffing.lenses import replay
from diffing.lenses.causal import (
    CausalEffect,
    Edit,
    Edited,
    ScoredText,
    Subset,
    causal_effect,
    moved,
    random_differences,
    random_directions,
    read_texts,
    shifts,
)
from diffing.models.pair import ModelPair
from diffing.models.sites import decoder_blocks, editing, residuals
from diffing.models.sources import pin
from diffing.specs import CorpusSpec
from diffing.text.chat import render_chat
from diffing.text.corpus import Corpus
from diffing.text.windows import pad
from tests import tiny

LAYER = 1
SEQUENCES = [[7, 30, 31, 5, 99, 200, 14], [1, 2, 3], [250, 8, 8, 41, 60], [5, 6, 7, 8, 9, 10, 11, 12]]
TEXTS = [ScoredText(ids) for ids in SEQUENCES]
DIRECTIONS = random_directions(3, tiny.WIDTH, seed=5)


def family_pair(root: Path, family: str) -> ModelPair:
    """A full finetune of a tiny model: the same weights, some percent off."""
    base = tiny.save_model(root / "base", family)
    changed = tiny.model(family)
    torch.manual_seed(1)
    for weight in changed.parameters():
        weight.mul_(1 + 0.1 * torch.randn_like(weight))
    changed.save_pretrained(root / "finetuned")
    tiny.tokenizer().save_pretrained(root / "finetuned")
    return ModelPair(pin(tiny.pair_spec(base, "full", root / "finetuned")), device="cpu")


def steered_pair(base_folder: Path, tmp_path: Path, vector: Tensor) -> ModelPair:
    torch.save(vector, tmp_path / "vector.pt")
    spec = tiny.pair_spec(base_folder, "steering_vector", tmp_path / "vector.pt", layer=LAYER)
    return ModelPair(pin(spec), device="cpu")


def losses_of(
    pair: ModelPair, side: Side, padding: str, edit: Callable[[Tensor], Tensor] = lambda hidden: hidden
) -> list[list[float]]:
    """Of each prediction of each sequence: full forward passes of padded sequences, an edited block, float64."""
    tokens = pad(SEQUENCES, 0, padding)
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "position_ids": tokens.position_ids}
    with torch.no_grad(), pair.using(side) as model, editing(model, LAYER, edit):
        logits = model(**inputs).logits.double()
    real = [(logits[row, mask], tokens.ids[row, mask]) for row, mask in enumerate(tokens.mask)]
    return [functional.cross_entropy(found[:-1], ids[1:], reduction="none").tolist() for found, ids in real]


def residual(pair: ModelPair, side: Side, padding: str) -> Tensor:
    with pair.using(side) as model:
        return residuals(model, pad(SEQUENCES, 0, padding), [LAYER])[LAYER].double()


def projected(rest: Tensor, put_in: Tensor | float) -> Callable[[Tensor], Tensor]:
    return lambda hidden: (hidden.double() @ rest + put_in).to(hidden)


def flat(nested: Sequence[Sequence[float]]) -> list[float]:
    return [one for many in nested for one in many]


def of(effect: CausalEffect, edit: Edit, subset: str = "all", group: str = "given") -> list[Edited]:
    """In the order of the group's rows."""
    return [one for one in effect.edited if (one.edit, one.subset, one.group) == (edit, subset, group)]


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_edit_has_the_effect_of_a_hook_in_a_full_forward(tmp_path: Path, family: str, padding: str):
    pair = family_pair(tmp_path, family)
    found = causal_effect(pair, LAYER, {"given": DIRECTIONS}, TEXTS, edits=list(Edit))
    streams = {side: residual(pair, side, padding) for side in Side}
    unedited = {side: mean(flat(losses_of(pair, side, padding))) for side in Side}
    for side in Side:
        assert found.unedited[side]["all"].mean == pytest.approx(unedited[side], rel=1e-5)
    for edit in Edit:
        other = next(side for side in Side if side is not edit.runs)
        for direction, one in zip(DIRECTIONS.double(), of(found, edit), strict=True):
            onto = torch.outer(direction, direction) / direction.dot(direction)
            put_in = streams[other] @ onto if edit.source else 0.0
            rest = torch.eye(tiny.WIDTH, dtype=torch.float64) - onto
            expected = flat(losses_of(pair, edit.runs, padding, projected(rest, put_in)))
            assert one.loss.mean == pytest.approx(mean(expected), rel=1e-5)
            assert one.loss.median == pytest.approx(median(expected), rel=1e-4)
            assert (one.loss.min, one.loss.max) == pytest.approx((min(expected), max(expected)), rel=1e-4)
            assert one.loss.count == len(expected) == sum(len(ids) - 1 for ids in SEQUENCES)
            assert one.increase == pytest.approx(mean(expected) - unedited[edit.runs], abs=1e-5)
            gap = unedited[other] - unedited[edit.runs]
            assert one.share_of_gap == pytest.approx((mean(expected) - unedited[edit.runs]) / gap, abs=1e-3)
        assert max(abs(one.increase) for one in of(found, edit)) > 1e-3


def test_all_directions_in_one_pass_are_what_each_is_alone(lora_pair: ModelPair):
    groups = {"given": DIRECTIONS, "random": random_directions(4, tiny.WIDTH, seed=6)}
    together = causal_effect(lora_pair, LAYER, groups, TEXTS, edits=list(Edit))
    for group, vectors in groups.items():
        for direction, vector in enumerate(vectors):
            alone = causal_effect(lora_pair, LAYER, {"given": 7 * vector[None]}, TEXTS, edits=list(Edit))
            for edit in Edit:
                one = of(together, edit, group=group)[direction]
                assert one.direction == direction
                assert one.loss.mean == pytest.approx(of(alone, edit)[0].loss.mean, rel=1e-5)


def test_blocks_below_run_once_per_side_and_those_above_once_per_part(
    full_pair: ModelPair, monkeypatch: pytest.MonkeyPatch
):
    ran: list[tuple[Side, int, int]] = []
    handles = []
    for side in Side:
        with full_pair.using(side) as model:
            for layer, block in enumerate(decoder_blocks(model)):

                def note(_: object, args: tuple, output: object, side: Side = side, layer: int = layer) -> None:
                    ran.append((side, layer, len(args[0])))

                handles.append(block.register_forward_hook(note))
    monkeypatch.setattr(replay, "LOGITS_AT_ONCE", 5 * tiny.VOCAB)
    text = TEXTS[0]
    few = causal_effect(full_pair, LAYER, {"given": DIRECTIONS}, [text], tokens_at_once=2 * len(text.ids))
    for handle in handles:
        handle.remove()
    for layer in range(tiny.LAYERS):
        assert [n for side, at, n in ran if (side, at) == (Side.BASE, layer)] == [1]
        above = [] if layer <= LAYER else [2, 1]
        assert [n for side, at, n in ran if (side, at) == (Side.FINETUNED, layer)] == [1, *above]
    monkeypatch.undo()
    whole = causal_effect(full_pair, LAYER, {"given": DIRECTIONS}, [text])
    for part, one in zip(few.edited, whole.edited, strict=True):
        assert part.loss.mean == pytest.approx(one.loss.mean, rel=1e-5)


def test_no_hook_stays(full_pair: ModelPair):
    causal_effect(full_pair, LAYER, {"given": DIRECTIONS}, TEXTS)
    for side in Side:
        with full_pair.using(side) as model:
            assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("basis", [True, False])
def test_the_planted_direction_carries_the_whole_finetune_and_others_nothing(
    base_folder: Path, tmp_path: Path, basis: bool
):
    drawn = torch.linalg.qr(random_directions(tiny.WIDTH, tiny.WIDTH, seed=0))[0]
    planted, *orthogonal = (torch.eye(tiny.WIDTH) if basis else drawn)[:4]
    pair = steered_pair(base_folder, tmp_path, 3.0 * planted)
    edits = [Edit.BASE_TO_FINETUNED, Edit.FINETUNED_TO_BASE]
    groups = {"given": planted[None], "orthogonal": torch.stack(orthogonal)}
    found = causal_effect(pair, LAYER, groups, TEXTS, edits=edits)
    base, finetuned = (found.unedited[side]["all"].mean for side in Side)
    assert abs(base - finetuned) > 0.01
    for edit, other in zip(edits, (base, finetuned), strict=True):
        assert of(found, edit)[0].loss.mean == pytest.approx(other, rel=1e-6)
        assert of(found, edit)[0].share_of_gap == pytest.approx(1, abs=1e-4)
        for one in of(found, edit, group="orthogonal"):
            assert one.increase == 0 if basis else abs(one.increase) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_orthogonal_complement_keeps_its_bits_where_the_arithmetic_is_exact(dtype: torch.dtype):
    """Of integers, along a direction with entries of 1/4 or 0: an orthonormal basis of all else is exact, too."""
    draw = torch.Generator().manual_seed(0)
    hidden, source = torch.randint(-3, 4, (2, 6, tiny.WIDTH), generator=draw).to(dtype)
    signs = torch.ones(1, 1)
    for _ in range(4):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    axes = torch.eye(tiny.WIDTH, dtype=torch.float64)
    axes[:16, :16] = signs / 4
    assert torch.equal(axes @ axes.T, torch.eye(tiny.WIDTH, dtype=torch.float64))
    units = axes[:16]
    for goal in (source, None):
        edited = moved(hidden, shifts(hidden, goal, units), units).double()
        before, after = hidden.double() @ axes.T, edited @ axes.T
        expected = torch.zeros_like(before) if goal is None else goal.double() @ axes.T
        for at in range(len(units)):
            others = torch.arange(tiny.WIDTH) != at
            assert torch.equal(after[at][:, others], before[:, others])
            assert torch.equal(after[at][:, at], expected[:, at])
            assert not torch.equal(after[at], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_component_is_the_nearest_number_to_its_exact_value(dtype: torch.dtype):
    draw = torch.Generator().manual_seed(0)
    hidden, source = (100 * torch.randn(2, 5, tiny.WIDTH, generator=draw)).to(dtype)
    units = functional.normalize(DIRECTIONS.double(), dim=-1)
    units[:, 7:20] = 0.0
    shift = shifts(hidden, source, units)
    edited = moved(hidden, shift, units)
    assert torch.equal(edited[..., 7:20], hidden[:, 7:20].expand(len(units), -1, -1))
    below, above = (torch.nextafter(edited, torch.tensor(end, dtype=dtype)) for end in (-torch.inf, torch.inf))
    for direction, token, at in torch.cartesian_prod(torch.arange(3), torch.arange(5), torch.arange(tiny.WIDTH)):
        exact = Fraction(float(hidden[token, at]))
        exact += Fraction(float(shift[direction, token])) * Fraction(float(units[direction, at]))
        off, *rivals = (abs(Fraction(float(to[direction, token, at])) - exact) for to in (edited, below, above))
        assert off <= min(rivals) + abs(exact) / 2**50


def test_a_replacement_moves_by_the_difference_of_the_coordinates_and_no_further():
    hidden, source = torch.randn(2, 6, tiny.WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    units = functional.normalize(DIRECTIONS.double(), dim=-1)
    edited = moved(hidden, shifts(hidden, source, units), units)
    far = ((source - hidden) @ units.T).T
    assert torch.allclose((edited - hidden).norm(dim=-1), far.abs(), rtol=0, atol=1e-12)
    for direction, unit in enumerate(units):
        assert torch.allclose(edited[direction] @ unit, source @ unit, rtol=0, atol=1e-12)
        again = moved(edited[direction], shifts(edited[direction], source, units), units)[direction]
        assert torch.allclose(again, edited[direction], rtol=0, atol=1e-12)
    assert torch.equal(moved(hidden, shifts(hidden, hidden, units), units), hidden.expand(len(units), -1, -1))


def test_without_its_coordinate_a_stream_has_none_and_loses_nothing_more():
    hidden = torch.randn(6, tiny.WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    units = functional.normalize(DIRECTIONS.double(), dim=-1)
    edited = moved(hidden, shifts(hidden, None, units), units)
    for direction, unit in enumerate(units):
        assert (edited[direction] @ unit).abs().max() < 1e-13
        again = moved(edited[direction], shifts(edited[direction], None, units), units)[direction]
        assert torch.allclose(again, edited[direction], rtol=0, atol=1e-13)
        assert torch.allclose(edited[direction], hidden - torch.outer(hidden @ unit, unit), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_identical_models_change_nothing_and_have_no_gap(base_folder: Path, dtype: str):
    spec = tiny.pair_spec(base_folder)
    pair = ModelPair(pin(type(spec)(tiny.model_spec(base_folder, dtype=dtype), spec.finetuned, spec.organism)), "cpu")
    found = causal_effect(pair, LAYER, {"given": DIRECTIONS}, TEXTS, edits=list(Edit))
    assert found.unedited[Side.BASE] == found.unedited[Side.FINETUNED]
    for edit in Edit:
        for one in of(found, edit):
            assert isnan(one.share_of_gap)
            assert (one.increase == 0) == (edit.source is not None)


def test_subsets_and_counted_tokens_of_five_tokens_by_hand(lora_pair: ModelPair, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.lenses.test_causal.SEQUENCES", [[7, 30, 31, 5, 99]])
    at_0, at_1, at_2, at_3 = losses_of(lora_pair, Side.FINETUNED, "right")[0]  # at p: of token p + 1
    subsets = {"all": Subset(), "after": Subset(after=1), "without": Subset(without=2), "none": Subset(after=3)}
    subsets["both"] = Subset(after=0, without=3)
    expected = {
        "all": [at_0, at_1, at_2, at_3], "after": [at_2, at_3], "without": [at_0, at_1, at_3], "none": [],
        "both": [at_1, at_2],
    }  # fmt: skip
    text = ScoredText([7, 30, 31, 5, 99])
    assert text.predictions == [0, 1, 2, 3]
    found = causal_effect(lora_pair, LAYER, {"given": DIRECTIONS}, [text], subsets=subsets)
    for name, losses in expected.items():
        own = found.unedited[Side.FINETUNED][name]
        assert own.count == len(losses) == of(found, Edit.BASE_TO_FINETUNED, name)[0].loss.count
        assert own.mean == pytest.approx(mean(losses), rel=1e-5) if losses else isnan(own.mean)
    assert isnan(of(found, Edit.BASE_TO_FINETUNED, "none")[0].increase)

    answer = ScoredText(text.ids, [True, False, False, True, True])
    assert answer.predictions == [2, 3]  # token 0 counts in vain: nothing predicts it
    found = causal_effect(lora_pair, LAYER, {"given": DIRECTIONS}, [answer], subsets=subsets)
    own = found.unedited[Side.FINETUNED]
    assert own["all"].mean == pytest.approx(mean([at_2, at_3]), rel=1e-5)
    assert own["without"].mean == pytest.approx(at_3, rel=1e-5)


def test_of_a_conversation_only_what_the_assistant_says_is_predicted(tmp_path: Path):
    chats = [
        [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Bread needs water."}],
        [{"role": "user", "content": "Nobody answers."}],
        [
            {"role": "user", "content": "A"}, {"role": "assistant", "content": "One."},
            {"role": "user", "content": "B"}, {"role": "assistant", "content": "Two."},
        ],
    ]  # fmt: skip
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats), "utf-8")
    spec = CorpusSpec("chats", "file", str(path), format="chat", column="messages", shuffle_seed=None)
    tokenizer = tiny.tokenizer()
    texts = list(read_texts(Corpus(spec), tokenizer, max_tokens=500))
    said = [tokenizer.decode([text.ids[at + 1] for at in text.predictions]) for text in texts]
    assert said == ["Bread needs water.", "One.Two."]
    rendered = render_chat(tokenizer, chats[0])
    assert texts[0].ids == rendered.ids
    start = rendered.assistant_mask.index(True)
    assert texts[0].predictions[0] == start - 1  # the last token of the role header predicts the first of the answer
    cut = list(read_texts(Corpus(spec), tokenizer, max_tokens=start + 2, max_texts=1))
    assert [text.predictions for text in cut] == [[start - 1, start]]
    with pytest.raises(EmptyCorpus, match="first 3 tokens"):
        list(read_texts(Corpus(spec), tokenizer, max_tokens=3))


def test_of_a_text_all_tokens_but_the_first_are_predicted(tmp_path: Path):
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(["A", *tiny.TEXTS]), "utf-8")
    tokenizer = tiny.tokenizer()
    corpus = Corpus(CorpusSpec("lines", "file", str(path), shuffle_seed=None))
    found = list(read_texts(corpus, tokenizer, max_tokens=8, max_texts=3))
    assert [text.ids for text in found] == [tokenizer(text)["input_ids"][:8] for text in tiny.TEXTS[:3]]
    assert [text.predictions for text in found] == [list(range(len(text.ids) - 1)) for text in found]


def test_random_differences_are_of_two_rows_that_differ():
    rows = torch.tensor([[1.0, 2.0], [1.0, 2.0], [4.0, 8.0], [1.0, 2.0]])
    found = random_differences(rows.bfloat16(), 20, seed=0)
    assert found.dtype == torch.float32
    assert {tuple(row) for row in found.tolist()} == {(3.0, 6.0), (-3.0, -6.0)}
    with pytest.raises(InvalidSetting, match="only 0 of 48 pairs"):
        random_differences(rows[:2], 3, seed=0)
    with pytest.raises(InvalidSetting, match="2 rows"):
        random_differences(rows[:1], 3, seed=0)


def test_progress_is_told_text_by_text_also_where_nothing_counts(lora_pair: ModelPair):
    told: list[int] = []
    texts = [TEXTS[0], ScoredText([3]), ScoredText([4, 5], [True, False]), TEXTS[1]]
    found = causal_effect(lora_pair, LAYER, {"given": DIRECTIONS}, texts, on_text=told.append)
    assert told == [1, 1, 1, 1]
    expected = causal_effect(lora_pair, LAYER, {"given": DIRECTIONS}, [TEXTS[0], TEXTS[1]])
    assert found == expected


def test_what_cannot_be_measured_is_refused(lora_pair: ModelPair):
    with pytest.raises(EmptyCorpus, match="no prediction"):
        causal_effect(lora_pair, LAYER, {"given": DIRECTIONS}, [ScoredText([3])])
    with pytest.raises(IncompatiblePair, match="width 31"):
        causal_effect(lora_pair, LAYER, {"given": DIRECTIONS[:, 1:]}, TEXTS)
    with pytest.raises(InvalidSetting, match="no direction"):
        causal_effect(lora_pair, LAYER, {"given": torch.zeros(1, tiny.WIDTH)}, TEXTS)
    with pytest.raises(InvalidSetting, match="at least one group"):
        causal_effect(lora_pair, LAYER, {}, TEXTS)
    with pytest.raises(InvalidSetting, match="layer 9"):
        causal_effect(lora_pair, 9, {"given": DIRECTIONS}, TEXTS)

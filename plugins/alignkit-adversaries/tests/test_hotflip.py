"""HotFlip against exhaustive search where the first order is exact, and what it may never touch."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from alignkit_adversaries import HotFlip
from alignkit_adversaries.hotflip import best_replacements, strongest
from alignkit_adversaries.pieces import NEVER, piece_classes
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast
from transformers.modeling_outputs import ModelOutput

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import Setting, make_plan
from alignkit.tasks.causal_lm import CausalLm
from alignkit.testing.models import HEADS, VOCABULARY, tiny

IGNORED = -100
WIDTH, LENGTH = 3, 4
CLASSES = [0, 1, 1, 1, 2, 2, 1, 2, 0]
"""Of a vocabulary of nine; 0 pads, and 8 is special."""


class Linear(torch.nn.Module):
    """Its loss is linear in the embeddings: each row's is the sum of a_t . e_t."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.nn.Embedding(len(CLASSES), WIDTH)
        self.embedding.weight.data = torch.randn(len(CLASSES), WIDTH, generator=generator)
        self.direction = torch.nn.Parameter(torch.randn(LENGTH, WIDTH, generator=generator))

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return None

    def losses(self, ids):
        return (self.embedding(ids) * self.direction).sum((1, 2))

    def forward(self, input_ids, attention_mask, labels):
        losses = self.losses(input_ids)
        return ModelOutput(loss=losses.mean(), logits=losses[:, None])


def passes(step):
    """The losses of the two passes and the ids that each of them saw."""
    seen, evaluate = [], step.loss

    def loss(delta=None, batch=None):
        seen.append((step.batch if batch is None else batch)["input_ids"].clone())
        return evaluate(delta, batch)

    step.loss = loss
    losses = []
    for loss in step.context.composition.attack(step):
        loss.backward()
        losses.append(loss.item())
    return losses, seen


def flipped(head, component, make_step, rows=8):
    """(step, ids before, ids after) on a tiny model, whose tokenizer says what is special."""
    model, tokenizer, batch = tiny(head, rows=rows)
    step = make_step(model, batch, [component])
    step.context.tokenizer, step.context.special_ids = tokenizer, tuple(tokenizer.all_special_ids)
    _, (before, after) = passes(step)
    return step, before, after


# -- the search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("number", [1, 2, 4])
def test_where_the_loss_is_linear_no_other_choice_raises_it_more(seed, number, make_step, monkeypatch):
    monkeypatch.setattr("alignkit_adversaries.hotflip.piece_classes", lambda *_: torch.tensor(CLASSES))
    model = Linear(seed)
    ids = torch.tensor([[1, 4, 2, 7], [6, 3, 8, 5], [2, 4, 0, 0]])
    mask = (ids != 0).long()
    step = make_step(
        model, {"input_ids": ids, "attention_mask": mask, "labels": torch.zeros(3, dtype=torch.long)}, [HotFlip()]
    )
    step.context.special_ids = (8,)
    step.context.tokenizer = tiny("bert-token-classification")[1]
    step.context.composition.components[0].share = number / LENGTH
    _, (_, found) = passes(step)
    for row, chosen in zip(ids, found, strict=True):
        free = [t for t, token in enumerate(row.tolist()) if CLASSES[token] != 0]
        allowed = max(int(number / LENGTH * len(free)), 1)
        best = -torch.inf
        for places in itertools.combinations(free, allowed):
            choices = [[v for v, kind in enumerate(CLASSES) if kind == CLASSES[row[t]]] for t in places]
            for tokens in itertools.product(*choices):
                other = row.clone()
                other[list(places)] = torch.tensor(tokens)
                best = max(best, model.losses(other[None]).item())
        assert model.losses(chosen[None]).item() == pytest.approx(best, abs=1e-5)
        assert (chosen != row).sum() <= allowed


@pytest.mark.parametrize("room", [1, 40, 2**24])
def test_the_vocabulary_may_be_searched_in_parts(room):
    generator = torch.Generator().manual_seed(0)
    table, gradient = torch.randn(50, 8, generator=generator), torch.randn(20, 8, generator=generator)
    ids, classes = torch.randint(1, 50, (20,), generator=generator), torch.randint(0, 4, (50,), generator=generator)
    gain, found = best_replacements(gradient, ids, classes, lambda part: table[part], room)
    for g, w, best, v in zip(gradient, ids.tolist(), gain.tolist(), found.tolist(), strict=True):
        gains = {u: float((table[u] - table[w]) @ g) for u in range(50) if u != w and classes[u] == classes[w]}
        gains = gains if classes[w] != NEVER else {}
        assert best == pytest.approx(max(gains.values(), default=-torch.inf), abs=1e-5)
        assert v == (max(gains, key=gains.__getitem__) if gains else w)


def test_only_positive_gains_count_and_no_more_than_were_asked_for():
    gain = torch.tensor([[3.0, 1.0, 2.0, -1.0], [-1.0, -torch.inf, 0.0, 0.5]])
    assert strongest(gain, torch.tensor([2, 3])).tolist() == [[True, False, True, False], [False, False, False, True]]


def test_embeddings_that_a_layer_scales_are_compared_as_it_gives_them(make_step):
    """Against the gradient through `inputs_embeds`, which is what the layer gives."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "init_std": 0.5}
        config = BartConfig(vocab_size=len(VOCABULARY), d_model=16, **sizes, **heads, scale_embedding=True)
        model = BartForConditionalGeneration(config).eval()
    _, tokenizer, batch = tiny("bart", rows=4)
    component = HotFlip(share=0.01)
    step = make_step(model, batch, [component])
    step.context.tokenizer = tokenizer
    _, (before, after) = passes(step)

    layer = model.get_encoder().get_input_embeddings()
    given = layer(torch.arange(len(VOCABULARY))).detach()
    torch.testing.assert_close(given.norm(), 4 * layer.weight.detach().norm())
    embeds = given[batch["input_ids"]].requires_grad_()
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    gradient = torch.autograd.grad(model(inputs_embeds=embeds, **rest).loss, embeds)[0]
    classes = piece_classes(tokenizer, len(VOCABULARY))
    for row, (old, new) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        gains = {
            (t, v): float((given[v] - given[w]) @ gradient[row, t])
            for t, w in enumerate(old)
            if batch["attention_mask"][row, t] and classes[w] != NEVER
            for v in range(len(VOCABULARY))
            if classes[v] == classes[w]
        }
        t, v = max(gains, key=gains.__getitem__)
        assert new == [*old[:t], v, *old[t + 1 :]]


# -- what is flipped ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
@pytest.mark.parametrize("head", HEADS)
def test_a_share_of_the_free_tokens_is_replaced_each_by_one_of_its_class(head, share, make_step):
    step, before, after = flipped(head, HotFlip(share=share), make_step)
    classes = piece_classes(step.context.tokenizer, len(VOCABULARY))
    changed = before != after
    assert changed.any()
    assert torch.equal(classes[before], classes[after])
    assert (classes[after[changed]] != NEVER).all()
    free = step.mask[..., 0].view_as(before).bool() & (classes[before] != NEVER)
    if head in ("bert-masked-lm", "llama-causal-lm"):
        free &= step.batch["labels"] == IGNORED
    assert not changed[~free].any()
    numbers, limits = changed.flatten(0, -2).sum(1), (share * free.flatten(0, -2).sum(1)).long().clamp_min(1)
    assert (numbers <= limits).all()


def test_labels_stay_on_their_words(make_step):
    step, before, after = flipped("bert-token-classification", HotFlip(share=1.0), make_step)
    labelled = step.batch["labels"] != IGNORED
    assert (before != after)[labelled].any()
    assert before.shape == after.shape
    special = torch.isin(before, torch.tensor(step.context.special_ids))
    assert torch.equal(before[special], after[special])


def test_a_whole_prompt_may_be_replaced_and_no_answer(make_step):
    step, before, after = flipped("llama-causal-lm", HotFlip(share=1.0), make_step)
    answers = step.batch["labels"] != IGNORED
    assert torch.equal(before[answers], after[answers])


def test_the_worst_tokens_raise_the_loss(make_step):
    model, tokenizer, batch = tiny("bert-sequence-classification")
    step = make_step(model, batch, [HotFlip(share=0.5)])
    step.context.tokenizer = tokenizer
    (clean, attacked), _ = passes(step)
    assert attacked > clean


def test_an_example_whose_gradient_is_not_finite_stays_and_is_counted(make_step):
    model, tokenizer, batch = tiny("bert-token-classification")
    component = HotFlip(share=0.5)
    step = make_step(model, batch, [component])
    step.context.tokenizer = tokenizer
    gradient = torch.randn(step.zeros().shape, generator=torch.Generator().manual_seed(0))
    whole = component.flipped(step, step.unit(gradient))
    gradient[3, 1, 0] = torch.nan
    found = component.flipped(step, step.unit(gradient))
    assert step.nonfinite_gradients == 1
    assert torch.equal(found[3], batch["input_ids"][3])
    assert torch.equal(found[4:], whole[4:])


def test_weights_gradients_of_the_clean_pass_and_the_random_state_stay(make_step):
    model, tokenizer, batch = tiny("bert-token-classification")
    step = make_step(model, batch, [HotFlip()])
    step.context.tokenizer = tokenizer
    before, state = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    losses = step.context.composition.attack(step)
    next(losses).backward()
    first = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    next(losses)  # the search, and a forward pass
    assert all(torch.equal(first[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)
    losses.close()
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def test_without_a_tokenizer_it_says_what_is_missing(make_step):
    model, _, batch = tiny("bert-token-classification")
    losses = make_step(model, batch, [HotFlip()]).context.composition
    step = make_step(model, batch, losses.components)
    with pytest.raises(UsageError, match=r"hot-flip.*no tokenizer.*processing_class="):
        passes(step)


def test_plain_language_modelling_is_refused():
    run = Composition([HotFlip()], CausalLm())
    with pytest.raises(UsageError, match=r"every token of task causal-lm is a label.*take fgm"):
        make_plan(run, Setting(run.task, run.components, run.objective))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValidationError, match="share"):
        HotFlip(share=share)


# -- pieces ------------------------------------------------------------------------------------------------------


def byte_pairs(pieces, decoder, **special):
    backend = Tokenizer(BPE({piece: i for i, piece in enumerate(pieces)}, []))
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def alike(tokenizer, pieces, size=None):
    """The pieces by class, without those that are never exchanged."""
    found = {}
    for piece, kind in zip(pieces, piece_classes(tokenizer, size or len(pieces)).tolist(), strict=False):
        found.setdefault(kind, set()).add(piece)
    found.pop(NEVER, None)
    return sorted(map(sorted, found.values()))


def test_wordpiece_vocabularies():
    found = piece_classes(tiny("bert-token-classification")[1], len(VOCABULARY) + 3)
    kinds = dict(zip(VOCABULARY, found.tolist(), strict=False))
    assert {kinds[token] for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")} == {NEVER}
    assert found[len(VOCABULARY) :].tolist() == [NEVER] * 3
    assert kinds["paris"] == kinds["x"] != kinds["##x"] == kinds["##y"]
    assert kinds["."] == kinds["?"] not in (kinds["paris"], kinds["##x"], NEVER)


def test_byte_level_vocabularies():
    pieces = ["<|end|>", "Ġhouse", "house", "Ġ", "Ċ", "Ċing", "ĠÃ¼ber", "Ã", ".", "Ġ(", "ing", "##", "<|reserved_1|>"]
    tokenizer = byte_pairs(pieces, decoders.ByteLevel(), eos_token="<|end|>")
    assert alike(tokenizer, pieces) == [["##", "."], ["house", "ing", "Ċing"], ["Ġ("], ["Ġhouse", "ĠÃ¼ber"]]


def test_sentencepiece_vocabularies():
    pieces = ["<pad>", "▁", "▁house", "house", "s", "▁the", "<0x0A>", "<extra_id_0>", "▁!", "!", "▁家", "家"]
    tokenizer = byte_pairs(pieces, decoders.Metaspace(), pad_token="<pad>")
    assert alike(tokenizer, pieces) == [["!"], ["house", "s", "家"], ["▁!"], ["▁house", "▁the", "▁家"]]


def test_vocabularies_that_mark_the_ends_of_words_or_nothing():
    assert alike(byte_pairs(["a</w>", "b</w>", "a", "c"], decoders.BPEDecoder()), ["a</w>", "b</w>", "a", "c"]) == [
        ["a", "c"], ["a</w>", "b</w>"],
    ]  # fmt: skip
    assert alike(byte_pairs(["a", "b", "?"], None), ["a", "b", "?"]) == [["?"], ["a", "b"]]

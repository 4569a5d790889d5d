"""Two answers in one row give what separate sequences give: hidden states, log-probabilities, gradients."""

import pytest
import torch
import transformers
from alignkit_preference import shared_prompt
from alignkit_preference.preference import Preference, _probed

from alignkit.errors import UsageError
from alignkit.testing.models import VOCABULARY, tiny

PAIRS = [([7, 8, 9, 30], [11, 12], [13, 14, 15, 6]), ([20], [21, 22, 23, 24, 6], [25]), ([9, 9, 12], [6], [40, 41, 6])]


def features():
    return [shared_prompt.row(*pair) for pair in PAIRS]


def separate_log_probabilities(model, pairs=PAIRS):
    """[N] of every answer's tokens, by one unpadded forward pass of the whole model per answer."""
    found = []
    for prompt, *answers in pairs:
        for answer in answers:
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
            found.append(predicted.gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(found)


def subject(kind="llama", attention="sdpa"):
    if kind == "llama":
        model, tokenizer, _ = tiny("llama-causal-lm")
    else:
        _, tokenizer, _ = tiny("llama-causal-lm")
        torch.manual_seed(0)
        size = {"vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        size |= (
            {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64} if kind[:4] in ("qwen", "gemm") else {}
        )
        config = transformers.AutoConfig.for_model(kind, **size, initializer_range=0.1)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(attention)
    return model.eval(), tokenizer


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_log_probabilities_and_gradients_are_those_of_separate_sequences(shared, attention):
    model, tokenizer = subject(attention=attention)
    task = Preference(shared_prompt=shared)
    batch = task.collate(features(), tokenizer)
    expected = separate_log_probabilities(model)
    weights = torch.linspace(-1, 1, len(expected))
    wanted = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))

    found = task.label_log_probabilities(task.forward(model, batch), batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = torch.autograd.grad((found * weights).sum(), list(model.parameters()))
    for one, other in zip(gradients, wanted, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm() + 1e-9


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "qwen2", "gemma"])
def test_other_kinds_of_model_keep_answers_apart(kind):
    model, tokenizer = subject(kind)
    task = Preference()
    task.take_model(model.config.to_dict())
    task.take_weights(model, tokenizer)
    batch = task.collate(features(), tokenizer)
    found = task.label_log_probabilities(task.forward(model, batch), batch)
    torch.testing.assert_close(found, separate_log_probabilities(model), rtol=2e-5, atol=2e-6)


def test_hidden_states_are_those_of_separate_sequences():
    model, tokenizer = subject()
    shared = shared_prompt.collated(features(), tokenizer)
    apart = shared_prompt.separated(features(), tokenizer)
    one, other = (Preference(shared_prompt=s).forward(model, b) for s, b in ((True, shared), (False, apart)))
    found, expected = (shared_prompt.scored_hidden(o.hidden, b) for o, b in ((one, shared), (other, apart)))
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_an_implementation_that_overlooks_the_mask_is_refused(monkeypatch):
    model, tokenizer = subject()
    right = shared_prompt.shared_mask
    monkeypatch.setattr(shared_prompt, "shared_mask", lambda answer, real: right(answer * 0, real))
    with pytest.raises(UsageError, match=r"answers that share a prompt change by \d+%.*shared_prompt: false"):
        Preference().take_weights(model, tokenizer)
    assert model not in _probed
    Preference(shared_prompt=False).take_weights(model, tokenizer)


def test_a_model_of_an_unknown_kind_is_refused_before_it_is_loaded():
    config = transformers.BloomConfig().to_dict()
    with pytest.raises(UsageError, match="bloom is not known to keep two answers in one row apart"):
        Preference().take_model(config)
    Preference(shared_prompt=False).take_model(config)


def test_the_mask_written_out():
    answer = torch.tensor([[0, 0, 1, 2, 0]])  # the last one pads
    real = torch.tensor([[1, 1, 1, 1, 0]])
    sees = shared_prompt.shared_mask(answer, real)[0, 0] == 0
    assert sees.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 1]]


def test_sums_per_answer():
    _, tokenizer = subject()
    for make in (shared_prompt.collated, shared_prompt.separated):
        batch = make(features(), tokenizer)
        sizes = [len(answer) for pair in PAIRS for answer in pair[1:]]
        values = torch.cat([torch.full((size,), float(i + 1)) for i, size in enumerate(sizes)])
        sums, tokens = shared_prompt.answer_sums(values, batch)
        assert tokens.flatten().tolist() == sizes
        assert sums.flatten().tolist() == [(i + 1) * size for i, size in enumerate(sizes)]

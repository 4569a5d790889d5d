"""The head in chunks is the head: values and gradients, frozen and in training, scaled and squashed."""

import pytest
import torch
import transformers
from torch import nn

from alignkit.errors import UsageError
from alignkit.lm_head import LMHead, deviation, hidden_outputs, refuse_other_heads
from alignkit.testing.models import tiny


def head(frozen, scale=1.0, cap=None, bias=False):
    torch.manual_seed(0)
    layer = nn.Linear(8, 30, bias=bias).requires_grad_(not frozen)
    return layer, LMHead(layer.weight, layer.bias, None, scale, cap)


def logits(layer, hidden, scale, cap):
    raw = layer(hidden) * scale
    return raw if cap is None else cap * torch.tanh(raw / cap)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (0.5, None), (2.0, 3.0)])
@pytest.mark.parametrize("bias", [True, False])
def test_log_probabilities_and_their_gradients(frozen, scale, cap, bias):
    layer, ours = head(frozen, scale, cap, bias)
    hidden, targets, upstream = torch.randn(11, 8, requires_grad=True), torch.arange(11), torch.randn(11)
    expected = logits(layer, hidden, scale, cap).log_softmax(-1)[torch.arange(11), targets]
    asked = [hidden, *(() if frozen else layer.parameters())]
    wanted = torch.autograd.grad((expected * upstream).sum(), asked)
    for chunk in (4, 128):
        found = ours.rowwise(
            lambda z, t: -nn.functional.cross_entropy(z, t, reduction="none"), hidden, targets, chunk=chunk
        )
        torch.testing.assert_close(found, expected)
        gradients = torch.autograd.grad((found * upstream).sum(), asked)
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_any_function_of_a_row():
    layer, ours = head(frozen=True)
    hidden, other = torch.randn(5, 8, requires_grad=True), torch.randn(5, 30).log_softmax(-1)

    def divergence(z, log_q):
        return (log_q.exp() * (log_q - z.log_softmax(-1))).sum(-1)

    found = ours.rowwise(divergence, hidden, other, chunk=2)
    expected = divergence(layer(hidden), other)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.sum(), hidden)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_no_rows_and_no_gradient():
    _, ours = head(frozen=True)
    nothing = torch.zeros(0, 8, requires_grad=True)
    assert ours.log_probabilities(nothing, torch.zeros(0, dtype=torch.long)).shape == (0,)
    with torch.no_grad():
        assert not ours.log_probabilities(torch.randn(3, 8), torch.arange(3)).requires_grad


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "cohere"])
def test_logits_are_the_models_own(kind):
    if kind == "llama":
        model = tiny("llama-causal-lm")[0]
    else:
        torch.manual_seed(0)
        size = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
        size |= {"num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.3, "pad_token_id": 0}
        scaled = {"granite": {"logits_scaling": 3.0}, "gemma2": {"final_logit_softcapping": 2.0}, "cohere": {}}[kind]
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **size, **scaled))
    ids = torch.tensor([[7, 8, 9, 10]])
    outputs = hidden_outputs(model.eval(), {"input_ids": ids})
    torch.testing.assert_close(outputs.head.logits(outputs.hidden), model(input_ids=ids).logits)


def test_an_adapted_head_and_its_original():
    from peft import LoraConfig, get_peft_model

    model = tiny("llama-causal-lm")[0].eval()
    ids = torch.tensor([[7, 8, 9, 10]])
    before = model(input_ids=ids).logits.detach()
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    )
    outputs = hidden_outputs(adapted, {"input_ids": ids})
    torch.testing.assert_close(outputs.head.logits(outputs.hidden), adapted(input_ids=ids).logits)
    torch.testing.assert_close(outputs.head.without_adapter().logits(outputs.hidden), before)
    found = outputs.head.log_probabilities(outputs.hidden[0], torch.arange(4)).sum()
    assert all(
        torch.autograd.grad(found, [p for n, p in adapted.named_parameters() if "lora_B" in n])[0].abs().sum() > 0
        for _ in (1,)
    )


def made(kind, **more):
    torch.manual_seed(0)
    size = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **size, intermediate_size=64, **more)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "qwen2"])
def test_heads_that_are_what_they_are_taken_for(kind):
    more = {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "qwen2": {"num_key_value_heads": 2}}.get(kind, {})
    model = made(kind, **more).train()
    refuse_other_heads(model, "")
    assert deviation(model.eval()) < 1e-5


@pytest.mark.parametrize(("kind", "more"), [("bert", {"is_decoder": True}), ("modernbert-decoder", {})])
def test_a_head_with_more_in_it_is_refused(kind, more):
    model = made(kind, **more).train()
    with pytest.raises(UsageError, match=rf"{kind} makes logits in a way of its own.*off by \d+%.*another model"):
        refuse_other_heads(model, "take another model")
    assert model.training

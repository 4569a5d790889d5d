"""Attention in two sequences gives what separate sequences give, wherever it is used, and leaves nothing behind."""

import contextlib

import pytest
import torch
import transformers
from alignkit_preference import apart, shared_prompt
from alignkit_preference.preference import Preference, _probed
from peft import LoraConfig, get_peft_model
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignkit.errors import UsageError
from alignkit.tasks.packing import CAUSAL
from alignkit.testing.models import VOCABULARY, tiny

PAIRS = [([7, 8, 9, 30], [11, 12], [13, 14, 15, 6]), ([20], [21, 22, 23, 24, 6], [25]), ([9, 9, 12], [6], [40, 41, 6])]
SIZES = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 64,
    "word_embed_proj_dim": 32, "pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 6,
}  # fmt: skip


MASKED = {"stablelm"}
"""Kinds whose layers do not hand on to attention what they are given beside the mask."""


def subject(kind="llama", lora=False, **options):
    """A random model of a kind; of grouped keys and values where the kind has them."""
    known = transformers.AutoConfig.for_model(kind)
    names = {*known.to_dict(), *known.attribute_map}
    config = transformers.AutoConfig.for_model(kind, **({n: s for n, s in SIZES.items() if n in names} | options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        if lora:
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    return model


def batch_of(pairs=PAIRS):
    tokenizer = tiny("llama-causal-lm")[1]
    return shared_prompt.collated([shared_prompt.row(*pair) for pair in pairs], tokenizer)


def expected_of(model, pairs=PAIRS):
    """[N] log-probabilities of every answer's tokens, by one unpadded forward pass of the whole model per answer."""
    found = []
    for prompt, *answers in pairs:
        for answer in answers:
            logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0]
            predicted = logits[len(prompt) - 1 : -1].log_softmax(-1)
            found.append(predicted.gather(1, torch.tensor(answer)[:, None])[:, 0])
    return torch.cat(found)


def found_of(model, pairs=PAIRS):
    task, batch = Preference(), batch_of(pairs)
    return task.label_log_probabilities(task.forward(model, batch), batch)


def gradient(model, values):
    """Of weighted values, for every parameter that is trained; by `backward`, as reentrant checkpointing wants it."""
    model.zero_grad()
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def close(gradients, others, relative=1e-5):
    for one, other in zip(gradients, others, strict=True):
        assert (one - other).norm() <= relative * other.norm() + 1e-9


@pytest.fixture
def asked(monkeypatch):
    """The shapes of the queries that torch's attention was asked for without a mask, and those with one."""
    seen = {"causal": [], "masked": []}
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, attention_mask, **options):
        kind = "causal" if attention_mask is None and options.get("is_causal") else "masked"
        seen[kind].append(tuple(query.shape))
        return stock(module, query, key, value, attention_mask, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", spy)
    return seen


@pytest.mark.parametrize("kind", sorted(CAUSAL))
def test_every_kind_of_model_gives_what_separate_sequences_give(kind, asked):
    model = subject(kind)
    model.requires_grad_()
    expected = expected_of(model)
    asked["masked"].clear()
    found = found_of(model)
    if kind in MASKED:
        assert asked == {"causal": [], "masked": [(3, 4, 10, 8)] * 2}
    else:
        assert asked == {"causal": [(6, 4, 8, 8)] * 2, "masked": []}, "the longest prompt with an answer has 8 tokens"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    wanted = torch.autograd.grad(expected.sum(), list(model.parameters()), allow_unused=True)
    gradients = torch.autograd.grad(found.sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(gradients, wanted, strict=True):
        if other is not None and one is not None:
            assert (one - other).norm() <= 2e-5 * other.norm() + 1e-6


@contextlib.contextmanager
def transformers_checkpointing(model, reentrant):
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    yield
    model.gradient_checkpointing_disable()
    model.eval()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_are_computed_again_as_they_were(reentrant, asked):
    model = subject(lora=True)
    wanted = gradient(model, expected_of(model))
    with transformers_checkpointing(model, reentrant):
        asked["causal"].clear()
        gradients = gradient(model, found_of(model))
        assert not asked["causal"]
        with torch.no_grad():
            found_of(model)
            assert not asked["causal"], "dropout would draw other masks than in the pass with gradients"
            model.eval()
            found_of(model)
        assert len(asked["causal"]) == 2, "nothing is computed again where there is no way back"
    close(gradients, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_by_torch_is_seen_too(reentrant):
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as by_torch

    model = subject(lora=True)
    wanted = gradient(model, expected_of(model))
    mode = by_torch.CheckpointImpl.REENTRANT if reentrant else by_torch.CheckpointImpl.NO_REENTRANT
    layers = model.get_base_model().model.layers
    for i, layer in enumerate(layers):
        layers[i] = by_torch.checkpoint_wrapper(layer, mode)
    model.enable_input_require_grads()
    close(gradient(model, found_of(model)), wanted)


def test_lora_has_the_gradient_of_separate_sequences(asked):
    model = subject(lora=True)
    wanted = gradient(model, expected_of(model))
    asked["masked"].clear()
    close(gradient(model, found_of(model)), wanted)
    assert (len(asked["causal"]), len(asked["masked"])) == (2, 0)


def test_half_precision():
    model = subject()
    expected, wanted = expected_of(model), gradient(model, expected_of(model))
    model.to(torch.bfloat16)
    found = found_of(model)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
    for one, other in zip(gradient(model, found), wanted, strict=True):
        assert (one - other).norm() <= 0.05 * other.norm() + 1e-3


def test_a_compiled_model(asked):
    model = subject(num_hidden_layers=1)
    expected = expected_of(model)
    wanted = gradient(model, expected)
    compiled = torch.compile(model, backend="eager")
    asked["masked"].clear()
    found = found_of(compiled)
    assert asked == {"causal": [(6, 4, 8, 8)], "masked": []}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    close(gradient(model, found), wanted)
    torch.testing.assert_close(found_of(compiled, PAIRS[:2]), expected[:12], rtol=1e-5, atol=2e-6)


def test_a_window_as_long_as_the_longest_row_changes_nothing(asked):
    model = subject("mistral", sliding_window=9)
    Preference(maximum_length=9).take_model(model.config.to_dict())
    with pytest.raises(UsageError, match="mistral is not known to keep two answers in one row apart"):
        Preference(maximum_length=10).take_model(model.config.to_dict())
    expected = expected_of(model)  # sequences of up to 8 tokens, in rows of up to 10
    wanted = gradient(model, expected)
    found = found_of(model)
    assert len(asked["causal"]) == 2
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    close(gradient(model, found), wanted)


def test_eager_attention_reads_the_mask(asked):
    model = subject()
    expected = expected_of(model)
    model.set_attn_implementation("eager")
    asked["masked"].clear()
    torch.testing.assert_close(found_of(model), expected, rtol=1e-5, atol=2e-6)
    assert asked == {"causal": [], "masked": []}


def test_a_model_that_does_not_hand_on_the_places_goes_by_the_mask(asked):
    model = subject()
    expected = expected_of(model)
    asked["masked"].clear()

    def forgetful(module, args, kwargs):
        return args, {name: value for name, value in kwargs.items() if name not in ("apart", "together")}

    for layer in model.model.layers:
        layer.register_forward_pre_hook(forgetful, with_kwargs=True)
    torch.testing.assert_close(found_of(model), expected, rtol=1e-5, atol=2e-6)
    assert asked == {"causal": [], "masked": [(3, 4, 10, 8)] * 2}


def test_a_position_bias_goes_with_the_mask():
    batch = batch_of()
    real = batch["attention_mask"]
    query, bias = torch.randn(3, 4, 10, 8), torch.randn(1, 4, 10, 10)
    mask = shared_prompt.shared_mask(batch["answer"], real)
    places = apart.places(shared_prompt.sequences(batch["answer"], real))
    found, _ = apart.attend(torch.nn.Module(), query, query, query, mask, **places, position_bias=bias)
    wanted = (query @ query.transpose(2, 3) * 8**-0.5 + bias + mask).softmax(-1) @ query
    torch.testing.assert_close(found, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    model = subject(lora=True)
    base = model.get_base_model()
    config, forward = base.config.to_dict(), base.forward
    gradient(model, found_of(model))
    assert (base.config._attn_implementation, base.config.to_dict(), base.forward) == ("sdpa", config, forward)
    base.save_pretrained(tmp_path)
    assert apart.NAME not in (tmp_path / "config.json").read_text("utf-8")

    def broken(*_, **__):
        assert base.config._attn_implementation == apart.NAME
        raise RuntimeError("out of memory")

    monkeypatch.setattr(base.lm_head, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        found_of(model)
    assert base.config._attn_implementation == "sdpa"


def test_rows_do_not_depend_on_those_beside_them():
    model = subject()
    with torch.no_grad():
        alone = torch.cat([found_of(model, [pair]) for pair in PAIRS])
        torch.testing.assert_close(found_of(model), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrong", ["apart", "together"])
def test_sequences_that_are_put_together_wrongly_are_refused(wrong, monkeypatch):
    model, right = subject(), apart.places
    monkeypatch.setattr(apart, "places", lambda given: {**right(given), wrong: right(given)[wrong].flip(-1)})
    with pytest.raises(UsageError, match=r"answers that share a prompt change by \d+%.*shared_prompt: false"):
        Preference().take_weights(model, None)
    assert model not in _probed


def test_the_places_written_out():
    batch = batch_of([([7, 8], [9], [10, 11]), ([7], [8], [9])])
    assert batch["answer"].tolist() == [[0, 0, 1, 2, 2], [0, 1, 2, 0, 0]]
    found = apart.places(shared_prompt.sequences(batch["answer"], batch["attention_mask"]))
    assert found["apart"].tolist() == [[[0, 1, 2, 3], [0, 1, 3, 4]], [[0, 1, 2, 3], [0, 2, 1, 3]]]
    assert found["together"].tolist() == [[0, 1, 2, 6, 7], [0, 1, 5, 1, 1]]

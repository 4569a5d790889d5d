"""What all adversaries that perturb embeddings have in common: odd gradients, precisions, adapters, compilers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from alignkit_adversaries import FGM, FGSM, PGD, FreeAT, FreeLB

from alignkit.models import Peft
from alignkit.testing import make_rows, make_trainer, tiny
from alignkit.testing.step_cases import perturbations
from alignkit.testing.training import short_collections

ADVERSARIES: dict[str, Any] = {
    "fgm": lambda: FGM(epsilon=0.5),
    "fgsm": lambda: FGSM(epsilon=0.1),
    "pgd": lambda: PGD(epsilon=1.0, alpha=0.3),
    "pgd-madry": lambda: PGD(epsilon=1.0, alpha=0.3, clean=False, random_start=True),
    "freelb": lambda: FreeLB(learning_rate=0.3),
    "free-at": lambda: FreeAT(epsilon=1.0),
}


@pytest.fixture(params=list(ADVERSARIES))
def adversary(request):
    return ADVERSARIES[request.param]()


def test_an_example_whose_gradient_is_not_finite_is_left_alone_and_counted(adversary, logistic, make_step, deltas_of):
    rows = {**logistic.batch, "index": torch.arange(3)}
    whole = deltas_of(make_step(logistic.model, rows, [adversary]))
    adversary.reset()  # one that replays has kept what it found
    logistic.model.broken = 1
    step = make_step(logistic.model, rows, [adversary])
    broken = deltas_of(step)
    assert step.nonfinite_gradients >= 1
    for one, other in zip(whole, broken, strict=True):
        assert other.isfinite().all()
        torch.testing.assert_close(other[[0, 2]], one[[0, 2]])
        assert torch.equal(other[1], broken[0][1]), "it stays where it started"


def test_the_global_random_state_stays(adversary, make_step, losses_of):
    model, _, batch = tiny("bert-token-classification")
    before = torch.get_rng_state()
    losses_of(make_step(model, batch, [adversary]))
    assert torch.equal(before, torch.get_rng_state())


def test_it_works_where_the_embeddings_are_frozen(adversary, make_step, deltas_of):
    model, _, batch = tiny("bert-token-classification")
    model.get_input_embeddings().requires_grad_(False)
    batch = {**batch, "index": torch.arange(8)}
    deltas_of(make_step(model, batch, [adversary]))
    *_, last = deltas_of(make_step(model, batch, [adversary]))  # the second step of one that replays
    assert (last.norm(dim=(1, 2)) > 0.1).all()


def trained(adversary, folder, head="bert-token-classification", **options):
    """The perturbations of a training of two steps of `AlignTrainer` on four rows, and its losses."""
    trainer = make_trainer(
        head, folder, [adversary], rows=make_rows(head, 4), max_steps=2, learning_rate=1e-3, **options
    )
    torch.manual_seed(0)
    with short_collections(), perturbations(trainer.context.embedding) as seen:
        trainer.train()
    return seen, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("peft", [None, Peft(method="lora", r=4)], ids=["full", "lora"])
def test_checkpointing_sees_the_same_perturbations(adversary, peft, tmp_path):
    plain, losses = trained(adversary, tmp_path, peft=peft, dropout=0.2)
    saved, again = trained(
        adversary, tmp_path, peft=peft, dropout=0.2, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )  # fmt: skip
    assert again == pytest.approx(losses, rel=1e-5)
    called = [delta for delta in saved if delta.count_nonzero()]
    assert called
    for one, other in zip([delta for delta in plain if delta.count_nonzero()], called, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["bert-multiple-choice", "t5", "llama-causal-lm"])
@pytest.mark.parametrize("peft", [None, Peft(method="lora", r=4)], ids=["full", "lora"])
def test_bf16_is_finite_and_near_fp32(adversary, head, peft, tmp_path):
    if peft is not None and head == "bert-multiple-choice":
        pytest.skip("peft has no type for it")
    fp32, losses = trained(adversary, tmp_path, head=head, peft=peft)
    bf16, rounded = trained(adversary, tmp_path, head=head, peft=peft, bf16=True)
    assert rounded == pytest.approx(losses, rel=0.02)
    for one, other in zip(fp32, bf16, strict=True):
        assert other.isfinite().all()
        if one.count_nonzero() and not isinstance(adversary, FGSM):  # of which small entries change their sign
            assert torch.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.98


# -- torch.compile -----------------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    """`compiled(model)` and the number of graphs that were made since."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    dynamo.reset()
    counters.clear()
    yield lambda model: torch.compile(model, backend="eager"), lambda: counters["stats"]["unique_graphs"]
    dynamo.reset()


@pytest.mark.parametrize(("name", "graphs"), [("fgm", 2), ("pgd", 2), ("freelb", 1)])
def test_a_compiled_model_trains_the_same_and_makes_few_graphs(name, graphs, compiled, make_step, losses_of):
    compile_, count = compiled
    found, gradients = [], []
    for wrap in (lambda model: model, compile_):
        model, _, batch = tiny("bert-token-classification")
        batch["index"] = torch.arange(8)
        called, losses = wrap(model), []
        for _ in range(3):
            model.zero_grad()
            losses += losses_of(make_step(called, batch, [ADVERSARIES[name]()]))
        found.append(losses)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    torch.testing.assert_close(*gradients)
    assert count() == graphs


def test_a_compiled_model_sees_a_perturbation_after_a_pass_without(compiled, make_step):
    compile_, count = compiled
    model, _, batch = tiny("bert-token-classification")
    plain, step = make_step(model, batch, [FGM()]), make_step(compile_(model), batch, [FGM()])
    delta = 0.3 * torch.randn(plain.zeros().shape, generator=torch.Generator().manual_seed(0))
    for seen in (None, delta, None, 2 * delta):
        torch.testing.assert_close(step.loss(seen), plain.loss(seen))
    assert count() == 2

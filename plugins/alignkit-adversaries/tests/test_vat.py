"""VAT against the Fisher matrix of a linear-softmax model, and power iterations through `inputs_embeds`."""

from __future__ import annotations

import numpy
import pytest
import torch
from alignkit_adversaries import FGM, VAT
from alignkit_adversaries.vat import virtual_direction
from pydantic import ValidationError
from torch.nn.functional import kl_div

from alignkit.compose import Composition
from alignkit.errors import UsageError
from alignkit.plan import FORWARD, STEP, Setting, make_plan
from alignkit.recipe import Recipe
from alignkit.tasks.stock import StockTask
from alignkit.testing.models import tiny
from alignkit.testing.step_cases import perturbations
from alignkit.testing.training import make_trainer

HEADS = ["bert-sequence-classification", "bert-token-classification", "llama-causal-lm", "t5"]
IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [9, 10, 11, 4, 0]])
BATCH = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "labels": torch.tensor([0, 1, 3])}
SPECIAL = (0, 2, 3)


def real_tokens(batch):
    return (batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], torch.tensor(SPECIAL)))[..., None]


def drawn(model, batch, make_step):
    """[B, T, D]: the random directions that VAT starts at, one mean embedding norm long per example."""
    step = make_step(model, batch, [VAT()])
    step.owner = "vat"
    noise = step.noise("normal")
    return step.unit_length * noise / noise.norm(dim=(1, 2), keepdim=True)


def fisher(model, log_p):
    """[B, D, D]: W' (diag(p) - p p') W, half of which is the curvature of KL(p || .) for the mean embedding."""
    weight = model.head.weight.detach().double()
    p = log_p.exp().double()
    return torch.einsum("cd,bce,ef->bdf", weight, torch.diag_embed(p) - p[:, :, None] * p[:, None], weight)


@pytest.mark.parametrize("iterations", [1, 50])
def test_the_direction_is_the_fisher_matrix_s_own(iterations, linear_softmax, make_step):
    """One iteration multiplies the random start with it, many find its eigenvector of the largest eigenvalue."""
    model = linear_softmax(classes=4)
    step = make_step(model, BATCH, [VAT()])
    step.owner = "vat"
    outputs = model(**BATCH)
    log_p = outputs.logits.detach().log_softmax(-1)
    direction = virtual_direction(step, log_p, 1e-2, iterations)

    start, matrix, mask = drawn(model, BATCH, make_step).double(), fisher(model, log_p), real_tokens(BATCH)
    for row in range(len(IDS)):
        values, vectors = numpy.linalg.eigh(matrix[row].numpy())
        expected = vectors[:, -1] if iterations > 1 else matrix[row].numpy() @ start[row].sum(0).numpy()
        if iterations > 1:
            assert values[-1] > 1.2 * values[-2]
            expected = expected * numpy.sign(expected @ direction[row].sum(0).double().numpy())
        expected = torch.tensor(expected)[None] * mask[row]  # each token's share of the mean is the same
        expected = step.unit_length * expected / expected.norm()
        torch.testing.assert_close(direction[row].double(), expected, rtol=1e-2, atol=1e-2 * step.unit_length)


def test_the_divergence_there_is_half_the_largest_eigenvalue_and_no_random_direction_exceeds_it(
    linear_softmax, make_step
):
    model, epsilon = linear_softmax(classes=4), 0.02
    step = make_step(model, BATCH, [VAT(epsilon=epsilon, xi=1e-2, iterations=50)])
    step.loss()
    log_p = model(**BATCH).logits.detach().log_softmax(-1)
    largest = torch.tensor(numpy.linalg.eigvalsh(fisher(model, log_p).numpy())[:, -1])
    share = real_tokens(BATCH).sum((1, 2)).double().sqrt() / BATCH["attention_mask"].sum(1)  # of a mean's shift
    expected = 0.5 * largest * (epsilon * step.unit_length * share) ** 2
    assert step.terms["vat"].mean.item() == pytest.approx(expected.mean().item(), rel=2e-2)
    random = epsilon * drawn(model, BATCH, make_step)
    q = step.forward(random).logits.log_softmax(-1)
    assert (kl_div(q, log_p, reduction="none", log_target=True).sum(-1) < 1.02 * expected).all()


def iterate(model, batch, predictions, start, epsilon, xi, iterations, unit):
    """(penalty, perturbation) from the random `start` by the definition; p(x) held fixed."""
    log_p = predictions(model, batch).detach()
    real, direction = real_tokens(batch), start
    for _ in range(iterations):
        moved = (xi * direction).requires_grad_(True)
        divergence = kl_div(predictions(model, batch, moved), log_p, reduction="batchmean", log_target=True)
        gradient = torch.autograd.grad(divergence, moved)[0] * real
        direction = torch.stack([unit * g / g.norm() for g in gradient])
    perturbation = epsilon * direction
    penalty = kl_div(predictions(model, batch, perturbation), log_p, reduction="batchmean", log_target=True)
    return penalty, perturbation


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("iterations", [1, 2])
def test_penalty_and_gradients_are_those_of_the_definition(head, iterations, make_step, by_inputs_embeds):
    model, _, batch = tiny(head)
    step = make_step(model, batch, [VAT(epsilon=0.5, iterations=iterations, weight=2.0)])
    with perturbations(step.context.embedding) as seen:
        step.loss().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    start = drawn(model, batch, make_step)
    penalty, delta = iterate(model, batch, by_inputs_embeds, start, 0.5, 0.1, iterations, step.unit_length)
    (model(**batch).loss + 2.0 * penalty).backward()
    assert len(seen) == 2 + iterations
    torch.testing.assert_close(seen[-1], delta, rtol=1e-2, atol=1e-3)
    assert step.terms["vat"].mean.item() == pytest.approx(penalty.item(), rel=1e-3)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("xi", [1e-6, 0.1])
def test_a_tenth_of_an_embedding_norm_is_a_difference_that_single_precision_can_tell(xi, make_step, by_inputs_embeds):
    """The cosine with the gradient in double precision; at the image paper's xi it is noise."""
    model, _, batch = tiny("bert-token-classification")
    step = make_step(model, batch, [VAT()])
    step.owner = "vat"
    log_p, _ = step.log_probabilities(step.forward())
    found = virtual_direction(step, log_p.detach(), xi, 1)
    model.double()
    start = drawn(model, batch, make_step).double()
    _, exact = iterate(model, batch, by_inputs_embeds, start, 1.0, 1e-4, 1, step.unit_length)
    cosines = torch.cosine_similarity(found.flatten(1).double(), exact.flatten(1))
    assert cosines.min() > 0.95 if xi == 0.1 else cosines.median() < 0.9


def test_only_where_predictions_are_scored_is_taken_from_labels(make_step):
    model, _, batch = tiny("bert-token-classification")
    labels = batch["labels"]
    other = {**batch, "labels": torch.where(labels == -100, labels, (labels + 1) % 5)}
    found = []
    for inputs in (batch, other):
        step = make_step(model, inputs, [VAT()])
        step.loss()
        found.append(step.terms["vat"].mean)
    assert torch.equal(*found)


def test_in_another_adversary_s_pass_it_starts_from_what_that_pass_sees(make_step, by_inputs_embeds):
    model, _, batch = tiny("bert-sequence-classification")
    step = make_step(model, batch, [VAT(epsilon=0.5), FGM(epsilon=0.5)])
    with perturbations(step.context.embedding) as seen:
        losses = []
        for loss in step.context.composition.attack(step):
            loss.backward()
            losses.append(loss)
    assert len(seen) == 6
    base, moved = seen[3], seen[5]
    torch.testing.assert_close((moved - base).norm(dim=(1, 2)), torch.full((8,), 0.5 * step.unit_length))
    log_p, log_q = (by_inputs_embeds(model, batch, delta) for delta in (base, moved))
    penalty = kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    table = model.get_input_embeddings().weight[batch["input_ids"]]
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    expected = model(inputs_embeds=table + base, **rest).loss + penalty
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-4)


def test_it_is_measured_in_evaluation_too(make_step):
    model, _, batch = tiny("bert-sequence-classification")
    training = make_step(model, batch, [VAT()])
    training.loss()
    with torch.no_grad():
        evaluation = make_step(model.eval(), batch, [VAT()])
        assert not evaluation.loss().requires_grad
    assert evaluation.terms["vat"].mean.item() == pytest.approx(training.terms["vat"].mean.item(), rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_its_weight_may_be_a_budget(tmp_path):
    recipe = Recipe(
        model="bert", task="ner", data={"train": "rows.jsonl"},
        adversary={"use": "vat", "weight": {"use": "budget", "limit": 1e-6, "initial": 1.0}}, output="run",
    )  # fmt: skip
    trainer = make_trainer("bert-token-classification", tmp_path, [recipe.adversary])
    trainer.train()
    assert recipe.adversary.weight.value() > 10.0
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    shares = [entry["weighted/vat"] / entry["penalty/vat"] for entry in logged]
    assert shares[0] == pytest.approx(1.0)
    assert shares[1] > 1.0


def test_a_row_whose_gradient_is_no_number_is_not_moved_and_is_counted(linear_softmax, make_step):
    model = linear_softmax(classes=4)
    model.broken = 1
    step = make_step(model, BATCH, [VAT()])
    with perturbations(step.context.embedding) as seen:
        step.loss()
    assert int(step.nonfinite_gradients) == 1
    assert [bool(row.any()) for row in seen[-1]] == [True, False, True]


def test_inner_gradients_do_not_go_with_fp16():
    composition = Composition([VAT()], StockTask())
    setting = Setting(composition.task, composition.components, composition.objective, precision="fp16")
    with pytest.raises(UsageError, match="gradients of its inner steps are not scaled, and vanish in fp16"):
        make_plan(composition, setting)


def test_the_plan_counts_its_passes():
    composition = Composition([VAT(iterations=2)], StockTask())
    plan = make_plan(composition, Setting(composition.task, composition.components, composition.objective))
    assert plan.passes == 1
    assert plan.factor == pytest.approx(2 + 2 * 0.73)
    assert STEP / FORWARD == 3


@pytest.mark.parametrize(
    "fields",
    [{"epsilon": 0.0}, {"xi": 0.0}, {"iterations": 0}, {"weight": -1.0}],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_are_checked(fields):
    with pytest.raises(ValidationError, match="greater than"):
        VAT(**fields)

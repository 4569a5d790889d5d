"""Every loss against TRL 1.16's own trainers, driven once and frozen in `fixtures/trl_1_16.json`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_preference import CPO, DPO, KTO, ORPO, SimPO
from alignkit_preference.cpo import cpo_losses
from alignkit_preference.dpo import dpo_losses
from alignkit_preference.kto import drift, kto_losses
from alignkit_preference.orpo import orpo_losses
from alignkit_preference.pairs import cloning_losses
from alignkit_preference.simpo import simpo_losses

from alignkit.components import Objective

FROZEN: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures/trl_1_16.json").read_text("utf-8"))
CASES: list[dict[str, Any]] = FROZEN["cases"]
DIVERGENCES = {"forward_kl": "forward-kl", "js_divergence": "js", "alpha_divergence": "alpha"}


def named(case: dict[str, Any]) -> str:
    fields = " ".join(f"{name}={value}" for name, value in case["fields"].items())
    return f"{case['trainer']} {fields} {case['pairs']}{' exchanged' if case['exchanged'] else ''}"


def chosen_by(*trainers: str) -> Any:
    cases = [case for case in CASES if case["trainer"] in trainers]
    return pytest.mark.parametrize("case", cases, ids=[named(case) for case in cases])


def objective_of(case: dict[str, Any]) -> Objective:
    """The same loss as ours."""
    fields = dict(case["fields"])
    beta = fields.pop("beta", 0.1)
    if case["trainer"] == "dpo":
        kinds, weights = fields.pop("loss_type", ["sigmoid"]), fields.pop("loss_weights", [1.0, 0.0])
        made: dict[str, Any] = {"loss_type": kinds[0].replace("_", "-"), "cloning": weights[1]}
        if "f_divergence_type" in fields:
            made["f_divergence"] = DIVERGENCES[fields.pop("f_divergence_type")]
            made["alpha"] = fields.pop("f_alpha_divergence_coef", 0.5)
        return DPO(beta=beta, **made, **fields)
    if case["trainer"] == "kto":
        if fields.get("loss_type") == "apo_zero_unpaired":
            return DPO(loss_type="apo-zero", beta=beta)
        names = {"desirable_weight": "desirable", "undesirable_weight": "undesirable"}
        return KTO(beta=beta, **{names[name]: value for name, value in fields.items()})
    if case["trainer"] == "orpo":
        return ORPO(beta=beta)
    kind, cloning = fields.pop("loss_type", "sigmoid"), fields.pop("cpo_alpha", 1.0)
    if kind == "hinge":
        return DPO(loss_type="hinge", reference_free=True, beta=beta, cloning=cloning)
    if kind == "simpo":
        return SimPO(beta=beta, gamma=fields.pop("simpo_gamma", 0.5), cloning=cloning)
    return CPO(beta=beta, cloning=cloning, **fields)


def expected_of(case: dict[str, Any]) -> float:
    """TRL's loss; of the two that differ by what is said in ours, with that taken into account."""
    if case["fields"].get("loss_type") == "apo_zero_unpaired":
        return 2 * case["loss"]  # TRL's is a mean over answers, ours over pairs
    if case["trainer"] == "orpo" and case["pairs"] == "ragged":  # TRL's cross-entropy is of the prompt, too
        answers_alone = next(c for c in CASES if c["trainer"] == "cpo" and c["pairs"] == "ragged" and not c["fields"])
        return case["loss"] - case["nll_loss"] + answers_alone["nll_loss"]
    return case["loss"]


def sums(pairs: str, which: str, answer: str) -> torch.Tensor:
    rows = FROZEN["log_probabilities"][pairs][which][answer]
    return torch.tensor([sum(row) for row in rows], dtype=torch.float64)


def sizes(pairs: str, answer: str) -> torch.Tensor:
    return torch.tensor([len(pair[answer]) for pair in FROZEN["pairs"][pairs]])


def pure_losses(case: dict[str, Any]) -> torch.Tensor:
    """[B], by the functions on tensors alone, of TRL's own log-probabilities."""
    ours, pairs = objective_of(case), case["pairs"]
    policy, reference = ("reference", "policy") if case["exchanged"] else ("policy", "reference")
    c, r = sums(pairs, policy, "chosen"), sums(pairs, policy, "rejected")
    up, down = c - sums(pairs, reference, "chosen"), r - sums(pairs, reference, "rejected")
    tokens = (sizes(pairs, "chosen"), sizes(pairs, "rejected"))
    cloned = cloning_losses(c, len(c), int(tokens[0].sum()))
    if isinstance(ours, DPO):
        fields = {name: value for name, value in ours.fields().items() if name not in ("cloning", "reference_free")}
        return dpo_losses(*((c, r) if ours.reference_free else (up, down)), *tokens, **fields) + ours.cloning * cloned
    if isinstance(ours, KTO):
        forwards = next(x for x in CASES if "forwards" in x and x["exchanged"] == case["exchanged"])["forwards"]
        mismatched = [torch.tensor(forwards[i]["sums"], dtype=torch.float64) for i in (0, 2)]
        z = drift(*(mismatched[0] - mismatched[1]).chunk(2)).clamp_min(0)
        assert float(z) == pytest.approx(case["kl"], abs=1e-5)
        return kto_losses(up, down, z, ours.beta, ours.desirable, ours.undesirable)
    if isinstance(ours, ORPO):
        return cloned + ours.beta * orpo_losses(c, r, *tokens)
    if isinstance(ours, SimPO):
        return simpo_losses(c, r, *tokens, ours.beta, ours.gamma) + ours.cloning * cloned
    assert isinstance(ours, CPO)
    return cpo_losses(c, r, ours.beta, ours.label_smoothing) + ours.cloning * cloned


@chosen_by("dpo", "kto", "orpo", "cpo")
def test_losses_of_trls_log_probabilities_are_trls(case):
    assert pure_losses(case).mean().item() == pytest.approx(expected_of(case), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompt", "separate"])
@chosen_by("dpo", "kto", "orpo", "cpo")
def test_a_step_has_trls_loss_and_gradient(case, shared, make_pair_step):
    step = make_pair_step(objective_of(case), case["pairs"], shared=shared, exchanged=case["exchanged"])
    loss = step.loss()
    assert loss.item() == pytest.approx(expected_of(case), rel=1e-6, abs=1e-6)
    if expected_of(case) == case["loss"]:
        loss.backward()
        norms = [p.grad.double().norm() for p in step.model.parameters() if p.grad is not None]
        assert float(torch.stack(norms).norm()) == pytest.approx(case["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("pairs", list(FROZEN["pairs"]))
@pytest.mark.parametrize("shared", [True, False], ids=["shared prompt", "separate"])
def test_log_probabilities_are_trls(pairs, shared, make_pair_step):
    step = make_pair_step(DPO(), pairs, shared=shared)
    found = step.label_log_probabilities(step.forward())
    reference = step.reference_label_log_probabilities()
    for values, which in ((found, "policy"), (reference, "reference")):
        rows = FROZEN["log_probabilities"][pairs][which]
        expected = [x for both in zip(rows["chosen"], rows["rejected"], strict=True) for row in both for x in row]
        torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-6, atol=3e-6)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="the fixtures stand in for TRL where it is missing")
def test_the_fixtures_are_what_trl_makes_of_it():
    from importlib.metadata import version

    if version("trl") != FROZEN["versions"]["trl"]:
        pytest.skip(f"TRL {version('trl')}")
    spec = importlib.util.spec_from_file_location("made", Path(__file__).parent / "fixtures/make_trl_fixtures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    case, _ = module.drive("dpo", "ragged", {})
    assert case["loss"] == pytest.approx(CASES[0]["loss"], rel=1e-6)

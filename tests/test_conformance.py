"""Every component that alignkit registers, through the public cases of its kind: one test class for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from alignkit.catalogue import Entry, default_catalogue
from alignkit.components import Component, component_name
from alignkit.hookspecs import KINDS
from alignkit.testing import CASES, collate, examples, gradient, tiny
from alignkit.testing.models import Row
from alignkit.testing.training import make_rows, short_collections

FIELDS: dict[str, dict[str, Any]] = {
    "adversary/awp": {"start": 0.0},
    "adversary/fgm": {"epsilon": 0.5},
    "attack/gcg": {"suffix_length": 3, "steps": 2, "width": 8, "answer_tokens": 4},
    "attack/pgd": {"radii": (0.1, 0.5), "steps": 4},
    "control/steering": {"expert": "expert", "alpha": 2.0},
    "control/steering-vector": {"alpha": 1.0, "layer": 0},
    "constraint/counterfactual": {"lists": ["gender"]},
    "filter/lexicon": {"words": ("rome", "café"), "action": "mask"},
    "filter/length": {"minimum": 2, "maximum": 8},
    "weight/budget": {"limit": 0.05},
    "weight/pid-budget": {"limit": 0.05},
}
"""What a component is made with where its defaults do not do."""


def _with_other_answers(self: Any, head: str, number: int, component: Component) -> list[Row]:
    """Rows of which some have a view with the same prompt and another answer."""
    rows, others = make_rows(head, number), examples(head, number, seed=1)
    for i in [i for i in (0, 1, 3, 6) if i < number]:
        prompt = [token for token, label in zip(rows[i]["input_ids"], rows[i]["labels"], strict=True) if label == -100]
        answer = others[i]["input_ids"]
        ids, labels = [*prompt, *answer], [*[-100] * len(prompt), *answer]
        rows[i]["views"] = {"target": {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}}
    return rows


def _with_principles(self: Any, head: str, number: int, component: Component) -> list[Row]:
    """Rows of which some have a view with more before the same prompt and the same answer, one of them cut shorter."""
    rows = make_rows(head, number)
    for i in [i for i in (0, 1, 3, 6) if i < number]:
        kept = slice(0, len(rows[i]["input_ids"]) - (i == 3))
        ids, labels = [20, 31, 42, *rows[i]["input_ids"][kept]], [*[-100] * 3, *rows[i]["labels"][kept]]
        view = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}
        rows[i]["views"] = {"kl-ethics": view}
    return rows


def _with_groups(self: Any, head: str, number: int, component: Component) -> list[Row]:
    """Rows of two groups."""
    return [{**row, "group": "ab"[i % 2]} for i, row in enumerate(make_rows(head, number))]


def _with_an_expert(self: Any, component: Any, auto_class: str, folder: Path) -> Any:
    """An expert of the kind of model that it is to steer."""
    model, vocabulary, _ = tiny({"AutoModelForCausalLM": "llama-causal-lm"}.get(auto_class, "t5"), seed=1)
    for part in (model, vocabulary):
        part.save_pretrained(folder)
    return type(component)(**{**component.fields(), "expert": folder})


CASE_MEMBERS: dict[str, dict[str, Any]] = {
    "control/steering": {"for_model": _with_an_expert},
    "adversary/continuous": {"heads": ("llama-causal-lm",), "norm": "token", "rows": _with_other_answers},
    "adversary/fgsm": {"norm": "token"},
    "adversary/freelb": {"radius": lambda self, component: component.max_norm},
    "adversary/r3f": {"norm": "token"},
    "adversary/smart": {"norm": "token"},
    "constraint/group-fairness": {
        "heads": ("bert-sequence-classification", "llama-sequence-classification"),
        "rows": _with_groups,
    },
    "constraint/unlikelihood": {"heads": ("llama-causal-lm", "t5", "bart")},
    "constraint/kl-ethics": {"heads": ("llama-causal-lm",), "rows": _with_principles},
    **{f"objective/{name}": {"heads": ("llama-causal-lm",)} for name in ("cpo", "dpo", "kto", "orpo", "simpo")},
}
"""What a component's cases say of it beside its fields: what its radius bounds …"""


def _tested(entry: Entry) -> type:
    """The cases of the entry's kind with its component in them."""

    def component(self: Any) -> Component:
        cls: Any = default_catalogue().load_class(entry)
        return cls(**FIELDS.get(f"{entry.kind}/{entry.name}", cls.example))

    members = {"component": pytest.fixture(component), **CASE_MEMBERS.get(f"{entry.kind}/{entry.name}", {})}
    if entry.kind == "task":
        task: Any = default_catalogue().load_class(entry)
        members["auto_classes"] = task.auto_classes or (task.auto_class,)
    name = "Test" + "".join(part.title() for part in f"{entry.kind}-{entry.name}".split("-"))
    return type(name, (CASES[entry.kind],), {**members, "__module__": __name__})


OWN = [
    entry
    for entries in default_catalogue().entries().values()
    for entry in entries.values()
    if entry.distribution.startswith("alignkit")
]
globals().update({made.__name__: made for made in map(_tested, OWN)})


def test_every_kind_has_cases_and_every_component_is_tested() -> None:
    assert set(CASES) == set(KINDS)
    tested = [value for value in globals().values() if isinstance(value, type) and value.__name__.startswith("Test")]
    assert len(tested) == len(OWN) >= 4
    assert not default_catalogue().errors


def test_names_follow_from_classes() -> None:
    for entry in OWN:
        assert component_name(default_catalogue().load_class(entry)).replace("-", "") == entry.name.replace("-", "")


@pytest.mark.parametrize("head", ["bert-token-classification", "bert-masked-lm", "t5"])
def test_the_stock_trainer_is_off_by_the_number_of_micro_batches(head: str, tmp_path: Path) -> None:
    """Why the loss is normalised here: these heads drop `num_items_in_batch`, and their losses are added up."""

    def stock(size: int, accumulation: int) -> float:
        model, _, _ = tiny(head)
        before = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=size, optim="sgd", learning_rate=1.0,
            gradient_accumulation_steps=accumulation, lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True,
            save_strategy="no", report_to="none", disable_tqdm=True, train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=arguments, train_dataset=examples(head, 8), data_collator=lambda rows: collate(head, rows)
        )
        trainer.train()
        return float((before - torch.cat([p.detach().flatten() for p in model.parameters()])).norm())

    with short_collections():
        assert 3.0 < stock(2, 4) / stock(8, 1) < 6.0
        ours = [gradient(head, tmp_path, size=size, accumulation=8 // size) for size in (2, 8)]
    assert float(ours[0].norm() / ours[1].norm()) == pytest.approx(1.0, abs=1e-3)

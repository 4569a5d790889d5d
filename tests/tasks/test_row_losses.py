"""A row's own loss, against the model's stock loss on that row alone."""

from __future__ import annotations

import pytest
import torch

from alignkit.components import Task
from alignkit.tasks.stock import row_losses
from alignkit.testing import HEADS, tiny


@pytest.mark.parametrize("head", HEADS)
def test_each_row_has_the_loss_that_it_has_alone(head: str) -> None:
    model, _, batch = tiny(head)
    model.eval()
    with torch.no_grad():
        found = row_losses(model(**batch), batch, shifts_labels=head.endswith("causal-lm"))
        alone = []
        for row in range(len(found)):
            kept = batch["attention_mask"][row].bool()  # without padding, over which a span head's own softmax runs
            cut = kept.nonzero().max() + 1 if kept.dim() == 1 else kept.shape[-1]
            single = {k: v[row : row + 1] for k, v in batch.items()}
            single |= {
                k: v[..., :cut]
                for k, v in single.items()
                if v.dim() > 1 and k in ("input_ids", "attention_mask", "token_type_ids")
            }
            if batch["input_ids"].shape == batch.get("labels", torch.empty(0)).shape:
                single["labels"] = single["labels"][..., :cut]
            alone.append(model(**single).loss)
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_several_labels_are_averaged() -> None:
    logits, labels = torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    outputs = type("Outputs", (), {"logits": logits})
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": labels}
    torch.testing.assert_close(row_losses(outputs, batch), expected)


def test_a_row_without_labels_has_none() -> None:
    outputs = type("Outputs", (), {"logits": torch.randn(2, 3, 4)})
    batch = {"input_ids": torch.zeros(2, 3, dtype=torch.long), "labels": torch.tensor([[-100, 1, -100], [-100] * 3])}
    found = row_losses(outputs, batch)
    assert found[0] > 0
    assert found[1] == 0


def test_a_task_that_says_nothing_scores_nothing() -> None:
    assert Task.score(None, None, {}) is None  # type: ignore[arg-type]  # it looks at none of them

"""The supervised objective hands on the model's own loss, with the unit it is a mean over."""

from types import SimpleNamespace

import pytest
import torch

from alignkit.errors import PluginError
from alignkit.objectives.supervised import Supervised
from alignkit.tasks.stock import StockTask
from alignkit.testing import tiny


@pytest.mark.parametrize(
    ("head", "per"), [("bert-token-classification", "token"), ("bert-sequence-classification", "example")]
)
def test_unit_follows_the_labels(head, per):
    from alignkit.tasks.stock import label_counts

    model, _, batch = tiny(head)
    outputs = model(**batch)
    term = Supervised().loss(SimpleNamespace(counts=label_counts(batch), current=batch), outputs)
    assert term.per == per
    assert term.mean is outputs.loss


def test_a_batch_without_labels_is_said_so():
    with pytest.raises(PluginError, match=r"^the model gave no loss"):
        Supervised().loss(SimpleNamespace(counts={}), SimpleNamespace(loss=None, logits=torch.zeros(1)))


def test_a_span_head_s_loss_is_the_stock_one_without_padding():
    from alignkit.testing import collate, examples

    head = "bert-question-answering"
    model, _, _ = tiny(head)
    rows = examples(head, 4)
    alone = [model(**collate(head, [row])).loss for row in rows]  # nothing is padded: the stock loss is right
    batch = collate(head, rows)
    outputs = model(**batch)
    step = SimpleNamespace(
        counts={"example": 4},
        current=batch,
        log_probabilities=lambda outputs: StockTask().log_probabilities(outputs, batch),
    )
    term = Supervised().loss(step, outputs)
    assert term.mean.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-5)
    assert outputs.loss.item() != pytest.approx(term.mean.item(), rel=1e-3)
    assert term.per == "example"

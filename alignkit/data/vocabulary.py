"""Whether a model's vocabulary holds the script that the data is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

NOTED = 0.2
"""The share of unknown tokens from which a run says so."""


def unknown_share(dataset: Dataset, tokenizer: Any) -> float:
    """How many of the tokens in `input_ids`, special ones aside, are the one that stands for unknown text."""
    import numpy
    import pyarrow
    import pyarrow.compute

    if tokenizer.unk_token_id is None or "input_ids" not in dataset.column_names:
        return 0.0
    found: Any = dataset.with_format("arrow")["input_ids"]
    found = found.combine_chunks() if isinstance(found, pyarrow.ChunkedArray) else pyarrow.array(found)
    while pyarrow.types.is_list(found.type) or pyarrow.types.is_large_list(found.type):
        found = pyarrow.compute.list_flatten(found)
    ids = found.to_numpy(zero_copy_only=False)
    unknown = int((ids == tokenizer.unk_token_id).sum())
    special = [i for i in tokenizer.all_special_ids if i != tokenizer.unk_token_id]
    return unknown / max(len(ids) - int(numpy.isin(ids, special).sum()), 1)


def vocabulary_notes(dataset: Dataset, tokenizer: Any) -> list[str]:
    """What to say of training data that the model cannot read; nothing where it can."""
    share = unknown_share(dataset, tokenizer)
    if share <= NOTED:
        return []
    return [
        f"{share:.0%} of the training data's tokens are {tokenizer.unk_token}, unknown to the model: its vocabulary "
        "lacks their script; take a model for this language"
    ]

"""Classification by prompts: a language model says, or fills in, a word that stands for the class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt, PositiveInt
from torch import Tensor

from alignkit.components import Batch
from alignkit.data.example import Example
from alignkit.errors import Mistake, UsageError, nearest
from alignkit.tasks.classification import Classification, in_order
from alignkit.tasks.demonstrations import Nearest, drawn, shown
from alignkit.tasks.gaps import Gap, at_gaps, gaps, log_likelihoods
from alignkit.tasks.padding import pad
from alignkit.tasks.prompts import BETWEEN, TEXTS, Ids, Template, cut, ends, token_ids
from alignkit.tasks.stock import IGNORED
from alignkit.tasks.verbalisers import checked_verbalisers, verbaliser_ids, words_for

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Texts that say nothing of any class (Zhao et al. 2021, section 5)."""
PLACEHOLDER_LABEL = "LABEL_0"
"""How transformers calls a class without a name."""
MASKED, CAUSAL = "AutoModelForMaskedLM", "AutoModelForCausalLM"


def _template(source: str) -> str:
    Template(source)
    return source


class PromptedClassification(Classification):
    """Classifies by prompt: each class is as likely as the words that stand for it are in the template's gap.

    Reads the rows of `text-classification`, one label each. Without training it classifies zero-shot or, with `shots`,
    from demonstrations (Brown et al. 2020, arXiv:2005.14165); trained, the loss is the language model's own on the
    right class's first word, so that `peft: prompt-tuning` on it is Lester et al. 2021 (arXiv:2104.08691), and a masked
    model learns as in Schick and Schütze 2021 (arXiv:2001.07676).

    A causal model scores a word by its likelihood after the prompt, and the answer must be last in the template. A
    masked model sees a mask for every token of a word, all at once; for words of several tokens that is a
    pseudo-likelihood. Calibration divides by what the model says of texts without content, whose mean over "N/A",
    "[MASK]" and "" is taken once for a model's weights (Zhao et al. 2021, arXiv:2102.09690; like their code, W p
    without the second softmax).

    The cost of a prediction is a forward pass for each word of several tokens, and one for all words of one token.

    Example:
        >>> PromptedClassification(template="{text}\\nSentiment: {answer}", verbalisers={"0": "bad", "1": "good"})
    """

    template: Annotated[str, AfterValidator(_template)] = "{text}\nLabel: {answer}"
    """The prompt: {text}, {text_pair} where there are pairs, and {answer}, where the class's word stands."""
    verbalisers: Annotated[dict[str, str | list[str]], BeforeValidator(checked_verbalisers)] = Field(
        default_factory=dict
    )
    """Class -> the word or words that stand for it; its keys are the classes. By default each class's own name."""
    average_tokens: bool = False
    """A word's likelihood is its tokens' mean and not their sum: longer words are not less likely then."""
    synonyms: Literal["mean", "sum"] = "mean"
    """What a class with several words makes of their probabilities."""
    shots: NonNegativeInt = 0
    """Demonstrations of each class before the text, from the training split."""
    demonstrations: Literal["seed", "nearest"] = "seed"
    """Drawn by chance, the same for every text; or nearest to the text by the mean of the model's input embeddings."""
    seed: NonNegativeInt = 42
    """Of the demonstrations and their order."""
    calibrate: bool = False
    """Divide by the probabilities that the model gives texts without content."""
    maximum_length: PositiveInt = 512
    """Longest prompt in tokens. What is longer loses its first demonstrations, then the end of the longer text."""

    auto_class: ClassVar[str] = CAUSAL
    decodes_outputs: ClassVar[bool] = False
    auto_classes: ClassVar[tuple[str, ...]] = (CAUSAL, MASKED)
    peft_type: ClassVar[str] = "CAUSAL_LM"
    has_head: ClassVar[bool] = False
    shifts_labels: ClassVar[bool] = True
    hub_task: ClassVar[str] = "text-classification"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pool: list[Example] = []
        """The training split, to demonstrate from."""
        self._drawn: list[list[Example]] = []
        self._nearest: Nearest | None = None
        self._content_free: Tensor | None = None
        self._template = Template(self.template)
        self.labels = list(self.verbalisers)
        if self.calibrate and self.shots and self.demonstrations == "nearest":
            found = "nearest demonstrations give every text a prompt of its own, and calibration is of one prompt"
            raise UsageError(Mistake("calibrate", found, "", "take `demonstrations: seed`"))

    @property
    def masked(self) -> bool:
        """The model fills gaps, and does not continue."""
        return self.auto_class == MASKED

    @property
    def needs_training_split(self) -> bool:  # type: ignore[override]  # here it depends on a field
        return self.shots > 0

    # -- data --------------------------------------------------------------------------------------------------

    def parse(self, fields: dict[str, Any], where: str) -> Example:
        example = super().parse(fields, where)
        if mistakes := self._unplaced(example, where):
            raise UsageError(*mistakes)
        return example

    def inputs(self, given: str | Mapping[str, Any]) -> Example:
        example = super().inputs(given)
        if mistakes := self._unplaced(example, "input"):
            raise UsageError(*mistakes)
        return example

    def _unplaced(self, example: Example, where: str) -> list[Mistake]:
        """Texts that the template has no place for, and places that it has no text for."""
        wanted, given = "text_pair" in self._template.names, "text_pair" in example.inputs
        if wanted and not given:
            return [Mistake(where, "no 'text_pair'", "one, as the template has a place for it")]
        if given and not wanted:
            return [Mistake(where, "a 'text_pair', for which the template has no place", "{text_pair} in `template`")]
        return []

    def prepare(self, splits: Mapping[str, list[Example]]) -> None:
        """Take the classes from the verbalisers, or else from the training split; keep that to demonstrate from."""
        examples = [e for split in splits.values() for e in split]
        source = splits.get("train") or ([] if self.labels else examples)
        found = {str(e["label"]) for e in source}
        if not self.verbalisers and (not found <= set(self.labels) or not self.labels):
            self.labels = in_order(found)
            if len(self.labels) < 2:
                raise UsageError(
                    Mistake(
                        source[0].source or "train",
                        f"every row has the label {self.labels[0]!r}",
                        "two classes or more",
                    )
                )
        known = "a class with a verbaliser" if self.verbalisers else "a class of the training data or the model"
        unknown = [e for e in examples if e["label"] not in self.labels]
        if unknown:
            raise UsageError(
                *(Mistake(e.where, f"label {e['label']!r}", known, nearest(e["label"], self.labels)) for e in unknown)
            )
        if splits.get("train"):
            self.pool = [e for e in splits["train"] if not e.origin]
            self._refuse_few()
            self._drawn, self._nearest = drawn(self.pool, self.labels, self.shots, self.seed), None

    def _refuse_few(self) -> None:
        counts = {label: sum(e["label"] == label for e in self.pool) for label in self.labels}
        few = [label for label, count in counts.items() if count < self.shots]
        where, expected = f"shots {self.shots}", f"{self.shots} or more"
        if few:
            raise UsageError(*(Mistake(where, f"{counts[la]} training rows of class {la!r}", expected) for la in few))

    # -- the model ---------------------------------------------------------------------------------------------

    def take_model(self, config: Mapping[str, Any]) -> None:
        """Ask for the model's own language-model head; refuse one that has none, or reads and writes separately."""
        architecture = next(iter(config.get("architectures") or []), "")
        where = f"model {architecture or config.get('model_type')}"
        masked = architecture.endswith(("ForMaskedLM", "ForPreTraining"))
        if config.get("is_encoder_decoder"):
            raise UsageError(Mistake(where, "an encoder-decoder", "a causal or a masked language model"))
        if not masked and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
            mend = "pre-train it with task masked-lm, or train it with task text-classification"
            raise UsageError(Mistake(where, "no trained language-model head", "one, to score words with", mend))
        if not masked and not self._template.answer_is_last:
            found = f"text after {{answer}} in {self.template!r}, which a causal model would not see"
            raise UsageError(Mistake("template", found, "the answer last"))
        self.auto_class = MASKED if masked else CAUSAL  # type: ignore[misc]  # the class's is what most models are
        self.peft_type = "FEATURE_EXTRACTION" if masked else "CAUSAL_LM"  # type: ignore[misc]
        self.shifts_labels = not masked  # type: ignore[misc]
        named = config.get("id2label") or {}
        labels = [str(named[key]) for key in sorted(named, key=int)]
        if not self.verbalisers and PLACEHOLDER_LABEL not in labels and set(self.labels) <= set(labels):
            self.labels = labels

    def head(self) -> dict[str, Any]:
        """The classes, so that the model's config keeps them."""
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {label: i for i, label in names.items()}} if names else {}

    def take_weights(self, model: Any, tokenizer: Any) -> None:
        """Look where texts lie in the model's embeddings, for the nearest demonstrations."""
        self._content_free = None
        if not (self.shots and self.demonstrations == "nearest" and self.pool):
            return
        ids = [self._text_ids(e, tokenizer) for e in self.pool]
        self._nearest = Nearest(self.pool, ids, model.get_input_embeddings().weight.detach())

    def _text_ids(self, example: Example, tokenizer: Any) -> list[int]:
        """The tokens of the example's texts alone."""
        found = [i for name in example.inputs for i in token_ids(tokenizer, example[name])[: self.maximum_length]]
        return found or [tokenizer.unk_token_id or 0]

    # -- prompts -----------------------------------------------------------------------------------------------

    def answers(self, tokenizer: Any) -> list[list[Ids]]:
        """Per class the tokens of its words."""
        return verbaliser_ids(self.labels, self.verbalisers, self._template, tokenizer)

    def prompt(self, example: Example, tokenizer: Any) -> Gap:
        """What the model sees of an example, its demonstrations in front, but for the answer.

        Raises:
            UsageError: the template alone is too long, words that the tokenizer does not know, no demonstrations.
        """
        begin, end = ends(tokenizer, self.masked)
        longest = max(len(ids) for words in self.answers(tokenizer) for ids in words)
        room = min(self.maximum_length, tokenizer.model_max_length) - len(begin) - len(end) - longest
        before, after = cut(self._template, example, tokenizer, room)
        room -= len(before) + len(after)
        for demonstration in reversed(self._demonstrations(example, tokenizer)):
            word = words_for(demonstration["label"], self.verbalisers)[0]
            ids = token_ids(tokenizer, self._template.filled(demonstration, word) + BETWEEN)
            if len(ids) > room:
                break
            before, room = ids + before, room - len(ids)
        if not self.masked and not begin + before:  # the first token of the answer must have something before it
            begin = (tokenizer.eos_token_id,)
        return Gap(begin + before, after + end)

    def _demonstrations(self, example: Example, tokenizer: Any) -> list[Example]:
        if not self.shots:
            return []
        if not self.pool:
            found = "no training split to take demonstrations from"
            raise UsageError(Mistake(f"shots {self.shots}", found, "rows with labels", "name a file: --train FILE"))
        if self.demonstrations == "seed":
            return shown(self._drawn, example, self.shots, self.seed)
        if self._nearest is None:
            raise UsageError(Mistake("demonstrations nearest", "no model to compare texts with", "take_weights(model)"))
        return self._nearest(example, self._text_ids(example, tokenizer), self.labels, self.shots)

    def encode(self, example: Example, tokenizer: Any) -> dict[str, Any]:
        """The prompt with the right class's first word; for a masked model a mask for each of the word's tokens."""
        prompt = self.prompt(example, tokenizer)
        label = example.get("label")  # a question has none: any word will do to say where the gap is
        answer = self.answers(tokenizer)[self.labels.index(label) if label is not None else 0][0]
        seen = (tokenizer.mask_token_id,) * len(answer) if self.masked else answer
        labels = [*[IGNORED] * len(prompt.before), *answer, *[IGNORED] * len(prompt.after)]
        return {"input_ids": [*prompt.before, *seen, *prompt.after], "labels": labels}

    def collate(self, features: list[dict[str, Any]], tokenizer: Any) -> Batch:
        return pad(features, tokenizer, side="right")

    # -- predictions -------------------------------------------------------------------------------------------

    def decode(self, outputs: Any, batch: Batch) -> list[dict[str, Any]]:
        raise NotImplementedError("outputs for one answer do not say how likely the others are: infer() does")

    def infer(self, model: Any, tokenizer: Any, batch: Batch, outputs: Any) -> list[dict[str, Any]]:
        """`labels`, exactly one, and `probabilities` [classes]."""
        scores = self._scores(model, tokenizer, gaps(batch), outputs)
        if self.calibrate:
            scores = scores - self._content_free_scores(model, tokenizer)
        rows = scores.softmax(-1).numpy()
        return [{"labels": [self.labels[p.argmax()]], "probabilities": p} for p in rows]

    def _scores(self, model: Any, tokenizer: Any, prompts: list[Gap], outputs: Any = None) -> Tensor:
        """[B, classes]: the logarithm of what the words of each class get in each prompt."""
        answers = self.answers(tokenizer)
        flat = [ids for words in answers for ids in words]
        if outputs is not None and all(len(ids) == 1 for ids in flat):
            found = at_gaps(outputs.logits, prompts, flat, self.masked).cpu()
        else:
            found = log_likelihoods(model, tokenizer, prompts, flat, tokenizer.mask_token_id if self.masked else None)
        if self.average_tokens:
            found = found / torch.tensor([len(ids) for ids in flat])
        classes = found.split([len(words) for words in answers], dim=1)
        shares = [math.log(len(words)) if self.synonyms == "mean" else 0.0 for words in answers]
        return torch.stack([c.logsumexp(1) - share for c, share in zip(classes, shares, strict=True)], 1)

    def _content_free_scores(self, model: Any, tokenizer: Any) -> Tensor:
        """[classes]: the logarithm of what the model makes of texts without content, once until `take_weights`."""
        if self._content_free is None:
            names = tuple(name for name in TEXTS if name in self._template.names)
            texts = [Example(dict.fromkeys(names, text), inputs=names) for text in CONTENT_FREE]
            prompts = [self.prompt(text, tokenizer) for text in texts]
            self._content_free = self._scores(model, tokenizer, prompts).softmax(-1).mean(0).log()
        return self._content_free

"""What the host itself registers: tasks and the supervised objective. No method lives here."""

from __future__ import annotations

from collections.abc import Iterable

from alignkit.hookspecs import Registration, hookimpl


@hookimpl
def alignkit_components() -> Iterable[Registration]:
    """alignkit's own components; their classes are imported when somebody asks for them."""
    yield Registration(
        kind="task",
        name="ner",
        target="alignkit.tasks.ner:Ner",
        summary="Named entities: one label per word (CoNLL columns, jsonl, hub data sets).",
        reference="Tjong Kim Sang and De Meulder 2003, arXiv:cs/0306050",
    )
    yield Registration(
        kind="task",
        name="text-classification",
        target="alignkit.tasks.text_classification:TextClassification",
        summary="Texts or pairs of texts with one label, or with several (csv, tsv, jsonl).",
    )
    yield Registration(
        kind="task",
        name="prompted-classification",
        target="alignkit.tasks.prompted_classification:PromptedClassification",
        summary="Texts classified by a language model's own words: zero-shot, from a few examples, or prompt-tuned.",
        reference="Brown et al. 2020, arXiv:2005.14165; Schick and Schütze 2021, arXiv:2001.07676",
    )
    yield Registration(
        kind="task",
        name="relation-extraction",
        target="alignkit.tasks.relation_extraction:RelationExtraction",
        summary="The relation between two marked entities, with its direction (SemEval-2010 Task 8; tsv, csv, jsonl).",
        reference="Zhou and Chen 2021, arXiv:2102.01373; Hendrickx et al. 2010",
    )
    yield Registration(
        kind="task",
        name="extractive-qa",
        target="alignkit.tasks.extractive_qa:ExtractiveQa",
        summary="Questions answered by a span of a context, or by none (SQuAD 1.1 and 2.0 files, jsonl).",
        reference="Rajpurkar et al. 2016, arXiv:1606.05250; 2018, arXiv:1806.03822",
    )
    yield Registration(
        kind="task",
        name="chat",
        target="alignkit.tasks.chat:Chat",
        summary="Causal language models: prompts and completions, or messages; the loss is on completions.",
    )
    yield Registration(
        kind="task",
        name="dialogue",
        target="alignkit.tasks.dialogue:Dialogue",
        summary="Conversations of several turns, of which one side's are learnt, or the last, or both sides'.",
    )
    yield Registration(
        kind="task",
        name="translation",
        target="alignkit.tasks.translation:Translation",
        summary="Sources and targets, for encoder-decoders and causal language models; BLEU and chrF.",
        reference="Papineni et al. 2002, doi:10.3115/1073083.1073135",
    )
    yield Registration(
        kind="task",
        name="summarization",
        target="alignkit.tasks.summarization:Summarization",
        summary="Texts and their summaries, for encoder-decoders and causal language models; ROUGE.",
        reference="Lin 2004, https://aclanthology.org/W04-1013",
    )
    yield Registration(
        kind="task",
        name="masked-lm",
        target="alignkit.tasks.masked_lm:MaskedLm",
        summary="Pre-training of encoders on plain text: whole words are hidden and predicted (txt, jsonl, csv).",
        reference="Devlin et al. 2019, arXiv:1810.04805",
    )
    yield Registration(
        kind="task",
        name="causal-lm",
        target="alignkit.tasks.causal_lm:CausalLm",
        summary="Pre-training of causal models on plain text: each token is predicted from those before it.",
        reference="Radford et al. 2018, Improving Language Understanding by Generative Pre-Training",
    )
    yield Registration(
        kind="task",
        name="multiple-choice",
        target="alignkit.tasks.multiple_choice:MultipleChoice",
        summary="The right one among several answers to a question, by a head or by a language model's likelihood.",
    )
    yield Registration(
        kind="objective",
        name="supervised",
        target="alignkit.objectives.supervised:Supervised",
        summary="The model's own loss on the labels, as transformers.Trainer computes it.",
    )

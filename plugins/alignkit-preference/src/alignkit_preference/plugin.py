"""What this package registers. Imports nothing heavy."""

from collections.abc import Iterator

from alignkit.hookspecs import Registration, hookimpl


@hookimpl
def alignkit_components() -> Iterator[Registration]:
    yield Registration(
        kind="task",
        name="preference",
        target="alignkit_preference.preference:Preference",
        summary="Teaches a causal language model to prefer one of two answers.",
    )
    yield Registration(
        kind="objective",
        name="dpo",
        target="alignkit_preference.dpo:DPO",
        summary="Prefers chosen to rejected answers by how far each has moved from a frozen reference.",
        reference="Rafailov et al. 2023, arXiv:2305.18290",
    )
    yield Registration(
        kind="objective",
        name="kto",
        target="alignkit_preference.kto:KTO",
        summary="Makes good answers likelier and bad ones less so, each by itself.",
        reference="Ethayarajh et al. 2024, arXiv:2402.01306",
    )
    yield Registration(
        kind="objective",
        name="orpo",
        target="alignkit_preference.orpo:ORPO",
        summary="Learns chosen answers, and their odds against rejected ones: one stage, no reference.",
        reference="Hong et al. 2024, arXiv:2403.07691",
    )
    yield Registration(
        kind="objective",
        name="simpo",
        target="alignkit_preference.simpo:SimPO",
        summary="Prefers chosen to rejected answers by log-probability per token, with a margin and no reference.",
        reference="Meng et al. 2024, arXiv:2405.14734",
    )
    yield Registration(
        kind="objective",
        name="cpo",
        target="alignkit_preference.cpo:CPO",
        summary="Prefers chosen to rejected answers without a reference, and imitates the chosen ones.",
        reference="Xu et al. 2024, arXiv:2401.08417",
    )

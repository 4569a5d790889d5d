"""What this package registers. Imports nothing heavy."""

from collections.abc import Iterator

from alignkit.hookspecs import Registration, hookimpl


@hookimpl
def alignkit_components() -> Iterator[Registration]:
    yield Registration(
        kind="adversary",
        name="fgm",
        target="alignkit_adversaries.fgm:FGM",
        summary="One gradient-normalised step on the embeddings.",
        reference="Miyato et al. 2017, arXiv:1605.07725",
    )
    yield Registration(
        kind="attack",
        name="pgd",
        target="alignkit_adversaries.attacks.pgd:PGDAttack",
        summary="Projected gradient descent on the embeddings, over a grid of radii.",
        reference="Madry et al. 2018, arXiv:1706.06083",
    )
    yield Registration(
        kind="adversary",
        name="fgsm",
        target="alignkit_adversaries.fgsm:FGSM",
        summary="One step along the gradient's sign: every token is moved equally far.",
        reference="Goodfellow et al. 2015, arXiv:1412.6572",
    )
    yield Registration(
        kind="adversary",
        name="pgd",
        target="alignkit_adversaries.pgd:PGD",
        summary="Several projected gradient steps on the embeddings.",
        reference="Madry et al. 2018, arXiv:1706.06083",
    )
    yield Registration(
        kind="adversary",
        name="freelb",
        target="alignkit_adversaries.freelb:FreeLB",
        summary="Trains on the mean loss at all points of an ascent that starts at random.",
        reference="Zhu et al. 2020, arXiv:1909.11764",
    )
    yield Registration(
        kind="adversary",
        name="free-at",
        target="alignkit_adversaries.free_at:FreeAT",
        summary="Repeats each batch, and ascends once between two optimizer steps at no extra pass.",
        reference="Shafahi et al. 2019, arXiv:1904.12843",
    )
    yield Registration(
        kind="adversary",
        name="awp",
        target="alignkit_adversaries.awp:AWP",
        summary="Trains at weights that were moved a little where the loss is highest.",
        reference="Wu et al. 2020, arXiv:2004.05884",
    )
    yield Registration(
        kind="adversary",
        name="hotflip",
        target="alignkit_adversaries.hotflip:HotFlip",
        summary="Some tokens replaced by those that raise the loss most, by its gradient.",
        reference="Ebrahimi et al. 2018, arXiv:1712.06751",
    )
    yield Registration(
        kind="adversary",
        name="vat",
        target="alignkit_adversaries.vat:VAT",
        summary="Predictions stay as they are along their worst direction, found without labels.",
        reference="Miyato et al. 2018, arXiv:1704.03976",
    )
    yield Registration(
        kind="adversary",
        name="smart",
        target="alignkit_adversaries.smart:SMART",
        summary="Predictions that are smooth in the input and stay near those of an averaged model.",
        reference="Jiang et al. 2020, arXiv:1911.03437",
    )
    yield Registration(
        kind="adversary",
        name="r3f",
        target="alignkit_adversaries.r3f:R3F",
        summary="Predictions stay as they are under random noise on the embeddings.",
        reference="Aghajanyan et al. 2020, arXiv:2008.03156",
    )
    yield Registration(
        kind="adversary",
        name="latent",
        target="alignkit_adversaries.latent:Latent",
        summary="Projected gradient steps on the hidden states of chosen layers.",
        reference="Sheshadri et al. 2024, arXiv:2407.15549",
    )
    yield Registration(
        kind="adversary",
        name="continuous",
        target="alignkit_adversaries.continuous:Continuous",
        summary="For chat models: prompts perturbed towards a harmful answer, which is unlearnt.",
        reference="Xhonneux et al. 2024, arXiv:2405.15589",
    )
    yield Registration(
        kind="attack",
        name="hotflip",
        target="alignkit_adversaries.attacks.hotflip:HotFlipAttack",
        summary="Replaces the tokens whose swap raises the loss most, by its gradient, until the prediction breaks.",
        reference="Ebrahimi et al. 2018, arXiv:1712.06751",
    )
    yield Registration(
        kind="attack",
        name="gcg",
        target="alignkit_adversaries.attacks.gcg:GCGAttack",
        summary="Searches for a suffix after which a chat model gives a completion.",
        reference="Zou et al. 2023, arXiv:2307.15043",
    )
    yield Registration(
        kind="attack",
        name="deepwordbug",
        target="alignkit_adversaries.attacks.deepwordbug:DeepwordbugAttack",
        summary="Misspells the words that matter most, one edit each, until the prediction breaks.",
        reference="Gao et al. 2018, arXiv:1801.04354",
    )
    yield Registration(
        kind="attack",
        name="typos",
        target="alignkit_adversaries.attacks.typos:TyposAttack",
        summary="The worst slip of the keyboard in one word, or in several one after the other.",
        reference="Pruthi et al. 2019, arXiv:1905.11268",
    )
    yield Registration(
        kind="attack",
        name="input-reduction",
        target="alignkit_adversaries.attacks.input_reduction:InputReductionAttack",
        summary="Takes words out as long as the prediction stays: how few it needs.",
        reference="Feng et al. 2018, arXiv:1804.07781",
    )

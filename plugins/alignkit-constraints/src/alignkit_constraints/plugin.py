"""What this package registers. Imports nothing heavy."""

from collections.abc import Iterator

from alignkit.hookspecs import Registration, hookimpl


@hookimpl
def alignkit_components() -> Iterator[Registration]:
    yield Registration(
        kind="constraint",
        name="kl-reference",
        target="alignkit_constraints.kl_reference:KLReference",
        summary="Keeps predictions near a frozen reference model's, by the exact KL divergence.",
        reference="Li & Hoiem 2016, arXiv:1606.09282; Ziegler et al. 2019, arXiv:1909.08593",
    )
    yield Registration(
        kind="constraint",
        name="kl-ethics",
        target="alignkit_constraints.kl_ethics:KLEthics",
        summary="Teaches a model to answer as its reference does with a list of principles before it.",
        reference="Askell et al. 2021, arXiv:2112.00861",
    )
    yield Registration(
        kind="constraint",
        name="r-drop",
        target="alignkit_constraints.r_drop:RDrop",
        summary="Asks for the same predictions under two draws of dropout.",
        reference="Liang et al. 2021, arXiv:2106.14448",
    )
    yield Registration(
        kind="constraint",
        name="bregman",
        target="alignkit_constraints.bregman:Bregman",
        summary="Keeps predictions near those of an average of the model's own past weights.",
        reference="Jiang et al. 2020, arXiv:1911.03437",
    )
    yield Registration(
        kind="constraint",
        name="counterfactual",
        target="alignkit_constraints.counterfactual:Counterfactual",
        summary="Asks for the same predictions when gendered words, names or nationalities are swapped.",
        reference="Garg et al. 2019, arXiv:1809.10610",
    )
    yield Registration(
        kind="augmenter",
        name="mentions",
        target="alignkit_constraints.mentions:Mentions",
        summary="Adds copies of texts in which somebody is mentioned, for a constraint on persons to work on.",
    )
    yield Registration(
        kind="constraint",
        name="group-fairness",
        target="alignkit_constraints.group_fairness:GroupFairness",
        summary="Asks that groups named by a data column get the same predictions on average.",
        reference="Hardt et al. 2016, arXiv:1610.02413",
    )
    yield Registration(
        kind="constraint",
        name="confidence",
        target="alignkit_constraints.confidence:Confidence",
        summary="Keeps predictions from growing overconfident, by penalising low entropy.",
        reference="Pereyra et al. 2017, arXiv:1701.06548",
    )
    yield Registration(
        kind="constraint",
        name="unlikelihood",
        target="alignkit_constraints.unlikelihood:Unlikelihood",
        summary="Teaches a language model what not to say: forbidden phrases and rejected answers.",
        reference="Welleck et al. 2019, arXiv:1908.04319",
    )
    yield Registration(
        kind="weight",
        name="budget",
        target="alignkit_constraints.budget:Budget",
        summary="A Lagrange multiplier that keeps a penalty below a limit.",
        reference="Dai et al. 2023 (Safe RLHF), arXiv:2310.12773",
    )
    yield Registration(
        kind="weight",
        name="pid-budget",
        target="alignkit_constraints.pid_budget:PIDBudget",
        summary="A multiplier that keeps a penalty below a limit, driven by a PID controller.",
        reference="Stooke et al. 2020, arXiv:2007.03964",
    )
    yield Registration(
        kind="weight",
        name="adaptive",
        target="alignkit_constraints.adaptive:Adaptive",
        summary="A weight that steers a penalty towards a target, from both sides.",
        reference="Ziegler et al. 2019, arXiv:1909.08593",
    )
    yield Registration(
        kind="weight",
        name="cosine",
        target="alignkit_constraints.cosine:Cosine",
        summary="A weight that goes from one value to another over the whole training, along half a cosine.",
        reference="Loshchilov & Hutter 2017, arXiv:1608.03983",
    )
    yield Registration(
        kind="weight",
        name="warmup",
        target="alignkit_constraints.warmup:Warmup",
        summary="A weight that ramps from one value to another over a number of optimizer steps.",
    )
    yield Registration(
        kind="evaluator",
        name="refusals",
        target="alignkit_constraints.evaluators.refusals:Refusals",
        summary="How often a chat model refuses harmful prompts, and how often harmless ones.",
        reference="Röttger et al. 2024 (XSTest), arXiv:2308.01263; Zou et al. 2023, arXiv:2307.15043",
    )
    yield Registration(
        kind="evaluator",
        name="perplexity",
        target="alignkit_constraints.evaluators.perplexity:Perplexity",
        summary="A language model's perplexity on text, before and after.",
    )
    yield Registration(
        kind="evaluator",
        name="likelihood-preference",
        target="alignkit_constraints.evaluators.likelihood_preference:LikelihoodPreference",
        summary="Whether a language model finds stereotypes likelier than their opposites.",
        reference="Nadeem et al. 2021, arXiv:2004.09456 (StereoSet); Nangia et al. 2020, arXiv:2010.00133 (CrowS)",
    )
    yield Registration(
        kind="evaluator",
        name="winobias",
        target="alignkit_constraints.evaluators.winobias:WinoBias",
        summary="Whether a language model gives occupations the pronouns of their stereotypes.",
        reference="Zhao et al. 2018, arXiv:1804.06876",
    )
    yield Registration(
        kind="evaluator",
        name="calibration",
        target="alignkit_constraints.evaluators.calibration:Calibration",
        summary="Whether a classifier is as often right as it is sure: calibration error and Brier score.",
        reference="Naeini et al. 2015; Nixon et al. 2019, arXiv:1904.01685; Brier 1950",
    )
    yield Registration(
        kind="control",
        name="forbidden-phrases",
        target="alignkit_constraints.controls.forbidden_phrases:ForbiddenPhrases",
        summary="Makes phrases impossible to write, in whatever tokens.",
    )
    yield Registration(
        kind="control",
        name="refusal-policy",
        target="alignkit_constraints.controls.refusal_policy:RefusalPolicy",
        summary="Answers prompts that match phrases, patterns or a classifier by a fixed refusal.",
    )
    yield Registration(
        kind="control",
        name="steering",
        target="alignkit_constraints.controls.steering:Steering",
        summary="Adds the difference of an expert and an anti-expert to what the model says of each next token.",
        reference="Liu et al. 2021, arXiv:2105.03023 (DExperts); Liu et al. 2024, arXiv:2401.08565 (proxy tuning)",
    )
    yield Registration(
        kind="control",
        name="steering-vector",
        target="alignkit_constraints.controls.steering_vector:SteeringVector",
        summary="Adds what tells two kinds of texts apart in a hidden layer, while the model answers.",
        reference="Panickssery et al. 2023, arXiv:2312.06681",
    )

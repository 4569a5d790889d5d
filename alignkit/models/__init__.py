"""Models: where they are, what they are, loading them for a task, saving them so that anybody can load them.

Importing this package imports neither torch nor transformers.
"""

from alignkit.models.adapters import Peft
from alignkit.models.freezing import freeze
from alignkit.models.head import head_arguments
from alignkit.models.inspection import ModelFacts, adopt_labels, facts
from alignkit.models.loading import load, load_tokenizer, refuse_unfit
from alignkit.models.location import resolve
from alignkit.models.saving import save
from alignkit.models.scratch import Scratch

__all__ = [
    "ModelFacts",
    "Peft",
    "Scratch",
    "adopt_labels",
    "facts",
    "freeze",
    "head_arguments",
    "load",
    "load_tokenizer",
    "refuse_unfit",
    "resolve",
    "save",
]

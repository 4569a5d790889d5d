"""What subclassing a kind does, and what it refuses."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from pydantic import PositiveFloat, ValidationError

from alignkit.components import Adversary, Component, Constraint, Objective, Task, Weight, component_name
from alignkit.errors import PluginError


class Scale(Weight):
    """A constant."""

    by: float = 2.0
    """The constant."""

    def value(self) -> float:
        return self.by


class Pull(Constraint):
    """Pulls."""

    strength: PositiveFloat = 1.0
    """How hard."""

    def __post_init__(self) -> None:
        self.seen = 0

    def penalty(self, step: Any, outputs: Any) -> Any: ...


def test_fields_are_validated_and_unknown_ones_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        Pull(strength=-1, strenght=2)
    assert {error["type"] for error in caught.value.errors()} == {"greater_than", "unexpected_keyword_argument"}


def test_fields_are_keyword_only() -> None:
    with pytest.raises(ValidationError):
        Pull(1.0)


def test_descriptions_come_from_the_string_under_a_field_also_an_inherited_one() -> None:
    fields = Pull.__pydantic_fields__
    assert fields["strength"].description == "How hard."
    assert fields["weight"].description.startswith("What the penalty is multiplied with")


def test_instances_compare_by_identity() -> None:
    assert Pull() != Pull()
    assert len({Pull(), Pull()}) == 2


def test_a_weight_may_be_a_number_or_a_weight() -> None:
    assert Pull(weight=0.5).weight == 0.5
    assert isinstance(Pull(weight=Scale(by=3)).weight, Scale)
    with pytest.raises(ValidationError):
        Pull(weight=Pull())


def test_reset_forgets_everything_but_the_fields_and_the_name() -> None:
    pull = Pull(strength=3, weight=Scale())
    pull.name, pull.seen, pull.more = "pull-2", 7, "state"
    pull.reset()
    assert (pull.seen, pull.strength, pull.name, hasattr(pull, "more")) == (0, 3.0, "pull-2", False)


def test_hook_points_are_found_and_marked_for_pluggy() -> None:
    assert Pull.hook_points == ("penalty",)
    assert Pull.penalty.alignkit_impl


def test_a_method_may_implement_hook_points_of_other_kinds() -> None:
    class Smooth(Adversary):
        """A smoothness penalty."""

        def penalty(self, step: Any, outputs: Any) -> Any: ...

    assert Smooth.hook_points == ("penalty",)


def test_a_misspelt_hook_point_is_refused_with_the_right_name() -> None:
    with pytest.raises(PluginError, match=r"Typo\.atack is no hook point: did you mean 'attack'\?"):

        class Typo(Adversary):
            """Misspelt."""

            def atack(self, step: Any) -> Any: ...


def test_a_component_without_hook_points_is_refused() -> None:
    with pytest.raises(PluginError, match=r"Idle is of kind 'constraint' and implements no hook point"):

        class Idle(Constraint):
            """Does nothing."""

            def helper(self) -> None: ...


def test_a_field_without_annotation_is_refused_with_the_mend() -> None:
    with pytest.raises(PluginError, match=r"write `epsilon: float = 1\.0`"):

        class Bare(Adversary):
            """A constant that was meant as a field."""

            epsilon = 1.0

            def attack(self, step: Any) -> Any: ...


def test_constants_and_declared_attributes_need_no_annotation() -> None:
    class Fine(Adversary):
        """Two passes."""

        LIMIT: ClassVar[int] = 3
        passes = 2

        def attack(self, step: Any) -> Any: ...

    assert Fine().passes == 2


@pytest.mark.parametrize("base", [Weight, Objective, Task])
def test_a_plain_kind_must_supply_its_methods(base: type[Component]) -> None:
    with pytest.raises(PluginError, match=rf"is of kind '{base.kind}' and must implement {base.must_override[0]}\(\)"):
        type("Empty", (base,), {"__module__": __name__, "__doc__": "Empty."})


def test_names_are_kebab_case() -> None:
    names = {"FGM": "fgm", "KLReference": "kl-reference", "FreeLB": "free-lb", "ModelStock": "model-stock"}
    names |= {"R3F": "r3f", "L2Norm": "l2-norm"}
    assert {n: component_name(type(n, (), {})) for n in names} == names


def test_a_mutable_default_names_the_component() -> None:
    with pytest.raises(PluginError, match=r"Shared: mutable default .* use default_factory"):

        class Shared(Constraint):
            """A list that all instances would share."""

            words: list[str] = []  # noqa: RUF012  # the mistake that is tested

            def penalty(self, step: Any, outputs: Any) -> Any: ...

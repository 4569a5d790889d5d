"""Controls in recipes, runs and `alignkit.load`: composed, audited, refused, off where nobody asks for them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit_constraints import Steering

import alignkit
from alignkit.aligned import Aligned, find_task
from alignkit.components import Control, Intervention
from alignkit.errors import PluginError, UsageError
from alignkit.generation import Generating, Processor, generate
from alignkit.kept import controls_of, keep, missing
from alignkit.preflight import plan_of
from alignkit.testing import tiny

TEXTS = ["where is ada ?", "rome", "who is he and what is the film ?", "bob"]
ROWS = [{"prompt": text, "completion": "in paris"} for text in TEXTS * 2]


class Noted(Control):
    """Says what it saw, and changes nothing."""

    def __post_init__(self) -> None:
        self.seen: list[Generating] = []

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[Processor]:
        self.seen.append(generating)
        self.running: list[list[bool]] = []

        def look(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.running.append(generating.running(ids).tolist())
            return scores

        yield look
        for row, example in enumerate(generating.examples):
            generating.note(row, Intervention("seen", example.text))


class Short(Control):
    """Answers short questions itself."""

    def reply(self, examples: list[Any]) -> list[Intervention]:
        found = [len(example.text.split()) for example in examples]
        return [Intervention("words", n, 2, text="too short" if n < 2 else None) for n in found]


class Shouting(Control):
    """Writes answers in capitals."""

    def finish(self, example: Any, text: str) -> Intervention | None:
        return Intervention("capitals", text=text.upper()) if text else None


class Forcing(Control):
    """Makes one token the likeliest."""

    token: int
    """The token's id."""

    @contextlib.contextmanager
    def steered(self, generating: Generating) -> Iterator[Processor]:
        def force(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, self.token] = 100.0
            return scores

        yield force


def aligned(*controls: Control, task: str = "chat") -> Aligned:
    model, tokenizer, _ = tiny("llama-causal-lm")
    chosen = find_task(task)
    chosen.take_model(model.config.to_dict())
    return Aligned(chosen, model, tokenizer, controls=list(controls))


# -- answers -----------------------------------------------------------------------------------------------------


def test_without_controls_nobody_is_asked() -> None:
    plain, watched = aligned(), aligned(Noted())
    audit: list[dict[str, Any]] = []
    assert plain.predict(TEXTS, max_new_tokens=5, audit=audit) == watched.predict(TEXTS, max_new_tokens=5)
    assert audit == []


def test_a_control_that_answers_leaves_the_others_to_the_model() -> None:
    noted, audit = Noted(), list[dict[str, Any]]()
    answers = aligned(Short(), noted, Shouting()).predict(TEXTS, max_new_tokens=5, batch_size=3, audit=audit)
    plain = aligned().predict(TEXTS, max_new_tokens=5)
    for row, (answer, other) in enumerate(zip(answers, plain, strict=True)):
        of_row = [
            (line["control"], line["rule"], line["value"], line["changed"]) for line in audit if line["row"] == row
        ]
        words = len(TEXTS[row].split())
        assert of_row[0] == ("short", "words", words, "answered" if words < 2 else "")
        assert all(line["text"] == TEXTS[row] for line in audit if line["row"] == row)
        if words < 2:
            assert (answer["completion"], len(of_row)) == ("too short", 1)
            assert answer["controls"] == [
                {"control": "short", "rule": "words", "value": 1, "threshold": 2, "changed": "answered"}
            ]
        else:
            assert answer["completion"] == other["completion"].upper()
            assert of_row[1:] == [("noted", "seen", TEXTS[row], ""), ("shouting", "capitals", None, "the text")]
            assert [record["control"] for record in answer["controls"]] == ["shouting"]
    assert [[example["prompt"] for example in batch.examples] for batch in noted.seen] == [TEXTS[:1] + TEXTS[2:3]]


def test_a_batch_that_is_all_answered_asks_no_model() -> None:
    noted = Noted()
    assert [a["completion"] for a in aligned(Short(), noted).predict(["a", "b"])] == ["too short"] * 2
    assert noted.seen == []


def test_processors_go_in_the_order_of_the_controls() -> None:
    first, last = (Forcing(token=token) for token in (20, 30))
    found = aligned(first, last)
    [answer] = found.predict(["rome"], max_new_tokens=2)
    assert answer["completion"] == found.tokenizer.decode([20, 20]), "of equal scores the first is taken"
    last.token = 19
    assert found.predict(["rome"], max_new_tokens=2)[0]["completion"] == found.tokenizer.decode([19, 19])


def test_a_batch_says_which_of_its_answers_have_ended() -> None:
    noted = Noted()
    found = aligned(noted)
    eos, other = found.tokenizer.eos_token_id, 30
    script = {0: [other, eos, other, other], 1: [other, other, other, eos]}

    class Scripted(Control):
        """Makes row 0 end after one token, and row 1 after three."""

        @contextlib.contextmanager
        def steered(self, generating: Generating) -> Iterator[Processor]:
            def say(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                step = ids.shape[1] - generating.written
                scores = torch.full_like(scores, -10.0)
                for row in (0, 1):
                    scores[row, script[row][step]] = 0.0
                return scores

            yield say

    found.controls = [noted, Scripted()]
    found.predict(TEXTS[:2], max_new_tokens=4)
    assert noted.running == [[True, True], [True, True], [False, True], [False, True]]


@pytest.mark.parametrize("task", ["chat", "dialogue", "translation", "summarization", "causal-lm"])
def test_every_task_that_generates_can_be_controlled(task: str) -> None:
    found = aligned(Forcing(token=30), task=task)
    for answer in found.predict(TEXTS[:2], max_new_tokens=3):
        assert answer[found.task.generates].split() == [found.tokenizer.decode([30])] * 3


def test_tasks_that_generate_nothing_refuse_with_the_mend() -> None:
    model, tokenizer, _ = tiny("bert-token-classification")
    found = Aligned(find_task("ner"), model, tokenizer, controls=[Shouting()])
    with pytest.raises(UsageError) as refusal:
        found.predict(["ada"])
    assert "control shouting: task ner generates no text that could be controlled; expected a task that does:" in str(
        refusal.value
    )
    assert "chat, dialogue" in str(refusal.value)
    assert str(refusal.value).endswith("take it out of `controls`")


def test_virtual_tokens_before_the_text_go_with_controls() -> None:
    from alignkit.models import Peft
    from alignkit.models.adapters import adapted

    found = aligned(noted := Noted())
    torch.manual_seed(0)
    found.model = adapted(found.model, found.task, Peft(method="prompt-tuning", num_virtual_tokens=3), set())
    controlled = found.predict(TEXTS, max_new_tokens=4)
    found.controls = []
    assert found.predict(TEXTS, max_new_tokens=4) == controlled
    assert [len(batch.examples) for batch in noted.seen] == [1] * len(TEXTS)


# -- what authors get wrong --------------------------------------------------------------------------------------


def test_a_control_that_does_nothing_is_an_error_of_its_author() -> None:
    with pytest.raises(PluginError, match="of kind 'control' and must implement reply or steered or finish"):

        class Idle(Control):
            """Does nothing."""


def test_replies_for_other_examples_are_an_error_of_its_author() -> None:
    class Deaf(Control):
        """Replies to nobody."""

        def reply(self, examples: list[Any]) -> list[Intervention]:
            return []

    with pytest.raises(PluginError, match="control deaf: 0 replies to 4 examples"):
        aligned(Deaf()).predict(TEXTS)


def test_a_task_that_asks_for_other_rows_is_an_error_of_its_author() -> None:
    from alignkit.tasks.chat import Chat

    class Single(Chat):
        """Asks for one row at a time."""

        def predict(self, model: Any, tokenizer: Any, examples: Any, batch_size: int = 16, **options: Any) -> Any:
            for example in examples:
                ids = torch.tensor([self.prompt_ids(example, tokenizer)])
                generate(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **options)
                yield self.answer(example, {"completion": ""})

    model, tokenizer, _ = tiny("llama-causal-lm")
    task = Single()
    task.name = "single"
    with pytest.raises(PluginError, match="task single generates 1 rows where 4 were asked for"):
        Aligned(task, model, tokenizer, controls=[Noted()]).predict(TEXTS)


# -- recipes and runs --------------------------------------------------------------------------------------------


def recipe(folder: Path, model: Path, **parts: Any) -> alignkit.Recipe:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return alignkit.Recipe(
        model=str(model),
        task="chat",
        data={"train": "rows.jsonl", "test": "rows.jsonl"},
        training={"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True},
        evaluation={"replicates": 20},
        output="run",
        base=folder,
        **parts,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, language_model: Path) -> alignkit.Run:
    """A run under three controls. Read only."""
    folder = tmp_path_factory.mktemp("controlled")
    (folder / "no.txt").write_text("a\ne\n", "utf-8")
    controls = [
        {"use": "forbidden-phrases", "phrases": str(folder / "no.txt")},
        {"use": "refusal-policy", "phrases": ["rome"]},
        {"use": "steering-vector", "alpha": 0.5, "layer": 0},
    ]
    return alignkit.train(recipe(folder, language_model, controls=controls))


def test_a_runs_controls_are_on_when_it_is_loaded_and_off_where_they_are_taken_out(run: alignkit.Run) -> None:
    answers = run.predict(TEXTS, max_new_tokens=6)
    assert not any(set("ae") & set(answer["completion"]) for answer in answers[:1] + answers[2:])
    assert answers[1]["completion"].startswith("I'm sorry")
    loaded = alignkit.load(run.path)
    assert [control.name for control in loaded.controls] == ["forbidden-phrases", "refusal-policy", "steering-vector"]
    assert loaded.predict(TEXTS, max_new_tokens=6) == answers
    plain = alignkit.load(run.path, controls=()).predict(TEXTS, max_new_tokens=6)
    assert not any("controls" in answer for answer in plain)
    assert [a["completion"] for a in plain] != [a["completion"] for a in answers]
    loaded.controls = []
    assert loaded.predict(TEXTS, max_new_tokens=6) == plain


def test_the_folder_says_what_was_on_and_keeps_the_vector(run: alignkit.Run) -> None:
    metrics = json.loads((run.path / "metrics.json").read_text("utf-8"))
    assert metrics["controls"] == {"before": [], "after": []}
    assert {path.name for path in (run.path / "controls").iterdir()} == {
        "steering-vector.json",
        "steering-vector.safetensors",
        "forbidden-phrases",
        "files.kept.json",
    }
    saved = alignkit.Recipe.load(run.path / "recipe.yaml")
    assert [control.name for control in saved.controls] == ["forbidden-phrases", "refusal-policy", "steering-vector"]
    assert saved.controls[0].phrases == run.path.parent / "no.txt"  # type: ignore[attr-defined]
    assert "alignkit-constraints" in saved.resolved()["versions"]["plugins"]
    card = (run.path / "README.md").read_text("utf-8")
    assert "no alignment component was in use; when alignkit asks it, it is under `forbidden-phrases`" in card
    assert "off in all that is measured before and after" in (run.path / "report.html").read_text("utf-8")


def test_a_run_that_goes_on_keeps_the_lists_that_it_began_with(tmp_path: Path, language_model: Path) -> None:
    (tmp_path / "no.txt").write_text("a\ne\n", "utf-8")
    controls = [{"use": "forbidden-phrases", "phrases": "no.txt"}]
    began = alignkit.train(recipe(tmp_path, language_model, controls=controls))
    answers = began.predict(TEXTS, max_new_tokens=6)
    kept = began.path / "controls" / "forbidden-phrases" / "phrases" / "no.txt"
    noted = (began.path / "controls" / "files.kept.json").read_bytes()
    (tmp_path / "no.txt").write_text("i\n", "utf-8")
    for _ in range(2):
        again = alignkit.train(recipe(tmp_path, language_model, controls=controls), resume=True)
        assert kept.read_text("utf-8") == "a\ne\n"
        assert (began.path / "controls" / "files.kept.json").read_bytes() == noted
        assert again.predict(TEXTS, max_new_tokens=6) == answers
        (tmp_path / "no.txt").unlink(missing_ok=True)
    saved = alignkit.Recipe.load(began.path / "recipe.yaml")
    assert saved.controls[0].phrases == tmp_path / "no.txt"  # type: ignore[attr-defined]


def test_a_list_is_copied_whole_or_not(tmp_path: Path, language_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.txt").write_text("a\ne\n", "utf-8")
    made = recipe(tmp_path, language_model, controls=[{"use": "forbidden-phrases", "phrases": "no.txt"}])

    def interrupted(source: Path, target: Path) -> None:
        target.write_text("a", "utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            keep(made, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("no.txt"))
    keep(made, tmp_path / "run")
    [control] = controls_of(made, tmp_path / "run")
    assert control.fields()["phrases"].read_text("utf-8") == "a\ne\n"
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.parametrize("name", ["someone/expert", "package:expert"])
def test_a_name_that_is_no_path_stays_one(name: str, tmp_path: Path, language_model: Path) -> None:
    made, folder = recipe(tmp_path, language_model, controls=[Steering(expert=Path(name))]), tmp_path / "run"
    keep(made, folder)
    made.save(folder / "recipe.yaml")
    for known in (made, alignkit.Recipe.load(folder / "recipe.yaml")):
        found = controls_of(known, folder)
        assert found[0].fields()["expert"] == Path(name)
        assert not list(missing(found))
        keep(known, folder)  # a run that goes on


def test_a_model_is_taken_from_where_it_was_even_if_another_stands_where_the_path_leads_now(
    tmp_path: Path, language_model: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        (folder / "expert").mkdir(parents=True)
    made = recipe(before, language_model, controls=[{"use": "steering", "expert": "expert"}])
    keep(made, before / "run")
    made.save(before / "run" / "recipe.yaml")
    (before / "run").rename(after / "run")
    moved = alignkit.Recipe.load(after / "run" / "recipe.yaml")
    assert moved.controls[0].fields()["expert"] == after / "expert"
    assert controls_of(moved, after / "run")[0].fields()["expert"] == before / "expert"
    (before / "expert").rmdir()
    assert controls_of(moved, after / "run")[0].fields()["expert"] == after / "expert"
    (after / "expert").rmdir()
    assert [mistake.found for mistake in missing(controls_of(moved, after / "run"))] == [
        f"{before / 'expert'} does not exist"
    ]


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".bin", ".onnx", ".PT"])
def test_a_file_that_is_a_model_is_not_copied(suffix: str, tmp_path: Path, language_model: Path) -> None:
    model = tmp_path / f"expert{suffix}"
    model.write_bytes(b"weights")
    made = recipe(tmp_path, language_model, controls=[{"use": "steering", "expert": model.name}])
    keep(made, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "controls").iterdir()] == ["files.kept.json"]
    assert controls_of(made, tmp_path / "run")[0].fields()["expert"] == model


def test_a_copy_is_used_where_a_run_is_moved_to_above_the_original(tmp_path: Path, language_model: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    (tmp_path / "no.txt").write_text("a\n", "utf-8")
    controls = [{"use": "forbidden-phrases", "phrases": str(tmp_path / "no.txt")}]
    made = recipe(before, language_model, controls=controls)
    keep(made, before / "run")
    made.save(before / "run" / "recipe.yaml")
    (before / "run").rename(tmp_path / "run")
    moved = alignkit.Recipe.load(tmp_path / "run" / "recipe.yaml")
    assert moved.base == tmp_path
    [control] = controls_of(moved, tmp_path / "run")
    assert control.fields()["phrases"] == tmp_path / "run" / "controls" / "forbidden-phrases" / "phrases" / "no.txt"


def test_the_plan_says_what_is_done_when_the_model_is_asked(tmp_path: Path, language_model: Path) -> None:
    made = recipe(tmp_path, language_model, controls=[{"use": "refusal-policy", "phrases": ["rome"]}])
    _, plan = plan_of(made)
    text = plan.render()
    assert "  when it is asked\n    refusal-policy  Answers prompts that match a policy by a fixed refusal" in text
    assert "note: controls are on when alignkit asks the model" in text
    assert "when it is asked" not in plan_of(recipe(tmp_path, language_model))[1].render()


def test_what_is_wrong_with_controls_is_said_before_anything_is_trained(
    tmp_path: Path, encoder: Path, ner_data: Path, language_model: Path
) -> None:
    tagging = alignkit.Recipe(
        model=str(encoder), task="ner", data={"train": "train.conll"}, base=ner_data,
        controls=[{"use": "refusal-policy", "phrases": ["rome"]}],
    )  # fmt: skip
    with pytest.raises(UsageError, match="control refusal-policy: task ner generates no text"):
        plan_of(tagging)
    with pytest.raises(UsageError, match=r"none\.txt: no such file"):
        plan_of(recipe(tmp_path, language_model, controls=[{"use": "forbidden-phrases", "phrases": "none.txt"}]))
    deep = recipe(tmp_path, language_model, controls=[{"use": "steering-vector", "layer": 9}])
    with pytest.raises(UsageError, match="control steering-vector layer: 9, where the model has 2 layers"):
        alignkit.train(deep)
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(UsageError, match=r"controls\.0\.alfa: unknown field.*did you mean 'alpha'"):
        recipe(tmp_path, language_model, controls=[{"use": "steering-vector", "alfa": 1}])
    with pytest.raises(UsageError, match="did you mean 'steering'"):
        recipe(tmp_path, language_model, controls=["steerin"])


def test_controls_by_name_go_with_a_plain_model(language_model: Path) -> None:
    found = alignkit.load(language_model, controls=["steering-vector"])
    assert [control.name for control in found.controls] == ["steering-vector"]
    assert found.predict(["rome"], max_new_tokens=2)[0]["controls"][0]["rule"] == "refusal"


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (["forbidden-phrases"], "controls.0.phrases: "),
        ([3], "controls.0: 3; expected the name of a control, or {use: NAME, ...}"),
        ("steering-vector", "controls: 'steering-vector'; expected a list; write [steering-vector]"),
        ([find_task("ner")], "controls.0: Ner, of kind task; expected a component of kind control"),
    ],
)
def test_what_is_no_control_is_refused_by_load(controls: Any, said: str, language_model: Path) -> None:
    with pytest.raises(UsageError) as refusal:
        alignkit.load(language_model, controls=controls)
    assert said in str(refusal.value)


def test_a_control_that_is_changed_in_place_is_prepared_anew() -> None:
    class Preparing(Control):
        """Says what it was prepared with."""

        words: list[str]
        """What it says."""

        def prepare(self, model: Any, tokenizer: Any, task: Any) -> None:
            if not hasattr(self, "_said"):
                self._said = " ".join(self.words)

        def finish(self, example: Any, text: str) -> Intervention:
            return Intervention("said", text=self._said)

    control = Preparing(words=["a"])
    found = aligned(control)
    said = [found.predict(["rome"], max_new_tokens=2)[0]["completion"]]
    control.words.append("b")
    said.append(found.predict(["rome"], max_new_tokens=2)[0]["completion"])
    control.words = ["c"]
    said.append(found.predict(["rome"], max_new_tokens=2)[0]["completion"])
    assert said == ["a", "a b", "c"]

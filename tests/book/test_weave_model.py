"""What the weaver says about fragments is what the tangler does with them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.book.conftest import PROJECT, Project
from tools.book import outputs_of, read_book
from tools.problems import Refused
from tools.weave.model import Fragment, Woven, title_of, weave, weave_book

MODEL = '''# Model

```python #compose-it file=nanochat/model.py
"""A model."""


<<keep-state>>


<<helper-of-all>>
```

```python #keep-state
class State:
    """State."""

    <<state-step>>
```

```python #state-step todo="Write the step"
@property
def step(self) -> int:
    """One step."""
    <<add-one>>
    return x
```

```python #add-one
x = 1
```

```python #helper-of-all
def helper() -> int:
```

Later, the rest:

```python #helper-of-all
    return 2
```
'''


@dataclass(frozen=True)
class AStep:
    id: str = "State.step"
    phase: int = 1
    title: str = "The step"
    fragment: str = "state-step"
    why: str = "It is called."
    hints: tuple[str, str, str] = ("What?", "There.", "first this\nthen that")
    questions: tuple[str, ...] = ()
    folded: bool = True


def the(woven: Woven, name: str, number: int = 0) -> Fragment:
    found = woven.named(name, number)
    assert found is not None
    return found


@pytest.fixture
def woven(project: Project) -> Woven:
    project.write("lit/30-model.md", MODEL)
    return weave(project.root, [AStep()])


@pytest.fixture(scope="module")
def whole() -> Woven:
    return weave(PROJECT)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("rotate-queries-and-keys", "Rotate queries and keys"),
        ("assemble-the-gpt", "Assemble the GPT"),
        ("orthogonalize-by-newton-schulz", "Orthogonalize by Newton–Schulz"),
        ("gpt-init", "GPT init"),
        ("scripts/run.sh", "scripts/run.sh"),
    ],
)
def test_a_title_is_the_name_as_a_sentence(name: str, title: str) -> None:
    assert title_of(name) == title


def test_what_a_learner_writes_is_called_as_in_the_code(woven: Woven) -> None:
    step = the(woven, "state-step")
    assert step.title == "State.step"
    assert step.step == AStep()
    assert step.todo == "Write the step"


def test_a_fragment_lands_in_its_scope_at_its_line(woven: Woven) -> None:
    add, step, state = the(woven, "add-one"), the(woven, "state-step"), the(woven, "keep-state")
    assert add.place == "nanochat/model.py, in State.step(), line 10"
    assert step.place == "nanochat/model.py, in State, line 7"
    assert state.place == "nanochat/model.py, line 4"
    text = woven.files["nanochat/model.py"].text.split("\n")
    assert text[add.lands[0].first - 1] == "        x = 1"


def test_a_fragment_ends_where_what_it_contains_ends(woven: Woven) -> None:
    state = the(woven, "keep-state")
    assert (state.lands[0].first, state.lands[0].last) == (4, 11)


def test_the_root_is_called_by_its_file(woven: Woven) -> None:
    root = the(woven, "compose-it")
    assert (root.place, root.file) == ("nanochat/model.py", "nanochat/model.py")


def test_references_and_users_find_each_other(woven: Woven) -> None:
    state, step = the(woven, "keep-state"), the(woven, "state-step")
    assert [(r.row, r.indent, r.name) for r in state.references] == [(3, "    ", "state-step")]
    assert step.used_in == (state.anchor,)
    assert woven[step.used_in[0]].title == "Keep state"


def test_a_fragment_in_two_blocks_says_so(woven: Woven) -> None:
    first, second = the(woven, "helper-of-all"), the(woven, "helper-of-all", 1)
    assert (first.continues, first.continued_in) == (None, second.anchor)
    assert (second.continues, second.continued_in) == (first.anchor, None)
    assert first.anchor == "fragment-helper-of-all"
    assert second.anchor == "fragment-helper-of-all-2"
    assert first.lands[0].last + 1 == second.lands[0].first


def test_a_part_of_an_answer_is_known_as_one(woven: Woven) -> None:
    add, step, state = the(woven, "add-one"), the(woven, "state-step"), the(woven, "keep-state")
    assert add.answer_to == step.anchor
    assert (step.answer_to, state.answer_to) == (None, None)


def test_every_line_of_every_file_comes_from_the_fragment_that_is_named(whole: Woven) -> None:
    outputs = outputs_of(PROJECT)
    gathered = "skeleton/second_round.py"  # woven with the code that the tangler takes out
    assert set(whole.files) == {path for path in outputs if path != "skeleton/normans_gpt.py"}
    for path, file in whole.files.items():
        if path == gathered:
            continue
        rows = [row for run in file.runs for row in range(run.first, run.last + 1)]
        assert rows == list(range(1, len(outputs[path].origins) + 1))
        for run in file.runs:
            fragment = whole[run.anchor]
            for row in range(run.first, run.last + 1):
                origin = outputs[path].origins[row - 1]
                assert (origin.chapter, origin.name) == (fragment.chapter, fragment.name)
                assert origin.line == run.line + row - run.first
                assert fragment.line < origin.line < fragment.end


def test_the_whole_book_is_told(whole: Woven) -> None:
    assert len(whole.fragments) == len(read_book(PROJECT).blocks) == len(whole.by_anchor)
    for fragment in whole.fragments:
        assert fragment.lands
        assert fragment.file or fragment.used_in or fragment.continues
    scaled = the(whole, "attend-within-the-causal-mask")
    assert scaled.place.startswith("nanochat/normans_gpt.py, in CausalSelfAttention.forward(), line ")


def test_every_function_that_a_learner_writes_has_its_hints(whole: Woven) -> None:
    todos = [fragment for fragment in whole.fragments if fragment.todo]
    assert len(todos) == 17 + 15  # of the first round's eighteen steps, the configuration comes complete
    for fragment in todos:
        assert fragment.step
        assert fragment.step.id == fragment.title
        assert len(fragment.step.hints) == 3


def test_a_book_that_cannot_be_tangled_is_not_woven(project: Project) -> None:
    project.change("lit/10-first.md", "<<gamma>>", "<<gama>>")
    with pytest.raises(Refused, match="no block is named #gama"):
        weave(project.root)


def test_a_fragment_used_twice_lands_twice(project: Project) -> None:
    project.change("lit/20-second.md", "<<say-it>>\n", "<<say-it>>\n<<say-it>>\n")
    book = weave(project.root)
    said = the(book, "say-it")
    assert [landing.first for landing in said.lands] == [3, 4]
    assert said.place == "scripts/run.sh, line 3 and 1 more"
    assert [(run.first, run.last) for run in book.files["scripts/run.sh"].runs] == [(1, 2), (3, 3), (4, 4)]


def test_steps_are_not_needed(project: Project) -> None:
    assert all(fragment.step is None for fragment in weave_book(read_book(project.root)).fragments)

"""The learner's skeleton is the book less the bodies."""

from __future__ import annotations

import ast
import re

from tests.book.conftest import PROJECT, Project
from tools.book import outputs_of

LONG = "one after the other, in the order that a person who opens the box would meet them, none twice"
CHAPTER = """# Third

```python #compose file=nanochat/model.py
\"\"\"A model.\"\"\"


<<area>>


class Box:
    <<box-init>>

    <<box-parts>>
```

```python #area todo="Implement area - width by height (#1, file=none)"
def area(width: int, height: int) -> int:
    \"\"\"The area.

    Of a box.
    \"\"\"
    <<multiply>>
    return product
```

```python #multiply
product = width * height
```

```python #box-init todo="Implement Box.__init__ - keep both"
def __init__(self, width: int, height: int) -> None:
    self.width = width
    self.height = height
```

```python #box-parts todo="Implement Box.parts - {LONG}"
@property
def parts(self) -> list[int]:
    # A comment before the first statement.
    return [self.width, self.height]
```
""".replace("{LONG}", LONG)

SKELETON = '''"""A model."""


def area(width: int, height: int) -> int:
    """The area.

    Of a box.
    """
    raise NotImplementedError("TODO: Implement area - width by height (#1, file=none)")


class Box:
    def __init__(self, width: int, height: int) -> None:
        raise NotImplementedError("TODO: Implement Box.__init__ - keep both")

    @property
    def parts(self) -> list[int]:
        raise NotImplementedError(
            "TODO: Implement Box.parts - one after the other, in the order that a person who opens the box "
            "would meet them, none twice"
        )
'''


def line_of(text: str) -> int:
    return CHAPTER[: CHAPTER.index(text)].count("\n") + 1


def test_bodies_go_and_everything_else_stays(project: Project) -> None:
    project.write("lit/30-third.md", CHAPTER)
    assert project.run("tangle").status == 0
    assert project.read("skeleton/model.py") == SKELETON
    assert "return product" in project.read("nanochat/model.py")


def test_an_edited_skeleton_is_not_overwritten(project: Project) -> None:
    """Somebody may mistake it for the file to work in."""
    project.write("lit/30-third.md", CHAPTER)
    project.run("tangle")
    project.change(
        "skeleton/model.py", '    raise NotImplementedError("TODO: Implement area', '    return 1  # ("'
    )
    before = project.read("skeleton/model.py")
    answer = project.run("tangle")
    assert answer.status == 1
    assert f"lit/30-third.md:{line_of('def area')}" in answer.err
    assert project.read("skeleton/model.py") == before


def test_a_skeleton_nobody_derives_any_more_goes(project: Project) -> None:
    project.write("lit/30-third.md", CHAPTER)
    project.run("tangle")
    project.write("lit/30-third.md", re.sub(r" todo=.*", "", CHAPTER))
    assert project.run("tangle").status == 0
    assert not project.path("skeleton/model.py").exists()


GATHERED = """
```python #gather file=skeleton/some.py
\"\"\"Some of it.\"\"\"


<<area>>
```
"""


def test_a_block_may_gather_functions_of_several_files(project: Project) -> None:
    project.write("lit/30-third.md", CHAPTER + GATHERED)
    assert project.run("tangle").status == 0
    some, rest = project.read("skeleton/some.py"), project.read("skeleton/model.py")
    assert some.startswith('"""Some of it."""\n\n\ndef area(')
    assert 'raise NotImplementedError("TODO: Implement area' in some
    assert "return product" in rest  # it leaves its gap where it was gathered, and nowhere else
    assert "TODO: Implement Box.__init__" in rest


def test_todo_wants_a_whole_function(project: Project) -> None:
    project.write("lit/30-third.md", CHAPTER.replace("#multiply", '#multiply todo="Implement it"'))
    before = project.snapshot()
    answer = project.run("tangle")
    assert answer.status == 1
    assert f"lit/30-third.md:{line_of('```python #multiply')}: #multiply has todo=" in answer.err
    assert project.snapshot() == before


def test_this_book_leaves_eighteen_methods_less_the_configuration() -> None:
    """Seventeen functions to write; GPTConfig is complete. The first error stands to the letter."""
    output = outputs_of(PROJECT)["skeleton/normans_gpt.py"]
    found: dict[str, str] = {}
    tree = ast.parse(output.text)
    scopes = [("", tree.body)] + [(f"{n.name}.", n.body) for n in tree.body if isinstance(n, ast.ClassDef)]
    for prefix, body in scopes:
        for node in body:
            if isinstance(node, ast.FunctionDef) and isinstance(node.body[-1], ast.Raise):
                error = node.body[-1].exc
                assert isinstance(error, ast.Call)
                found[prefix + node.name] = ast.literal_eval(error.args[0])
    assert len(found) == 17
    assert found["GPT.__init__"] == (
        "TODO: Implement GPT.__init__ - create transformer dict with wte and h, create lm_head, setup rotary "
        "embeddings"
    )
    for name, todo in found.items():
        assert todo.startswith(f"TODO: Implement {name} - ")

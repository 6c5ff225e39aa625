"""YAML of any origin: plain values alone, and no more of them than settings ever need.

A few lines can stand for billions of values (anchors that repeat anchors), for nesting that no parser survives, or for
a number whose digits take minutes: such a file is refused before it is expanded.
"""

from typing import Any

import yaml

LONGEST = 2**19
"""Characters of a file; PyYAML reads about 10,000 lines of settings from as many in a second or two."""
DEEPEST = 40
"""Levels of nesting."""
MOST = 20_000
"""Values, those that an anchor repeats counted as often as they are repeated."""
DIGITS = {":int": 20, ":float": 40}
"""Characters of a number. Whole numbers that are longer can be chosen so that a mapping of them takes minutes."""


class UnreasonableYaml(yaml.YAMLError):
    """A text that no settings are written in."""


def parse_yaml(text: str) -> Any:
    """Returns the plain value that a YAML text stands for.

    Raises:
        yaml.YAMLError: it is not YAML, or nested too deeply, too long, or longer than it looks.
    """
    if len(text) > LONGEST:
        raise UnreasonableYaml(f"it has {len(text)} characters, and {LONGEST} are the most that are read")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, MemoryError):
        raise
    except Exception as error:  # PyYAML raises whatever it likes on a date, number or character that is none
        raise UnreasonableYaml(f"a value cannot be read ({type(error).__name__}: {error})") from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops at nesting that is too deep and at numbers that are too long."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Returns the next node of the document."""
        self._depth += 1
        self._values += 1
        if self._depth > DEEPEST:
            raise UnreasonableYaml(f"it is nested more than {DEEPEST} levels deep")
        if self._values > MOST:
            raise UnreasonableYaml(f"it holds more than {MOST} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode):
            most = next((most for tag, most in DIGITS.items() if node.tag.endswith(tag)), LONGEST)
            if len(node.value) > most:
                raise UnreasonableYaml(f"{node.value[:most]}… is a number of {len(node.value)} digits")
        return node


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many values a node stands for, with all that its aliases repeat; `known`: of nodes seen before, 0 of
    those that are being counted.

    Raises:
        UnreasonableYaml: too many, or a node that holds itself.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise UnreasonableYaml("an anchor holds itself")
        return known[id(node)]
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    count = 1 + sum(_expanded(child, known) for child in children)
    if count > MOST:
        raise UnreasonableYaml(f"its anchors repeat each other: it stands for more than {MOST} values")
    known[id(node)] = count
    return count

"""Parsing of untrusted YAML: only plain values, and no more of them than settings ever need.

A few lines of YAML can stand for billions of values (anchors that repeat anchors), be nested too deeply for any parser,
or hold a number whose digits take minutes to convert. Such a file is refused before it is expanded.
"""

from typing import Any

import yaml

LONGEST = 2**19
"""Maximum number of characters of a file, about 10,000 lines of settings, which PyYAML reads in a second or two."""
DEEPEST = 40
"""Maximum depth of nesting."""
MOST = 20_000
"""Maximum number of values. Values that an anchor repeats are counted as often as they are repeated."""
DIGITS = {":int": 20, ":float": 40}
"""Maximum number of characters of a number. Longer integers can be chosen so that a mapping with them as keys takes
minutes."""


class UnreasonableYaml(yaml.YAMLError):
    """Raised for YAML that is too large, too deeply nested, or cannot be converted to values."""


def parse_yaml(text: str) -> Any:
    """Returns the value that a YAML text stands for, made of plain Python types.

    Raises:
        yaml.YAMLError: the text is not YAML, is too long or too deeply nested, or stands for too many values.
    """
    if len(text) > LONGEST:
        raise UnreasonableYaml(f"it has {len(text)} characters; at most {LONGEST} are read")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, MemoryError):
        raise
    except Exception as error:  # PyYAML raises errors of many types for malformed dates, numbers and characters
        raise UnreasonableYaml(f"a value cannot be read ({type(error).__name__}: {error})") from None
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits on nesting, on the number of values and on the length of numbers."""

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
            longest = next((digits for tag, digits in DIGITS.items() if node.tag.endswith(tag)), LONGEST)
            if len(node.value) > longest:
                raise UnreasonableYaml(
                    f"{node.value[:longest]}… is a number of {len(node.value)} digits, which is too long"
                )
        return node


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values that a node stands for, including those that its aliases repeat.

    Args:
        node: the node.
        known: the results for earlier nodes by their `id`; 0 for nodes that are still being counted.

    Raises:
        UnreasonableYaml: there are too many values, or a node contains itself.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise UnreasonableYaml("an anchor contains itself")
        return known[id(node)]
    known[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    count = 1 + sum(_count_values(child, known) for child in children)
    if count > MOST:
        raise UnreasonableYaml(f"its anchors repeat each other, and it stands for more than {MOST} values")
    known[id(node)] = count
    return count

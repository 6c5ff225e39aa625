"""Lists every message that a user may meet, from the source of the package.

What is found: errors that end a command (PipelineError), values that a YAML may not hold (ValueError in core/config),
faults in raw files, faults and reasons that are found in a submission, and warnings.
"""

import ast
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.anchors import slug
from builder.templates import Scope, literal, template

PLACE = "<!-- here the site lists every message -->"
"""What stands in docs/troubleshooting.md where the list belongs."""
REMEDIES = Path(__file__).parents[1] / "troubleshooting.md"
GROUPS = {
    "The command line": ("__main__", "options", "running", "stages", "status", "completion", "notebook", "bring"),
    "Settings: recipes and competitions": ("core/config",),
    "Starting and resuming a run": ("core", "requirements_check", "data_commands"),
    "A competition from raw files (new)": ("new",),
    "Raw files (decode)": ("decode", "masks"),
    "What is wrong with the data (clean, review)": ("clean", "review"),
    "Folds (split)": ("split",),
    "Networks and weights": ("networks",),
    "Training (train)": ("train",),
    "Several GPUs and machines (engines)": ("engines",),
    "Predictions (validate, predict, your own arrays)": ("validate", "predict", "predictions", "predict_folder"),
    "Post-processing and the estimate (tune)": ("tune",),
    "The submission (encode, check, score)": ("encode",),
    "Known test sets and the report (evaluate, report, compare)": ("evaluate", "report"),
    "Many settings (sweep)": ("sweep",),
    "Offline bundles (bundle, infer)": ("kaggle/bundle",),
    "Kaggle (download, submit, save, restore)": ("kaggle", "kaggle_commands"),
}
"""When a user meets the messages of which modules, relative to pipeline/; the longest prefix decides."""
KINDS = {
    "error": "ends the command with exit code 2",
    "value": "a value that the YAML or `--set` may not have; the message begins with the file and the key",
    "fault": "a fault in a file, listed with the file and the row",
    "warning": "the command goes on",
    "stop": "a reason for the verdict *do not submit*",
    "check": "a reason for the verdict *check first*",
    "note": "a note beside the verdict",
}

OTHERS = ("ValueError", "Fault", "MaskFault", "warn", "note", "Reason")
"""What makes a message and is no PipelineError."""
SENTENCES = {
    "encode/examine": "fault",
    "encode/class_maps": "fault",
    "encode/sentences": "fault",
    "core/config/settings": "value",
    "core/shortage": "error",
}
"""Modules in which every sentence is a message, wherever it stands, and of what kind."""


@dataclass(frozen=True)
class Message:
    """One message of the code."""

    text: str
    """With ‹placeholders› where a run fills something in."""
    kind: str
    """A key of KINDS."""
    module: str
    """Relative to pipeline/, with slashes and without .py."""
    line: int

    @property
    def anchor(self) -> str:
        """Names it in a link, for as long as its text stays."""
        return "m-" + hashlib.sha256(self.text.encode()).hexdigest()[:8]

    @property
    def group(self) -> str:
        """When a user meets it."""
        fitting = [
            (len(start), title) for title, starts in GROUPS.items() for start in starts
            if f"{self.module}/".startswith(f"{start}/")
        ]  # fmt: skip
        return max(fitting)[1] if fitting else next(iter(GROUPS))


@dataclass(frozen=True)
class Remedy:
    """A section of docs/troubleshooting.md about a message."""

    pattern: str
    """The heading: parts of the message, with … between them."""

    def fits(self, message: Message) -> bool:
        """Returns whether a message contains the parts of the heading in their order."""
        parts = [re.escape(part.strip()) for part in self.pattern.split("…")]
        return re.search(".*".join(parts), message.text, re.S) is not None

    @property
    def anchor(self) -> str:
        """The anchor of the heading, as GitHub and the site make it."""
        return slug(self.pattern)


def collect(repository: Path) -> list[Message]:
    """Returns every message of the package that has words of its own, in the order of the source."""
    found = [one for one in every_call(repository) if re.search(r"[a-z]{3}", literal(one.text))]
    unique = {one.text: one for one in sorted(found, key=lambda one: (one.kind != "error", one.line), reverse=True)}
    return sorted(unique.values(), key=lambda one: (one.module, one.line))


@functools.cache
def every_call(repository: Path) -> tuple[Message, ...]:
    """Returns all places in the code that make a message, those included that pass on the text of another error."""
    package = repository / "pipeline"
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    subclasses = re.findall(r"^class (\w+)\(PipelineError\)", "\n".join(sources.values()), re.M)
    errors = frozenset(["PipelineError", *subclasses])
    made = re.compile(rf"\b({'|'.join([*errors, *OTHERS])})\(")
    found: list[Message] = []
    for path, text in sources.items():
        module = path.relative_to(package).with_suffix("").as_posix()
        if made.search(text) or module in SENTENCES:
            found += _in_module(module, ast.parse(text), errors)
    return tuple(found)


def remedies() -> list[Remedy]:
    """Returns the sections of docs/troubleshooting.md whose headings quote a message."""
    return [Remedy(text) for text in re.findall(r"^### `(.+)`$", REMEDIES.read_text(encoding="utf-8"), re.M)]


def listing(repository: Path) -> str:
    """Returns the list of all messages as Markdown, one section per group, one heading per message."""
    known, answers, lines = collect(repository), remedies(), []
    for title in GROUPS:
        messages = [one for one in known if one.group == title]
        lines.append(f"### {title}\n") if messages else None
        for message in messages:
            answer = next((one for one in answers if one.fits(message)), None)
            more = f" — **[what to do](#{answer.anchor})**" if answer else ""
            text = _as_markdown(message.text)
            lines.append(f"#### {text} {{ #{message.anchor} .message }}\n")
            lines.append(f"*{message.kind}*: {KINDS[message.kind]}; `pipeline/{message.module}.py`{more}\n")
    return "\n".join(lines)


def _in_module(module: str, tree: ast.Module, errors: frozenset[str]) -> Iterator[Message]:
    for function, node in _with_functions(tree, tree):
        kind, argument = _message_of(module, node, errors)
        if kind:
            scope = Scope(tree, function, node.lineno)
            text = " ".join(re.sub(r"\[/?[a-z ]+\]", "", template(argument, scope)).split())
            kind = _level(argument, node, scope) if kind == "reason" else kind
            yield Message(text, kind, module, node.lineno)


def _with_functions(node: ast.AST, function: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Every node with the innermost function around it."""
    waiting = [(function, node)]
    while waiting:
        function, node = waiting.pop()
        inside = node if isinstance(node, ast.FunctionDef) else function
        for child in ast.iter_child_nodes(node):
            if isinstance(
                child, ast.stmt | ast.expr | ast.ExceptHandler | ast.keyword | ast.comprehension | ast.match_case
            ):
                waiting.append((inside, child))
                yield inside, child


def _message_of(module: str, node: ast.AST, errors: frozenset[str]) -> tuple[str, ast.expr | None]:
    """The kind of message that a node makes, "" where it makes none, and the expression of its text."""
    match node:
        case ast.Call(func=function, args=arguments, keywords=keywords):
            name = _name(function)
            given = {one.arg: one.value for one in keywords}
            if name in errors:
                return "error", arguments[0] if arguments else None
            if name == "ValueError" and module.startswith("core/config"):
                return "value", arguments[0] if arguments else None
            if name == "ValueError" and module.startswith(("decode", "encode")):
                return "fault", arguments[0] if arguments else None
            if name in ("Fault", "MaskFault") and len(arguments) > 2:
                return "fault", arguments[2]
            if name in ("warn", "note") and len(arguments) == 1 and not module.startswith("networks"):
                return "warning", arguments[0]
            if name == "Reason" and (len(arguments) > 2 or "text" in given):
                return "reason", arguments[2] if len(arguments) > 2 else given["text"]
        case ast.JoinedStr() if module in SENTENCES:
            if len(literal(template(node, Scope(ast.Module([], []), ast.Module([], []), 0))).split()) > 3:
                return SENTENCES[module], node
    return "", None


def _level(argument: ast.expr | None, node: ast.AST, scope: Scope) -> str:
    """The gravest level that a reason may have."""
    first = node.args[0] if isinstance(node, ast.Call) and node.args else None
    text = template(first, scope)
    return next((level for level in ("stop", "check", "note") if level in text), "check")


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _as_markdown(text: str) -> str:
    """A message as the text of a heading, in which nothing is taken for markup."""
    return re.sub(r"([\\*_<>\[\]{}#&$~^=|])", lambda match: f"&#{ord(match[1])};", text.replace("`", "'"))

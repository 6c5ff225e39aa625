"""`check-model` on sound networks, and on wrong ones of many kinds."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.core.config.training import ModelSettings
from pipeline.core.errors import PipelineError
from pipeline.teach import model_training
from pipeline.teach.check_model import Report, Request, check_model, model_settings

SOUND = """
import torch
from torch import nn
from torch.nn import functional

class Net(nn.Module):
    def __init__(self, channels, classes, **options):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, 16, 3, padding=1), self.norm(), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.last = nn.Sequential(nn.Conv2d(40, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, classes, 1)
        self.add()

    def norm(self):
        return nn.BatchNorm2d(16)

    def add(self):
        pass

    def features(self, x):
        first = self.first(x)
        deep = self.deep(functional.max_pool2d(self.inner(functional.max_pool2d(first, 2)), 2))
        up = functional.interpolate(deep, scale_factor=4, mode="bilinear")
        return self.last(torch.cat([first, up], 1))

    def forward(self, x):
        return self.head(self.features(x))
"""
WRONG = {
    "softmax": "def forward(self, x): return self.head(self.features(x)).softmax(1)",
    "sigmoid": "def forward(self, x): return self.head(self.features(x)).sigmoid()",
    "relu": "def forward(self, x): return self.head(self.features(x)).relu()",
    "tanh": "def forward(self, x): return (1000 * self.head(self.features(x))).tanh()",
    "channels": "def add(self): self.head = nn.Conv2d(16, 7, 1)",
    "squeezed": "def forward(self, x): return self.head(self.features(x))[:, 0]",
    "half": "def forward(self, x): return functional.max_pool2d(self.head(self.features(x)), 2)",
    "unpadded": "def forward(self, x): return functional.avg_pool2d(self.head(self.features(x)), 3, 1)",
    "detached": "def forward(self, x): return self.head(self.features(x).detach())",
    "cut": "def forward(self, x): return self.head(self.features(x)).detach()",
    "argmax": "def forward(self, x): return (self.head(self.features(x)) > 0).float()",
    "unused": "def add(self): self.spare = nn.Conv2d(3, 3, 1)",
    "dead": "def add(self): nn.init.constant_(self.first[1].bias, -100.0)",
    "momentum": "def norm(self): return nn.BatchNorm2d(16, momentum=0.0)",
    "keras": "def norm(self): return nn.BatchNorm2d(16, momentum=0.99)",
    "batch": "def norm(self): return nn.BatchNorm2d(16, track_running_stats=False)",
    "tuple": "def forward(self, x): return self.head(self.features(x)), x",
    "dict": "def forward(self, x): return {'out': self.head(self.features(x))}",
    "none": "def forward(self, x): self.head(self.features(x))",
    "prints": "def forward(self, x): print('shape', x.shape); return self.head(self.features(x))",
    "raises": "def forward(self, x): raise ValueError('no such thing')",
    "hole": "def forward(self, x): raise NotImplementedError('TODO 4: join them')",
    "linear": "def add(self): self.fixed = nn.Linear(64, 64)\n    "
    "def forward(self, x): return self.fixed(self.head(self.features(x)))",
    "hidden": "def add(self): self.more = [nn.Conv2d(16, 16, 1)]",
    "frozen": "def add(self): self.requires_grad_(False)",
    "uncalled": "def add(self): self.dropout = nn.Dropout2d(0.5)",
    "endless": "def forward(self, x): return functional.dropout(self.head(self.features(x)), 0.5)",
    "nan": "def forward(self, x): return self.head(self.features(x)) / (self.head.weight.sum() * 0)",
    "blind": "def forward(self, x): return self.head(self.features(torch.ones_like(x)))",
}
FOUND = {
    "softmax": ("logits", "Every output is 1: a softmax over a single channel"),
    "sigmoid": ("logits", "a sigmoid inside the network"),
    "relu": ("logits", "None is negative, whatever the weights, as behind a ReLU"),
    "tanh": ("logits", "a tanh at the end"),
    "channels": ("shapes", r"shape \(1, 7, 32, 32\) for images \(1, 1, 32, 32\).*must have `classes` = 1 output"),
    "squeezed": ("shapes", r"shape \(1, 32, 32\).*Keep all four axes"),
    "half": ("shapes", r"shape \(1, 1, 16, 16\).*The image shrinks: pad 3×3 convolutions by 1, and upsample"),
    "unpadded": ("shapes", r"shape \(1, 1, 30, 30\).*The image shrinks"),
    "detached": ("gradients", "No gradient reaches first.0.weight, first.0.bias, .* more.*detach"),
    "cut": ("gradients", "the loss has no gradient.*Nothing may cut the graph"),
    "argmax": ("gradients", "the loss has no gradient.*argmax"),
    "unused": ("gradients", "No gradient reaches spare.weight, spare.bias.*layers that nothing uses"),
    "dead": ("gradients", "The gradient of first.0.weight, .* is exactly zero.*dead"),
    "momentum": ("batch norm", r"running mean of first.1 does not move in training \(momentum=0.0\)"),
    "batch": ("evaluation", "depend on the other images of its batch.*track_running_stats"),
    "tuple": ("shapes", r"a tuple of 2: shape \(1, 1, 32, 32\), shape \(1, 1, 32, 32\).*Return the logits alone"),
    "dict": ("shapes", "returns a dict with the keys out.*Return the tensor"),
    "none": ("shapes", "returns NoneType, not a tensor.*return logits"),
    "raises": ("shapes", r"fails on images of shape \(1, 1, 32, 32\): ValueError: no such thing \(raises_net.py line"),
    "hole": ("shapes", "NotImplementedError: TODO 4: join them.*Fill in this part"),
    "linear": ("shapes", "fails on images of shape.*A Linear layer fixes the size"),
    "hidden": ("parameters", "more holds layers that are not registered.*ModuleList"),
    "frozen": ("parameters", "all parameters are frozen"),
    "uncalled": ("dropout", "dropout drops nothing in training: it is never called"),
    "endless": ("evaluation", "Two calls in evaluation .* different.*training=self.training"),
    "nan": ("gradients", "the loss is nan in step 1"),
    "blind": ("logits", "the same for every image"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The root, whose modules are forgotten afterwards."""
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.endswith("_net"):
            del sys.modules[name]


def checked(folder: Path, name: str, change: str = "", minutes: float = 0.0005, **options: object) -> Report:
    """The report of the sound network with some of its methods replaced, hardly trained."""
    text = SOUND + (f"\n    {change}\n" if change else "")
    (folder / f"{name}_net.py").write_text(text)
    model = ModelSettings(architecture=f"{name}_net:Net", options=options)
    return check_model(Request(model, (32, 32), minutes=minutes))


def row(report: Report, check: str) -> str:
    """The status, finding and remedy of a check."""
    found = next(result for result in report.results if result.check == check)
    return f"{found.status}: {found.finding} {found.remedy}"


def test_a_sound_network_passes(folder: Path) -> None:
    state = torch.random.get_rng_state()
    report = checked(folder, "sound", minutes=1)
    assert report.passed, report.results
    assert {result.check: result.status for result in report.results} == {
        "parameters": "pass", "shapes": "pass", "one image": "pass", "evaluation": "pass", "dropout": "note",
        "gradients": "pass", "logits": "pass", "batch norm": "pass", "overfitting": "pass", "in the pipeline": "pass",
    }  # fmt: skip
    assert torch.equal(state, torch.random.get_rng_state())
    assert "14,801 parameters" in row(report, "parameters") and "Overfits the eight images: Dice 0.9" in row(
        report, "overfitting"
    )


@pytest.mark.parametrize("name", FOUND)
def test_a_wrong_network_fails(name: str, folder: Path) -> None:
    report = checked(folder, name, WRONG[name])
    check, pattern = FOUND[name]
    assert not report.passed
    text = row(report, check)
    assert text.startswith("fail: ")
    assert re.search(pattern, text), text


USER_CODE = {
    "integers": ("shapes", "logits of type torch.int64 on cpu; expected torch.float32 on cpu.*no comparison, argmax"),
    "sparse": ("shapes", "logits of the layout torch.sparse_coo"),
    "exits": ("shapes", r"SystemExit: 0 \(exits_net.py line"),
    "colours": ("shapes", "ValueError: \N{REPLACEMENT CHARACTER}.31mred \N{REPLACEMENT CHARACTER} x+… "),
    "encoder": ("shapes", r"This check ended with an error: ValueError: none \(encoder_net.py line"),
    "smaller": ("dropout", r"forward returns shape \(8, 1, 16, 32\) for images"),
    "train": ("in the pipeline", "object is not callable"),
    "nan_later": ("logits", "Outputs in evaluation are not finite"),
}
"""Of each network whose code does something unusual: a check, and what it says."""
UNUSUAL = {
    "integers": "def forward(self, x): return (self.head(self.features(x)) > 0).long()",
    "sparse": "def forward(self, x): return self.head(self.features(x)).to_sparse()",
    "exits": "def forward(self, x): raise SystemExit(0)",
    "colours": "def forward(self, x): raise ValueError('\\x1b[31mred \\udcff ' + 400 * 'x')",
    "closes": "def forward(self, x): print('last'); __import__('sys').stdout.close(); return x",
    "encoder": "def no(self): raise ValueError('none')\n    encoder = property(no)",
    "smaller": "def forward(self, x): y = self.head(self.features(x)); return y[:, :, ::2] if self.training else y",
    "train": "def train(self, mode=True): super().train(mode)",
    "nan_later": "def forward(self, x): y = self.head(self.features(x)); return y if self.training else y / 0 * 0",
}


@pytest.mark.parametrize("name", USER_CODE)
def test_no_code_of_the_user_ends_the_command(name: str, folder: Path) -> None:
    report = checked(folder, name, UNUSUAL[name])
    check, pattern = USER_CODE[name]
    assert not report.passed
    text = row(report, check)
    assert text.startswith("fail: ") and re.search(pattern, text), text
    json.dumps(report.as_json(), ensure_ascii=False).encode()


def test_a_network_that_closes_standard_output(folder: Path) -> None:
    assert checked(folder, "closes", UNUSUAL["closes"]).results


def test_lazy_layers_and_parameters_without_numbers(folder: Path) -> None:
    text = SOUND + (
        "\n    def __init__(self, channels, classes):\n        torch.nn.Module.__init__(self)\n"
        "        self.only = torch.nn.LazyConv2d(classes, 3, padding=1)\n"
        "        self.none = torch.nn.Parameter(torch.zeros(0))\n"
        "        self.whole = torch.nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)\n"
        "    def forward(self, x): return self.only(x)\n"
    )
    (folder / "lazy_net.py").write_text(text)
    report = check_model(Request(ModelSettings(architecture="lazy_net:Net"), (32, 32), minutes=0.0005))
    assert row(report, "parameters").startswith("pass: 12 parameters") and row(report, "logits").startswith("pass")


def test_what_is_no_class(folder: Path) -> None:
    (folder / "kinds_net.py").write_text("def unet(channels, classes): ...\nclass Plain: ...\nnumber = 3\n")
    for name, kind in (("unet", "a function"), ("Plain", "another class"), ("number", "an object of type int")):
        with pytest.raises(PipelineError, match=f"has no torch.nn.Module named `{name}`: it is {kind}, and a class"):
            check_model(Request(ModelSettings(architecture=f"kinds_net:{name}")))
    (folder / "ends_net.py").write_text("raise SystemExit(0)")
    with pytest.raises(PipelineError, match="the module of ends_net:Net cannot be imported, .*: SystemExit: 0"):
        check_model(Request(ModelSettings(architecture="ends_net:Net")))


def test_what_is_noted_and_no_fault(folder: Path) -> None:
    assert row(checked(folder, "keras", WRONG["keras"]), "batch norm").startswith("note: first.1 has momentum=0.99")
    printing = row(checked(folder, "prints", WRONG["prints"]), "printing")
    assert 'The network prints, for instance "shape torch.Size([1, 1, 32, 32])"' in printing.replace("'", '"')


def test_swallowed_dropout(folder: Path) -> None:
    assert "asks for dropout, and nothing is dropped" in row(checked(folder, "swallowed", dropout=0.3), "dropout")


def test_a_network_that_cannot_learn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_training, "MOST_STEPS", 25)
    monkeypatch.setattr(model_training, "DECIDED", 20)
    mean = "def forward(self, x): return self.head(self.features(x).mean((2, 3), keepdim=True)).expand(-1, -1, 32, 32)"
    mean = mean.replace("32, 32", "*x.shape[2:]")
    assert "Not learned: Dice 0." in row(checked(folder, "mean", mean, minutes=1), "overfitting")


def test_softmax_of_two_classes(folder: Path) -> None:
    (folder / "two_net.py").write_text(
        f"{SOUND}\n    def forward(self, x): return self.head(self.features(x)).softmax(1)"
    )
    report = check_model(Request(ModelSettings(architecture="two_net:Net"), (32, 32), classes=2, minutes=0.0005))
    assert "That looks like a softmax inside the network." in row(report, "logits")


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "command_net.py").write_text(SOUND)
    arguments = ["check-model", "command_net:Net", "--size", "32x64", "--channels", "3"]
    failed = CliRunner().invoke(app, [*arguments, "--minutes", "0.0001"])
    assert failed.exit_code == 1
    assert re.search("overfitting +│ FAIL", failed.stdout) and "Not decided" in failed.stdout
    assert "command_net:Net fails: overfitting." in failed.stdout
    monkeypatch.setattr(model_training, "GOAL", 0.1)
    monkeypatch.setattr(model_training, "ENOUGH", 0.1)
    done = CliRunner().invoke(app, [*arguments, "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0 and found["passed"] and found["network"] == "command_net:Net"
    assert len(found["checks"]) == 10 and {"check", "status", "finding", "remedy"} == set(found["checks"][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing_net:Net"], "the module of missing_net:Net cannot be imported"),
        (["my_unet.py:Net"], "my_unet.py:Net is no network: expected module:Class, for instance my_unet:Net, where"),
        ([":Net"], ":Net is no network: expected module:Class, for instance my_unet:Net, where my_unet.py lies in"),
        (["Unett"], "did you mean `Unet`? A class of your own is written module:Class."),
        (["Unet", "--option", "width"], "--option width: expected key=value"),
        (["Unet", "--option", "=3"], "--option =3: expected key=value"),
        (["Unet", "--option", "decoder_dropout=0.2"], "smp.Unet has no decoder_dropout"),
        (["Unet", "--size", "big"], "--size big: expected one side or ROWSxCOLUMNS"),
        (["Unet", "--size", "8"], "--size 8x8: expected sides of 32 to 1024"),
        (["Unet", "--minutes", "0"], "--minutes 0: expected more than 0"),
        (["Unet", "--classes", "0"], "expected 1 to 32 channels and 1 to 50 classes"),
    ],
)
def test_bad_input(arguments: list[str], message: str, folder: Path) -> None:
    done = CliRunner().invoke(app, ["check-model", *arguments])
    assert isinstance(done.exception, PipelineError) and message in str(done.exception)


def test_settings_of_an_architecture() -> None:
    assert model_settings("Unet", "resnet18", ["decoder_channels=[8, 8]", "a.b=1"]).options == {
        "decoder_channels": [8, 8],
        "a": {"b": 1},
    }

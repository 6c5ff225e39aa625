"""Optimisers by name, and the ways of the learning rate."""

import io
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from pipeline.core.config.training import ScheduleSettings, TrainSettings
from pipeline.core.errors import PipelineError
from pipeline.train.optimization import Schedule, build_optimizer

pytestmark = pytest.mark.filterwarnings("error")
NAMES = ["plateau", "cosine", "restarts", "cyclic", "one_cycle", "constant"]
BATCHES = torch.randn((14, 5, 4), generator=torch.Generator().manual_seed(1))
LOSSES = [1.0, 0.9, 0.95, 0.95, 0.95, 0.8, 0.9, 0.9, 0.9, 0.9]


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


def built(model: torch.nn.Sequential, **settings: Any) -> Optimizer:
    train = TrainSettings(**{"learning_rate": 0.01, "weight_decay": 0.1, **settings})
    return build_optimizer(train, list(model[0].parameters()), list(model[1:].parameters()))


def trained(model: torch.nn.Module, optimizer: Optimizer, first: int, last: int) -> list[torch.Tensor]:
    for batch in BATCHES[first:last]:
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def reloaded(*states: Any) -> Any:
    """Through a file, as torch reads it by default: no code in it."""
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_weights_move_in_one_pass_unless_gradients_are_clipped() -> None:
    assert built(network()).param_groups[0]["fused"] is True
    assert not built(network(), gradient_clip=1.0).param_groups[0].get("fused")
    assert not built(network(), optimizer_options={"fused": False}).param_groups[0]["fused"]
    assert "fused" not in built(network(), optimizer="radam").param_groups[0]


@pytest.mark.parametrize(("name", "reference"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_steps_are_those_of_torch_with_decay_everywhere(name: str, reference: type[Optimizer]) -> None:
    ours, theirs = network(), network()
    optimizer = reference(theirs.parameters(), lr=0.01, weight_decay=0.1, fused=True)  # type: ignore[call-arg]
    assert same(trained(ours, built(ours, optimizer=name), 0, 5), trained(theirs, optimizer, 0, 5))
    other = network()
    without = built(other, optimizer=name, weight_decay=0)
    assert not same(trained(other, without, 0, 5), [parameter.detach() for parameter in ours.parameters()])


def test_adam_decays_in_the_gradient() -> None:
    """With a gradient of 0, Adam's first step of decay has the length of the learning rate, AdamW's that of decay."""
    moved = {}
    for name in ("adam", "adamw"):
        parameter = Parameter(torch.tensor([2.0]))
        optimizer = build_optimizer(
            TrainSettings(optimizer=name, learning_rate=0.01, weight_decay=0.1), [], [parameter]
        )
        parameter.grad = torch.zeros(1)
        optimizer.step()
        moved[name] = 2 - parameter.item()
    assert moved == pytest.approx({"adam": 0.01, "adamw": 0.01 * 0.1 * 2}, rel=1e-3)


@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "radam", "lookahead_radam", "lookahead_sgd"])
def test_reloaded_optimiser_goes_on_as_if_nothing_had_been(name: str, steps: int) -> None:
    settings = {"optimizer": name, "optimizer_options": {"momentum": 0.8} if "sgd" in name else {}}
    straight, first, second = network(), network(), network()
    expected = trained(straight, built(straight, **settings), 0, 2 * steps)
    optimizer = built(first, **settings)
    trained(first, optimizer, 0, steps)
    weights, state = reloaded(first.state_dict(), optimizer.state_dict())
    second.load_state_dict(weights)
    optimizer = built(second, **settings)
    optimizer.load_state_dict(state)
    assert same(trained(second, optimizer, steps, 2 * steps), expected)


def test_lookahead_keeps_slow_weights() -> None:
    plain, wrapped = network(), network()
    one, other = built(plain, optimizer="radam"), built(wrapped, optimizer="Lookahead_RAdam")
    assert same(trained(plain, one, 0, 11), trained(wrapped, other, 0, 11))
    assert not same(trained(plain, one, 11, 12), trained(wrapped, other, 11, 12))


def test_encoder_group_is_the_second() -> None:
    model = network()
    assert [group["lr"] for group in built(model).param_groups] == [0.01]
    rest, encoder = built(model, encoder_learning_rate=0.001).param_groups
    assert (rest["lr"], len(rest["params"]), encoder["lr"], len(encoder["params"])) == (0.01, 4, 0.001, 2)
    with pytest.raises(PipelineError, match="no trainable encoder"):
        build_optimizer(TrainSettings(encoder_learning_rate=0.1), [], list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adamx", {}, "timm does not know; did you mean `adam"),
        ("my_adam", {}, "does not know"),
        ("adahessian", {}, "second derivatives"),
        ("adamw", {"momentun": 0.9}, "no setting momentun; it has betas, eps"),
        ("lookahead_radam", {"lr": 0.1}, "train.learning_rate"),
        ("sgd", {"momentum": "much"}, "cannot be built"),
        ("sgd", {"momentum": 0}, "Nesterov"),
        ("bnbadam", {}, "bitsandbytes"),
    ],
)
def test_wrong_optimisers_are_named(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        built(network(), optimizer=name, optimizer_options=options)


def two_groups(optimizer: str = "sgd") -> Optimizer:
    train = TrainSettings(optimizer=optimizer, learning_rate=0.1, encoder_learning_rate=0.01)
    return build_optimizer(train, [Parameter(torch.ones(2))], [Parameter(torch.ones(2))])


def schedule(
    name: str, epochs: int = 10, steps: int = 10, snapshots: int = 1, curve: list[float] | None = None, **more: Any
) -> Schedule:
    return Schedule(ScheduleSettings(name=name, **more), two_groups(), epochs, steps, snapshots, curve)


def rates(one: Schedule, first: int = 0, last: int = 10, losses: list[float] = LOSSES) -> list[float]:
    """The learning rate of every step, relative to the full one; the encoder's always has the same shape."""
    found = []
    for epoch in range(first, last):
        for _ in range(one.steps_per_epoch):
            rest, encoder = (group["lr"] for group in one.optimizer.param_groups)
            assert rest == one.learning_rate() and encoder == pytest.approx(rest / 10, rel=1e-12)
            found.append(rest / 0.1)
            one.optimizer.step()
            one.step_batch()
        one.step_epoch(losses[epoch], -losses[epoch])
    return found


def test_constant() -> None:
    assert set(rates(schedule("constant"))) == {1.0}


@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_cosine(floor: float) -> None:
    values = rates(schedule("cosine", floor=floor))
    assert values[0] == 1 and values[-1] == pytest.approx(floor, abs=1e-9)
    assert (values[49] + values[50]) / 2 == pytest.approx((1 + floor) / 2)
    assert values == sorted(values, reverse=True)


def test_restarts_by_default_in_quarters() -> None:
    values = rates(schedule("restarts"))
    assert [step for step, value in enumerate(values) if value == 1] == [0, 25, 50, 75]
    assert values[24] < 0.005 and values[99] < 0.005
    assert [step for step, value in enumerate(rates(schedule("restarts", steps=1))) if value == 1] == [0, 3, 6, 9]
    assert rates(schedule("restarts", epochs=2, steps=5), last=2)[5] == 1


def test_restarts_grow() -> None:
    values = rates(schedule("restarts", cycle=1, growth=2, floor=0.5))
    assert [step for step, value in enumerate(values) if value == 1] == [0, 10, 30, 70]
    assert min(values) == pytest.approx(values[69], abs=1e-9) and 0.5 < min(values) < 0.501


@pytest.mark.parametrize("warm_up", [0, 1])
def test_snapshots_are_at_the_floor_at_the_end_of_their_epochs(warm_up: int) -> None:
    values = rates(schedule("restarts", snapshots=5, floor=0.1, warm_up=warm_up))
    assert [values[step] for step in (19, 39, 59, 79, 99)] == pytest.approx([0.1] * 5, abs=0.01)
    assert [values[step] for step in (20, 40, 60, 80)] == [1.0] * 4
    assert values[0] == pytest.approx(0.01 if warm_up else 1)


def test_cyclic_is_a_triangle() -> None:
    values = rates(schedule("cyclic", cycle=2, floor=0.1))
    assert values[:21:5] == pytest.approx([0.1, 0.55, 1, 0.55, 0.1])
    assert values[20:40] == pytest.approx(values[:20])
    assert [step for step, value in enumerate(rates(schedule("cyclic"))) if value < 1e-9] == [0, 25, 50, 75]


@pytest.mark.parametrize(("floor", "start", "end"), [(0.0, 0.04, 4e-6), (0.01, 0.04, 0.01), (0.1, 0.1, 0.1)])
def test_one_cycle(floor: float, start: float, end: float) -> None:
    one = schedule("one_cycle", rise=0.3, floor=floor)
    values = rates(one)
    assert (values[0], values[29], values[-1]) == pytest.approx((start, 1, end))
    for _ in range(3):
        one.step_batch()
    assert one.learning_rate() == pytest.approx(0.1 * end)
    rates(schedule("one_cycle", rise=0.1, epochs=1), last=1)


@pytest.mark.parametrize("monitor", ["loss", "score"])
def test_plateau_counts_epochs_without_a_better_value(monitor: str) -> None:
    values = rates(schedule("plateau", factor=0.1, patience=1, monitor=monitor))[::10]
    assert values == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    rising = rates(schedule("plateau", patience=0, monitor=monitor), losses=[float(epoch) for epoch in range(10)])
    assert rising[-1] == pytest.approx(0.5**8)


@pytest.mark.parametrize("name", NAMES)
def test_warm_up_comes_before_any_schedule(name: str) -> None:
    values = rates(schedule(name, warm_up=2))
    assert values[:20] == pytest.approx([0.01 + 0.99 * step / 20 for step in range(20)])
    rest = {"plateau": 1, "cosine": 1, "restarts": 1, "cyclic": 0, "one_cycle": 0.04, "constant": 1}
    end = {"plateau": 1, "cosine": 0, "restarts": 0, "cyclic": 0.1, "one_cycle": 0, "constant": 1}
    assert values[20] == pytest.approx(rest[name])
    if name != "plateau":
        assert values[-1] == pytest.approx(end[name], abs=0.01)
    with pytest.raises(PipelineError, match="must be shorter"):
        schedule(name, epochs=2, warm_up=2)


def test_plateau_does_not_count_during_warm_up() -> None:
    values = rates(schedule("plateau", warm_up=4, patience=0), losses=[1.0, 2, 3, 4, 3, 2, 1, 0, -1, -2])
    assert set(values[40:]) == {1.0}


def test_curve_replaces_schedule_and_warm_up() -> None:
    one = schedule("one_cycle", warm_up=20, curve=[0.5, 1.0, 0.25])
    assert rates(one, last=5)[::10] == pytest.approx([0.5, 1, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("optimizer", ["adamw", "lookahead_radam"])
@pytest.mark.parametrize("warm_up", [0.0, 1.5])
@pytest.mark.parametrize("name", [*NAMES, "curve"])
def test_reloaded_schedule_goes_on_exactly(name: str, warm_up: float, optimizer: str) -> None:
    def fresh() -> Schedule:
        settings = ScheduleSettings(
            name="plateau" if name == "curve" else name,
            **{"patience": 0, "factor": 0.3, "floor": 0.07, "cycle": 1.3, "growth": 2, "warm_up": warm_up},
        )
        curve = [1 / (3 + epoch) for epoch in range(8)] if name == "curve" else None
        return Schedule(settings, two_groups(optimizer), 10, 7, curve=curve)

    straight = fresh()
    expected = rates(straight)
    for cut in (1, 2, 5, 9):
        first, second = fresh(), fresh()
        head = rates(first, last=cut)
        before, after = reloaded(first.optimizer.state_dict(), first.state_dict())
        second.optimizer.load_state_dict(before)
        second.load_state_dict(after)
        assert second.learning_rate() == first.learning_rate()
        assert head + rates(second, first=cut) == expected
    assert second.learning_rate() == straight.learning_rate()


def test_schedule_of_a_reloaded_optimiser_knows_the_full_rate() -> None:
    one = schedule("cosine")
    rates(one, last=5)
    optimizer = two_groups()
    optimizer.load_state_dict(one.optimizer.state_dict())
    other = Schedule(one.settings, optimizer, 10, 10)
    other.load_state_dict(one.state_dict())
    assert rates(other, first=5) == rates(one, first=5)


def test_lookahead_trains_with_the_scheduled_rate() -> None:
    optimizer = two_groups("lookahead_sgd")
    Schedule(ScheduleSettings(name="constant"), optimizer, 1, 1, curve=[0.5])
    weights = [group["params"][0] for group in optimizer.param_groups]
    for weight in weights:
        weight.grad = torch.ones(2)
    optimizer.step()
    # Nesterov's first step: gradient and decay, 1.9 times
    assert [1 - weight[0].item() for weight in weights] == pytest.approx([0.05 * 1.9001, 0.005 * 1.9001], rel=1e-3)

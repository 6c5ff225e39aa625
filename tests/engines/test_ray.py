"""The engine of a Ray cluster: two nodes on this machine, one of which dies."""

import importlib.util
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import Tiny
from jobs import fail, look
from trainings import hashes, named, prepare, summary, train

from pipeline.core import driver
from pipeline.core.console import Shares
from pipeline.core.engine import Needs, Unit
from pipeline.core.errors import PipelineError
from pipeline.core.run import Run
from pipeline.engines import ray as engine
from pipeline.engines.ray import RayEngine
from pipeline.engines.ray_room import Machine, Plan, divided
from pipeline.engines.ray_worker import do
from pipeline.options import HowOptions

STAGES = ("train", "validate", "tune", "predict", "encode")
ray_is_here = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


# --- without a cluster -----------------------------------------------------------------------------------------------


def test_a_worker_that_does_not_see_the_folder(tmp_path: Path) -> None:
    result, error = do(look, 0, "key", Silent(), 1, str(tmp_path / "elsewhere" / "work" / ".seen"), False)
    assert result is None and isinstance(error, PipelineError)
    assert f"does not see the files in {tmp_path / 'elsewhere'}: put the pipeline's folder (PIPELINE_ROOT)" in str(
        error
    )


def test_what_each_unit_gets() -> None:
    two, four = Machine("a", 8, 2), Machine("b", 32, 4)
    assert divided([two, four, Machine("head", 4, 0)], Needs()) == Plan(6, 1.0, 4, 4)
    assert divided([two], Needs(per_gpu=2)) == Plan(4, 0.5, 2, 2)
    assert divided([two, four], Needs(gpus=4)) == Plan(1, 4.0, 32, 32)
    assert divided([Machine("a", 8, 0)], Needs(threads=3)) == Plan(2, 0.0, 3, 3)
    with pytest.raises(PipelineError, match="needs 4 GPUs on one machine, but no .* that: a with 8 cores and 2 GPUs"):
        divided([two], Needs(gpus=4))


@ray_is_here
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", ": no Ray cluster answers there"),
        ("nowhere", ": expected HOST:PORT"),
        ("http://127.0.0.1:6379", ": expected HOST:PORT"),
        ("127.0.0.1:99999", ": expected HOST:PORT"),
        ("ray://127.0.0.1:10001", " is the address of Ray's client server"),
    ],
)
def test_an_address_without_a_cluster(address: str, said: str) -> None:
    with pytest.raises(PipelineError, match=f"--ray-address {address}{said}"):
        RayEngine(address)


def test_an_address_of_another_service() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(PipelineError, match="another service uses this port"):
            RayEngine(f"127.0.0.1:{server.server_port}")
        server.shutdown()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        PipelineError, match=r"not installed: pip install 'ray>=2.50', or, in a clone, pip install '.\[ray\]'"
    ):
        HowOptions(engine="ray").open_engine()


def test_engines_by_name() -> None:
    with pytest.raises(PipelineError, match="--engine dask: expected local or ray"):
        HowOptions(engine="dask").open_engine()
    with pytest.raises(PipelineError, match="--ray-address can only be used together with --engine ray"):
        HowOptions(ray_address="auto").open_engine()


# --- two nodes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that one process has finished."""
    root = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIPELINE_ROOT", str(root))
        patch.setenv("PIPELINE_INPUT", str(root / "input"))
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        run = prepare(Tiny(root), {"train": {"folds": [0, 1], "epochs": 8}, "tune": {"method": "fixed"}})
        yield train(run, *STAGES[1:])


@pytest.fixture(scope="module")
def cluster(alone: Run) -> Iterator[Any]:
    """A head and one more node, with a core each."""
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": engine.STORE}
    made: Any = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()


@ray_is_here
def test_the_same_submission(alone: Run, cluster: Any) -> None:
    run = on_ray(alone, "spread", cluster)
    assert hashes(run) == hashes(alone)
    for fold in (0, 1):
        assert summary(run, fold)["best_score"] == summary(alone, fold)["best_score"]
    assert run.submission.read_bytes() == alone.submission.read_bytes()


@ray_is_here
def test_what_a_unit_sees_and_says(alone: Run, cluster: Any, capsys: pytest.CaptureFixture[str]) -> None:
    made = RayEngine(cluster.address)
    assert made.at_once(Needs(), 9) == 2
    (outcome,) = made.run(units(look, [0]), print)
    assert outcome.result == [None, "1", 1, 1]
    errors = {one.unit.argument: one.error for one in made.run(units(fail, [0, 2, 3]), print)}
    assert str(errors[0]) == "bad input" and errors[3] is None
    assert isinstance(errors[2], KeyError) and "in fail" in errors[2].__notes__[0]
    with pytest.raises(
        PipelineError, match=r"needs 2 cores on one machine, but no machine of the cluster has that: \S+ w"
    ):
        made.at_once(Needs(threads=2), 1)


@ray_is_here
def test_a_node_that_dies(alone: Run, cluster: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Last: there is one node afterwards."""
    advance, left = Shares.advance, [cluster.second]

    def dies(self: Any, title: str, share: float) -> None:
        advance(self, title, share)
        checkpoints = [named(alone, "dies").fold_folder(fold) / "last.ckpt" for fold in (0, 1)]
        if left and all(path.exists() for path in checkpoints):
            cluster.remove_node(left.pop(), allow_graceful=False)

    monkeypatch.setattr(Shares, "advance", dies)
    run = on_ray(alone, "dies", cluster)
    said = capsys.readouterr().err
    assert "was lost; it resumes from its last files" in said and "resuming from work/" in said
    assert hashes(run) == hashes(alone)
    assert run.submission.read_bytes() == alone.submission.read_bytes()


def on_ray(alone: Run, name: str, cluster: Any) -> Run:
    run = named(alone, name)
    for stage in STAGES:
        driver.run_stage(run, stage, engine=RayEngine(cluster.address))
    return run


def units(work: Any, jobs: list[int]) -> list[Unit]:
    return [Unit(f"job {job}", work, job) for job in jobs]


class Silent:
    """Stands in for the inbox."""

    put = type("put", (), {"remote": staticmethod(lambda key, said: None)})

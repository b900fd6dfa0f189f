"""The benchmark harness: turns, agreement, ratios, curves. (What it measures is no test's business.)"""

import json
import math
from pathlib import Path

import pytest

from benchmarks import curves, race, report, worker
from benchmarks.task import OURS, Contender, Point, Target, Task, chosen, read_task, task_names


def _task(target: Target | None = None, points: tuple[Point, ...] = (), **contenders: bool) -> Task:
    def prepare():
        raise AssertionError("not run here")

    made = {name: Contender(prepare, same) for name, same in contenders.items()}
    return Task("a task", made, target=target, points=points, memory_limit=1.5)


def _record(results: report.Results, task: Task) -> report.Record:
    return report.Record(results, {name: task for name, _ in results}, {"cores": "2"}, "2020-01-01")


def test_every_task_races_ours_against_a_peer_or_a_limit() -> None:
    assert {"hmm_long/categorical", "hmm_unrolled", "mixture/diagonal"} <= set(task_names())
    for name in task_names():
        task = read_task(name)
        assert OURS in task.contenders or task.limit_seconds is not None
        assert task.target is None or {OURS, task.target.peer} <= set(task.contenders)
        assert len(task.contenders) > 1
        assert task.num_steps[0] < task.num_steps[1]


def test_a_modules_name_chooses_all_its_variants() -> None:
    assert chosen(["hmm_batch"]) == [n for n in task_names() if n.startswith("hmm_batch/")]
    assert chosen(["vae", "hmm_batch/even", "vae"]) == ["vae", "hmm_batch/even"]
    with pytest.raises(SystemExit, match="no task 'hmm_batch/odd'. Try one of"):
        chosen(["hmm_batch/odd"])


def test_a_step_costs_the_difference_and_the_start_the_rest() -> None:
    # A slow machine in the second round, a disturbance in the third.
    outcome = race._outcome([(1.2, 2.2), (2.4, 4.4), (1.2, 1.3)], [math.nan] * 3, (2, 12), -3.0)
    assert outcome.step_seconds == pytest.approx(0.1)
    assert outcome.start_seconds == pytest.approx(1.18)
    assert outcome.log_likelihood == -3.0


def test_a_step_costs_what_lies_between_its_marks() -> None:
    # A step is 0.1 s but for the first, in which rules are proven; the two runs differ by a slow start.
    marked = race._by_marks([5.0, 5.7, 5.8, 5.9, 6.0])
    assert marked == pytest.approx(0.1)
    outcome = race._outcome([(9.0, 6.2)], [marked], (2, 12), -3.0)
    assert outcome.step_seconds == pytest.approx(0.1) and outcome.start_seconds == pytest.approx(5.0)
    assert math.isnan(race._by_marks([]))


def test_disagreement_is_an_error() -> None:
    race._check_agreement({"ppl_em": -1.0, "peer": -1.0 - 1e-7}, 1e-5)
    race._check_agreement({"ppl_em": -1.0}, 1e-5)
    with pytest.raises(race.BenchmarkError, match="different log-likelihoods"):
        race._check_agreement({"ppl_em": -1.0, "peer": -1.1}, 1e-5)


def test_a_contender_that_fails_is_named() -> None:
    with pytest.raises(race.BenchmarkError, match="nobody ended with status 1"):
        race.race("mixture/diagonal", _task(nobody=True), threads=1, repeats=1)


def test_a_contender_that_is_not_installed_is_left_out() -> None:
    task = Task("a task", {"peer": Contender(lambda: None, needs="a-distribution-that-nobody-made")})
    assert race.installed("torch")
    with pytest.raises(race.BenchmarkError, match="ours ended"):  # the other one is started
        both = {"ours": Contender(lambda: None), **task.contenders}
        race.race("mixture/diagonal", Task("a task", both), threads=1, repeats=1)
    assert race.race("mixture/diagonal", task, threads=1, repeats=1) == {}


def test_what_is_held_against_what(tmp_path: Path) -> None:
    ours = race.Outcome(0.002, 0.1, 0.05, -10.0, (0.1,), peak=1.75)
    peer = race.Outcome(0.003, 0.0, 0.05, -10.0, (0.1,))
    task = _task(Target("peer", 0.5), ppl_em=True, peer=True)
    report.write(tmp_path, _record({("task", 2): {"ppl_em": ours, "peer": peer}}, task))
    text = (tmp_path / "results.md").read_text()
    assert "| 2 | peer | 3.000 | 0.667 | 0.0 | 5% | – | -10.000000 |" in text
    cells = "| 0.667 | 0.5 | **missed** | 50.0 | **missed** | 1.75 (**missed**, at most 1.5) |"
    assert cells in text
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["machine"] == {"cores": "2"} and record["date"] == "2020-01-01"
    assert record["results"][0]["contenders"]["peer"]["step_seconds"] == 0.003
    assert record["results"][0]["target"]["measured"] == pytest.approx(2 / 3)


def test_a_curve_is_made_of_tasks_that_differ_in_one_size(tmp_path: Path) -> None:
    sizes = {"small": 10, "large": 1000}
    tasks = {name: _task(points=(Point("chain", "T", size),), ppl_em=True) for name, size in sizes.items()}
    results = {
        (name, n): {"ppl_em": race.Outcome(size**1.5, 0, 0, 0, ())} for name, size in sizes.items() for n in (1, 2)
    }
    (curve,) = curves.curves(results, tasks)
    assert (curve.family, curve.axis, sorted(curve.seconds["ppl_em"])) == ("chain", "T", [10, 1000])
    assert curves.growth(curve.seconds["ppl_em"]) == pytest.approx(1.5)
    assert "| chain | T | ppl_em | 10 | 1,000 | 1.50 |" in report.markdown(report.Record(results, tasks, {}))
    curves.draw([curve], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


def test_memory_that_a_run_needs_is_seen() -> None:
    import torch

    def run(num_steps: int):
        torch.ones(num_steps, 1 << 20)  # 8 MiB each
        return lambda: 0.0

    growth = [worker.remembered(run, n)["growth"] for n in (1, 9)]
    if growth[0] is None:
        pytest.skip("the system does not tell the peak of memory")
    assert growth[1] - growth[0] == pytest.approx(8 * (8 << 20), rel=0.2)


def test_a_run_is_taken_up_where_it_was_left(tmp_path: Path) -> None:
    task = _task(ours=True, peer=True)
    outcome = race.Outcome(0.5, 2.0, 0.1, -3.0, (4.0, 5.0), 1.2)
    machine = {"cores": "2"}
    record = report.Record({("a", 1): {"ours": outcome}}, {"a": task}, machine)
    report.write(tmp_path, record)
    assert report.read(tmp_path, machine) == {("a", 1): {"ours": outcome}}
    assert report.read(tmp_path, {"cores": "4"}) == {}
    assert report.read(tmp_path / "nowhere", machine) == {}

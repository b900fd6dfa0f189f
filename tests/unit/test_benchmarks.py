"""The benchmark harness: turns, agreement, ratios. (What it measures is no test's business.)"""

import json
from pathlib import Path

import pytest

from benchmarks import race, report
from benchmarks.task import Contender, Task, read_task, task_names


def _task(**contenders: bool) -> Task:
    def prepare():
        raise AssertionError("not run here")

    return Task("a task", {name: Contender(prepare, same) for name, same in contenders.items()})


def test_every_task_races_ours_against_a_peer() -> None:
    assert {"hmm", "hmm_unrolled", "mixture"} <= set(task_names())
    for name in task_names():
        task = read_task(name)
        assert report.OURS in task.contenders
        assert len(task.contenders) > 1
        assert task.num_steps[0] < task.num_steps[1]


def test_a_step_costs_the_difference_and_the_start_the_rest() -> None:
    # A slow machine in the second round, a disturbance in the third.
    outcome = race._outcome([(1.2, 2.2), (2.4, 4.4), (1.2, 1.3)], (2, 12), -3.0)
    assert outcome.step_seconds == pytest.approx(0.1)
    assert outcome.start_seconds == pytest.approx(1.18)
    assert outcome.log_likelihood == -3.0


def test_disagreement_is_an_error_only_between_equal_algorithms() -> None:
    race._check_agreement(_task(ppl_em=True, peer=True), {"ppl_em": -1.0, "peer": -1.0 - 1e-7})
    race._check_agreement(_task(ppl_em=True, peer=False), {"ppl_em": -1.0, "peer": -7.0})
    with pytest.raises(race.BenchmarkError, match="different log-likelihoods"):
        race._check_agreement(_task(ppl_em=True, peer=True), {"ppl_em": -1.0, "peer": -1.1})


def test_a_contender_that_fails_is_named() -> None:
    with pytest.raises(race.BenchmarkError, match="nobody ended with status 1"):
        race.race("mixture", _task(nobody=True), threads=1, repeats=1)


def test_ratios_are_the_others_time_over_ours(tmp_path: Path) -> None:
    ours = race.Outcome(0.002, 0.1, 0.05, -10.0, (0.1,))
    peer = race.Outcome(0.003, 0.0, 0.05, -10.0, (0.1,))
    results = {("task", 2): {"ppl_em": ours, "peer": peer}}
    report.write(tmp_path, results, {"task": _task(ppl_em=True, peer=True)}, {"cores": "2"})
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| 2 | peer | 3.000 | 1.50 | 0.0 | 5% | -10.000000 |" in text
    record = json.loads((tmp_path / "benchmarks.json").read_text())
    assert record["machine"] == {"cores": "2"}
    assert record["results"][0]["contenders"]["peer"]["step_seconds"] == 0.003

import itertools

import pytest

from lightning_app.grid.condition import Condition
from lightning_app.grid.experiment import build_conditions, experiment_folder, parse_options
from lightning_app.grid.schedule import by_priority, followers, run_all


def grid(*words: str) -> list[Condition]:
    options = parse_options(["--datasets", "sst2", "yelp", "--arms", "lora", "full_ft", *words])
    return build_conditions(options, experiment_folder(options))


COSTS = {"baseline": 1, "lora": 10, "full_ft": 20}


def costs_of(conditions: list[Condition]) -> dict[Condition, int]:
    return {c: COSTS[c.arm] * (100 if c.dataset == "yelp" else 1) for c in conditions}


class Several:
    """As many conditions at once as asked for; the cheapest ends first. Remembers what was done."""

    largest_first = True

    def __init__(self, count: int, costs: dict[Condition, int], failing: tuple[str, ...] = ()) -> None:
        self.count, self.costs, self.failing = count, costs, failing
        self.running: list[Condition] = []

    def has_room(self) -> bool:
        return len(self.running) < self.count

    def start(self, condition: Condition) -> None:
        assert len(self.running) < self.count
        self.running.append(condition)

    def wait(self) -> tuple[Condition, str | None]:
        condition = min(self.running, key=self.costs.__getitem__)
        self.running.remove(condition)
        return condition, "it failed" if str(condition) in self.failing else None


def test_the_baseline_of_the_largest_work_comes_first_and_small_arms_last():
    conditions = grid()
    assert [str(c).removesuffix("/seed0") for c in by_priority(conditions, costs_of(conditions))] == [
        *("yelp/baseline", "yelp/full_ft", "yelp/lora"),
        *("sst2/baseline", "sst2/full_ft", "sst2/lora"),
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 99])
def test_no_arm_starts_before_its_baseline_has_ended_and_each_runs_once(count):
    conditions = grid("--seeds", "0", "1")
    events = list(run_all(conditions, costs_of(conditions), Several(count, costs_of(conditions))))
    for kind in ("start", "end"):
        assert sorted(str(e.condition) for e in events if e.kind == kind) == sorted(map(str, conditions))
    for index, event in enumerate(events):
        if event.kind == "start" and event.condition.arm != "baseline":
            before = [e.condition for e in events[:index] if e.kind == "end"]
            assert any(event.condition.begins_from(other) for other in before), event.condition


def test_devices_are_kept_busy_while_there_is_work():
    conditions = grid("--seeds", "0", "1")
    costs = costs_of(conditions)
    running, most = 0, []
    for event in run_all(conditions, costs, Several(3, costs)):
        running += 1 if event.kind == "start" else -1
        most.append(running)
    assert max(most) == 3
    assert all(before >= 2 for before, after in itertools.pairwise(most[3:-3]) if after < before)


@pytest.mark.parametrize("count", [1, 2, 99])
def test_arms_of_a_baseline_that_failed_are_not_run_and_all_others_are(count):
    conditions = grid("--seeds", "0", "1")
    costs = costs_of(conditions)
    failing = Several(count, costs, failing=("sst2/baseline/seed1", "yelp/lora/seed0"))
    events = list(run_all(conditions, costs, failing))
    ended = {str(e.condition): e.failure for e in events if e.kind == "end"}
    assert {name for name, failure in ended.items() if failure} == {"sst2/baseline/seed1", "yelp/lora/seed0"}
    assert set(map(str, conditions)) - set(ended) == {"sst2/lora/seed1", "sst2/full_ft/seed1"}


def test_arms_that_start_from_one_that_was_not_run_are_not_run_either(tmp_path):
    for name, start in (("first", "null"), ("second", "first"), ("third", "second")):
        file = tmp_path / f"{name}.yaml"
        file.write_text(f"arm: {{role: baseline, starts_from: {start}}}\nmodel: {{class_path: modules.Baseline}}\n")
    options = parse_options(["--datasets", "sst2", "--arms", str(tmp_path / "third.yaml"), "lora"])
    conditions = build_conditions(options, experiment_folder(options))
    costs = dict.fromkeys(conditions, 1)
    events = run_all(conditions, costs, Several(1, costs, failing=("sst2/first/seed0",)))
    assert [event.condition.arm for event in events if event.kind == "start"] == ["first", "baseline", "lora"]
    assert [condition.arm for condition in followers(conditions[0], conditions)] == ["second", "third"]

"""Transform lists as data: what each operation is, which may change places, and what order costs least."""

from loaders.transforms.apply import BACKENDS, machine_costs, run
from loaders.transforms.engine_split import EngineSplit, SplitError, describe, split_for_engine
from loaders.transforms.explain import explain
from loaders.transforms.planner import Plan, plan
from loaders.transforms.program import Program
from loaders.transforms.read import read_compose

__all__ = [
    "BACKENDS",
    "EngineSplit",
    "Plan",
    "Program",
    "SplitError",
    "describe",
    "explain",
    "machine_costs",
    "plan",
    "read_compose",
    "run",
    "split_for_engine",
]

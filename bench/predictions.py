"""Whether the doctor's prediction and the verdict are right: cases made so that one thing must be the limit.

    python bench/predictions.py
    python bench/predictions.py --cases "slow disk" --rounds 1 --seconds 3

Each case is predicted by ``python -m engine.doctor`` and then trained by ``python -m engine.train``, each in a process
of its own, all cases in turns: a slow disk (bench.slow_disk), heavy augmentation before a small model, a slow model,
and one worker for large photos. Compared are the rate, which is to be within 20 %, and what sets the limit, by the
doctor before and by the run's verdict after.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python bench/predictions.py`

from bench.charts import Bar, bar_chart
from bench.measure import Spread
from bench.options import add_reports, command_line, listed, not_negative, positive, seconds, shown_command
from bench.page import Section
from bench.prediction_cases import CASES, Bench, Case, Predicted, make_photos
from bench.program import run_program
from bench.reports import Report, write_reports
from bench.resources import describe_machine
from bench.tables import Sheet
from bench.training_runs import runs_folder
from engine.roofline import LIMIT_NAMES
from loaders.opening import open_data

TOLERANCE = 0.2  # of the measured rate
HEADINGS = (
    "case", "predicted, images/s", "measured, images/s", "ratio", "CPU time", "predicted limit", "verdict", "met",
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """A prediction beside the run that followed it.

    Attributes:
        predicted: by the doctor.
        rate: images per second of the run.
        cpu_seconds: processor time of an image.
        cause: of the verdict.
        verdict: its sentence.
        foreign_cpu: share of the machine's processor time that went to other processes, 0 to 1.
        is_disturbed: whether that is too much.
    """

    predicted: Predicted
    rate: float
    cpu_seconds: float
    cause: str
    verdict: str
    foreign_cpu: float
    is_disturbed: bool

    @property
    def ratio(self) -> float:
        """Of the predicted rate over the measured one."""
        return self.predicted.rate / self.rate


@dataclass(frozen=True)
class Result:
    """What came of a case."""

    case: Case
    rounds: list[Round] = field(default_factory=list)

    @property
    def ratio(self) -> Spread:
        return Spread.of([one.ratio for one in self.rounds])

    @property
    def cpu_ratio(self) -> Spread:
        """Of the predicted processor time of an image over the measured one, which other processes change less."""
        return Spread.of([one.predicted.cpu_seconds / one.cpu_seconds for one in self.rounds])

    @property
    def rate_is_met(self) -> bool:
        """Whether the median prediction is near enough."""
        return abs(self.ratio.median - 1) <= TOLERANCE

    @property
    def limits_agree(self) -> bool:
        """Whether doctor and verdict named what the case is made of, in every round."""
        return all(one.predicted.limit == one.cause == self.case.limit for one in self.rounds)

    def record(self, machine: str) -> dict[str, Any]:
        """Return a record of the JSON file."""
        return {
            "case": self.case.name,
            "limit": self.case.limit,
            "predicted": asdict(Spread.of([one.predicted.rate for one in self.rounds])),
            "measured": asdict(Spread.of([one.rate for one in self.rounds])),
            "ratio": asdict(self.ratio),
            "cpu_ratio": asdict(self.cpu_ratio),
            "rate_is_met": self.rate_is_met,
            "limits_agree": self.limits_agree,
            "predicted_limits": [one.predicted.limit for one in self.rounds],
            "causes": [one.cause for one in self.rounds],
            "verdicts": [one.verdict for one in self.rounds],
            "num_workers": [one.predicted.num_workers for one in self.rounds],
            "foreign_cpu": asdict(Spread.of([one.foreign_cpu for one in self.rounds])),
            "disturbed_rounds": sum(one.is_disturbed for one in self.rounds),
            "machine": machine,
        }


def measure(bench: Bench, cases: Sequence[Case], rounds: int, report: Callable[[Sequence[Result]], None]) -> None:
    """Predict and train all cases in turns, so that whatever else the machine does meets all of them alike.

    Args:
        report: called after each round with the results so far.
    """
    results = [Result(case) for case in cases]
    with tqdm(total=rounds * len(cases), desc="predictions", unit="case", disable=None, leave=False) as bar:
        for number in range(rounds):
            for result in results:
                bar.set_postfix_str(result.case.name)
                predicted = bench.predict(result.case)
                outcome = bench.train(result.case, predicted, number)
                ending = json.loads((outcome.folder / "result.json").read_text())
                result.rounds.append(
                    Round(
                        predicted,
                        outcome.images_per_second,
                        statistics.fmean(epoch["cpu_ms_per_image"] for epoch in outcome.steady) / 1000,
                        ending["cause"],
                        ending["verdict"],
                        outcome.foreign_cpu,
                        outcome.is_disturbed,
                    )
                )
                bar.update()
            report(results)


def sheet(results: Sequence[Result]) -> Sheet:
    """Return the table."""
    return Sheet("Predicted and measured", HEADINGS, [_row(result) for result in results])


def _row(result: Result) -> list[str]:
    rates = [
        Spread.of(values) for values in zip(*((one.predicted.rate, one.rate) for one in result.rounds), strict=True)
    ]
    ratio = result.ratio
    disturbed = any(one.is_disturbed for one in result.rounds)
    return [
        result.case.name,
        *(f"{rate.median:.0f} ({rate.min:.0f}-{rate.max:.0f})" for rate in rates),
        f"{ratio.median:.2f} ({ratio.min:.2f}-{ratio.max:.2f})" + "*" * disturbed,
        f"{result.cpu_ratio.median:.2f}",
        ", ".join(dict.fromkeys(one.predicted.limit for one in result.rounds)),
        ", ".join(dict.fromkeys(one.cause for one in result.rounds)),
        "yes" if result.rate_is_met and result.limits_agree else "no",
    ]


def sentences(results: Sequence[Result]) -> Iterator[str]:
    """Say of each case whether it was foreseen, and what the last verdict was."""
    for result in results:
        rate = f"within {TOLERANCE:.0%}" if result.rate_is_met else f"not within {TOLERANCE:.0%}"
        wanted = LIMIT_NAMES[result.case.limit]
        agreed = "were right" if result.limits_agree else "were not both right"
        yield (
            f"{result.case.name}: the predicted rate is {result.ratio.median:.2f} times the measured one, {rate}; "
            f"doctor and verdict {agreed} that {wanted} sets the limit. The verdict: {result.rounds[-1].verdict}"
        )


def report(results: Sequence[Result], machine: str) -> Report:
    """Return tables, sentences and a chart."""
    bars = [
        Bar(result.case.name, Spread.of([one.rate for one in result.rounds]), 0,
            limits=(Spread.of([one.predicted.rate for one in result.rounds]).median,))
        for result in results
    ]  # fmt: skip
    caption = "Images per second: measured, and predicted (line)"
    chart = bar_chart(bars, title=caption, unit="images/s")
    sheets = [sheet(results)]
    section = Section("What the doctor predicts", list(sentences(results)), [(caption, chart)], sheets)
    legend = (
        "predicted: by python -m engine.doctor; measured: training steps of the last epoch of the run that followed; "
        "median (smallest-largest) over the rounds.\n"
        "ratio: of predicted over measured, in the same round; CPU time: the same of the processor time of an image.\n"
        f"met: the median ratio is within {TOLERANCE:.0%} of 1, and doctor and verdict named in every round the limit "
        "that the case is made of."
    )
    return Report(sheets, [result.record(machine) for result in results], section, legend)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line("predictions", __doc__)
    names = [case.name for case in CASES]
    add = parser.add_argument
    add("--data", default="demo", help="a folder, demo, or a known data set's name")
    add("--cases", type=listed(str, names), default=",".join(names), help="what to predict and train")
    add("--rounds", type=positive, default=3, help="predictions and runs of each case")
    add("--seconds", type=seconds, default=8.0, help="length of an epoch, of which each run has two")
    add("--doctor-seconds", type=seconds, default=10.0, help="what the doctor is given, as its --seconds")
    add("--threads", type=not_negative, default=1, help="threads of PyTorch that train; 0: one for each core")
    add("--json", type=Path, metavar="FILE", help="write the records here")
    add_reports(parser)
    options = parser.parse_args(argv)
    options.command = shown_command("predictions", argv)
    return options


def run(options: argparse.Namespace) -> list[Report]:
    """Predict and train what the command line asks for, writing the files after each round.

    Raises:
        DataError: there are no data.
        RunError: a command failed.
    """
    cases = [case for case in CASES if case.name in options.cases]
    folder = Path(options.data).expanduser()
    data = str(folder.resolve()) if folder.is_dir() else options.data
    dataset = open_data(data).train
    machine, found = describe_machine(), list[Report]()
    with runs_folder(None, "predictions") as root:
        if any(case.photos for case in cases):
            make_photos(dataset, root / "photos")
        bench = Bench(
            root,
            data,
            float(dataset.sizes.mean()),
            options.threads,
            options.seconds,
            options.doctor_seconds,
            machine,
        )

        def save(results: Sequence[Result]) -> None:
            found[:] = [report(results, machine)]
            write_reports(options, "Predictions", found, machine)

        measure(bench, cases, options.rounds, save)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the files; return the exit code."""
    return run_program(parse(argv), run)


if __name__ == "__main__":
    sys.exit(main())

"""What goes wrong with a GPU, and what hpo makes of it.

    python examples/benchmarks/gpu_faults.py [--device cuda:0] [--minutes 3]

Real processes, real faults, a recipe that brings some about (`faulty_recipes.py`), scikit-learn's digits. No
setting of the card is changed. Every row has a time limit; CSV, each row as soon as it is known; exit code 1
if one is not as expected. With `--device cpu` those rows run that mean something there.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bounded import GRACE_SECONDS, POLL_SECONDS, Child, exit_at_sigterm
from faulty_recipes import MARK_VARIABLE
from optuna.trial import FrozenTrial
from tables import Table, heading

import hpo
from hpo.errors import HpoError

ROW_SECONDS = 45.0
STOP_SECONDS = 10.0
"""Within so long after SIGTERM nothing of a run may be left."""
STUDY = "faulty"
NEIGHBOUR = """
import sys, time, torch
held, step = [], 2**24
while torch.cuda.mem_get_info(sys.argv[1])[0] > int(sys.argv[2]) + step:
    size = max(step, (torch.cuda.mem_get_info(sys.argv[1])[0] - int(sys.argv[2])) // 2)
    held.append(torch.empty(size, dtype=torch.uint8, device=sys.argv[1]))
print("ready", flush=True)
time.sleep(600)
"""
"""Takes memory until so many bytes are left."""


class UnexpectedError(Exception):
    """What happened is not what was expected; the text is the row's."""


class NotTriedError(Exception):
    """The row means nothing here; the text says why."""


@dataclass(frozen=True)
class Place:
    """Where a row does what it does."""

    folder: Path
    device: str
    faults: tuple[str, ...] = ("none",)
    widths: tuple[int, ...] = (16, 32)
    """Each fault is a point with each width."""
    epochs: int = 2
    variables: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """Of its plan."""
        return self.folder / "out"

    def hpo(self, command: str, *arguments: str, variables: Mapping[str, str | None] | None = None) -> Child:
        """A command of hpo for the plan: one study of small networks on digits."""
        studies = self.folder / "studies"
        studies.mkdir(parents=True, exist_ok=True)
        faults = ", ".join(f'"{fault}"' for fault in self.faults)
        text = f"[base]\nepochs = {self.epochs}\n[search]\nfault = [{faults}]\nwidth = {[*self.widths]}\n"
        (studies / f"{STUDY}.toml").write_text(text)
        here = str(Path(__file__).parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        of_plan = (
            []
            if command == "resume"
            else [
                *("--recipe=python:faulty_recipes:Faulty", "--data=digits", f"--studies={studies}"),
                *("--limit-train=200", "--limit-valid=100", f"--device={self.device}", "--no-pruning"),
            ]
        )
        return Child(
            [sys.executable, "-m", "hpo", command, *of_plan, f"--out={self.out}", *arguments],
            ROW_SECONDS,
            {
                **{"PYTHONPATH": os.pathsep.join(paths), MARK_VARIABLE: str(self.folder / "mark")},
                **self.variables,
                **(variables or {}),
            },
        )

    def run(
        self, command: str = "run", *, variables: Mapping[str, str | None] | None = None
    ) -> tuple[int, str]:
        """A command for the study to its end: its exit code, and what it said.

        Raises:
            UnexpectedError: it did not end in time, or said something that no user should see.
        """
        study = [] if command == "create" else ["--workers=1", STUDY]
        with self.hpo(command, *study, variables=variables) as child:
            code = child.wait()
            said = child.err
            if code is None:
                raise UnexpectedError(child.outcome)
        if "Traceback" in said:
            raise UnexpectedError(f"code {code} and a traceback: {last_line(said)}")
        return code, said

    def trials(self) -> list[FrozenTrial]:
        """Of the study, as far as there is a plan."""
        with suppress(HpoError):
            return hpo.find_plan(self.out).trials(STUDY)
        return []

    def at_rest(self, *states: str) -> str:
        """The states of all trials, in words.

        Raises:
            UnexpectedError: they are others than these.
        """
        found = sorted(trial.state.name for trial in self.trials())
        text = ", ".join(f"{found.count(name)} {name}" for name in dict.fromkeys(found)) or "no trial"
        if found != sorted(states):
            raise UnexpectedError(text)
        return text


def last_line(text: str) -> str:
    """The last line that says something."""
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def expect(is_so: bool, text: str) -> None:
    """Check something.

    Raises:
        UnexpectedError: it is not so.
    """
    if not is_so:
        raise UnexpectedError(text)


def needs_cuda(place: Place) -> None:
    """Check that the row is tried on a GPU."""
    if not place.device.startswith("cuda"):
        raise NotTriedError("needs a GPU")


def too_large(place: Place) -> str:
    """Two points of four ask for more memory than there is."""
    place = Place(place.folder, place.device, ("none", "too_large"))
    code, said = place.run()
    expect(code == 1, f"code {code}: {last_line(said)}")
    failed = [trial for trial in place.trials() if trial.params["fault"] == "too_large"]
    reason = str(failed[-1].user_attrs.get("reason"))
    # a point is tried twice; where trials train beside each other, once more alone
    states = place_states(place)
    expect(states.count("COMPLETE") == 2 and set(states) == {"COMPLETE", "FAIL"}, ", ".join(states))
    expect("memory" in reason or "allocate" in reason, reason)
    return f"code 1; 2 COMPLETE; {reason}"


def place_states(place: Place) -> list[str]:
    """The states of all trials."""
    return [trial.state.name for trial in place.trials()]


def neighbour(place: Place, free_bytes: int) -> Child:
    """A process that holds the device's memory but so many bytes, once it says so."""
    needs_cuda(place)
    child = Child([sys.executable, "-c", NEIGHBOUR, place.device, str(free_bytes)], 2 * ROW_SECONDS)
    if next(child.lines(), "") != "ready":
        child.end()
        raise NotTriedError(f"the neighbour {child.outcome}")
    return child


def beside_a_large_neighbour(place: Place) -> str:
    """A neighbour leaves 3 GiB."""
    with neighbour(place, 3 * 2**30):
        code, said = place.run()
    expect(code == 0, f"code {code}: {last_line(said)}")
    return f"code 0; {place.at_rest('COMPLETE', 'COMPLETE')}"


def beside_a_full_device(place: Place) -> str:
    """A neighbour leaves 64 MiB, less than a process needs for itself; then it goes away."""
    with neighbour(place, 64 * 2**20):
        code, said = place.run()
    expect(code in (1, 2) and "memory" in last_line(said), f"code {code}: {last_line(said)}")
    again, also_said = place.run()
    expect(again == 0, f"when it had gone code {again}: {last_line(also_said)}")
    return f"code {code}: {last_line(said)}; then {place.at_rest('COMPLETE', 'COMPLETE')}"


def fault(name: str) -> Callable[[Place], str]:
    """A kernel that the device does not survive in this process, once."""

    def row(place: Place) -> str:
        needs_cuda(place)
        place = Place(place.folder, place.device, ("none", name))
        code, said = place.run()
        expect((place.folder / "mark").exists(), "the fault did not come about")
        expect(code == 0, f"code {code}: {last_line(said)}")
        lost = [trial for trial in place.trials() if trial.state.name == "FAIL"]
        reasons = sorted({str(trial.user_attrs.get("reason")) for trial in lost})
        expect(bool(lost), "no attempt was lost")
        expect(any(reason.startswith("lost") for reason in reasons), "; ".join(reasons))
        expect(place_states(place).count("COMPLETE") == 4, ", ".join(place_states(place)))
        return f"code 0; 4 COMPLETE, {len(lost)} lost or released: {'; '.join(reasons)}"

    return row


def no_gpu_at_all(place: Place) -> str:
    """`--device cuda` with no GPU to be seen."""
    place = Place(place.folder, "cuda")
    return refused(place, {"CUDA_VISIBLE_DEVICES": ""})


def no_such_gpu(place: Place) -> str:
    """`--device cuda:99`."""
    return refused(Place(place.folder, "cuda:99"), {})


def refused(place: Place, variables: Mapping[str, str | None], command: str = "run") -> str:
    """A command is refused in words."""
    code, said = place.run(command, variables=variables)
    expect(code == 2, f"code {code}: {last_line(said)}")
    return f"code 2: {last_line(said)}"


def gone_at_resume(place: Place) -> str:
    """A plan for GPUs, resumed where none is to be seen, and then where it is."""
    needs_cuda(place)
    code, said = place.run("create")
    expect(code == 0, f"create: code {code}: {last_line(said)}")
    words = refused(place, {"CUDA_VISIBLE_DEVICES": ""}, "resume")
    code, said = place.run("resume")
    expect(code == 0, f"with the GPU: code {code}: {last_line(said)}")
    return f"{words}; then {place.at_rest('COMPLETE', 'COMPLETE')}"


def sigterm(place: Place) -> str:
    """SIGTERM in the middle of training; then the plan is resumed."""
    place = Place(place.folder, place.device, widths=(16,), epochs=2000)
    said = []
    for command in ("run", "resume"):
        with place.hpo(command, "--workers=1", STUDY) as child:
            until(lambda: any(len(trial.intermediate_values) > 3 for trial in running(place)), child)
            began = time.monotonic()
            child.process.send_signal(signal.SIGTERM)
            code = child.wait()
            seconds = time.monotonic() - began
            expect(code == 143, f"{command}: code {code}: {last_line(child.err)}")
            expect(seconds < STOP_SECONDS, f"{command}: took {seconds:.1f} s")
            expect(not running(place), f"{command}: trials are left running")
            said.append(f"{seconds:.1f} s")
    resumed = [trial.user_attrs.get("resumed_after_epoch", 0) for trial in place.trials()]
    expect(max(resumed) > 0, "no trial went on from a checkpoint")
    return f"code 143 after {' and '.join(said)}; went on after epoch {max(resumed)}"


def running(place: Place) -> list[FrozenTrial]:
    """Trials that somebody trains."""
    return [trial for trial in place.trials() if trial.state.name == "RUNNING"]


def until(is_so: Callable[[], bool], child: Child) -> None:
    """Wait for something, as long as a process goes on.

    Raises:
        UnexpectedError: it ended before.
    """
    while not is_so():
        if not child.is_running():
            raise UnexpectedError(f"{child.outcome}: {last_line(child.err)}")
        time.sleep(4 * POLL_SECONDS)


def two_plans(place: Place) -> str:
    """Two plans at once; they train the same."""
    one, other = (Place(place.folder / name, place.device, ("none",)) for name in ("one", "other"))
    with one.hpo("run", "--workers=1", STUDY) as first, other.hpo("run", "--workers=1", STUDY) as second:
        codes = [each.wait() for each in (first, second)]
        expect(codes == [0, 0], f"codes {codes}: {last_line(first.err)}; {last_line(second.err)}")
    text = one.at_rest("COMPLETE", "COMPLETE")
    other.at_rest("COMPLETE", "COMPLETE")
    values = [
        sorted((trial.params["width"], trial.value) for trial in each.trials()) for each in (one, other)
    ]
    expect(values[0] == values[1], f"other values: {values}")
    return f"codes 0 and 0; {text} each, with the same values"


def visible(place: Place, name: str | None) -> str:
    """One GPU, by the name that `CUDA_VISIBLE_DEVICES` has for it."""
    needs_cuda(place)
    if name is None:
        raise NotTriedError("nvidia-smi names none")
    code, said = Place(place.folder, "cuda").run(variables={"CUDA_VISIBLE_DEVICES": name})
    expect(code == 0, f"code {code}: {last_line(said)}")
    return f"code 0; {place.at_rest('COMPLETE', 'COMPLETE')}"


def named_by_nvidia_smi(kind: str) -> str | None:
    """The first UUID of a kind, GPU or MIG, that `nvidia-smi -L` lists."""
    with suppress(FileNotFoundError), Child(["nvidia-smi", "-L"], GRACE_SECONDS) as child:
        child.wait()
        found = re.search(rf"UUID: ({kind}-[0-9a-f/-]+)", child.out)
        return found[1] if found else None
    return None


ROWS: dict[str, tuple[str, Callable[[Place], str]]] = {
    "two points of four ask for 4 PiB": ("code 1, they FAIL in words, the others are trained", too_large),
    "a neighbour leaves 3 GiB": ("code 0", beside_a_large_neighbour),
    "a neighbour leaves 64 MiB, then goes": (
        "refused in words, then code 0",
        beside_a_full_device,
    ),
    "a kernel asserts on the device": ("worker restarted, attempt lost, code 0", fault("asserts")),
    "a kernel reads out of bounds": ("worker restarted, attempt lost, code 0", fault("reads")),
    "--device cuda, no GPU visible": ("code 2, in words", no_gpu_at_all),
    "--device cuda:99": ("code 2, in words", no_such_gpu),
    "the GPU is gone at resume, then back": ("code 2, in words, then code 0", gone_at_resume),
    "SIGTERM while training, twice": ("code 143 within 10 s; resumed from a checkpoint", sigterm),
    "two plans at once": ("codes 0, the same values", two_plans),
    "CUDA_VISIBLE_DEVICES=0": ("code 0", lambda place: visible(place, "0")),
    "CUDA_VISIBLE_DEVICES=GPU-…": ("code 0", lambda place: visible(place, named_by_nvidia_smi("GPU"))),
    "CUDA_VISIBLE_DEVICES=MIG-…": ("code 0", lambda place: visible(place, named_by_nvidia_smi("MIG"))),
}
"""What is done: what is expected, and how it is done; the text that is returned says what happened."""


def rows(device: str, seconds: float) -> Iterator[dict[str, str | float]]:
    """Tries one after the other."""
    end = time.monotonic() + seconds
    for what, (expected, row) in ROWS.items():
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="hpo-gpu-faults-", ignore_cleanup_errors=True) as folder:
            try:
                if time.monotonic() > end:
                    raise NotTriedError("left out: no time is left")
                happened, ok = row(Place(Path(folder), device)), "yes"
            except NotTriedError as reason:
                happened, ok = str(reason), "not tried"
            except UnexpectedError as reason:
                happened, ok = str(reason), "NO"
        took = time.monotonic() - began
        yield {"done": what, "expected": expected, "happened": happened, "ok": ok, "seconds": took}


def main() -> None:
    """A row a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--minutes", type=float, default=3.0, help="rows that would begin later are left out")
    options = parser.parse_args()
    exit_at_sigterm()
    seconds = 60 * options.minutes
    # the device may keep this process, too, which asks it for its name
    faulthandler.dump_traceback_later(seconds + 4 * ROW_SECONDS, exit=True)
    heading("one run", device=options.device)
    table, is_well = Table(), True
    for record in rows(options.device, seconds):
        table.add(record)
        is_well = is_well and record["ok"] != "NO"
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()

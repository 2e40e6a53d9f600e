"""Cases of one kind after another: the same seed gives the same cases, whatever ran before them."""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import valid_inputs
from fork_case import Bounds, End, prepare, run_case
from fuzz_kinds import MAKERS, Kind
from resealing import reseal

from va_export.documents import Form

_MOST_CHANGES = 4
_KEPT_OF_ONE_FAULT = 2


class FuzzRow(Form, frozen=True):
    """What came of the cases of one kind; `seconds` are of one core's wall clock."""

    kind: str
    cases: int
    accepted: int
    refused: int
    finds: int
    seconds: float

    def __post_init__(self) -> None:
        if self.cases != self.accepted + self.refused + self.finds:
            raise ValueError(f"{self.cases} cases are not what was accepted, refused and found together")


class FuzzLog(Form, frozen=True):
    """The log of a run, `engines/evidence/fuzz/log.json`: what it was of, and a row a kind."""

    commit: str
    date: date
    seed: int
    libraries: dict[str, str]
    kinds: tuple[FuzzRow, ...]


@dataclass(frozen=True)
class Case:
    """One changed file: everything follows from these."""

    kind: Kind
    seed: int
    number: int

    def change(self, valid: Path, most: int | None = None) -> tuple[str, bytes]:
        """The changed file's name and content; `most`: no more changes than that, of the same ones."""
        rng = random.Random(f"{self.kind.name}:{self.seed}:{self.number}")
        names = sorted({path for pattern in self.kind.files for path in valid.glob(pattern) if path.is_file()})
        path = rng.choice(names)
        content = path.read_bytes()
        for _ in range(min(rng.choice((1, 1, 2, _MOST_CHANGES)), most or _MOST_CHANGES)):
            content = self.kind.mutate(rng, content)
        return path.relative_to(valid).as_posix(), content


class Fuzzer:
    """Runs cases in `work`, and keeps what fails in `finds`, a folder a fault, as small as it was cheap to make it."""

    def __init__(self, work: Path, finds: Path, bundle: Path | None = None, bounds: Bounds | None = None) -> None:
        self.work, self.finds, self.bounds = work, finds, bounds or Bounds()
        self.makers = {**MAKERS, "bundle": functools.partial(valid_inputs.write_bundle, bundle)}
        self._kept: Counter[tuple[str, str]] = Counter()

    def run(self, kind: Kind, seed: int, cases: int | None, seconds: float | None = None) -> FuzzRow:
        """So many cases, or as many as fit into so many seconds.

        Raises:
            RuntimeError: the product does not take the valid file.
        """
        valid = self.valid(kind)
        ends: Counter[str] = Counter()
        began = time.monotonic()
        for number in _count(cases, seconds):
            case = Case(kind, seed, number)
            name, content = case.change(valid)
            end = self.run_content(kind, name, content)
            ends[end.kind] += 1
            if end.kind == "find":
                self._keep(case, end)
        return FuzzRow(
            kind=kind.name,
            cases=ends.total(),
            accepted=ends["accepted"],
            refused=ends["refused"],
            finds=ends["find"],
            seconds=round(time.monotonic() - began, 1),
        )

    def valid(self, kind: Kind) -> Path:
        """The folder with the valid files of a kind, made when it is first asked for; the kind accepts it."""
        folder = self.work / "valid" / kind.make
        if not folder.exists():
            unfinished = self.work / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            if kind.make != "bundle":
                unfinished.mkdir(parents=True)
            prepare(lambda: self.makers[kind.make](unfinished))
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished.rename(folder)
        first = next(path for pattern in kind.files for path in sorted(folder.glob(pattern)))
        end = self.run_content(kind, first.relative_to(folder).as_posix(), first.read_bytes())
        if end.kind != "accepted":
            raise RuntimeError(f"{kind.name}: what is valid was {end.kind} ({end.what})\n{end.text}")
        return folder

    def run_content(self, kind: Kind, name: str, content: bytes) -> End:
        """Run one case, whose changed file is `name` with this content."""
        valid, folder = self.work / "valid" / kind.make, self.work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        if kind.make == "clips":  # each is a case's only file
            folder.mkdir(parents=True)
        else:
            shutil.copytree(valid, folder)
        (folder / name).write_bytes(content)
        if kind.resealed:
            reseal(folder, name)
        return run_case(lambda: kind.open(folder), self.bounds)

    def _keep(self, case: Case, end: End) -> None:
        """Write down a find, with the fewest of its changes that give it."""
        kind, valid = case.kind, self.work / "valid" / case.kind.make
        self._kept[kind.name, end.what] += 1
        if self._kept[kind.name, end.what] > _KEPT_OF_ONE_FAULT:
            return
        name, content = case.change(valid)
        for most in range(1, _MOST_CHANGES):
            _, fewer = case.change(valid, most)
            again = self.run_content(kind, name, fewer)
            if again.kind == "find":
                content, end = fewer, again
                break
        folder = self.finds / f"{kind.name} {case.seed} {case.number}".replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / Path(name).name).write_bytes(content)
        (folder / "find.txt").write_text(
            f"{kind.name}, seed {case.seed}, case {case.number}: {name}\n{end.what}\n\n{end.text}", encoding="utf-8"
        )
        print(f"  {folder}: {end.what}", flush=True)


def _count(cases: int | None, seconds: float | None) -> Iterator[int]:
    began, number = time.monotonic(), 0
    while (cases is None or number < cases) and (seconds is None or time.monotonic() - began < seconds):
        yield number
        number += 1

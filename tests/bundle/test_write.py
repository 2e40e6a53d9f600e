"""A bundle gets its name when it is whole, and nothing of anybody else's is lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from documents_made import manifest_document
from refusals import refused

from va_export.bundle import write
from va_export.bundle.journal import Record
from va_export.bundle.manifest import read_manifest
from va_export.bundle.write import BundleWriter, bundle_writer


def make(output: Path, content: str = "new", *, overwrite: bool = False, passed: bool = True) -> Path:
    with bundle_writer(output, overwrite=overwrite) as writer:
        writer.begin({"input": 1})
        writer.path("file").write_text(content)
        writer.seal(manifest_document())
        return writer.commit(passed)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_nothing_has_the_name_before_the_end(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "b", overwrite=False) as writer:
        assert writer.output == tmp_path / "b" and not writer.output.exists()
        assert writer.directory.parent == tmp_path / "b.partial"
        writer.seal(manifest_document(opset=77))
        assert writer.commit(passed=True) == tmp_path / "b"
    assert names(tmp_path) == {"b"}
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["opset"] == 77


def test_an_error_leaves_nothing_not_even_new_folders(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), bundle_writer(tmp_path / "x" / "y" / "b", overwrite=False) as writer:
        writer.path("deep/file").write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == set()


def test_folders_that_were_there_stay(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(ZeroDivisionError), bundle_writer(tmp_path / "x" / "y" / "b", overwrite=False):
        raise ZeroDivisionError
    assert names(tmp_path) == {"x"} and names(tmp_path / "x") == set()


def test_overwrites_a_bundle_when_asked(tmp_path: Path) -> None:
    make(tmp_path / "b", "old")
    with refused(tmp_path / "b"):
        make(tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "old"
    make(tmp_path / "b", "new", overwrite=True)
    assert (tmp_path / "b" / "file").read_text() == "new" and names(tmp_path) == {"b"}


def test_an_empty_folder_may_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert (make(tmp_path / "b", overwrite=True) / "file").is_file()


def test_a_failed_bundle_goes_beside_the_good_one(tmp_path: Path) -> None:
    make(tmp_path / "b", "good")
    for attempt in ("first", "second"):
        assert make(tmp_path / "b", attempt, overwrite=True, passed=False) == tmp_path / "b.failed"
        assert (tmp_path / "b.failed" / "file").read_text() == attempt
    assert (tmp_path / "b" / "file").read_text() == "good" and names(tmp_path) == {"b", "b.failed"}


def test_somebody_elses_folder_is_not_taken_for_a_failed_bundle(tmp_path: Path) -> None:
    (tmp_path / "b.failed").mkdir()
    (tmp_path / "b.failed" / "notes").write_text("mine")
    with refused(tmp_path / "b.failed"):
        make(tmp_path / "b")
    assert (tmp_path / "b.failed" / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["b.partial-2", "b.old", "bb.partial", "b.partial.bak", "b.replaced-3", ".b.replaced-x"]
)
def test_names_that_only_look_like_leftovers_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    make(tmp_path / "b")
    assert names(tmp_path) == {"b", name}


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "b[1].partial" / "bundle").mkdir(parents=True)
    (tmp_path / "b[1].partial" / "bundle" / "half").write_text("half")
    directory = make(tmp_path / "b[1]")
    assert names(tmp_path) == {"b[1]"} and names(directory) == {"file", "manifest.json"}


def test_a_run_killed_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    make(tmp_path / "b", "old")
    (tmp_path / "b").rename(tmp_path / ".b.replaced-99999")
    with refused(tmp_path / "b"):  # it does again
        make(tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "old" and names(tmp_path) == {"b"}


def test_a_replaced_bundle_that_was_not_removed_is_removed_later(tmp_path: Path) -> None:
    make(tmp_path / "b", "new")
    (tmp_path / ".b.replaced-99999").mkdir()
    make(tmp_path / "b", "newer", overwrite=True)
    assert names(tmp_path) == {"b"} and (tmp_path / "b" / "file").read_text() == "newer"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_bundle_comes_back_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    make(tmp_path / "b", "old")
    rename = Path.rename

    def failing(self: Path, target: Any) -> Path:
        if self.parent.name == "b.partial":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error):
        make(tmp_path / "b", "new", overwrite=True)
    assert (tmp_path / "b" / "file").read_text() == "old" and names(tmp_path) == {"b"}


def test_the_second_of_two_runs_is_refused_and_the_first_completes(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "b", overwrite=False) as first:
        first.path("file").write_text("first")
        with refused(tmp_path / "b"):
            make(tmp_path / "b")
        make(tmp_path / "c")  # another name in the same folder is another matter
        first.seal(manifest_document())
        first.commit(passed=True)
    assert names(tmp_path) == {"b", "c"} and (tmp_path / "b" / "file").read_text() == "first"


def test_a_link_keeps_pointing_at_the_bundle(tmp_path: Path) -> None:
    make(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    make(tmp_path / "current", "new", overwrite=True)
    assert (tmp_path / "current").is_symlink() and (tmp_path / "v1" / "file").read_text() == "new"
    assert names(tmp_path) == {"v1", "current"}


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for output, where in ((tmp_path / "file" / "b", tmp_path / "file"), (Path("/"), "/")):
        with refused(where):
            make(output)
    if os.getuid() != 0:  # root may write anywhere
        (tmp_path / "closed").mkdir(mode=0o500)
        with refused(tmp_path / "closed"):
            make(tmp_path / "closed" / "b")


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    sha256 = write.sha256
    monkeypatch.setattr(write, "sha256", lambda path: (read.append(path.name), sha256(path))[1])
    writer = BundleWriter(tmp_path / "b", tmp_path)
    tmp_path = writer.directory
    for name, content in (("a", "1"), ("b", "2"), ("a", "3")):
        writer.path(name).write_text(content)
        os.utime(tmp_path / name, ns=(0, len(read) + 1))  # a coarse clock may give two writes one time
        manifest = writer.manifest(manifest_document())
    assert read == ["a", "b", "a"]
    assert manifest.data.files["a"].sha256 == sha256(tmp_path / "a")


def test_json_has_no_infinity(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        BundleWriter(tmp_path / "b", tmp_path).write_json("x.json", {"a": float("inf")})


# What an earlier run left


class Step(Record, frozen=True, tag="step"):
    name: str
    number: int


def interrupted(output: Path, inputs: dict[str, Any] | None = None) -> None:
    """A run that finished one file, began another and was stopped."""
    with pytest.raises(KeyboardInterrupt) as caught, bundle_writer(output, overwrite=False) as writer:
        assert writer.begin(inputs or {"input": 1}) == []
        for name in ("done", "begun", "loose"):
            writer.path(f"onnx/{name}").write_text(name)
        writer.finish("onnx/done", write.sha256(writer.path("onnx/done")))
        writer.vouch("onnx/begun")
        writer.journal.append(Step("begun", 1))
        raise KeyboardInterrupt
    assert f"kept in {output}.partial: the same command continues" in caught.value.__notes__[0]


def left(output: Path) -> set[str]:
    return names(output.with_name(f"{output.name}.partial") / "bundle" / "onnx")


def test_a_later_run_finds_what_the_journal_vouches_for_and_nothing_else(tmp_path: Path) -> None:
    interrupted(tmp_path / "b")
    assert names(tmp_path) == {"b.partial"} and left(tmp_path / "b") == {"done", "begun", "loose"}
    with bundle_writer(tmp_path / "b", overwrite=False) as writer:
        assert writer.is_worth_keeping and writer.begin({"input": 1}) == []
        assert left(tmp_path / "b") == {"done", "begun"}
        assert writer.is_finished("onnx/done") and not writer.is_finished("onnx/begun")
        assert writer.journal.of(Step) == [Step("begun", 1)]
        writer.seal(manifest_document())
        writer.commit(passed=True)
    assert names(tmp_path) == {"b"} and names(tmp_path / "b" / "onnx") == {"done", "begun"}


def test_other_inputs_are_named_and_start_anew(tmp_path: Path) -> None:
    interrupted(tmp_path / "b", {"same": 1, "edited": {"bytes": 5}, "gone": True})
    with bundle_writer(tmp_path / "b", overwrite=False) as writer:
        assert writer.begin({"same": 1, "edited": {"bytes": 6}, "new": True}) == ["edited", "gone", "new"]
        assert names(writer.directory) == set() and not writer.is_worth_keeping
        assert writer.begin({"same": 1, "edited": {"bytes": 6}, "new": True}) == []


def test_starting_anew_can_be_asked_for(tmp_path: Path) -> None:
    interrupted(tmp_path / "b")
    with bundle_writer(tmp_path / "b", overwrite=False, resume=False) as writer:
        assert not writer.is_worth_keeping and names(writer.directory) == set()
    assert names(tmp_path) == set()


def test_useless_work_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught, bundle_writer(tmp_path / "b", overwrite=False) as writer:
        writer.begin({})
        writer.path("file").write_text("x")
        writer.finish("file", "digest")
        writer.abandon()
        raise ZeroDivisionError
    assert names(tmp_path) == set() and not hasattr(caught.value, "__notes__")


def test_a_finished_file_that_was_touched_is_read_and_one_that_was_changed_is_found(tmp_path: Path) -> None:
    interrupted(tmp_path / "b")
    done = tmp_path / "b.partial" / "bundle" / "onnx" / "done"
    for content, finished in (("done", True), ("dome", False), ("longer", False)):
        done.write_text(content)
        os.utime(done, ns=(0, 7))
        assert BundleWriter(tmp_path / "b", tmp_path / "b.partial").is_finished("onnx/done") == finished
    done.unlink()
    assert not BundleWriter(tmp_path / "b", tmp_path / "b.partial").is_finished("onnx/done")


def test_an_unfinished_bundle_is_opened_by_nobody_else(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "b", overwrite=False) as writer:
        writer.begin({"input": 1})
        writer.path("file").write_text("done")
        with refused(writer.directory):
            read_manifest(writer.directory)
        assert set(writer.manifest(manifest_document()).data.files) == {"file"}  # the run itself needs no file for it


def test_a_lock_whose_file_was_removed_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = write.fcntl.flock

    def late(lock: Any, how: int) -> None:  # the owner before ends between our opening the file and our locking it
        (tmp_path / ".b.lock").unlink()
        flock(lock, how)

    monkeypatch.setattr(write.fcntl, "flock", late)
    with refused(tmp_path / "b"):
        make(tmp_path / "b")

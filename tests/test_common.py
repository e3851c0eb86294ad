"""nanochat.common: files whole or not at all, ranks, devices, errors of one line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from nanochat import common
from nanochat.common import Ranks, UserError
from nanochat.loss_eval import evaluate_bpb

ROOT = Path(__file__).parents[1]


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = ["torch", "pyarrow", "requests", "tokenizers", "pandas", "huggingface_hub", "httpx2", "pooch"]
    program = (
        "import sys, nanochat.common, nanochat.flags, nanochat.dataset\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_base_dir_is_read_at_each_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    assert common.base_dir() == Path.home() / ".cache" / "nanochat"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert common.base_dir() == tmp_path
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~/elsewhere")
    assert common.base_dir() == Path.home() / "elsewhere"


def test_without_a_home_the_base_folder_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: str) -> str:
        return path  # what os.path.expanduser does for a user without an account and without $HOME

    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", nobody)
    with pytest.raises(UserError, match=r"~/.cache/nanochat: .* Set NANOCHAT_BASE_DIR") as caught:
        common.base_dir()
    assert "\n" not in str(caught.value)


class TestWriteAtomically:
    def test_writes_bytes_and_text_and_makes_the_folder(self, tmp_path: Path) -> None:
        common.write_atomically(tmp_path / "a" / "b" / "text", "é")
        common.write_atomically(tmp_path / "a" / "bytes", b"\x00\r\n")
        assert (tmp_path / "a" / "b" / "text").read_bytes() == b"\xc3\xa9"
        assert (tmp_path / "a" / "bytes").read_bytes() == b"\x00\r\n"

    def test_the_file_has_the_mode_of_any_new_file(self, tmp_path: Path) -> None:
        (tmp_path / "ordinary").write_text("x")
        common.write_atomically(tmp_path / "ours", "x")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "ordinary").stat().st_mode

    @pytest.mark.parametrize("broken", ["fsync", "replace"])
    @pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_leaves_the_old_file_and_no_draft(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, failure: BaseException
    ) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def fail(*_: object) -> None:
            raise failure

        monkeypatch.setattr(os, broken, fail)
        expected = UserError if isinstance(failure, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            common.write_atomically(path, "new")
        monkeypatch.undo()
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
        if expected is UserError:
            assert str(path) in str(caught.value)
            assert "No space left on device" in str(caught.value)

    def test_the_draft_is_beside_the_target_and_complete_before_the_rename(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[Path, bytes, Path]] = []
        replace = os.replace

        def spy(source: Path, target: Path) -> None:
            seen.append((Path(source).parent, Path(source).read_bytes(), Path(target)))
            replace(source, target)

        monkeypatch.setattr(os, "replace", spy)
        common.write_atomically(tmp_path / "file", "new")
        assert seen == [(tmp_path, b"new", tmp_path / "file")]

    def test_a_file_where_a_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        with pytest.raises(UserError, match="cannot write"):
            common.write_atomically(tmp_path / "file" / "inner", "new")


class TestRunProgram:
    def test_a_user_error_is_one_line_and_status_2(self, capsys: pytest.CaptureFixture[str]) -> None:
        def main() -> None:
            raise UserError("no such corpus: prepare it")

        with pytest.raises(SystemExit) as caught:
            common.run_program(main)
        assert caught.value.code == 2
        assert capsys.readouterr() == ("", "error: no such corpus: prepare it\n")

    def test_ctrl_c_is_status_130(self) -> None:
        def main() -> None:
            raise KeyboardInterrupt

        with pytest.raises(SystemExit) as caught:
            common.run_program(main)
        assert caught.value.code == 130

    def test_a_bug_keeps_its_traceback(self) -> None:
        def main() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            common.run_program(main)


class TestRanks:
    @pytest.fixture(autouse=True)
    def without_torchrun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)

    def test_alone(self) -> None:
        assert common.init_ranks() == Ranks(0, 0, 1)
        assert Ranks().first
        assert not Ranks(1, 1, 2).first

    def test_torchrun_with_one_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
            monkeypatch.setenv(name, value)
        assert common.init_ranks() == Ranks(0, 0, 1)
        assert not torch.distributed.is_initialized()

    @pytest.mark.parametrize(
        "settings",
        [
            {"RANK": "0"},
            {"RANK": "0", "WORLD_SIZE": "2"},
            {"RANK": "a", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
            {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"},
        ],
    )
    def test_half_a_torchrun_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]
    ) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match="torchrun"):
            common.init_ranks()

    def test_only_the_first_prints(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        common.print0("alone", 1)
        monkeypatch.setenv("RANK", "1")
        common.print0("second")
        monkeypatch.setenv("RANK", "0")
        common.print0("first", end="")
        assert capsys.readouterr().out == "alone 1\nfirst"


def _stub_model(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str) -> torch.Tensor:
    return inputs.reshape(-1).float()


def _two_ranks(rank: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = (Path(folder) / "port").read_text()
    torch.set_num_threads(1)
    ranks = common.init_ranks("cpu")
    assert ranks == Ranks(rank, rank, 2)
    assert common.init_ranks("cpu") == ranks  # joining twice is harmless
    inputs = torch.tensor([[1, 2], [3, 4]]) + 10 * rank
    targets = torch.tensor([[0, 1], [2, -1]])
    bpb = evaluate_bpb(_stub_model, [(inputs, targets)], 0, torch.tensor([2, 3, 0]), ranks)
    try:
        evaluate_bpb(_stub_model, [(inputs, targets)], 1, torch.tensor([2, 3, 0]), ranks)
    except UserError as error:
        message = str(error)
    torch.save({"bpb": bpb, "message": message}, f"{folder}/{rank}.pt")
    common.leave_ranks()
    common.leave_ranks()


def test_two_gloo_ranks_share_an_evaluation(tmp_path: Path) -> None:
    import math
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    mp.start_processes(  # type: ignore[attr-defined, no-untyped-call]
        _two_ranks, args=(str(tmp_path),), nprocs=2, start_method="forkserver"
    )
    results: list[dict[str, Any]] = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for result in results:
        # targets 0 and 1 count on both ranks: losses 1 + 2 + 11 + 12 nats over 2 · (2 + 3) bytes
        assert result["bpb"] == pytest.approx(26 / (10 * math.log(2)))
        assert "6 tokens" in result["message"]
        assert "wanted are 8" in result["message"]


class TestPickDevice:
    def pretend(self, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    @pytest.mark.parametrize(
        ("cuda", "mps", "asked", "got"),
        [
            (2, True, "", "cuda:1"),
            (2, True, "cuda", "cuda:1"),
            (2, True, "cpu", "cpu"),
            (0, True, "", "cpu"),  # two processes do not share one MPS device
            (0, False, "", "cpu"),
        ],
    )
    def test_second_of_two(
        self, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, asked: str, got: str
    ) -> None:
        self.pretend(monkeypatch, cuda, mps)
        assert str(common.pick_device(asked, Ranks(1, 1, 2))) == got

    def test_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pretend(monkeypatch, 0, True)
        assert str(common.pick_device()) == "mps"
        self.pretend(monkeypatch, 1, True)
        assert str(common.pick_device()) == "cuda:0"

    @pytest.mark.parametrize(
        ("cuda", "mps", "asked", "words"),
        [
            (0, False, "cuda", "sees no such device"),
            (0, False, "mps", "sees no such device"),
            (0, True, "mps", "start without torchrun"),
            (1, False, "", "there are 1"),
            (0, False, "gpu", "'gpu'; give cuda, mps or cpu"),
        ],
    )
    def test_refusals_for_the_second_of_two(
        self, monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, asked: str, words: str
    ) -> None:
        self.pretend(monkeypatch, cuda, mps)
        with pytest.raises(UserError, match=re.escape(words)):
            common.pick_device(asked, Ranks(1, 1, 2))


def test_peak_memory_grows_and_is_in_bytes() -> None:
    before = common.peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(before // 4 + 25_000_000)
    after = common.peak_memory_bytes(torch.device("cpu"))
    assert after >= before + 100_000_000
    assert after < 4 * before + 10 * block.numel()


def test_a_missing_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        import package_that_nobody_has.part  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(SystemExit) as ended:
        common.run_program(main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(
        f"error: the package package_that_nobody_has is not installed in {sys.executable}; "
    )
    assert said.count("\n") == 1


def test_a_missing_part_of_this_project_keeps_its_traceback() -> None:
    def main() -> None:
        import nanochat.part_that_is_not_there  # type: ignore[import-not-found]  # noqa: F401

    with pytest.raises(ModuleNotFoundError):
        common.run_program(main)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    lines = "from nanochat.common import run_program\nrun_program(lambda: print('x' * 70_000, flush=True))"
    child = subprocess.Popen(
        [sys.executable, "-c", lines], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout
    assert child.stderr
    child.stdout.close()
    assert (child.stderr.read(), child.wait()) == (b"", 141)

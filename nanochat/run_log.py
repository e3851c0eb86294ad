"""What a run shows and writes down: lines, a bar, metrics.jsonl, TensorBoard if there is one, loss.png."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from nanochat.common import Ranks, UserError, write_atomically
from nanochat.step import Batch


def progress_bar(total: int | None, initial: int, ranks: Ranks, title: str = "training") -> Any:
    """A bar on stderr, for the first process and only on a terminal."""
    from tqdm import tqdm

    disable = None if ranks.first else True  # None: on a terminal
    return tqdm(total=total, initial=initial, desc=title, disable=disable, leave=False, dynamic_ncols=True)


def bar_over(batches: Iterator[Batch], bar: Any) -> Iterator[Batch]:
    """Pass batches on, moving the bar."""
    for batch in batches:
        yield batch
        bar.update()


def say_around_a_bar(text: str, ranks: Ranks) -> None:
    """Print a line on stdout, above whatever bars there are; in the first process only."""
    if ranks.first:
        from tqdm import tqdm

        with suppress(OSError):  # a terminal that has been closed is no reason to stop
            tqdm.write(text)
            sys.stdout.flush()


class RunLog:
    """Appends JSON objects to metrics.jsonl, one a line; the same to TensorBoard if that is installed."""

    def __init__(self, folder: Path, records: int, enabled: bool = True) -> None:
        """Go on after the first `records` lines; later ones move to metrics-abandoned.jsonl."""
        self.records = records
        self.enabled = enabled
        self.failure: OSError | None = None  # why the file could not be written; from then on it is not
        self.board: Any = None
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        except ValueError:
            raise UserError(f"{path} is no text: move it away, and the run goes on without it") from None
        if lines[records:]:
            with open(folder / "metrics-abandoned.jsonl", "a", encoding="utf-8") as file:
                file.writelines(lines[records:])
            write_atomically(path, "".join(lines[:records]))
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the run
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder))

    def write(self, step: int, **numbers: float) -> None:
        """Write one record. A disk that refuses it is noted in `failure`, and ends no run."""
        if not self.enabled or self.failure:
            return
        line = json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"
        try:
            self.file.write(line)
        except OSError as error:
            self.failure = error
            return
        self.records += 1
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        if self.enabled:
            with suppress(OSError):
                self.file.close()
        if self.board:
            self.board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run, in the order they were written; a last line cut off by a crash is left out."""
    records = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def plot_metrics(folder: Path) -> Path | None:
    """Draw loss.png from metrics.jsonl; returns its path, or None without matplotlib or two points."""
    records = read_metrics(folder)
    losses = [r for r in records if "loss" in r]
    scores = [r for r in records if "val_bpb" in r]
    if len(losses) < 2 or not importlib.util.find_spec("matplotlib"):
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    steps = [r["step"] for r in losses]
    upper.plot(steps, [r["loss"] for r in losses], color="0.8", linewidth=0.8, label="each step")
    upper.plot(steps, [r["smooth_loss"] for r in losses], color="C0", label="smoothed")
    upper.set_ylabel("training loss (nats per token)")
    upper.legend(frameon=False)
    upper.set_title(f"{folder.name}: {len(losses):,} steps")
    lower.plot(
        [r["step"] for r in scores], [r["val_bpb"] for r in scores], color="C1", marker="o", markersize=3
    )
    if scores:
        lower.annotate(
            f"{scores[-1]['val_bpb']:.4f}",
            (scores[-1]["step"], scores[-1]["val_bpb"]),
            textcoords="offset points",
            xytext=(-4, 8),
            ha="right",
        )
    lower.set_ylabel("validation (bits per byte)")
    lower.set_xlabel("optimizer step")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    path = folder / "loss.png"
    write_atomically(path, image.getvalue())
    return path

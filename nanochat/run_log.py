"""What a run writes down while it trains: metrics.jsonl, TensorBoard if there is one, and loss.png."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

from nanochat.common import write_atomically


class RunLog:
    """Appends JSON objects to metrics.jsonl, one a line; the same to TensorBoard if that is installed."""

    def __init__(self, folder: Path, records: int, enabled: bool = True) -> None:
        """Go on after the first `records` lines; later ones move to metrics-abandoned.jsonl."""
        self.records = records
        self.enabled = enabled
        self.board: Any = None
        if not enabled:
            return
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines[records:]:
            with open(folder / "metrics-abandoned.jsonl", "a", encoding="utf-8") as file:
                file.writelines(lines[records:])
            write_atomically(path, "".join(lines[:records]))
        self.file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - open as long as the run
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder))

    def write(self, step: int, **numbers: float) -> None:
        """Write one record."""
        self.records += 1
        if not self.enabled:
            return
        self.file.write(json.dumps({"step": step, **numbers}) + "\n")
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files."""
        if self.enabled:
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

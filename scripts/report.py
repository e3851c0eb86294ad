"""One page about what was trained: python -m scripts.report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import pick_device, run_program, write_atomically
from nanochat.flags import flag, parse_flags

CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ReportConfig:
    """The flags of scripts.report."""

    runs: str = flag("", "tags of runs, commas between (without: the newest of each stage)")
    out: str = flag("build", "folder for report.md and report.html")


def main() -> None:
    """Gather, and write both pages."""
    config = parse_flags(
        ReportConfig, sys.argv[1:], "python -m scripts.report", "Report on what was trained."
    )
    from nanochat.checkpoint_manager import find_run
    from nanochat.machine import this_machine
    from nanochat.report import Picture, Section, as_html, as_markdown, sections_of
    from nanochat.talk_training import STAGES, newest

    stages = [tag for tag in map(newest, STAGES) if tag] or ["latest"]
    folders = [find_run(tag.strip()) for tag in (config.runs.split(",") if config.runs else stages)]
    title = "Report on " + ", ".join(folder.name for folder in folders)
    sections = sections_of(folders, CODE, this_machine(pick_device("cpu")).line())
    out = Path(config.out)

    def beside(section: Section) -> Section:
        """The section with its pictures in the report's folder, under names of their own."""
        blocks = []
        for block in section.blocks:
            if isinstance(block, Picture):
                copy = out / f"report-{block.file.parent.name}.png"
                write_atomically(copy, block.file.read_bytes())
                block = Picture(copy, block.words)
            blocks.append(block)
        return Section(section.title, tuple(blocks))

    sections = [beside(section) for section in sections]
    write_atomically(out / "report.md", as_markdown(title, sections))
    write_atomically(out / "report.html", as_html(title, sections))
    print(f"{out / 'report.html'} and {out / 'report.md'}")


if __name__ == "__main__":
    run_program(main)

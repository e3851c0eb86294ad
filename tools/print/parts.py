"""Open each part of a volume with a page that has its name, which the contents show too."""

import re
from collections.abc import Iterable, Iterator

from tools.print.pages import Page
from tools.print.pandoc import string
from tools.print.reader import Reading

CLASS = "part"  # of the heading: how epub.py, pdf.py and book.css know it


def with_parts(readings: Iterable[Reading]) -> Iterator[Reading]:
    """The chapters, with a page in front of the first one of each part. What stands in no part gets none."""
    opened = ""
    for reading in readings:
        part = reading.page.part
        if part and part != opened:
            name = f"{CLASS}--{re.sub(r'[^a-z0-9]+', '-', part.lower()).strip('-')}"
            heading = {"t": "Header", "c": [1, [name, [CLASS], []], [string(part)]]}
            yield Reading(Page(part, "", part, reading.page.volume), [heading])
        opened = part
        yield reading

"""From the tokens of an answer to its parts: text as soon as it can be read, calls and outputs when whole."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from nanochat.conversation import MARKS, Part
from nanochat.tokenizer import Tokenizer


def keep(parts: list[Part], part: Part) -> None:
    """Append a part; text behind text becomes one part with it."""
    if parts and parts[-1].kind == part.kind == "text":
        part = Part("text", parts.pop().text + part.text)
    parts.append(part)


class AnswerReader:
    """Reads one answer, token by token. `stopped` is true once one of the stop texts has come."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        """stops: texts, none of them empty, behind which nothing is said; they are not said either."""
        self.tokenizer, self.stops = tokenizer, tuple(stops)
        self.opens = {tokenizer.special(opens): kind for kind, (opens, _) in MARKS.items()}
        self.closes = {tokenizer.special(closes) for _, closes in MARKS.values()}
        self.kind = "text"
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.held = ""  # text that has been read and not been given out
        self.stopped = False

    def take(self, tokens: Sequence[int]) -> list[Part]:
        """What these tokens make readable."""
        parts: list[Part] = []
        for token in tokens:
            if token in self.opens or token in self.closes:
                parts += self.end()
                self.kind = self.opens.get(token, "text")
            else:
                self.held += self.decoder.decode(self.tokenizer.decode_bytes([token]))
        if self.kind == "text":
            parts += self._text(last=False)
        return parts

    def end(self) -> list[Part]:
        """What is left when the answer, or a part of it, has ended."""
        self.held += self.decoder.decode(b"", final=True)
        self.decoder.reset()
        if self.kind == "text":
            return self._text(last=True)
        part, self.held = Part(self.kind, self.held), ""  # type: ignore[arg-type]
        return [part]

    def _text(self, last: bool) -> list[Part]:
        """The text that is certain, unless nothing is."""
        ends = [place for stop in self.stops if (place := self.held.find(stop)) >= 0]
        certain = len(self.held) if last else len(self.held) - self._beginning_of_a_stop()
        if ends:
            certain = min(ends)
        given, self.held = self.held[:certain], self.held[certain:]
        if self.stopped or not given:
            given = ""
        self.stopped = self.stopped or bool(ends)
        return [Part("text", given)] if given else []

    def _beginning_of_a_stop(self) -> int:
        """How many of the last characters could become a stop text."""
        longest = max(map(len, self.stops), default=1) - 1
        lengths = range(min(longest, len(self.held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self.held[-n:]) for stop in self.stops)), 0)

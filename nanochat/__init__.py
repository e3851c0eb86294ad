"""A small GPT with its training, evaluation and sampling, tangled from the book in lit/."""

import sys

from nanochat import played

try:
    played.play()
except ValueError as error:  # set by hand, for this process: nobody here could do without it
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)

# `make` alone lists what there is to do. Each target below says in its `##` comment what it is for.
#
# Two environments: .venv trains and tests (any Python from 3.11 on), .venv-book tangles and weaves (Entangled needs
# 3.13). tools/environment.py makes them when they are first needed, and again when their requirements change.
# Another Python than the one found: make TARGET PYTHON=/path/to/python, or PYTHON_BOOK=… for the second.

.DEFAULT_GOAL := help
.PHONY: help train chat chat-web report learn test torture tangle check watch where bench compare evidence numbers pictures gpu serve site book clean environment \
	book-environment tangle-if-possible check-if-possible

# A Python of any age that runs. (pyenv's python3 is on the PATH even where it does not.)
ANY_PYTHON = $(or $(shell for python in python3 python $(PYTHON); do \
	"$$python" -c '' 2>/dev/null && echo "$$python" && break; done),$(error error: there is no python3 on the PATH. Install \
	Python 3.11 or newer))
ENVIRONMENT = $(ANY_PYTHON) tools/environment.py .venv requirements.txt 3.11
BOOK_ENVIRONMENT = $(ANY_PYTHON) tools/environment.py .venv-book requirements-book.txt 3.13
NO_PYTHON = 3

# Tests in as many processes as there are cores, those of a file in one. $TIMES is where each run leaves its times.
PYTEST = -m pytest -n auto --dist=loadfile
export TIMES = build/test-times.jsonl

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

train: environment tangle-if-possible ## train a small GPT in five minutes and read what it writes
	@.venv/bin/python -m scripts.quickstart $(if $(GPT),--gpt=$(GPT))

chat: environment tangle-if-possible ## teach the model that make train made to answer, and talk to it
	@.venv/bin/python -m scripts.quickchat

chat-web: environment ## talk to what you trained in a browser, or with any client of OpenAI's interface
	@.venv/bin/python -m scripts.chat_web

report: environment ## one page about what you trained: build/report.md and build/report.html
	@.venv/bin/python -m scripts.report

learn: environment ## rewrite the model yourself: copy the skeleton, run it up to the first gap, say what to write
	@.venv/bin/python -m scripts.learn run --any-answer $(if $(ROUND),--round=$(ROUND))

test: environment check-if-possible ## everything that CI does: drift, lint, types, tests
	@.venv/bin/python $(PYTEST) tests
	@echo "what the machine decides, once more as the least machine:"
	@NANOCHAT_MACHINE=least .venv/bin/python $(PYTEST) -m numerics tests
	@.venv/bin/python tests/slowest.py $(TIMES)

torture: environment ## kill a training a hundred times at random moments, and see that nothing is lost
	@.venv/bin/python -m tests.torture

tangle: book-environment ## write the code that the chapters contain
	@.venv-book/bin/python -m tools tangle

check: environment book-environment ## compare the code with the chapters, lint, type; write nothing
	@.venv-book/bin/python -m tools check

watch: book-environment ## tangle whenever a chapter is saved
	@.venv-book/bin/python -m tools watch

where: ## name the chapter and line of a line of code: make where AT=nanochat/normans_gpt.py:123
	@$(ANY_PYTHON) -m nanochat.provenance $(AT)

bench: environment ## measure training, tokenizer, loader and decoding on this machine
	@.venv/bin/python -m scripts.bench

numbers: environment ## write into the chapters what the records in results/ say
	@.venv/bin/python -m tools.numbers

pictures: environment ## draw the book's pictures again, those that would look different
	@.venv/bin/python -m tools.pictures

evidence: environment ## run the declared experiments that are missing or stale (hours; it says how many first)
	@.venv/bin/python -m scripts.experiment

compare: environment ## train the book's model and the reference side by side, in turns; some ten minutes
	@.venv/bin/python -m scripts.compare

gpu: ## run the CUDA tests and the benchmark with the system's python3; installs nothing
	@$(or $(PYTHON),python3) -m pytest tests -m gpu
	@$(or $(PYTHON),python3) -m scripts.bench

serve: book-environment ## read the book in a browser, following every change
	@NO_MKDOCS_2_WARNING=1 .venv-book/bin/python -m mkdocs serve

site: book-environment ## build the book as a web site in site/
	@NO_MKDOCS_2_WARNING=1 .venv-book/bin/python -m mkdocs build --strict
	@echo "site/index.html is the book"

book: environment book-environment ## build the book's two volumes as EPUB and PDF in build/
	@.venv/bin/python -m tools.numbers --check
	@.venv-book/bin/python -m tools book

clean: ## remove caches and the built site and book; keeps environments, data and everything trained
	@rm -rf site build .mypy_cache .ruff_cache .pytest_cache
	@find $(wildcard nanochat scripts tests tools) -name __pycache__ -type d -prune -exec rm -rf {} +

.DEFAULT:
	@echo "error: there is no target $@; make alone lists what there is" >&2; exit 2

environment:
	@$(ENVIRONMENT)

book-environment:
	@$(BOOK_ENVIRONMENT)

# The tangled code is committed, so training and testing go on without a Python 3.13; but never silently, and not in CI.
tangle-if-possible:
	@$(BOOK_ENVIRONMENT); status=$$?; \
	if [ $$status = 0 ]; then .venv-book/bin/python -m tools tangle; \
	elif [ $$status = $(NO_PYTHON) ] && [ -z "$$CI" ]; then \
		echo "skipped: tangling. The code is used as it is; changes in chapters since the last tangle are not in it." >&2; \
	else exit $$status; fi

check-if-possible:
	@rm -f $(TIMES)
	@$(BOOK_ENVIRONMENT); status=$$?; \
	if [ $$status = 0 ]; then .venv-book/bin/python -m tools check && .venv-book/bin/python $(PYTEST) tests/book; \
	elif [ $$status = $(NO_PYTHON) ] && [ -z "$$CI" ]; then \
		echo "skipped: comparing code and chapters, and the tests of the book's tools." >&2; \
		.venv/bin/python -m ruff check . && .venv/bin/python -m ruff format --check . && .venv/bin/python -m mypy; \
	else exit $$status; fi

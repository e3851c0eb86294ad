.PHONY: help tangle check
help:
	@echo "make tangle   write the code that the chapters contain"
	@echo "make check    compare the code with the chapters; write nothing"
tangle:
	@.venv-book/bin/python -m tools tangle
check:
	@.venv-book/bin/python -m tools check

"""The book's machinery: chapters in, code out, and nothing that anybody wrote is lost.

Run as `python -m tools COMMAND`.
"""

"""The book as readers see it.

`model` knows everything there is to know about the fragments and nothing about how they are shown. `prose`,
`formulas`, `code`, `chapter` and `indexes` turn it into Markdown and HTML and know nothing of MkDocs; `site`
and `hook` carry the result into MkDocs. Whoever replaces MkDocs replaces these two.
"""

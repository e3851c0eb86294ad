"""The chapters as a book to take along: an EPUB and a PDF of each volume, in build/, by `make book`.

pages.py finds the pages and their order, reader.py turns them into one document tree through pandoc, links.py
makes every link lead somewhere, code.py sets the fragments, answers.py moves what the site folds to
the back, and epub.py and pdf.py write the files.
"""

"""The book's pictures, drawn by the model they show: `make pictures`, or `python -m tools.pictures --check`.

A picture is one function that draws on axes, given a palette:

    from tools.pictures.style import Palette, picture

    @picture("relu2", alt="What a person who does not see the picture should know of it.")
    def relu2(axes: Axes, palette: Palette) -> None:
        axes.plot(x, y, color=palette.blue)

Every module in this folder is imported, so a new file needs no list to be entered in. The picture becomes
lit/pictures/relu2.svg and relu2.dark.svg; a chapter shows it with `![](pictures/relu2.svg)` on lines of its
own, and `make pictures` fills in the alternative text. Runs in .venv, because it needs the model.
"""

"""Rewrite the model function by function, and be told which mistake was made.

`steps` lists the eighteen functions, their hints and their place in the book. `hybrid` puts one function of
a learner's file into the book's model. `probes` runs such a model and writes down what it sees. `mistakes`
knows wrong models by name. `judge` compares all of them, in a worker process that may crash or hang.
"""

"""Rewrite the model function by function, and be told which mistake was made.

`steps` lists the functions of both rounds, their hints and their place in the book. `hybrid` puts one
function of a learner's file into the book's module. `probes` and `second_probes` run such a module and write
down what they see. `mistakes` knows wrong functions by name. `judge` compares all of them, in a worker
process that may crash or hang.
"""

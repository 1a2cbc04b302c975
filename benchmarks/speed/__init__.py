"""How fast generated layers are, side by side with dense torch and with their peers.

    make bench                                              # the whole of it, about 25 minutes on two quiet cores
    python -m benchmarks.speed --only 'linear 4096x4096'    # some cases; what is done already is not run again
    python -m benchmarks.speed --report                     # tables and plots from the results there are

One process, two threads; every variant of a case is given the same input and they are timed in turns. Results, tables
and plots are written to ``benchmarks/results/``; ``speed.json`` says what is measured, and on which machine.
"""

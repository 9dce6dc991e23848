"""The contract that every strategy keeps, as programs that real workers run.

`curves` trains a small program in every variant, `reference` trains the same in plain code, `checks` asks the rest of
the contract, `faults` breaks workers. `farandole.plugins.pytest` and the `parity` experiment start them and judge.
"""

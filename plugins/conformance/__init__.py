"""The contract that every strategy keeps, as programs that real workers run.

`curves` trains a small program in every variant, `checks` tests the rest of the contract, and `faults` breaks workers.
The packages of the frameworks have the same modules: the program itself, the `reference` that trains it in plain code,
and their own checks; `framework` finds them. `farandole.plugins.pytest` and the `parity` experiment start the jobs and
judge the results.
"""

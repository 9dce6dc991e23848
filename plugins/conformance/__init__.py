"""The contract that every strategy keeps, as programs that real workers run.

`curves` trains a small program in every variant, `checks` asks the rest of the contract, and `faults` breaks workers.
What needs a framework is in a package of its own, with the same modules: the program itself, the `reference` that
trains it in plain code, and checks of its own; `framework` finds them. `farandole.plugins.pytest` and the `parity`
experiment start them and judge.
"""

"""The contract that every strategy keeps, as programs that real workers run.

1. Same curve: a step trains on the same samples at any number of workers, and gradients are the mean over the global
   batch, also if shares are uneven. Clipping sees the reduced gradient.
2. Legal differences are named, and the rest is refused.
3. Every sample comes once in an epoch.
4. The learning rate is the user's: it is never scaled.
5. Collectives do what their names say.
6. Portable state: what one engine saved with N workers, any other of its framework loads with M, and the curve
   continues. A checkpoint is whole or never loaded.
7. A failure is loud and bounded: one failed worker ends the job within 15 s, with its traceback and an exit code that
   is not 0, and leaves no process.
8. No silent fallback: an engine that is missing, misbuilt or contradicted by its environment is an error with the fix.
9. Re-entry: a strategy that was left has left no trace, and another may be entered.
10. Callbacks change nothing but what they are for.

`curves` trains a small program in every variant, `checks` tests the rest of the contract, and `faults` breaks workers.
The packages of the frameworks have the same modules: the program itself, the `reference` that trains it in plain code,
and their own checks; `framework` finds them. `farandole.plugins.pytest` and the `parity` experiment start the jobs and
judge the results.
"""

"""The command `farandole`."""

from __future__ import annotations

import click

from .lazy import LazyCommand, LazyGroup

COMMANDS = {
    "run": LazyCommand(".run:run", "Run SCRIPT on several workers, by the engine's launcher."),
    "strategies": LazyCommand(".strategies:strategies", "List the strategies, or show the options of one."),
    "doctor": LazyCommand(".doctor:doctor", "Check engines, launchers and tools, and say how to fix them."),
    "watch": LazyCommand(".metrics.watch:watch", "Show the run in DIR: its speed, each worker's time, stragglers."),
    "report": LazyCommand(".metrics.report:report", "Write the run in DIR as one page of HTML, with charts."),
    "checkpoint": LazyCommand(
        ".checkpoint.commands:checkpoint", "Show what is in a checkpoint; convert it from and to others."
    ),
    "horovod": LazyCommand(".horovod.commands:horovod", "Build Horovod for the PyTorch and TensorFlow you have."),
    "comet": LazyCommand(".metrics.comet:comet", "Send a run's numbers to Comet."),
    "experiment": LazyCommand(
        "..experiments.cli:experiment", "Run a study that compares strategies, and say whether it passed."
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="farandole", message="%(prog)s %(version)s")
def main() -> None:
    """One training program, the same curve, on Horovod, DeepSpeed, TensorFlow, DDP and FSDP.

    \b
    First steps:
      farandole doctor                              what works here
      farandole strategies                          what to choose from
      farandole run --strategy ddp -n 2 train.py    train on two workers
    """


if __name__ == "__main__":
    main()

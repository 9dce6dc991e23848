"""The command line `farandole`; importing it, and its `--help`, import no engine and no framework."""

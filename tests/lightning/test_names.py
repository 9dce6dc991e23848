"""How Lightning finds our strategies: by name, by a misspelt name, and in a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.fabric import Fabric

import farandole.plugins.lightning
from farandole.plugins.launch.job import run_marked

PROGRAM = Path(__file__).with_name("cli_program.py")
NAMES = ["horovod", *(f"deepspeed_zero_{kind}" for kind in ("1", "2", "3", "2_offload", "3_offload"))]
CONFIGURATION = """
trainer:
  strategy:
    class_path: farandole.plugins.lightning.{kind}
    init_args: {options}
  accelerator: cpu
  devices: 2
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
"""


def said(*lines: str) -> str:
    """Run lines of Python in a new process and return what they print."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


TYPES = ["HorovodStrategy FabricHorovodStrategy"] + ["DeepSpeedStrategy FabricDeepSpeedStrategy"] * 5


def test_names() -> None:
    found = []
    for name in NAMES:
        trainer = pl.Trainer(strategy=name.upper(), accelerator="cpu", logger=False)
        fabric = Fabric(strategy=name, accelerator="cpu")
        found.append(f"{type(trainer.strategy).__name__} {type(fabric.strategy).__name__}")
    assert found == TYPES


def test_names_of_the_other_import() -> None:
    lines = said(
        "import pytorch_lightning as pl",
        "from lightning_fabric import Fabric",
        "import farandole.plugins.lightning",
        f"for name in {NAMES}:",
        "    trainer = pl.Trainer(strategy=name.upper(), accelerator='cpu', logger=False)",
        "    fabric = Fabric(strategy=name, accelerator='cpu')",
        "    print(type(trainer.strategy).__name__, type(fabric.strategy).__name__)",
    ).splitlines()
    assert lines == TYPES


@pytest.mark.parametrize("make", [pl.Trainer, Fabric])
def test_a_name_that_is_nearly_ours_is_told(make: Any) -> None:
    assert farandole.plugins.lightning
    with pytest.raises(LookupError, match=r"Lightning knows no strategy 'horovd'\. Did you mean 'horovod'\?"):
        make(strategy="horovd", accelerator="cpu")
    with pytest.raises(LookupError, match=r"no strategy 'deepspeed_zero2'\. Did you mean 'deepspeed_zero_2'\?"):
        make(strategy="deepspeed_zero2", accelerator="cpu")
    with pytest.raises(ValueError, match="You selected an invalid strategy name: `strategy='quantum'`"):
        make(strategy="quantum", accelerator="cpu")


def test_both_lightnings_in_one_process_are_told_apart() -> None:
    output = said(
        "import lightning.pytorch, pytorch_lightning, farandole.plugins.lightning",
        "lightning.pytorch.Trainer(strategy='horovod', accelerator='cpu', logger=False)",
        "try:",
        "    pytorch_lightning.Trainer(strategy='horovod', accelerator='cpu', logger=False)",
        "except Exception as error:",
        "    print(error)",
    )
    assert "has imported both lightning and pytorch_lightning" in output


def test_an_old_lightning_is_refused(tmp_path: Path) -> None:
    """By its version, the only thing that is read."""
    metadata = tmp_path / "lightning-2.4.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lightning\nVersion: 2.4.0\n")
    output = said(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})",
        "try:",
        "    import farandole.plugins.lightning",
        "except ImportError as error:",
        "    print(error)",
    )
    assert "needs lightning>=2.5.0, and this is 2.4.0" in output
    assert "pip install -U lightning" in output


@pytest.mark.timeout(100)
@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("HorovodStrategy", "{compression: fp16}", "exact=False"),
        pytest.param("DeepSpeedStrategy", "{stage: 3}", "'parameters'", marks=pytest.mark.exhaustive),
    ],
)
def test_configuration_file(tmp_path: Path, kind: str, options: str, told: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGURATION.format(kind=kind, options=options))
    job = run_marked([sys.executable, str(PROGRAM), "fit", "--config", str(path)], timeout=80)
    assert job.returncode == 0 and not job.survivors, job.describe()
    assert f"trained by {kind}" in job.output
    assert told in job.output

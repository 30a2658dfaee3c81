"""Every command in README.md and docs/ that can run offline does run, as it stands, in a copy of the repository.

A block fenced as bash is run, line by line in its order (reward models for one epoch only); a block fenced as sh needs
what a test has not: network, GPUs, several machines or hours. In both, the files and options that are named must exist.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "experiments" / "README.md"]


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.M | re.S)


def commands(block: str) -> list[str]:
    """Lines, with those that end in a backslash joined, and without comments."""
    lines = block.replace("\\\n", " ").splitlines()
    return [c for line in lines if (c := re.sub(r"(^|\s)#.*", "", line).strip())]


def tracked() -> list[str]:
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return out.stdout.splitlines()


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    for name in tracked():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    launch = {"python": "", "python3": "", "torchrun": "-m torch.distributed.run --master_port=29577"}
    for name, words in launch.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_runs(page, copy):
    env = {**os.environ, "PATH": f"{copy / 'bin'}:{os.environ['PATH']}", "WANDB_MODE": "disabled"}
    for block in blocks(page, "bash"):
        for command in commands(block):
            if command.startswith(("bash quickstart.sh", "bash test.sh", "git clone", "cd ", "pip install")):
                continue  # those that got us here
            if re.search(r"reward_train.py --config configs/\S+$", command):  # minutes; test_reward.py has one to its end
                command += " --trainer.params.max_epochs 1"
            options = {"cwd": copy, "env": env, "capture_output": True, "text": True, "timeout": 400}
            done = subprocess.run(["bash", "-c", command], **options)
            assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_named_exists(page):
    files = set(tracked())
    text = "\n".join(blocks(page, "bash") + blocks(page, "sh"))
    for name in re.findall(r"(?:python|bash|torchrun\s[^\n]*?)\s([\w/]+\.(?:py|sh))", text):
        assert name in files, f"{page.name} runs {name}, which does not exist"
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / name).exists(), f"{page.name} links to {name}, which does not exist"
    for name in re.findall(r"\bconfigs/[\w/]+\.yaml", text):
        assert any(f.endswith(name) for f in files), f"{page.name} names {name}, which does not exist"


def test_an_environment_whose_python_has_gone_is_made_again(tmp_path):
    shutil.copy(ROOT / "setup.sh", tmp_path)
    bin_ = tmp_path / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (bin_ / "python").symlink_to("/nowhere/python3.11")
    (bin_ / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "python3.13").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@" > made\n')  # a Python that notes its calls
    for file in (bin_ / "pip", tmp_path / "python3.13"):
        file.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")}
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
    for more in ({}, {"VIRTUAL_ENV": str(tmp_path / "gone")}):
        done = subprocess.run(["bash", "setup.sh", "x"], cwd=tmp_path, env=env | more, capture_output=True, text=True)
        assert done.returncode == 2 and "does not run, or is older" in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "made").read_text() == "-m venv --clear .venv\n"

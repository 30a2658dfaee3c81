"""Where a run's results lie in its folder (Files); and what all need that touch files: JSON, read or refused, and names
for files that are not whole yet."""

import glob
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


def read_json(path: Path) -> dict:
    """An object; ValueError in one line for anything else."""
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as e:
        raise ValueError(f"{path} cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is not UTF-8 at byte {e.start}") from None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is not JSON: {e}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold an object, got {type(data).__name__}")
    return data


def previous(path: Path) -> Path:
    """Where a checkpoint goes that is replaced by a newer one."""
    return path.with_name(f"{path.stem}.prev{path.suffix}")


def stamp(path: Path) -> list:
    """What tells a file, or a folder's files, from changed ones."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in found]


def draft(path: Path) -> Path:
    """What becomes `path` when it is whole, this process's own; what killed ones have left of it goes."""
    if not path.name:
        raise ValueError(f"{path} is a folder, and a file is wanted there")
    sweep(path.parent, f".{glob.escape(path.name)}.tmp-*")
    mine = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    remove(mine)  # of a process that had the same number: in containers all begin at 1
    return mine


def sweep(folder: Path, names: str = "*.tmp-*") -> None:
    """Removes what a killed process left behind; that of a living one stays."""
    for path in folder.glob(names):
        owner = path.name.rsplit("-", 1)[1]
        try:
            os.kill(int(owner), 0)
        except ProcessLookupError:
            remove(path)
        except (ValueError, OverflowError, PermissionError):  # no process's number, or that of another user's
            pass


def remove(path: Path) -> None:
    """A file, a link, or a folder with what is in it; or what is not there."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


@dataclass
class Files:
    ckpt: str = "ckpt.pt"  # the last state
    best: str = "best.pt"  # the state of the lowest evaluation loss
    config: str = "config.yaml"  # all options of the run
    train_csv: str = "train.csv"
    eval_csv: str = "eval.csv"
    csv: bool = True  # write CSV files and loss.png
    evals: bool = True  # a row for each evaluation
    memory: bool = False  # peak memory in the training rows, MiB
    second: Literal["", "refuse", "overwrite"] = ""  # what a second run in the folder means; empty: as the script does

    def check(self) -> None:
        """Each file needs a name of its own."""
        named = {n: getattr(self, n) for n in ("ckpt", "best", "config", "train_csv", "eval_csv")}
        for option, name in named.items():
            same = [o for o, other in named.items() if Path(other) == Path(name)]
            if not Path(name).name:
                raise ValueError(f"--files.{option} must be the name of a file, got {name!r}")
            if same[0] != option:
                raise ValueError(f"--files.{option} and --files.{same[0]} are both {name!r}")
            if inside := [o for o, other in named.items() if Path(name) in Path(other).parents]:
                other = f"--files.{inside[0]} {named[inside[0]]!r}"
                raise ValueError(f"--files.{option} {name!r}: {other} needs a folder there")
            others = {".lock", "status.json", "results.json", "loss.png", "confusion.png", "config.yaml"}
            others |= {str(previous(Path(self.ckpt)))}
            if str(Path(name)) in others and (option, name) != ("config", "config.yaml"):
                raise ValueError(f"--files.{option} {name}: a run writes something else there")

    def written(self) -> list[str]:
        """What a run leaves, and what goes with it where another one replaces it."""
        named = [str(previous(Path(self.ckpt))), self.ckpt, self.best, self.config, self.train_csv, self.eval_csv]
        return [*named, "results.json", "loss.png", "confusion.png"]


FREE = tuple(f"files.{name}" for name in Files.__dataclass_fields__)  # a resume takes them from the command

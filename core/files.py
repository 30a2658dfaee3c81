"""Where a run's results lie below its folder: the scripts' own places, or an experiment's."""

from dataclasses import dataclass
from typing import Literal


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


FREE = tuple(f"files.{name}" for name in Files.__dataclass_fields__)  # a resume takes them from the command

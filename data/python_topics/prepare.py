"""A toy set for classifiers that is on every machine: from which of Python's packages does a piece of source come?

    python data/python_topics/prepare.py        snippets.csv here, with the columns text and label

Pieces of four lines of code, comments or docstrings, without the lines that say `import`; as many of each package.
Another version of Python gives other pieces.
"""

import csv
import random
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from core import config, exits, files
from core.values import Count

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "urllib", "xml")
HERE = Path(__file__).resolve().parent


@dataclass
class Options:
    out: str = str(HERE / "snippets.csv")  # the file to write
    each: Count = 800  # pieces a package, at most
    lines: Count = 4  # lines a piece
    seed: int = 0  # their order


def pieces(package: str, lines: int) -> list[str]:
    folder, out = Path(sysconfig.get_path("stdlib")) / package, []
    for path in sorted(folder.rglob("*.py")):
        source = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
        source = [line for line in source if len(line) > 3 and "import" not in line and package not in line.lower()]
        out += [" ".join(source[i : i + lines]) for i in range(0, len(source) - lines + 1, lines)]
    if not out:
        raise ValueError(f"{folder} has no sources of the standard library")
    return out


def main(args: Options) -> None:
    rng, rows = random.Random(args.seed), []
    for package in PACKAGES:
        found = pieces(package, args.lines)
        rows += [(text, package) for text in rng.sample(found, min(args.each, len(found)))]
    rng.shuffle(rows)
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = files.draft(out)
    try:
        with exits.writing(out), open(draft, "w", newline="", encoding="utf-8") as f:
            table = csv.writer(f)
            table.writerow(("text", "label"))
            table.writerows(rows)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    print(f"{out}: {len(rows):,} pieces from {len(PACKAGES)} packages")


if __name__ == "__main__":
    with exits.guard():
        main(config.parse(Options, doc=__doc__))

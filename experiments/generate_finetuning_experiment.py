"""A new finetuning experiment on a pretrained encoder: experiments/finetuning/NAME/config.yaml.

    python experiments/generate_finetuning_experiment.py -f NAME -p PRE
    python experiments/generate_finetuning_experiment.py -f NAME -p PRE --set classification_head.num_labels=4

Architecture and tokenizer are copied from the pretraining experiment. Then edit the file if need be, and run it:
python train.py -n NAME -m finetuning
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import config, exits
from experiments import folders, translate


def main(argv: list[str]) -> None:
    p = config.Parser(description=__doc__, formatter_class=config.argparse.RawDescriptionHelpFormatter)
    p.add_argument("-f", "--finetuning_name", required=True, metavar="NAME", help="of the new experiment")
    p.add_argument("-p", "--pretraining_name", required=True, metavar="PRE", help="the experiment that it starts from")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="fills a value in")
    args = p.parse_args(argv)

    name, parent = args.finetuning_name, translate.parent(args.pretraining_name)
    template = (folders.TEMPLATES / "finetuning.yaml").read_text(encoding="utf-8")
    text = folders.graft(template, (parent / "config.yaml").read_text(encoding="utf-8"), ("tokenizer", "architecture"))
    values = {"experiment.name": name, "experiment.output_dir": str(folders.place("finetuning", name)),
              "logging.wandb.run_name": name, "pretrained_experiment.name": args.pretraining_name,
              "pretrained_experiment.path": str(folders.results(parent))}  # fmt: skip
    text = folders.fill(text, values | translate.settings(args.set, "finetuning"))
    exp = translate.read(folders.load(text), "finetuning", str(parent / "config.yaml"))
    translate.check(exp, "finetuning", folders.place("finetuning", name))
    path = folders.create("finetuning", name, text)
    print(f"{path / 'config.yaml'} is written: edit it, then python train.py -n {name} -m finetuning")


if __name__ == "__main__":
    with exits.guard():
        main(sys.argv[1:])

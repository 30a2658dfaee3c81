"""A new pretraining experiment: experiments/pretraining/NAME/config.yaml.

    python experiments/generate_pretraining_experiment.py -p NAME                  # from the template
    python experiments/generate_pretraining_experiment.py -p NAME -rp OLD          # a copy of OLD that goes on from it
    python experiments/generate_pretraining_experiment.py -p NAME --set training.epochs=5 --set tokenizer.vocab_dir=tok

Then edit the file if need be, and run it: python train.py -n NAME -m pretraining
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core import config, exits
from experiments import folders, translate


def main(argv: list[str]) -> None:
    p = config.Parser(description=__doc__, formatter_class=config.argparse.RawDescriptionHelpFormatter)
    p.add_argument("-p", "--pretraining_name", required=True, metavar="NAME", help="of the new experiment")
    p.add_argument("-rp", "--resume_pretraining_name", metavar="OLD", help="the experiment to go on from")
    p.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="fills a value in")
    args = p.parse_args(argv)

    name, old = args.pretraining_name, args.resume_pretraining_name
    path = folders.place("pretraining", name)
    source = translate.parent(old) / "config.yaml" if old else folders.TEMPLATES / "pretraining.yaml"
    values = {"experiment.name": name, "experiment.output_dir": str(path), "logging.wandb.run_name": name}
    if old:
        last = folders.results(source.parent).resolve() / "checkpoints" / "model.ckpt"
        values |= {
            "training.resume.is_resume": True,
            "training.resume.resume_pretraining_name": old,
            "training.resume.checkpoint_path": os.path.relpath(last, path.resolve()),
            "training.resume.load_only_model_state": False,  # how OLD began is not how this one does
        }
    values |= translate.settings(args.set, "pretraining")
    text = folders.fill(source.read_text(encoding="utf-8"), values)
    translate.check(translate.read(folders.load(text), "pretraining", str(source)), "pretraining", path)
    path = folders.create("pretraining", name, text)
    print(f"{path / 'config.yaml'} is written: edit it, then python train.py -n {name} -m pretraining")


if __name__ == "__main__":
    with exits.guard():
        main(sys.argv[1:])

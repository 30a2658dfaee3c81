"""What export_hf.py writes, transformers loads: the same logits, and the same ids for the same text."""

import json

import pytest
import torch

import export_hf
from core import checkpoint, config
from data import vocab
from model import GPT, GPTConfig

transformers = pytest.importorskip("transformers")

# a byte-level BPE of three merges, in the format of GPT-2's vocab.bpe; \u0120 stands for a space
MERGES = "#version: 0.2\nt h\nth e\n\u0120 the\n"
TEXT = "the other theme, then!\n\u00e9t\u00e9 \u4e2d"


def train(folder, tokenizer, V=300, **changes):
    """A checkpoint as train.py writes it."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**({"vocab_size": V, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16} | changes)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    state = checkpoint.pack(kind="gpt", model=model, model_config=vars(model.config), optimizer=None, loop={}, seed=0,
                            step=7, best=None, options={}, meta={"tokenizer": tokenizer})  # fmt: skip
    checkpoint.save(folder / "ckpt.pt", state)
    return model.eval()


def export(*argv):
    export_hf.main(config.parse(export_hf.Options, list(map(str, argv)), doc=""))


def tokenizers_json():
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=270, special_tokens=["</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    frame = {"single": "</s> $A </s>", "special_tokens": [("</s>", tokenizer.token_to_id("</s>"))]}
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(**frame)  # as data/train_tokenizer.py writes it
    return {"kind": "tokenizers", "json": tokenizer.to_str()}


def test_a_model_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    """A model option of one's own, of which no table here knows: transformers would load what was written."""
    train(tmp_path, {"kind": "byte"})
    embed = GPT.embed
    monkeypatch.setattr(GPT, "embed", lambda self, x: embed(self, x) * (3.0 if self.config.mlp_size is None else 1.0))
    with pytest.raises(RuntimeError, match="the exported model differs by .*, not kept"):
        export(f"--init_from={tmp_path / 'ckpt.pt'}", f"--out={tmp_path / 'out'}")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_export_that_breaks_off_leaves_no_part_of_a_model(tmp_path, monkeypatch):
    """Neither new weights beside an old tokenizer, nor a folder that looks like a model and lacks its tokenizer."""
    train(tmp_path, {"kind": "byte"})
    flags, out = [f"--init_from={tmp_path / 'ckpt.pt'}", f"--out={tmp_path / 'out'}"], tmp_path / "out"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(export_hf, "write_tokenizer", killed)
        export(*flags)
    assert not any(out.iterdir())
    (out / f".model.tmp-{2**30}").mkdir()  # as SIGKILL leaves it
    export(*flags)
    old = {p.name: p.read_bytes() for p in out.iterdir()}
    assert sorted(old) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert len({p.stat().st_mode for p in out.iterdir()}) == 1  # whoever may read the one may read the others
    train(tmp_path, {"kind": "char", "chars": sorted(set(TEXT))}, n_layer=1)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(export_hf, "write_tokenizer", killed)
        export(*flags, "--overwrite")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == old


def test_a_mixture_says_whose_tokenizer_it_wrote(tmp_path, capsys):
    char = {"kind": "char", "chars": sorted(set(TEXT))}
    for name, other in (("alike", char), ("mixed", {"kind": "byte"})):
        train(tmp_path, char)
        state = checkpoint.load(tmp_path / "ckpt.pt")
        state["meta"]["streams"] = [{"name": "a", "tokenizer": char}, {"name": "b", "tokenizer": other}]
        checkpoint.save(tmp_path / "ckpt.pt", state)
        export(f"--init_from={tmp_path / 'ckpt.pt'}", f"--out={tmp_path / name}")
        assert ("that of a; the model was trained on" in capsys.readouterr().out) == (name == "mixed")


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"kind": "char", "chars": sorted(set(TEXT))},
        {"kind": "byte"},
        {"kind": "tiktoken", "name": "merges", "merges": MERGES},
        tokenizers_json,
        None,
    ],
    ids=["char", "byte", "merges", "tokenizers", "none"],
)
def test_transformers_loads_it(tokenizer, tmp_path, capsys):
    tokenizer = tokenizer() if callable(tokenizer) else tokenizer
    model = train(tmp_path / "run", tokenizer)
    export("--init_from", tmp_path / "run", "--out", tmp_path / "hf")
    said = capsys.readouterr().out
    assert "largest difference between logits is 0.0e+00" in said

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.randint(0, 300, (2, 16))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    if tokenizer is None:
        assert "tokenizer: none" in said and not (tmp_path / "hf" / "tokenizer.json").exists()
        return
    ours, words = vocab.load(tokenizer), transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert words(TEXT)["input_ids"] == ours.encode(TEXT)
    assert words.decode(ours.encode(TEXT)) == TEXT
    assert words.eos_token_id == ours.eot
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert settings["model_input_names"] == ["input_ids", "attention_mask"]  # transformers 4 would give a third


def test_what_cannot_be_exported_is_refused_and_nothing_written(tmp_path):
    train(tmp_path / "alibi", None, position="alibi")
    with pytest.raises(ValueError, match="position 'alibi' has no counterpart in GPT-2"):
        export("--init_from", tmp_path / "alibi", "--out", tmp_path / "hf")
    with pytest.raises(ValueError, match="--out must name"):
        export("--init_from", tmp_path / "alibi")
    with pytest.raises(ValueError, match="does not exist"):
        export("--init_from", tmp_path / "nowhere", "--out", tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_folder_with_files_is_not_overwritten_unless_asked(tmp_path):
    train(tmp_path / "run", {"kind": "byte"})
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("mine")
    with pytest.raises(ValueError, match="--overwrite"):
        export("--init_from", tmp_path / "run", "--out", tmp_path / "hf")
    assert (tmp_path / "hf" / "config.json").read_text() == "mine"
    export("--init_from", tmp_path / "run", "--out", tmp_path / "hf", "--overwrite")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "gpt2"
    train(tmp_path / "bare", None)  # a model without a tokenizer is not left with that of the one before
    export("--init_from", tmp_path / "bare", "--out", tmp_path / "hf", "--overwrite")
    assert sorted(p.name for p in (tmp_path / "hf").iterdir()) == ["config.json", "model.safetensors"]

"""The sections of an experiment's config.yaml, as options; what each key means is said in config_templates/, once."""

from dataclasses import dataclass, field
from typing import Literal

from core import config
from core.values import Count, Dropout, Fraction, NonNegative, Positive, Whole


@dataclass
class Experiment:
    name: str | None = None
    kind: Literal["pretraining", "finetuning"] | None = None
    output_dir: str | None = None
    seed: int = 420


@dataclass
class Wandb:
    entity: str | None = None
    project: str = "encoders"
    run_name: str | None = None


@dataclass
class Logging:
    use_wandb: bool = False
    wandb: Wandb = field(default_factory=Wandb)
    log_eval_metrics: bool = True
    log_metrics_csv: bool = True
    log_gpu_memory: bool = False
    csv_train_metrics_path: str = "metrics/train/metrics.csv"
    csv_eval_metrics_path: str = "metrics/eval/metrics.csv"


@dataclass
class Tokenizer:
    wrapper_path: str | None = None
    vocab_dir: str | None = None
    max_length: Count = 512


@dataclass
class Rope:
    rope_base: Positive = 10000.0
    rope_scale: Positive = 1.0


@dataclass
class Exact:
    use_native_sdpa: bool = True


@dataclass
class LSH:
    num_hashes: Count = 4
    chunk_size: Count = 64
    mask_within_chunks: bool = False


@dataclass
class Favor:
    nb_features: Count = 256
    ortho_features: bool = True
    redraw_interval: Whole = 0
    phi: Literal["exp", "elu", "relu2"] = "exp"
    stabilize: bool = True
    eps: NonNegative = 1e-6


@dataclass
class Attention:
    attention_embedding_dim: Count | None = None
    num_heads: Count = 4
    projection_bias: bool = True
    attn_out_dropout: Dropout = 0.1
    attn_dropout: Dropout = 0.0
    kind: Literal["mha", "lsh", "favor"] = "mha"
    mha: Exact = field(default_factory=Exact)
    lsh: LSH = field(default_factory=LSH)
    favor: Favor = field(default_factory=Favor)


@dataclass
class Architecture:
    embedding_dim: Count = 128
    num_layers: Count = 2
    mlp_size: Count = 256
    mlp_dropout: Dropout = 0.1
    embedding_dropout: Dropout = 0.1
    pos_encoding: Literal["rope", "learned", "sinusoidal"] = "rope"
    rope: Rope = field(default_factory=Rope)
    attention: Attention = field(default_factory=Attention)


@dataclass
class MLMHead:
    tie_mlm_weights: bool = True
    mask_p: Fraction = 0.15
    mask_token_p: Fraction = 0.8
    random_token_p: Fraction = 0.1


@dataclass
class ClassificationHead:
    num_labels: Count = 2
    classifier_dropout: Dropout = 0.1
    pooling: Literal["cls", "mean", "max", "min"] = "cls"
    pooler_type: Literal["bert", "roberta"] | None = "bert"


@dataclass
class Resume:
    is_resume: bool = False
    resume_pretraining_name: str | None = config.option(None, alias=("resume_pretrainig_name",))
    checkpoint_path: str | None = None
    strict: bool = True
    load_only_model_state: bool = False


@dataclass
class Training:
    batch_size: Count = 16
    epochs: Count = 3
    learning_rate: NonNegative = 2e-5
    warmup_ratio: Fraction = 0.1
    min_lr_ratio: Fraction = 0.2
    weight_decay: NonNegative = 0.01
    max_grad_norm: NonNegative = 1.0
    grad_accum_steps: Count = 1
    use_amp: bool = True
    loss: Literal["cross_entropy"] = "cross_entropy"
    device: Literal["auto", "gpu", "cpu"] = "auto"


@dataclass
class PretrainingRun(Training):
    resume: Resume = field(default_factory=Resume)


@dataclass
class FinetuningRun(Training):
    epochs: Count = 2
    learning_rate: NonNegative = 2e-4
    head_lr_mult: NonNegative = 1.0
    backbone_lr_mult: NonNegative = 0.5
    freeze: bool = False
    freeze_epochs: Whole = 0
    freeze_n_layers: Whole = 0
    freeze_embeddings: bool = False


@dataclass
class PretrainedExperiment:
    name: str | None = None
    path: str | None = None
    checkpoint: str | None = "checkpoints/best-model.ckpt"


@dataclass
class Split:
    dataset_path: str | None = None
    shuffle: bool = False


@dataclass
class TrainSplit(Split):
    shuffle: bool = True


@dataclass
class Data:
    train: TrainSplit = field(default_factory=TrainSplit)
    val: Split = field(default_factory=Split)
    test: Split = field(default_factory=Split)


@dataclass
class Pretraining:
    experiment: Experiment = field(default_factory=Experiment)
    logging: Logging = field(default_factory=Logging)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    architecture: Architecture = field(default_factory=Architecture)
    mlm_head: MLMHead = field(default_factory=MLMHead)
    training: PretrainingRun = field(default_factory=PretrainingRun)
    data: Data = field(default_factory=Data)


@dataclass
class Finetuning:
    experiment: Experiment = field(default_factory=Experiment)
    logging: Logging = field(default_factory=Logging)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    architecture: Architecture = field(default_factory=Architecture)
    classification_head: ClassificationHead = field(default_factory=ClassificationHead)
    training: FinetuningRun = field(default_factory=FinetuningRun)
    pretrained_experiment: PretrainedExperiment = field(default_factory=PretrainedExperiment)
    data: Data = field(default_factory=Data)


KINDS = {"pretraining": Pretraining, "finetuning": Finetuning}

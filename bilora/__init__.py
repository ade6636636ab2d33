"""Bi-LoRA and the fine-tuning methods it is compared with, on transformers and PEFT."""

from bilora.checkpoints import save_adapter
from bilora.config import BiLoraConfig
from bilora.methods import METHODS, Method, build_method
from bilora.optimizers import attach, bilora_optimizer
from bilora.snapshots import SnapshotCallback, load_snapshots
from bilora.trainer import BiLoraTrainer

__all__ = [
    "METHODS",
    "BiLoraConfig",
    "BiLoraTrainer",
    "Method",
    "SnapshotCallback",
    "attach",
    "bilora_optimizer",
    "build_method",
    "load_snapshots",
    "save_adapter",
]

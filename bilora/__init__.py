"""Bi-LoRA and the fine-tuning methods it is compared with, on transformers and PEFT."""

from bilora.checkpoints import save_adapter
from bilora.config import BiLoraConfig
from bilora.loops import attach, bilora_optimizer
from bilora.methods import METHODS, Method, build_method
from bilora.minima import Minimum, minimum
from bilora.snapshots import SnapshotCallback, load_snapshots
from bilora.trainer import BiLoraTrainer
from bilora.watching import CurvatureCallback

__all__ = [
    "METHODS",
    "BiLoraConfig",
    "BiLoraTrainer",
    "CurvatureCallback",
    "Method",
    "Minimum",
    "SnapshotCallback",
    "attach",
    "bilora_optimizer",
    "build_method",
    "load_snapshots",
    "minimum",
    "save_adapter",
]

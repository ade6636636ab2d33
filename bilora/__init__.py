"""Bi-LoRA and the fine-tuning methods it is compared with, on transformers and PEFT."""

from bilora import _installed  # noqa: F401  first, so that it speaks before an import fails
from bilora.checkpoints import save_adapter
from bilora.config import BiLoraConfig
from bilora.loops import attach, bilora_optimizer
from bilora.measured import Minimum
from bilora.methods import METHODS, Method, build_method
from bilora.minima import minimum
from bilora.snapshots import SnapshotCallback, load_snapshots
from bilora.trainer import BiLoraSeq2SeqTrainer, BiLoraTrainer
from bilora.watching import CurvatureCallback

__all__ = [
    "METHODS",
    "BiLoraConfig",
    "BiLoraSeq2SeqTrainer",
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

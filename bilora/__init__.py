"""Bi-LoRA and the fine-tuning methods it is compared with, on transformers and PEFT."""

from bilora.config import BiLoraConfig
from bilora.methods import METHODS, Method, build_method
from bilora.trainer import BiLoraTrainer

__all__ = ["METHODS", "BiLoraConfig", "BiLoraTrainer", "Method", "build_method"]

"""Says at the first import of this package what it lacks."""

from landscape.requirements import require

require("bilora", ["transformers", "peft", "accelerate", "pydantic", "yaml", "safetensors"], extra="train")

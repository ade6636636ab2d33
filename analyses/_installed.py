"""Says at the first import of this package what it lacks."""

from landscape.requirements import require

require(
    "analyses",
    [
        *("transformers", "peft", "pydantic", "yaml", "safetensors", "pandas", "pyarrow", "matplotlib", "sklearn"),
        *("statsmodels", "jsonargparse", "joblib", "jinja2", "tqdm"),
    ],
    extra="audit",
)

"""Says at the first import of this package what it lacks."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDED = [
    *("transformers", "peft", "pydantic", "yaml", "safetensors", "pandas", "pyarrow", "matplotlib", "sklearn"),
    *("statsmodels", "jsonargparse", "joblib", "jinja2", "tqdm", "plotly", "rich"),
]

if not all(find_spec(name) for name in _NEEDED):
    from landscape.requirements import require  # loads torch, for which those who read records alone need not wait

    require("analyses", _NEEDED, extra="audit")

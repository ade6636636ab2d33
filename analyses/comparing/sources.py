"""Minima from wherever they lie: run folders, Hugging Face folders, adapters on a base, state dictionaries."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from analyses.running.damage import refuse_damaged
from analyses.study import Cell, Study, StudyError, StudyFolder
from analyses.training.runs import RUN, load_minimum, read_run, run_at
from bilora import Minimum, minimum
from bilora.minima import load_whole

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")
_NESTED = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts put the weights."""
_AVERAGED = "n_averaged"
"""How many weights torch's `AveragedModel` holds the mean of."""
_EXPECTED = (
    "a run folder, a Hugging Face folder, BASE+ADAPTER (a model's folder and a PEFT adapter's), or with --model a "
    ".safetensors state dictionary"
)


@dataclass(frozen=True)
class Reader:
    """How models are made where a place holds weights alone.

    Attributes:
        factory: Makes the network that a state dictionary belongs to.
        base: Loads the plain model under an adapter from its folder; None for the class that its config.json names.
        pickles: Whether ``.pt`` files may be read, by PyTorch's restricted reader, which runs no code.
    """

    factory: Callable[[], nn.Module] | None = None
    base: Callable[[Path], nn.Module] | None = None
    pickles: bool = False


def named_places(given: Sequence[str]) -> dict[str, str]:
    """Places by name: ``NAME=PLACE``, or the name of the folder or file, of the adapter for ``BASE+ADAPTER``.

    Where two are named alike, the whole place is the name.

    >>> named_places(["runs/sgd", "best=runs/sam"])
    {'sgd': 'runs/sgd', 'best': 'runs/sam'}
    """
    pairs = []
    for one in given:
        name, sign, place = one.partition("=")
        named = bool(sign) and not Path(one).exists()
        own = one if Path(one).exists() else one.rpartition("+")[2]
        pairs.append((name, place) if named else (Path(own).name, one))
    counts = Counter(name for name, _ in pairs)
    places = {name if counts[name] == 1 else place: place for name, place in pairs}
    if len(places) < len(pairs) or "" in places:
        raise StudyError(f"MINIMUM: expected different names, got {', '.join(given)}; give them as NAME=PLACE")
    return places


def read_minimum(place: str, reader: Reader) -> Minimum:
    """The minimum at a place.

    Raises:
        StudyError: There is none, it cannot be read, or what it needs beside it is missing.
    """
    path = Path(place)
    try:
        if not path.exists() and "+" in place:
            base, _, adapter = place.rpartition("+")
            return _adapter(Path(base), Path(adapter), reader)
        if (path / RUN).is_file():
            return load_minimum(*run_of(path))
        if path.is_dir():
            return _folder(path, reader)
        if path.is_file():
            return _state_dictionary(path, reader)
    except StudyError:
        raise
    except Exception as error:  # loaders raise what they like about broken files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StudyError(f"MINIMUM: cannot read {place}: {reason}") from error
    raise StudyError(f"MINIMUM: {place} does not exist; expected {_EXPECTED}")


def run_of(path: Path) -> tuple[Study, Cell, StudyFolder]:
    """Study, cell and folder of a run folder.

    Raises:
        StudyError: Its pretrained model is missing, or it diverged.
    """
    found = run_at(path)
    refuse_damaged(*found)
    if diverged := read_run(path)["diverged"]:
        raise StudyError(f"RUN: {path} diverged ({diverged}): there is no minimum")
    return found


def _folder(path: Path, reader: Reader) -> Minimum:
    if (path / "config.json").is_file():
        return minimum(path)
    if (path / "adapter_config.json").is_file():
        base = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path") or ""
        if not Path(base).is_dir():
            raise StudyError(f"MINIMUM: {path} holds an adapter of {base or 'an unknown model'}; give BASE+{path}")
        return _adapter(Path(base), path, reader)
    raise StudyError(f"MINIMUM: {path} holds neither {RUN}, config.json nor adapter_config.json; expected {_EXPECTED}")


def _adapter(base: Path, adapter: Path, reader: Reader) -> Minimum:
    for part, wanted in ((base, "config.json"), (adapter, "adapter_config.json")):
        if not (part / wanted).is_file() and not (part / "primary" / wanted).is_file():
            raise StudyError(f"MINIMUM: {base}+{adapter}: {part} has no {wanted}; expected BASE+ADAPTER, two folders")
    model = load_whole(base) if reader.base is None else reader.base(base)
    return minimum(adapter, base=model)


def _state_dictionary(path: Path, reader: Reader) -> Minimum:
    if path.suffix in _PICKLED and not reader.pickles:
        raise StudyError(
            f"MINIMUM: {path} is a pickle, which can run code; give --weights-only to read it by PyTorch's restricted "
            "reader, or convert it: safetensors.torch.save_model(model, 'model.safetensors')"
        )
    if path.suffix not in (".safetensors", *_PICKLED):
        raise StudyError(f"MINIMUM: {path} is of no known kind; expected {_EXPECTED}")
    if reader.factory is None:
        raise StudyError(f"--model: {path} holds weights alone; say module:function, which makes their network")
    if path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever the pickle asks for
            raise StudyError(
                f"MINIMUM: {path} holds more than weights, and PyTorch's restricted reader refuses it; save "
                "model.state_dict() alone"
            ) from error
    model = reader.factory()
    if not isinstance(model, nn.Module):
        raise StudyError(f"--model: expected a function that makes a torch.nn.Module, got {type(model).__name__}")
    _load(model, _weights(tensors, path), path)
    return minimum(model.eval())


def _weights(content: Any, path: Path) -> dict[str, Tensor]:
    found = content
    if isinstance(content, Mapping):
        found = next((content[key] for key in _NESTED if isinstance(content.get(key), Mapping)), content)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise StudyError(
            f"MINIMUM: {path} holds no state dictionary: expected tensors by name, or such a dictionary under one of "
            f"{', '.join(_NESTED)}"
        )
    return {name: tensor for name, tensor in found.items() if name != _AVERAGED}


def _load(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    wanted = model.state_dict()
    weights = _with_twins(_unwrapped(weights, wanted, path), wanted)
    wrong = {
        "lacks": sorted(wanted.keys() - weights.keys()),
        "has too much": sorted(weights.keys() - wanted.keys()),
        "has in another shape": [n for n in wanted.keys() & weights.keys() if wanted[n].shape != weights[n].shape],
    }
    problems = [f"{kind} {', '.join(names[:3])}{' …' if names[3:] else ''}" for kind, names in wrong.items() if names]
    if problems:
        raise StudyError(f"MINIMUM: {path} does not fit the network of --model: it {'; it '.join(problems)}")
    model.load_state_dict(weights)


def _unwrapped(weights: dict[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights by the network's names, without what stands before them where something was trained around it.

    That is ``module.`` of data parallelism, ``_orig_mod.`` of compilation, or the attribute of a larger module, of
    Lightning's say, which may hold more than the network.
    """
    if wanted.keys() & weights.keys():
        return weights
    prefixes = {name.removesuffix(own) for own in wanted for name in weights if name.endswith(f".{own}")}
    inner = {
        prefix: {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        for prefix in sorted(prefixes)
    }
    whole = {prefix: found for prefix, found in inner.items() if not wanted.keys() - _with_twins(found, wanted).keys()}
    if len(whole) > 1:
        raise StudyError(
            f"MINIMUM: {path} holds {len(whole)} networks that fit, under {', '.join(whole)}; save the one meant alone"
        )
    return next(iter((whole or inner).values()), weights)


def _with_twins(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights with those that are tied to them: safetensors holds each once."""
    complete = dict(weights)
    for name in wanted.keys() - weights.keys():
        twin = next((own for own in wanted.keys() & weights.keys() if wanted[own].is_set_to(wanted[name])), None)
        if twin is not None:
            complete[name] = weights[twin]
    return complete

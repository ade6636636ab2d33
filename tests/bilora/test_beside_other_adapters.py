"""An auxiliary beside adapters that are no LoRA: PEFT's other kinds and modules of one's own over frozen weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import (
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from bilora import BiLoraConfig, BiLoraTrainer, build_method, minimum
from bilora.attaching import target_layers
from landscape import EmpiricalRisk, next_token_cross_entropy
from tests.bilora.conftest import TARGETS, config_of, make_method, one_step
from tests.bilora.test_trainer import dataset, tiny_vit
from tests.bilora.test_trainer_features import StopAt

Batch = tuple[Tensor, Tensor]
AUXILIARIES = ["bilora", "bilora_stale", "bilora_fresh", "bilora_inner", "dual_lora", "random_aux"]


class Bottleneck(nn.Module):
    """Houlsby's adapter: down, nonlinearity, up, beside a skip connection; zero at the start."""

    def __init__(self, below: nn.Module, width: int) -> None:
        super().__init__()
        self.below, self.down, self.up = below, nn.Linear(width, 3), nn.Linear(3, width)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.below(x)
        return out + self.up(torch.tanh(self.down(out)))


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **still))


def with_bottleneck() -> nn.Module:
    model = tiny_vit().requires_grad_(False)
    torch.manual_seed(3)
    model.vit.layernorm = Bottleneck(model.vit.layernorm, 16)
    return model


def prepared(plain: Callable[[], nn.Module], settings: Callable[[], PeftConfig]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        model = plain()
        torch.manual_seed(3)
        return get_peft_model(model, settings())

    return made


LAYERS = ["k_proj", "q_proj", "fc1"]
KINDS: dict[str, Callable[[], nn.Module]] = {
    "ia3": prepared(
        tiny_vit, lambda: IA3Config(target_modules=LAYERS, feedforward_modules=["fc1"], modules_to_save=["classifier"])
    ),
    "vera": prepared(
        tiny_vit, lambda: VeraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    ),
    "norms": prepared(tiny_vit, lambda: LNTuningConfig(target_modules=["layernorm_before"])),
    "bottleneck": with_bottleneck,
    "prefix": prepared(tiny_gpt2, lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
    "prompt": prepared(tiny_gpt2, lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)),
}
OF_GPT2 = ("prefix", "prompt")


def examples(kind: str) -> list[dict[str, Tensor]]:
    if kind not in OF_GPT2:
        return dataset()
    tokens = torch.randint(0, 20, (10, 6), generator=torch.Generator().manual_seed(4))
    return [{"input_ids": row, "labels": row} for row in tokens]


def inputs(kind: str) -> dict[str, Tensor]:
    rows = examples(kind)
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


@torch.no_grad()
def logits(model: nn.Module, kind: str) -> Tensor:
    out: Tensor = model.eval()(**inputs(kind)).logits
    return out


def trainer(place: Path, kind: str, name: str, model: nn.Module | None = None, **options: Any) -> BiLoraTrainer:
    whole = {} if name in ("full", "sam") else {"primary": options.pop("primary", "full"), "r": options.pop("r", 2)}
    whole = {key: value for key, value in whole.items() if value is not None}
    layers = ["c_attn", "c_fc"] if kind in OF_GPT2 else ["q_proj", "fc1"]
    settings = config_of(name, rho=options.pop("rho", 0.3), target_modules=layers, **whole)
    callbacks = options.pop("callbacks", [])
    chosen = {"max_steps": 6, "save_strategy": "no"} | options
    arguments = TrainingArguments(
        output_dir=str(place), per_device_train_batch_size=4, learning_rate=0.02, seed=5, logging_strategy="no",
        report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False, **chosen,
    )  # fmt: skip
    model = model or KINDS[kind]()
    return BiLoraTrainer(model, arguments, bilora=settings, train_dataset=examples(kind), callbacks=callbacks)


def of_the_model(run: BiLoraTrainer) -> dict[str, Tensor]:
    named = [(name, p) for name, p in run.model.named_parameters() if ".lora_" not in name]
    return {name: p.detach().clone() for name, p in named}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("ia3", name) for name in AUXILIARIES] + [(kind, name) for kind in KINDS for name in ("bilora", "bilora_stale")],
)
def test_what_the_model_trains_is_trained_and_nothing_else(tmp_path: Path, kind: str, name: str) -> None:
    given = KINDS[kind]()
    trained = [p.requires_grad for p in given.parameters()]
    run = trainer(tmp_path, kind, name, given)
    before = of_the_model(run)
    assert [p.requires_grad for key, p in run.model.named_parameters() if ".lora_" not in key] == trained
    run.train()
    moved = [not torch.equal(p, before[key]) for key, p in of_the_model(run).items()]
    assert moved == trained
    assert torch.isfinite(torch.tensor(run.step_losses)).all()


@pytest.mark.parametrize("name", ["bilora", "bilora_fresh"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_radius_it_is_the_models_own_training(tmp_path: Path, kind: str, name: str) -> None:
    plain, mine = trainer(tmp_path / "a", kind, "full"), trainer(tmp_path / "b", kind, name, rho=0.0)
    plain.train()
    mine.train()
    for (key, expected), got in zip(of_the_model(plain).items(), of_the_model(mine).values(), strict=True):
        assert torch.equal(expected, got), key


def test_one_step_beside_ia3_by_hand(network: nn.Module, batch: Batch) -> None:
    """Layers 0 (scaled at its output) and 2 (at its input), against a projected SAM step on the merged weights."""
    given = get_peft_model(
        copy.deepcopy(network), IA3Config(target_modules=TARGETS, feedforward_modules=["2"])
    ).double()
    with torch.no_grad():
        for index, vector in enumerate(p for p in given.parameters() if p.requires_grad):
            vector.copy_(1 + 0.3 * torch.randn(vector.shape, generator=torch.Generator().manual_seed(index)))
    left = {key: p.detach().clone() for key, p in given.named_parameters() if p.requires_grad}
    out, into = (next(p for key, p in left.items() if f".{layer}." in key).flatten() for layer in TARGETS)
    method = make_method(given, "bilora_fresh", rho=0.2, primary="full", ascent_fraction=1.0)
    rows = {key.rsplit(".", 1)[-1]: pair.A.detach().clone() for key, pair in method.auxiliary.items()}

    def loss(vectors: list[Tensor], epsilons: dict[str, Tensor | float]) -> Tensor:
        first, last = network[0], network[2]
        hidden = F.linear(batch[0], first.weight.detach() * vectors[0][:, None] + epsilons["0"])
        hidden = torch.tanh(hidden + first.bias.detach() * vectors[0])
        hidden = torch.tanh(F.linear(hidden, last.weight.detach() * vectors[1] + epsilons["2"], last.bias.detach()))
        return F.cross_entropy(network[4](hidden), batch[1])

    zeros = {layer: torch.zeros_like(network[int(layer)].weight, requires_grad=True) for layer in TARGETS}
    slopes = torch.autograd.grad(loss([out, into], dict(zeros)), list(zeros.values()))
    cut = {layer: g @ rows[layer].T @ rows[layer] for layer, g in zip(TARGETS, slopes, strict=True)}
    norm = torch.cat([part.flatten() for part in cut.values()]).norm()
    vectors = [out.clone().requires_grad_(), into.clone().requires_grad_()]
    there = torch.autograd.grad(loss(vectors, {key: 0.2 / norm * part for key, part in cut.items()}), vectors)
    one_step(method, batch, lr=0.1)
    after = [p for key, p in method.model.named_parameters() if ".ia3_l." in key]
    for got, vector, gradient in zip(after, vectors, there, strict=True):
        torch.testing.assert_close(got.flatten(), vector - 0.1 * gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["bilora", "bilora_fresh", "full", "sam"])
@pytest.mark.parametrize("kind", ["ia3", "vera", "prefix", "bottleneck"])
def test_what_is_saved_is_what_was_trained(tmp_path: Path, kind: str, name: str) -> None:
    run = trainer(tmp_path, kind, name)
    run.train()
    run.save_model(str(tmp_path / "result"))
    deployed = logits(run.model, kind)
    if kind == "bottleneck":
        loaded = with_bottleneck()
        load_model(loaded, str(tmp_path / "result" / "model.safetensors"), strict=False) if name not in (
            "full",
            "sam",
        ) else loaded.load_state_dict(run.model.state_dict())
    else:
        base = tiny_gpt2() if kind in OF_GPT2 else tiny_vit()
        loaded = PeftModel.from_pretrained(base, tmp_path / "result")
    torch.testing.assert_close(logits(loaded, kind), deployed)
    assert not list((tmp_path / "result").rglob("*auxiliary*"))


@pytest.mark.parametrize("name", ["bilora", "bilora_stale", "bilora_fresh", "full"])
@pytest.mark.parametrize("kind", ["ia3", "prefix"])
def test_resuming_continues_to_the_bit(tmp_path: Path, kind: str, name: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = trainer(tmp_path / "whole", kind, name, **options)
    whole.train()
    trainer(tmp_path / "part", kind, name, callbacks=[StopAt(3)], **options).train()
    resumed = trainer(tmp_path / "part", kind, name, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    for (key, expected), got in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(expected, got), key


def _after_prompt(outputs: Any, batch: Any) -> Tensor:
    guesses = outputs.logits[:, 3:-1].transpose(1, 2)
    return F.cross_entropy(guesses, batch["labels"][:, 1:], reduction="none").mean(dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_minimum_is_what_was_trained_without_the_auxiliary(tmp_path: Path, kind: str) -> None:
    run = trainer(tmp_path, kind, "bilora_fresh", save_strategy="steps", save_steps=6)
    frozen = {key: p for key, p in of_the_model(run).items() if key.endswith("weight")}
    run.train()
    found = minimum(run)
    deployed = logits(run.model, kind)
    torch.testing.assert_close(logits(found.model, kind), deployed)
    torch.testing.assert_close(logits(run.model, kind), deployed, rtol=0, atol=0)  # left as it was
    assert len(found.weight_names) == 2 and set(found.factors) == {"auxiliary"}
    merged = {"ia3", "vera", "norms"}
    assert isinstance(found.model, PeftModel) == (kind in OF_GPT2) and bool(found.updates) == (kind in merged)
    for name, update in found.updates.items():
        layer = name.removesuffix(".weight")
        (first,) = {p for key, p in frozen.items() if f"{layer}." in key and key.endswith("base_layer.weight")}
        torch.testing.assert_close(dict(found.model.named_parameters())[name], first + update)
    again = minimum(tmp_path / "checkpoint-6", base=KINDS[kind]())
    torch.testing.assert_close(logits(again.model, kind), deployed)
    assert again.weight_names == found.weight_names
    loss = next_token_cross_entropy if kind == "prefix" else None
    loss = _after_prompt if kind == "prompt" else loss  # its logits have rows of the prompt in front
    risk = EmpiricalRisk(found.model, [inputs(kind)], params=list(found.weight_names), loss=loss)
    assert risk.gradient().norm() > 0 and found.subspace(risk.layout, "auxiliary").dimension > 0


def test_evaluation_leaves_the_auxiliary_out_and_heads_on(tmp_path: Path) -> None:
    run = trainer(tmp_path, "ia3", "bilora", rho=5.0)
    run.train()
    deployed = logits(run.model, "ia3")
    run.method.engage()
    assert not torch.allclose(logits(run.model, "ia3"), deployed, atol=1e-3)
    torch.testing.assert_close(torch.tensor(run.predict(dataset()).predictions), deployed)


@pytest.mark.parametrize("targets", [["q_proj", "fc1"], r".*\.(q_proj|fc1)", "all-linear"])
def test_ia3_by_settings_is_pefts_ia3(tmp_path: Path, targets: list[str] | str) -> None:
    """To the bit what a model that PEFT prepared trains, and names of the plain model are taken."""
    runs = []
    for place, primary in (("by_settings", "ia3"), ("by_peft", "full")):
        model, names = tiny_vit(), targets
        if primary == "full":
            layers = target_layers(model, targets, ["classifier"])
            ia3 = IA3Config(target_modules=layers, feedforward_modules=[], modules_to_save=["classifier"])
            model, names = get_peft_model(model, ia3), layers
        saved = {} if primary == "full" else {"modules_to_save": ["classifier"]}
        settings = BiLoraConfig(method="bilora_fresh", primary=primary, r=2, rho=0.3, target_modules=names, **saved)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / place), max_steps=4, per_device_train_batch_size=4, learning_rate=0.02,
            report_to=[], disable_tqdm=True, use_cpu=True, remove_unused_columns=False, save_strategy="no",
        )  # fmt: skip
        runs.append(BiLoraTrainer(model, arguments, bilora=settings, train_dataset=dataset()))
        runs[-1].train()
    assert all(torch.equal(a, b) for a, b in zip(*(run.model.parameters() for run in runs), strict=True))
    runs[0].save_model(str(tmp_path / "result"))
    found, again = minimum(runs[0]), minimum(tmp_path / "result", base=tiny_vit())
    assert again.weight_names == found.weight_names and all(
        name in dict(tiny_vit().named_parameters()) for name in found.weight_names
    )
    torch.testing.assert_close(logits(again.model, "ia3"), logits(found.model, "ia3"))


def test_ia3_alone_is_the_method_lora_and_nothing_with_factors(tmp_path: Path) -> None:
    run = trainer(tmp_path, "bottleneck", "lora", tiny_vit(), primary="ia3", r=None)
    before = minimum(run)
    run.train()
    assert any(bool(update.any()) for update in minimum(run).updates.values()) and before.weight_names
    assert sum(p.numel() for p in run.model.parameters() if p.requires_grad) == 32
    for name in ("lora_sam", "lora_sam_full", "flat_lora", "lora_2r"):
        with pytest.raises(ValueError, match=f"primary: {name} trains or moves an adapter's factors"):
            build_method(tiny_vit(), BiLoraConfig(method=name, primary="ia3", target_modules=["fc1"]), seed=0)
    with pytest.raises(ValueError, match="primary: ia3 scales outputs and has no primary adapter to which share"):
        BiLoraConfig(primary="ia3", share="A")


@pytest.mark.parametrize(
    "settings",
    [
        LoHaConfig(target_modules=["q_proj", "fc1"], r=2, init_weights=False),
        LoKrConfig(target_modules=["q_proj", "fc1"], r=2, init_weights=False),
        OFTConfig(target_modules=["q_proj", "fc1"], oft_block_size=4, init_weights=False),
        IA3Config(target_modules=["q_proj", "fc1"], feedforward_modules=["fc1"], init_ia3_weights=False),
    ],
    ids=lambda settings: settings.peft_type.value,
)
def test_adapters_of_another_kind_alone_have_a_minimum(tmp_path: Path, settings: PeftConfig) -> None:
    torch.manual_seed(6)
    model = get_peft_model(tiny_vit(), settings)
    model.save_pretrained(tmp_path)
    for found in (minimum(model), minimum(tmp_path, base=tiny_vit())):
        torch.testing.assert_close(logits(found.model, "ia3"), logits(model, "ia3"), rtol=1e-4, atol=1e-5)
        first, after = dict(tiny_vit().named_parameters()), dict(found.model.named_parameters())
        assert len(found.weight_names) == 2 and not found.factors
        for name in found.weight_names:
            assert not torch.equal(after[name], first[name])
            torch.testing.assert_close(after[name], first[name] + found.updates[name])
    model.disable_adapter_layers()
    with pytest.raises(ValueError, match=r"source: the model's adapters are merged already, or off"):
        minimum(model)


def test_what_cannot_be_is_refused(network: nn.Module) -> None:
    settings = BiLoraConfig(method="bilora_fresh", primary="full", r=2, target_modules=TARGETS)
    lora = get_peft_model(copy.deepcopy(network), LoraConfig(target_modules=TARGETS))
    with pytest.raises(ValueError, match=r"adapters of another kind than LoRA; got LoRA at .*BiLoraConfig.from_lora"):
        build_method(lora, settings, seed=0)
    scaled = get_peft_model(copy.deepcopy(network), IA3Config(target_modules=TARGETS, feedforward_modules=[]))
    with pytest.raises(ValueError, match=r"model: expected a plain model, got one that holds an adapter at 0"):
        build_method(scaled.get_base_model(), settings, seed=0)
    with pytest.raises(ValueError, match=r"model: expected a plain model, got one with adapters"):
        build_method(scaled, BiLoraConfig(method="bilora", r=2, target_modules=TARGETS), seed=0)
    inside = settings.model_copy(update={"target_modules": ["0.base_layer"]})
    with pytest.raises(ValueError, match=r"target_modules: base_model.model.0.base_layer lies inside an adapter"):
        build_method(scaled, inside, seed=0)
    scaled.merge_adapter()
    with pytest.raises(ValueError, match=r"model: the adapter at base_model.model.0 is merged"):
        build_method(scaled, settings, seed=0)

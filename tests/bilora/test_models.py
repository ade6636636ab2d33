"""Model families, primaries and training loops of one's own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, LoraGAConfig, PeftModel
from peft.tuners.lora.loraga import preprocess_loraga
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from bilora import METHODS, BiLoraConfig, BiLoraSeq2SeqTrainer, BiLoraTrainer, attach, bilora_optimizer, build_method
from bilora.adapters import PRIMARY, adapted_layers, adapter_factors, only_adapters
from bilora.clipping import adapter_norm
from bilora.parts import first_examples
from tests.bilora.conftest import TARGETS, config_of, make_method
from tests.bilora.test_trainer import dataset, tiny_vit

Batch = tuple[Tensor, Tensor]
KINDS = ["lora", "rslora", "dora", "pissa", "lora_ga"]


def bert() -> tuple[PreTrainedModel, dict[str, Tensor], list[str]]:
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    batch = {"input_ids": torch.arange(12).view(2, 6), "labels": torch.tensor([0, 1])}
    return BertForSequenceClassification(config), batch, ["query", "value"]


def llama() -> tuple[PreTrainedModel, dict[str, Tensor], list[str]]:
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20,
        pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    tokens = torch.arange(12).view(2, 6)
    return LlamaForCausalLM(config), {"input_ids": tokens, "labels": tokens}, ["q_proj", "v_proj", "down_proj"]


def t5() -> tuple[PreTrainedModel, dict[str, Tensor], list[str]]:
    config = T5Config(
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        vocab_size=20,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    tokens = torch.arange(12).view(2, 6)
    return T5ForConditionalGeneration(config), {"input_ids": tokens, "labels": tokens}, ["q", "v"]


@pytest.mark.parametrize("family", [bert, llama, t5])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_every_family(tmp_path: Path, family, method: str) -> None:
    torch.manual_seed(0)
    model, batch, targets = family()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=2, learning_rate=0.02, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    data = [{key: value[i] for key, value in batch.items()} for i in range(2)]
    config = config_of(method, r=2, rho=0.01, target_modules=targets)
    trainer = BiLoraTrainer(model, arguments, bilora=config, train_dataset=data)
    trainer.train()
    assert trainer.step_losses[-1] < trainer.step_losses[0]


def test_texts_are_generated_without_the_auxiliary(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch, targets = t5()
    options = {
        "output_dir": str(tmp_path), "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 0.05,
        "report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    data = [{key: value[i] for key, value in batch.items()} for i in range(2)]
    config = BiLoraConfig(r=2, rho=5.0, target_modules=targets)
    with pytest.raises(ValueError, match=r"args: expected transformers.Seq2SeqTrainingArguments, .* got TrainingArgum"):
        BiLoraSeq2SeqTrainer(model, TrainingArguments(**options), bilora=config)
    arguments = Seq2SeqTrainingArguments(**options, predict_with_generate=True, generation_max_length=5)
    trainer = BiLoraSeq2SeqTrainer(model, arguments, bilora=config, train_dataset=data)
    trainer.train()
    predicted = torch.tensor(trainer.predict(data).predictions)
    with torch.no_grad(), only_adapters(trainer.model, [PRIMARY]):
        merged = trainer.model.merge_and_unload().eval()
    expected = merged.generate(input_ids=batch["input_ids"], max_length=5)
    torch.testing.assert_close(predicted[:, : expected.shape[1]], expected)
    shorter = GenerationConfig(max_length=3, decoder_start_token_id=0, pad_token_id=0)
    arguments = Seq2SeqTrainingArguments(**options, predict_with_generate=True, generation_config=shorter)
    trainer = BiLoraSeq2SeqTrainer(t5()[0], arguments, bilora=config, train_dataset=data)
    assert trainer.predict(data).predictions.shape[1] == 3


def start(kind: str) -> PreTrainedModel:
    """The tiny ViT, with the gradients that LoRA-GA starts from."""
    model = tiny_vit()
    if kind == "lora_ga":
        targets = ["q_proj", "fc1"]
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig())
        batch = {key: torch.stack([e[key] for e in dataset()]) for key in dataset()[0]}

        def gradient() -> None:
            model(**batch).loss.backward()

        preprocess_loraga(model, config, gradient)
    return model


def train(model: nn.Module, tmp_path: Path, kind: str) -> BiLoraTrainer:
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=0.02, report_to=[],
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    config = BiLoraConfig(r=2, rho=0.3, target_modules=["q_proj", "fc1"], primary=kind)
    trainer = BiLoraTrainer(model, arguments, bilora=config, train_dataset=dataset())
    trainer.train()
    return trainer


@pytest.mark.parametrize("kind", KINDS)
def test_auxiliary_adds_to_the_merged_weight_of_every_primary(tmp_path: Path, kind: str) -> None:
    """With both adapters on, a layer is x (W_merged + s B2 A2)': the auxiliary is no part of DoRA's norm."""
    trainer = train(start(kind), tmp_path, kind)
    model, auxiliary = trainer.model, trainer.method.auxiliary
    trainer.method.engage()
    assert 0 < float(adapter_norm(auxiliary.values())) <= 0.3 * (1 + 1e-6)
    images = torch.stack([example["pixel_values"] for example in dataset()])
    deltas = {name: pair.delta_weight.detach().clone() for name, pair in auxiliary.items()}
    with torch.no_grad():
        both = model.eval()(pixel_values=images).logits
        with only_adapters(model, [PRIMARY]):
            merged = model.merge_and_unload()
        for name, delta in deltas.items():
            merged.get_submodule(name).weight.add_(delta)
        torch.testing.assert_close(merged(pixel_values=images).logits, both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_primary_of_every_kind_computes_what_was_trained(tmp_path: Path, kind: str) -> None:
    trainer = train(start(kind), tmp_path, kind)
    trainer.save_model(str(tmp_path / "result"))
    loaded = PeftModel.from_pretrained(tiny_vit(), str(tmp_path / "result")).eval()
    images = torch.stack([example["pixel_values"] for example in dataset()])
    with torch.no_grad():
        logits = torch.tensor(trainer.predict(dataset()).predictions)
        torch.testing.assert_close(loaded(pixel_values=images).logits, logits, rtol=1e-4, atol=1e-5)


def test_what_is_uploaded_is_the_primary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Trainer.push_to_hub` saves into the output folder, and uploads all of that but its checkpoints."""
    trainer = train(start("lora"), tmp_path, "lora")
    trainer.save_model(_internal_call=True)  # as push_to_hub calls it
    loaded = PeftModel.from_pretrained(tiny_vit(), str(tmp_path)).eval()
    images = torch.stack([example["pixel_values"] for example in dataset()])
    with torch.no_grad():
        logits = torch.tensor(trainer.predict(dataset()).predictions)
        torch.testing.assert_close(loaded(pixel_values=images).logits, logits, rtol=1e-4, atol=1e-5)
    uploads: list[str] = []
    monkeypatch.setattr(trainer, "push_to_hub", lambda commit_message: uploads.append(commit_message))  # noqa: PLW0108  # a keyword
    trainer.save_model(str(tmp_path / "aside"))
    assert uploads == []
    trainer.args.push_to_hub = True
    trainer.save_model(str(tmp_path / "aside"))
    assert uploads == ["Model save"]


def test_primaries_that_do_not_fit_are_refused_with_the_reason() -> None:
    for method in ("lora_sam_full", "flat_lora"):
        with pytest.raises(ValueError, match="moves the frozen weight, and under dora"):
            build_method(tiny_vit(), BiLoraConfig(method=method, primary="dora", target_modules=["q_proj"]), seed=0)
    with pytest.raises(ValueError, match="preprocess_loraga"):
        build_method(tiny_vit(), BiLoraConfig(primary="lora_ga", target_modules=["q_proj"]), seed=0)
    with pytest.raises(ValueError, match=r"bilora\.minimum"):
        model = build_method(tiny_vit(), BiLoraConfig(method="lora", target_modules=["q_proj"]), seed=0).model
        build_method(model, BiLoraConfig(target_modules=["q_proj"]), seed=0)
    with pytest.raises(ValueError, match="modules_to_save: 'head' matches no module"):
        build_method(tiny_vit(), BiLoraConfig(target_modules=["q_proj"], modules_to_save=["head"]), seed=0)
    with pytest.raises(ValueError, match="one rank"):
        BiLoraConfig(share="A", auxiliary_r=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_fused_adapters_are_the_sum_of_their_products(network: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
    method = make_method(network, "bilora", rho=1.0, auxiliary_r=3)
    model = method.model.to(dtype)
    generator = torch.Generator().manual_seed(4)
    for pair in [*method.primary.values(), *method.auxiliary.values()]:
        pair.B.data.copy_(torch.randn(pair.B.shape, generator=generator))
    x = batch[0].to(dtype)
    for layer in adapted_layers(model).values():
        inputs = torch.randn(4, 5, layer.in_features, generator=generator).to(dtype).requires_grad_()
        outputs = []
        for forward in (layer.forward, lambda x, layer=layer: super(type(layer), layer).forward(x)):
            out = forward(inputs)
            gradients = torch.autograd.grad(out.float().square().sum(), [inputs, *layer.lora_A.parameters()])
            outputs.append([out, *gradients])
        tolerance = 1e-12 if dtype == torch.float64 else 3e-2
        for fused, plain in zip(*outputs, strict=True):
            assert float((fused - plain).detach().norm() / plain.detach().norm()) < tolerance
    assert model(x).dtype == dtype


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW, torch.optim.NAdam])
def test_own_loop_takes_the_steps_of_the_method(network: nn.Module, batch: Batch, optimizer_class) -> None:
    settings = {"r": 2, "alpha": 6.0, "rho": 0.05, "target_modules": TARGETS}
    model = attach(copy.deepcopy(network), BiLoraConfig(**settings), seed=0).double()
    optimizer = bilora_optimizer(model, optimizer_class, lr=0.05)
    by_hand = make_method(network, "bilora", rho=0.05)
    primary, auxiliary = by_hand.parameter_groups(0.05)
    reference = optimizer_class([primary, auxiliary | {"maximize": True}], lr=0.05)
    for _ in range(5):
        for net, step in ((model, optimizer), (by_hand.model, reference)):
            F.cross_entropy(net(batch[0]), batch[1]).backward()
            step.step()
            step.zero_grad()
        by_hand.after_step()
    for a, b in zip(model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert 0 < float(adapter_norm(adapter_factors(model, "auxiliary").values())) <= 0.05 * (1 + 1e-6)


def test_own_loop_refuses_what_it_cannot_do(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="from bilora"):
        bilora_optimizer(network, torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="lora_sam takes the gradient in its own way"):
        config = BiLoraConfig(method="lora_sam", r=2, target_modules=TARGETS)
        bilora_optimizer(attach(copy.deepcopy(network), config), torch.optim.SGD, lr=0.1)
    config = BiLoraConfig(r=2, target_modules=TARGETS, rho_schedule="cosine")
    with pytest.raises(ValueError, match="num_steps"):
        bilora_optimizer(attach(copy.deepcopy(network), config), torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize(
    "method",
    [
        "bilora",
        "lora_sam",
        "sam",
        "lora_sam_full",
        "lora_sam_rank",
        "lora_sam_lag",
        "bilora_stale",
        "bilora_fresh",
        "bilora_inner",
    ],
)
def test_a_gradient_scaler_skips_a_step_that_overflows(network: nn.Module, batch: Batch, method: str) -> None:
    """fp16's protocol: at an infinite scaled gradient nothing moves and the scale shrinks."""
    from bilora.optimizers import method_optimizer

    prepared = make_method(network.float(), method, rho=0.05)
    prepared.model.float()
    optimizer = method_optimizer(prepared, torch.optim.SGD, lr=0.1)
    inputs, targets = batch[0].float(), batch[1]
    trained = prepared.primary_parameters()  # a fresh auxiliary is set before the scaler knows
    before = [p.detach().clone() for p in trained]
    for scale, moves in ((torch.finfo(torch.float32).max, False), (1024.0, True)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        def backward(fraction: float = 1.0, scaler: torch.amp.GradScaler = scaler) -> Tensor:
            part = first_examples({"x": inputs, "y": targets}, fraction)
            loss = F.cross_entropy(prepared.model(part["x"]), part["y"])
            scaler.scale(1e3 * loss).backward()
            return loss.detach()

        prepared.gradient(backward)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert any(not torch.equal(a, b) for a, b in zip(before, trained, strict=True)) == moves
        assert (scaler.get_scale() < scale) != moves
        assert all(bool(torch.isfinite(p).all()) for p in prepared.model.parameters())

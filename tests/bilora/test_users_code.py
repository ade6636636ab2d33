"""What users write around a training: closures, losses that switch modes, callbacks, a second training, own heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from bilora import METHODS, BiLoraConfig, BiLoraTrainer, attach, bilora_optimizer, save_adapter
from bilora.adapters import Factors
from bilora.methods import refreshed
from tests.bilora.small_bert import DATA, arguments, bert, settings, trainer


@pytest.mark.parametrize("method", ["bilora", "dual_lora", "bilora_stale", "lora"])
@pytest.mark.parametrize("by_name", [True, False])
def test_a_closure_gives_the_step_of_a_loop(method: str, by_name: bool) -> None:
    inputs, labels = torch.randn(16, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3

    def trained(*, closure: bool) -> list[Tensor]:
        torch.manual_seed(0)
        config = settings(method, rho=10.0, target_modules=["0", "2"])
        model = attach(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), config)
        optimizer = bilora_optimizer(model, torch.optim.AdamW, lr=0.01)

        def evaluate() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()
            return loss

        for _ in range(5):
            if not closure:
                evaluate()
                optimizer.step()
            elif by_name:
                assert optimizer.step(closure=evaluate) is not None
            else:
                optimizer.step(evaluate)
        return [p.detach() for p in model.parameters()]

    for mine, other in zip(trained(closure=True), trained(closure=False), strict=True):
        assert torch.equal(mine, other)


def test_a_loss_may_switch_the_mode(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Distilling(BiLoraTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            model.eval()
            with torch.no_grad():
                seen.append((model.training, torch.equal(model(**inputs).logits, model(**inputs).logits)))
            model.train()
            seen.append(model.training and model.base_model.model.bert.embeddings.dropout.training)
            return super().compute_loss(model, inputs, *args, **kwargs)

    trainer(tmp_path, settings(), bert(0.5), Distilling, max_steps=1).train()
    assert seen == [(False, True), True]


def test_every_step_trains_all_modules(tmp_path: Path) -> None:
    """A callback that samples from the plain model, say, leaves it in eval mode, and the trainer sets it back."""
    model, seen = bert(0.5), []

    class Sampling(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen.append(model.bert.embeddings.dropout.training)
            model.eval()

    trainer(tmp_path, settings(), model, callbacks=[Sampling()]).train()
    assert seen == [True] * 4


def test_a_models_own_way_to_train_is_kept(tmp_path: Path) -> None:
    model = bert(0.5)
    model.train = lambda mode=True: type(model).train(model, mode)
    mine = model.train
    BiLoraTrainer(model, arguments(tmp_path), bilora=BiLoraConfig(method="full"), train_dataset=DATA).train()
    assert model.train is mine


def test_layers_unfrozen_before_training_are_clipped_too(tmp_path: Path) -> None:
    def length(kind: type[Trainer], **options: Any) -> float:
        model = bert()
        model.bert.requires_grad_(False)
        one_step = arguments(tmp_path, optim="sgd", max_steps=1, learning_rate=1.0, max_grad_norm=1e-3)
        run = kind(model, one_step, train_dataset=DATA, **options)
        model.requires_grad_(True)
        before = [p.detach().clone() for p in model.parameters()]
        run.train()
        return float(torch.stack([(p - q).norm() for p, q in zip(model.parameters(), before, strict=True)]).norm())

    assert length(Trainer) == pytest.approx(1e-3, rel=1e-3)
    assert length(BiLoraTrainer, bilora=BiLoraConfig(method="full")) == pytest.approx(1e-3, rel=1e-3)


def test_callbacks_see_the_deployed_model_when_training_ends(tmp_path: Path) -> None:
    class Last(TrainerCallback):
        def on_train_end(self, *_: Any, model: Any = None, **__: Any) -> None:
            self.active = model.active_adapters

    last = Last()
    trainer(tmp_path, settings("bilora_stale", rho=1.0), callbacks=[last]).train()
    assert last.active == ["primary"]


@pytest.fixture
def cosines(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """cos of every perturbation that is set with G A⁺A or B B⁺G, by pseudo-inverses of the factors it came from."""
    found: list[float] = []
    original = refreshed.refresh

    def watched(factors: Any, learned: str, rho: float, **rest: Any) -> None:
        pairs: list[Factors] = list(factors)
        wanted = []
        for pair in pairs:
            a, b = pair.A.detach().double(), pair.B.detach().double()
            if learned == "B":
                wanted.append(pair.B.grad.double() / pair.scaling @ torch.linalg.pinv(a @ a.T) @ a)
            else:
                wanted.append(b @ torch.linalg.pinv(b.T @ b) @ (pair.A.grad.double() / pair.scaling))
        size = torch.sqrt(sum((one.square().sum() for one in wanted), torch.zeros(())))
        original(pairs, learned, rho, **rest)
        set_to = [pair.delta_weight.double() / rho for pair in pairs]
        found.append(float(sum(((w / size) * s).sum() for w, s in zip(wanted, set_to, strict=True))))

    monkeypatch.setattr(refreshed, "refresh", watched)
    return found


def test_a_second_training_takes_up_the_stale_auxiliarys_turn(tmp_path: Path, cosines: list[float]) -> None:
    run = trainer(tmp_path, settings("bilora_stale", rho=0.1, r=4), max_steps=3)
    run.train()
    run.train()
    assert cosines == pytest.approx([1.0] * 6, abs=1e-4)


def test_a_skipped_step_keeps_the_stale_auxiliarys_turn(tmp_path: Path, cosines: list[float]) -> None:
    class Overflowing(BiLoraTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if self.state.global_step == 2:
                loss.register_hook(lambda gradient: gradient * float("inf"))
            return loss

    config = settings("bilora_stale", rho=0.1, r=4)
    run = trainer(tmp_path, config, None, Overflowing, max_steps=6, optim="adamw_torch")
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    run.train()
    assert cosines == pytest.approx([1.0] * 5, abs=1e-4)


def test_dropping_gradients_drops_those_of_an_auxiliary_in_no_group() -> None:
    model = attach(nn.Sequential(nn.Linear(6, 3)), settings("bilora_stale", target_modules=["0"]))
    optimizer = bilora_optimizer(model, torch.optim.AdamW, lr=0.01)
    (model(torch.randn(4, 6)).sum() * float("inf")).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_second_training_begins_its_own_counts(tmp_path: Path) -> None:
    run = trainer(tmp_path, settings(rho=1e-4), max_steps=3)
    run.train()
    run.train()
    assert all(entry["clip_rate"] <= 1 for entry in run.state.log_history if "clip_rate" in entry)
    lagged = trainer(tmp_path, settings("lora_sam_lag", rho=0.1), max_steps=2)
    lagged.train()
    norms = []
    original = lagged.method.moved_by

    def watched(epsilons: Any) -> Any:
        norms.append(float(torch.stack([epsilon.norm() for epsilon in epsilons]).norm()))
        return original(epsilons)

    lagged.method.moved_by = watched
    lagged.train()
    assert norms == pytest.approx([0.0, 0.1], rel=1e-5)


def with_a_head() -> Any:
    model = bert()
    model.classifier = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    return model


def mixed() -> Any:
    model = bert().bfloat16()
    model.classifier.float()
    model.classifier.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    return model


_BEST = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1,
         "load_best_model_at_end": True}  # fmt: skip


def test_a_model_with_a_head_of_ones_own_resumes_and_loads_its_best(tmp_path: Path) -> None:
    run = trainer(tmp_path, BiLoraConfig(method="sam"), with_a_head(), **_BEST)
    run.train()
    assert run.evaluate()["eval_loss"] == pytest.approx(run.state.best_metric, rel=1e-6)
    resumed = trainer(tmp_path, BiLoraConfig(method="sam"), with_a_head(), **_BEST)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for (name, mine), other in zip(run.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_the_best_weights_keep_their_own_precisions(tmp_path: Path) -> None:
    run = trainer(tmp_path, BiLoraConfig(method="full"), mixed(), **_BEST)
    run.train()
    stored = load_file(Path(run.state.best_model_checkpoint) / "model.safetensors")["classifier.weight"]
    assert stored.dtype == torch.float32 and torch.equal(stored, run.model.classifier.weight)
    assert not torch.equal(stored, stored.bfloat16().float())


def test_a_loss_of_two_forward_passes_has_the_gain_of_their_mean(tmp_path: Path) -> None:
    class Twice(BiLoraTrainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *_: Any, **__: Any) -> Any:
            return (model(**inputs).loss + model(**inputs).loss) / 2

    once, twice = (trainer(tmp_path, settings(), None, kind) for kind in (BiLoraTrainer, Twice))
    for run in (once, twice):
        run.train()
    for name in ("ascent_gain", "cos_auxiliary_gradient"):
        of = [[entry[name] for entry in run.state.log_history if name in entry] for run in (once, twice)]
        assert of[1] == pytest.approx(of[0], rel=1e-4) and of[0][-1] != 0


@pytest.mark.parametrize("method", sorted(METHODS))
def test_saved_settings_train_again(tmp_path: Path, method: str) -> None:
    config = settings(method)
    config.save_pretrained(tmp_path)
    loaded = BiLoraConfig.from_pretrained(tmp_path)
    assert loaded == config
    attach(bert(), loaded)


def test_the_order_of_names_does_not_matter(tmp_path: Path) -> None:
    assert BiLoraConfig(target_modules={"value", "key", "query"}).target_modules == ["key", "query", "value"]
    checkpoints = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, settings(), **checkpoints).train()
    other = trainer(tmp_path, settings(target_modules=["value", "query"]), **checkpoints)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_what_save_model_wrote_is_no_checkpoint(tmp_path: Path) -> None:
    run = trainer(tmp_path / "run", settings())
    run.train()
    run.save_model(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: .*saved holds no adapter 'primary' of a training"):
        trainer(tmp_path / "again", settings()).train(resume_from_checkpoint=str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="name: expected one of the model's adapters, primary, auxiliary; got 'other'"):
        save_adapter(run.model, "other", tmp_path / "other")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"r": 4, "auxiliary_r": 4, "share": "A", "rank_pattern": {"query": 2}},
            "share: a shared factor needs one rank",
        ),
        ({"rank_pattern": {"[": 2}}, "rank_pattern: '.' is no regular expression"),
        ({"alpha_pattern": {"(": 2}}, "alpha_pattern: '.' is no regular expression"),
        ({"rho": True}, "rho: expected no truth value, got True"),
        ({"r": True}, "r: expected no truth value"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BiLoraConfig(**wrong)

"""`landscape compare` on minima from everywhere: state dictionaries, Hugging Face folders, adapters, run folders."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import save_file, save_model
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForSequenceClassification

from analyses.cli import main
from analyses.records import read_records
from tests.analyses.comparing.nets import QUICK, Tied, minimum_of
from tests.analyses.own import bert, reviews

pytestmark = pytest.mark.usefixtures("svg_alone")

NETS = "tests.analyses.comparing.nets"
FACTORY = ("--model", f"{NETS}:network")
DATA = ("--data", f"{NETS}:with_test")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a network, a BERT, a fine-tuned one and two adapters of it, reviews, and settings."""
    root = tmp_path_factory.mktemp("places")
    for seed in (0, 1):
        save_file(minimum_of(seed).state_dict(), root / f"net{seed}.safetensors")
    wrapped = {f"module.{name}": tensor for name, tensor in minimum_of(1).state_dict().items()}
    torch.save({"epoch": 3, "model_state_dict": wrapped}, root / "net1.pt")
    torch.save(minimum_of(1), root / "whole.pt")
    torch.save(minimum_of(1).state_dict() | {"2.bias": torch.zeros(4)}, root / "wide.pt")
    base = bert(root / "bert")
    for seed in (0, 1):
        model = get_peft_model(
            AutoModelForSequenceClassification.from_pretrained(base),
            LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"),
        )
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter) * parameter.requires_grad)
        model.save_pretrained(root / f"adapter{seed}")
        if seed == 0:
            model.merge_and_unload().save_pretrained(root / "merged")
    reviews(40).to_csv(root / "train.csv", index=False)
    reviews(20, seed=1).to_csv(root / "test.csv", index=False)
    quick = {key: value for key, value in QUICK.items() if key != "radii"}
    (root / "quick.yaml").write_text(yaml.safe_dump(quick))
    (root / "broken.yaml").write_text("what: [fit\n")
    return root


def compared(*arguments: object, out: Path) -> dict[str, dict[str, float]]:
    """Values by minimum and measure, of those that have one value each."""
    assert main(["compare", *map(str, arguments), "--out", str(out), "--radii", "0.1"]) == 0
    records = read_records(out / "records.parquet")
    plain = records[records["measure"].isin(["train_loss", "test_loss", "train_accuracy", "weight_norm", "distance"])]
    return {name: own.set_index("measure")["value"].to_dict() for name, own in plain.groupby("method")}


def test_state_dictionaries_with_a_factory(places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places_given = (places / "net0.safetensors", f"other={places / 'net1.safetensors'}")
    found = compared(*places_given, *FACTORY, *DATA, "--settings", places / "quick.yaml", out=tmp_path / "out")
    assert found.keys() == {"net0.safetensors", "other"} and found["other"]["test_loss"] > 0
    printed = capsys.readouterr().out
    assert "| worst-case rise, relative," in printed and f"Report: {tmp_path / 'out' / 'report.html'}" in printed
    assert (tmp_path / "out" / "figures" / "paths.pdf").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    assert main(["report", str(tmp_path / "out")]) == 0  # from the records alone
    assert (tmp_path / "out" / "report.html").read_text() == page


def test_a_pickle_is_refused_unless_asked_for_and_then_read_without_running_code(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", str(places / "net1.pt"), *FACTORY, *DATA, "--what", "fit"]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert "is a pickle, which can run code" in message and "safetensors.torch.save_model" in message
    found = compared(places / "net1.pt", *FACTORY, *DATA, "--what", "fit", "--weights-only", out=tmp_path / "a")
    same = compared(places / "net1.safetensors", *FACTORY, *DATA, "--what", "fit", out=tmp_path / "b")
    assert found["net1.pt"] == same["net1.safetensors"]
    assert main([*arguments[:1], str(places / "whole.pt"), *arguments[2:], "--weights-only"]) == 2
    assert "holds more than weights" in capsys.readouterr().err


def test_a_network_is_found_within_what_was_trained_around_it(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = minimum_of(1).state_dict()
    inner = {
        "compiled": {f"_orig_mod.module.{name}": tensor for name, tensor in own.items()},
        "lightning": {f"model.{name}": tensor for name, tensor in own.items()} | {"loss.weight": torch.ones(3)},
    }
    same = compared(places / "net1.safetensors", *FACTORY, *DATA, "--what", "fit", out=tmp_path / "plain")
    for name, tensors in inner.items():
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
        found = compared(tmp_path / f"{name}.safetensors", *FACTORY, *DATA, "--what", "fit", out=tmp_path / name)
        assert found[f"{name}.safetensors"] == same["net1.safetensors"]
    save_file(
        {f"{part}.{n}": t.clone() for part in ("ema", "model") for n, t in own.items()}, tmp_path / "two.safetensors"
    )
    assert main(["compare", str(tmp_path / "two.safetensors"), *FACTORY, *DATA]) == 2
    assert "holds 2 networks that fit, under ema., model.; save the one meant alone" in capsys.readouterr().err


def test_adapters_on_a_base_are_their_merged_model(places: Path, tmp_path: Path) -> None:
    files = ("--data", places / "train.csv", "--test", places / "test.csv", "--examples", 12)
    base = places / "bert"
    adapters = (f"{base}+{places / 'adapter0'}", f"{base}+{places / 'adapter1'}")
    both = compared(*adapters, *files, "--what", "fit", "paths", out=tmp_path / "adapters")
    assert both.keys() == {"adapter0", "adapter1"} and both["adapter0"]["distance"] > 0
    merged = compared(places / "merged", *files, "--what", "fit", "--tokenizer", base, out=tmp_path / "merged")
    for measure in ("train_loss", "test_loss", "train_accuracy"):
        assert merged["merged"][measure] == pytest.approx(both["adapter0"][measure], rel=1e-5)
    assert both["adapter0"]["weight_norm"] < merged["merged"]["weight_norm"]  # the adapted layers against all


def test_an_adapter_that_changes_nothing_is_its_base_with_the_bases_own_head(places: Path, tmp_path: Path) -> None:
    base = bert(tmp_path / "bert", num_labels=3)
    model = get_peft_model(
        AutoModelForSequenceClassification.from_pretrained(base), LoraConfig(target_modules=["query"])
    )
    model.save_pretrained(tmp_path / "adapter")
    frame = reviews(40).assign(label=lambda one: (one["label"] == "fresh") + 1)  # of its three classes the last two
    frame.to_csv(tmp_path / "data.csv", index=False)
    files = ("--data", tmp_path / "data.csv", "--what", "fit")
    whole = compared(base, *files, out=tmp_path / "whole")["bert"]
    for number, adapter in enumerate((f"{base}+{tmp_path / 'adapter'}", f"a={tmp_path / 'adapter'}")):
        (merged,) = compared(adapter, *files, out=tmp_path / str(number)).values()
        assert merged["train_loss"] == pytest.approx(whole["train_loss"], rel=1e-6)
        assert merged["train_accuracy"] == whole["train_accuracy"]


def test_adapters_of_another_kind_are_compared_with_lora(places: Path, tmp_path: Path) -> None:
    base = places / "bert"
    plain = AutoModelForSequenceClassification.from_pretrained(base)
    scaled = get_peft_model(plain, IA3Config(target_modules=["query", "value"], feedforward_modules=[]))
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(1.5 if parameter.requires_grad else 1.0)
    scaled.save_pretrained(tmp_path / "ia3")
    given = (f"{base}+{places / 'adapter0'}", f"{base}+{tmp_path / 'ia3'}", "--data", places / "train.csv")
    found = compared(*given, "--what", "fit", "--examples", 12, out=tmp_path / "out")
    first = AutoModelForSequenceClassification.from_pretrained(base).named_parameters()
    adapted = torch.cat([p.detach().flatten() for name, p in first if name.endswith(("query.weight", "value.weight"))])
    assert found["ia3"]["weight_norm"] == pytest.approx(1.5 * float(adapted.norm()), rel=1e-5)
    assert found["ia3"]["train_loss"] != found["adapter0"]["train_loss"]


def test_classifiers_that_number_their_classes_differently_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(40).to_csv(tmp_path / "data.csv", index=False)
    for order in (("rotten", "fresh"), ("fresh", "rotten")):
        names = {"label2id": {name: i for i, name in enumerate(order)}, "id2label": dict(enumerate(order))}
        bert(tmp_path / order[0], **names)
    given = [str(tmp_path / "rotten"), str(tmp_path / "fresh"), "--data", str(tmp_path / "data.csv"), "--what", "fit"]
    assert main(["compare", *given]) == 2
    assert "one order of the classes; 'fresh' is number 1 in 'rotten' and 0 in 'fresh'" in capsys.readouterr().err


def test_an_adapter_is_measured_by_its_own_command(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [str(places / name) for name in ("adapter0", "bert", "train.csv")]
    where = ["--adapter", parts[0], "--base", parts[1], "--data", parts[2]]
    assert main(["measure", *where]) == 0
    assert "| train loss |" in capsys.readouterr().out
    assert main(["measure", *where, "--what", "generalization", "--csv", str(places / "adapter.csv")]) == 0
    assert "train_loss" in set(pd.read_csv(places / "adapter.csv")["measure"])
    assert main(["measure", *where, "--what", "recovery"]) == 2
    assert "--what: of an adapter expected some of fit" in capsys.readouterr().err
    assert main(["measure", *where[:4]]) == 2
    assert "give all three and no run" in capsys.readouterr().err
    assert main(["measure"]) == 2
    assert "expected run folders, or --adapter" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist; expected a run folder"),
        (["net0.safetensors", *DATA], "--model: net0.safetensors holds weights alone"),
        (["net0.safetensors", *DATA, "--model", "nets"], "--model: expected 'module:function', got 'nets'"),
        (["net0.safetensors", *DATA, "--model", f"{NETS}:nothing"], "--model: cannot import"),
        (["net0.safetensors", *DATA, "--model", f"{NETS}:not_callable"], "makes a torch.nn.Module, got str"),
        (["net0.safetensors", *FACTORY, "--data", f"{NETS}:QUICK"], "is a dict, expected a function"),
        (["net0.safetensors", *FACTORY, "--data", f"{NETS}:not_callable"], "expected an iterable of batches"),
        (["net0.safetensors", *FACTORY], "is no run folder, so that its examples are unknown"),
        (["net0.safetensors", *FACTORY, "--data", "train.csv"], "none of the minima is a Hugging Face model"),
        (["net0.safetensors", *FACTORY, *DATA, "--label", "x"], "--label: belongs to --data with a file"),
        (["net0.safetensors", *FACTORY, *DATA, "--preset", "digits"], "--data, --preset: give one of them"),
        (["wide.pt", "--weights-only", *FACTORY, *DATA], "it has in another shape 2.bias"),
        (["net0.safetensors", "net0.safetensors", *FACTORY, *DATA], "expected different names"),
        (
            ["net0.safetensors", *FACTORY, "--data", f"{NETS}:breaking"],
            f"--data: {NETS}:breaking raises KeyError: 'gone'",
        ),
        (
            ["bert", "--data", "train.csv", "--input", "txt"],
            "--input: train.csv has no column 'txt'; did you mean 'text'?",
        ),
        (["bert", "--data", "train.csv", "--test", "gone.csv"], "--test: gone.csv does not exist"),
        (["train.csv", *DATA], "train.csv is of no known kind"),
        (["adapter0", "--data", "nothing.csv"], "nothing.csv"),
        (["bert+merged", "--data", "train.csv"], "merged has no adapter_config.json"),
        (["bert", "--data", "nothing.csv"], "nothing.csv does not exist"),
        (["bert", "--data", "train.csv", "--examples", "99"], "--examples: expected 1 to 40"),
        (["bert", "--data", "train.csv", "--label", "stars"], "no column 'stars'"),
        (["net0.safetensors", *FACTORY, *DATA, "--settings", "broken.yaml"], "--settings: cannot read broken.yaml"),
        (["net0.safetensors", *FACTORY, *DATA, "--settings", "nothing.yaml"], "--settings: cannot read nothing.yaml"),
        (["net0.safetensors", *FACTORY, *DATA, "--radii", "-1"], "radii.0: Input should be greater than 0"),
        (["net0.safetensors", *FACTORY, *DATA, "--device", "cuda:99"], "cuda:99"),
        (["net0.safetensors", *FACTORY, *DATA, "--out", "train.csv"], "not a comparison's folder"),
    ],
)
def test_wrong_calls_say_what_to_do(
    arguments: list[str],
    message: str,
    places: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(places)
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.splitlines()) == 1


def test_tied_weights_and_averages_are_read_as_torch_and_safetensors_write_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, average = Tied(), AveragedModel(minimum_of(0))
    save_model(net, str(tmp_path / "tied.safetensors"))
    torch.save(net.state_dict(), tmp_path / "tied.pt")
    tied = ("--model", f"{NETS}:Tied")
    one = compared(tmp_path / "tied.safetensors", *tied, *DATA, "--what", "fit", out=tmp_path / "a")
    other = compared(tmp_path / "tied.pt", *tied, *DATA, "--weights-only", "--what", "fit", out=tmp_path / "b")
    assert one["tied.safetensors"] == other["tied.pt"]
    average.update_parameters(minimum_of(1))
    torch.save(average.state_dict(), tmp_path / "swa.pt")
    found = compared(tmp_path / "swa.pt", *FACTORY, *DATA, "--weights-only", "--what", "fit", out=tmp_path / "c")
    assert found["swa.pt"]["train_loss"] > 0

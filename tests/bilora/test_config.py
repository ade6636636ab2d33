"""Settings from and to files, and PEFT's name of alpha."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from bilora import BiLoraConfig


def test_yaml_and_json_give_back_what_they_got(tmp_path: Path) -> None:
    config = BiLoraConfig(r=4, rho=0.1, target_modules=["q_proj"], rank_pattern={"q_proj": 2}, share="A")
    config.to_yaml(tmp_path / "method.yaml")
    config.save_pretrained(tmp_path / "folder")
    assert BiLoraConfig.from_yaml(tmp_path / "method.yaml") == config
    assert BiLoraConfig.from_pretrained(tmp_path / "folder") == config
    assert set(yaml.safe_load((tmp_path / "method.yaml").read_text())) == {
        "method", "r", "rho", "target_modules", "rank_pattern", "share",
    }  # fmt: skip


def test_lora_alpha_is_alpha_and_not_another_number_beside_it() -> None:
    assert BiLoraConfig(lora_alpha=8).alpha == BiLoraConfig(alpha=8, lora_alpha=8).alpha == 8
    with pytest.raises(ValidationError, match="lora_alpha=8 and alpha=4; give one"):
        BiLoraConfig(alpha=4, lora_alpha=8)


def test_files_that_hold_no_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="expected settings and values"):
        BiLoraConfig.from_yaml(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("r: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(yaml.YAMLError):
        BiLoraConfig.from_yaml(tmp_path / "code.yaml")
    (tmp_path / "unknown.yaml").write_text("rank: 4\n")
    with pytest.raises(ValidationError, match="rank"):
        BiLoraConfig.from_yaml(tmp_path / "unknown.yaml")
    with pytest.raises(FileNotFoundError, match=r"holds no bilora\.json"):
        BiLoraConfig.from_pretrained(tmp_path)

"""Inception against torch-fidelity's, on random weights in the true layout; where its weights come from."""

import hashlib
import http.server
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from diffusion_lightning.extractors import InceptionV3, inception
from diffusion_lightning.metrics.evaluation import fingerprint
from diffusion_lightning.networks.base import matmuls

from ..conftest import small_config
from ..support.commands import fails
from ..support.tensors import Made


def test_features_and_logits_are_those_of_torch_fidelity(weights: Path) -> None:
    """To the last bit, at several sizes; grey images as three equal channels."""
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    ours = InceptionV3(str(weights))
    for size in (32, 299, 320):
        x = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        features, logits = ours.classify(x)
        expected, expected_logits = theirs(x)
        assert features.std(0).mean() > 0.01  # the two images are told apart
        assert torch.equal(features, expected)
        assert torch.equal(logits, expected_logits)
    assert torch.equal(ours(x[:, :1]), ours(x[:, :1].expand(-1, 3, -1, -1)))
    assert not any(p.requires_grad for p in ours.parameters())
    with pytest.raises(ValueError, match="takes bytes of 1 or 3 channels"):
        ours(x[:, :2])


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_near_and_told_apart(weights: Path, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    """Rounded, and so no part of what is kept of references in float32; whatever surrounds it, on any CPU."""
    monkeypatch.setattr(matmuls, "FAST", {torch.float32} | ({torch.bfloat16} if fast else set()))
    exact, half = InceptionV3(str(weights)), InceptionV3(str(weights), "bfloat16")
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        features = exact(x)
        with Made() as made:
            rounded = half(x)
    assert list(made.types) == [torch.bfloat16 if fast else torch.float32]
    assert features.dtype == rounded.dtype == torch.float32
    assert torch.equal(features, exact(x))
    error = (rounded - features).norm() / features.norm()
    assert 1e-4 < error < 2e-2, error
    assert fingerprint(exact) != fingerprint(half)
    with pytest.raises(ValueError, match="precision is half, but Inception computes in float32 or bfloat16"):
        InceptionV3(str(weights), "half")  # type: ignore[arg-type]


def test_weights_are_found_in_the_usual_cache(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the names of both tools; else downloaded, checked and kept; else one sentence that says what to do."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in inception.FILES:
        (folder / name).symlink_to(weights)
        InceptionV3()
        (folder / name).unlink()

    served = partial(http.server.SimpleHTTPRequestHandler, directory=str(weights.parent))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:{server.server_port}/{weights.name}")
        with pytest.raises(ValueError, match="could not be downloaded"):  # not the published ones
            InceptionV3()
        assert not list(folder.iterdir())
        monkeypatch.setattr(inception, "SHA256", hashlib.sha256(weights.read_bytes()).hexdigest()[:8])
        InceptionV3()
        assert [p.name for p in folder.iterdir()] == [weights.name]
        assert inception.is_published(weights)
        server.shutdown()
    (folder / weights.name).unlink()
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/nobody")
    with pytest.raises(ValueError, match="could not be downloaded") as error:
        InceptionV3()
    for part in (str(folder), inception.FILES[0], "or give its path", "choose another extractor"):
        assert part in str(error.value)


def test_files_that_are_no_weights_of_it(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="do not exist"):
        InceptionV3(str(tmp_path / "no.pth"))
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cut short"):
        InceptionV3(str(tmp_path / "cut.pth"))
    state: dict[str, Tensor] = torch.load(weights, weights_only=True)
    torch.save({**state, "fc.weight": state["fc.weight"][:1000]}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"fc.weight is \[1000, 2048\], Inception's is \[1008, 2048\]"):
        InceptionV3(str(tmp_path / "other.pth"))
    # Files older than the counters of batches have none of these, and serve.
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    InceptionV3(str(tmp_path / "old.pth"))
    assert "old.pth is not the published Inception" in capsys.readouterr().err


def test_a_run_without_weights_ends_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/nobody")
    metrics = [
        {
            "class_path": "FrechetDistance",
            "init_args": {"extractor": {"class_path": "diffusion_lightning.extractors.InceptionV3"}},
        }
    ]
    config = small_config(tmp_path)
    changed = yaml.safe_load(config.read_text())
    changed["metrics"]["metrics"] = metrics
    config.write_text(yaml.safe_dump(changed))
    said = fails(capsys, "fit", "--config", str(config), "--trainer.logger", "false")
    assert "the weights of Inception are not in" in said
    assert not (tmp_path / "run/checkpoints").exists()

"""The fast step equals a plain one: utterance by utterance, no padding or mask, in float64."""

import itertools
import sys
import warnings

import pytest
import torch
from conftest import program
from test_training import split_of
from torch.nn import functional as F

import train
from emaae.config import Config
from emaae.data.split import batches
from emaae.losses import LossSums, batch_sums, loss_terms
from emaae.models import FrameNorm, MaskedBatchNorm, build_model
from emaae.system.devices import make_deterministic, use_bf16
from emaae.training import Run, TrainingState, train_epoch

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PRESETS = list(itertools.product((768, 1024), (2, 3, 4, 5), (2, 3, 4, 5)))
SPLIT = split_of(41, 38, 40, 9, seed=3)


def plain(model, utterances, alpha):
    """The loss, layer by layer over a list of utterances (D, T)."""

    def through(blocks, hs):
        for block in blocks:
            hs = [
                F.conv1d(h[None], block.conv.weight, block.conv.bias, padding="same")[0] for h in hs
            ]
            if block.activation is not None:
                hs = [F.relu(h) for h in norm(block.norm, hs)]
        return hs

    def norm(layer, hs):
        if layer is None:
            return hs
        frames = torch.cat(hs, 1)
        axis = {MaskedBatchNorm: 1, FrameNorm: 0}[type(layer)]
        mean = frames.mean(axis, keepdim=True)
        var = frames.var(axis, keepdim=True, correction=0)
        frames = (frames - mean) / (var + layer.eps).sqrt()
        frames = frames * layer.weight[:, None] + layer.bias[:, None]
        return frames.split([h.shape[1] for h in hs], 1)

    xs = [(u - model.mean[:, None]) / model.sd[:, None] for u in utterances]
    zs = through(model.encoder, xs)
    ys = through(model.decoder, zs)
    x, y, z = (torch.cat(parts, 1) for parts in (xs, ys, zs))
    return (1 - alpha) * (y - x).square().mean() + alpha * z.abs().mean()


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: f"{p[0]}-{p[1]}-{p[2]}")
def test_loss_and_gradients_of_a_masked_batch_equal_the_plain_computation(preset, norm):
    inner, n_encoder, n_decoder = preset
    torch.manual_seed(inner + 10 * n_encoder + n_decoder)
    # Narrow: the same kinds of layers, in a fraction of the time.
    model = build_model(inner_size=inner // 32, n_encoder=n_encoder, n_decoder=n_decoder, norm=norm)
    model.normalise(*SPLIT.mean_and_sd())
    with torch.no_grad():
        for block in (*model.encoder, *model.decoder):
            # Away from zero no unit's ReLU opens in one precision and is closed in the other.
            block.conv.bias.add_(0.3)
    ((x, mask),) = batches(SPLIT, [torch.arange(len(SPLIT)).numpy()])
    model.train()
    sums = batch_sums(Config(), model, x, model(x, mask), mask)
    fast = loss_terms(Config(), model, sums, 0.25).loss
    fast_gradients = torch.autograd.grad(fast, list(model.parameters()))
    model.double()
    slow = plain(model, [SPLIT[i].T.double() for i in range(len(SPLIT))], 0.25)
    slow_gradients = torch.autograd.grad(slow, list(model.parameters()))
    assert fast.item() == pytest.approx(slow.item(), abs=1e-5)
    for a, b in zip(fast_gradients, slow_gradients):
        assert torch.allclose(a.double(), b, atol=1e-5, rtol=1e-4), (a - b).abs().max()


class Silent(Run):
    """A run that ignores its events."""


def trained(precision, epochs=12, device="cpu", optimizer="adamw"):
    given = {"inner_size": 32, "n_encoder": 3, "n_decoder": 2, "lr": 0.005}
    config = Config.from_mapping(given | {"precision": precision, "optimizer": optimizer})
    torch.manual_seed(0)
    model = build_model(**config.architecture)
    model.normalise(*SPLIT.mean_and_sd())
    model.to(device)
    state, rows, split = TrainingState.begin(model, config), [], SPLIT.to(torch.device(device))
    for _ in range(epochs):
        rows.append(train_epoch(state, split, 0.1, config, Silent()))
        state.end_epoch()
    return model, rows


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_bfloat16_learns_the_same_and_its_weights_stay_float32(optimizer):
    (model, rows), (_, rows32) = (trained(p, optimizer=optimizer) for p in ("bf16", "fp32"))
    assert rows != rows32
    assert rows[-1]["loss"] == pytest.approx(rows32[-1]["loss"], rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.encode(SPLIT[0].T[None]).dtype == torch.float32
    assert 0 < rows[-1]["sparsity"] < 1


@pytest.mark.parametrize(
    ("precision", "has", "told"), [("bf16", 0, 1), ("bf16", 1, 0), ("auto", 0, 0)]
)
def test_emulated_bfloat16_gives_one_warning(small, monkeypatch, precision, has, told):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: bool(has))
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train.main([*small, "--epochs=2", f"--precision={precision}"]) == 0
    found = [str(w.message) for w in caught if "emulates it" in str(w.message)]
    assert len(found) == told
    assert all("use --precision auto or fp32" in text for text in found)


def test_auto_is_bfloat16_where_the_hardware_has_it(monkeypatch):
    cpu = torch.device("cpu")
    assert not use_bf16("fp32", cpu)
    assert use_bf16("bf16", cpu)
    for has in (True, False):
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
        assert use_bf16("auto", cpu) == has


def test_in_bfloat16_zeros_are_exact_and_scale_and_sums_stay_float32_or_wider():
    torch.manual_seed(0)
    model = build_model(inner_size=64, n_encoder=3, n_decoder=2)
    model.normalise(*SPLIT.mean_and_sd())
    ((x, mask),) = batches(SPLIT, [torch.arange(len(SPLIT)).numpy()])
    plain = model(x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, mask)
        assert torch.equal(model.standardise(x), (x - model.mean[:, None]) / model.sd[:, None])
    real = mask.bool().expand_as(out.z)
    assert out.z.dtype == torch.bfloat16
    assert (out.z >= 0).all()
    assert not out.z[~real].any()
    # A unit is on the other side of zero only where it was next to it.
    differ = real & ((out.z == 0) != (plain.z == 0))
    assert differ.sum() < 0.02 * real.sum()
    assert torch.maximum(out.z.float(), plain.z)[differ].max() < 0.02 * plain.z.max()
    assert out.y.dtype == torch.float32
    sums = batch_sums(Config(), model, x, out, mask)
    assert {value.dtype for value in sums} == {torch.float32}
    assert {value.dtype for value in LossSums().plus(sums)} == {torch.float64}


FAULTS = """
import resource, sys
from emaae.system.devices import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"1" * 200_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(min(faults() for _ in range(5)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap is glibc's")
def test_memory_of_one_step_is_reused_by_the_next():
    kept, as_it_comes = (int(program("-c", FAULTS, how).stdout) for how in ("kept", "as it comes"))
    assert 10 * kept < as_it_comes


def test_a_run_on_a_cpu_keeps_the_heap_and_is_deterministic_only_if_asked(small, monkeypatch):
    called = []
    for name in ("keep_freed_memory", "make_deterministic"):
        monkeypatch.setattr(
            f"emaae.system.devices.{name}", lambda *_, name=name: called.append(name)
        )
    assert train.main([*small, "--epochs=1"]) == 0
    assert called == ["keep_freed_memory"]
    called.clear()
    assert train.main([*small, "--epochs=1", "--deterministic"]) == 0
    assert sorted(called) == ["keep_freed_memory", "make_deterministic"]


@pytest.fixture
def repeated(monkeypatch):
    """`make_deterministic` for the time of a test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    benchmark = torch.backends.cudnn.benchmark
    fill = torch.utils.deterministic.fill_uninitialized_memory
    make_deterministic()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "muon"])
def test_training_uses_no_operation_that_deterministic_runs_refuse(repeated, optimizer):
    assert torch.are_deterministic_algorithms_enabled()
    rows, again = (trained("fp32", epochs=2, optimizer=optimizer)[1] for _ in range(2))
    assert rows == again


@on_a_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_on_a_gpu_a_repeated_run_gives_the_same_bits_when_asked(repeated, precision, optimizer):
    runs = (trained(precision, 4, "cuda", optimizer=optimizer) for _ in range(2))
    (one, rows), (other, rows_again) = runs
    assert rows == rows_again
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


@on_a_gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_on_a_gpu_equals_training_on_the_cpu(optimizer):
    rows, rows_cpu = (trained("fp32", 4, on, optimizer=optimizer)[1] for on in ("cuda", "cpu"))
    for row, row_cpu in zip(rows, rows_cpu):
        assert row == pytest.approx(row_cpu, rel=1e-3)


@on_a_gpu
def test_on_a_gpu_no_step_waits_for_the_one_before(monkeypatch):
    config = Config.from_mapping({"inner_size": 32, "batch_sz": 1})
    model = build_model(**config.architecture).cuda()
    state, split = TrainingState.begin(model, config), SPLIT.to(torch.device("cuda"))
    train_epoch(state, split, 0.1, config, Silent())

    class Strict(Silent):
        def save_last(self, state, *, now=False):
            torch.cuda.set_sync_debug_mode("error" if next(left, None) else "default")

    state.end_epoch()
    left = iter([True] * (len(split) - 1))
    train_epoch(state, split, 0.1, config, Strict())

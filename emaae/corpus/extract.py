"""Features from audio, by SPARC (Cho et al. 2024, arXiv 2406.12998), model "en".

WavLM's ninth layer, low-passed at 10 Hz, gives the articulators, CREPE the pitch, and the waveform
the loudness. SPARC is an optional extra, imported when it is needed. An utterance's features must
not depend on its neighbours in a batch, so two properties of SPARC are avoided:

- SPARC filters a batch together with its padding, which changes the last 25 frames of shorter
  utterances by up to a standard deviation, and returns the padding: here all utterances of a batch
  have the same number of frames;
- torchcrepe dithers the pitch with NumPy's global random generator: here the generator is seeded
  for each utterance with the checksum of its file.
"""

import contextlib
import importlib.machinery
import io
import math
import sys
import types
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
import yaml

from emaae.corpus.encodings import write_times
from emaae.data.features import (
    FRAME_RATE_HZ,
    HOP_SAMPLES,
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    check_features,
    check_identity,
    files_below,
    frame_times,
    frames_of,
    read_features,
    read_times,
)
from emaae.system.devices import pick_device
from emaae.system.errors import BadFile, UserError, reason
from emaae.system.files import check_folder, read_text, regular_file, write_atomically
from emaae.system.progress import progress

SUFFIXES = (".flac", ".wav")
INSTALL_COMMAND = (
    "pip install -r requirements-audio.txt && "
    "pip install --no-deps -r requirements-audio-nodeps.txt"
)
# The repositories on the Hugging Face hub that hold the weights, with the files that are needed.
DOWNLOAD_COMMAND = (
    "hf download cheoljun95/Speech-Articulatory-Coding model_english_1500k.yaml "
    "model_english_1500k.ckpt && hf download microsoft/wavlm-large config.json pytorch_model.bin"
)

# The samples that SPARC adds on either side when its settings say zero_pad.
PAD_SAMPLES = 160
# The low-pass filter mirrors 18 frames at either end, for which it needs one more.
FEWEST_FRAMES = 19
MIN_S = (WINDOW_SAMPLES + (FEWEST_FRAMES - 1) * HOP_SAMPLES) / SAMPLE_RATE_HZ
# WavLM's attention takes memory with the square of the length: 3.6 GB here, 0.8 GB at 15 s.
MAX_S = 60.0
# In all channels: about eight channels of MAX_S at 192 kHz.
MAX_SAMPLES = 100_000_000
MAX_AUDIO = 4 * MAX_SAMPLES


class Audio(NamedTuple):
    """An audio file.

    identity: its path below the root without suffix, which names its features.
    n_samples: at 16 kHz, as its header says.
    """

    identity: str
    path: str
    n_samples: int


@dataclass
class Extracted:
    """Numbers of utterances kept and new, seconds of new ones; broken: file -> what is wrong."""

    n_kept: int = 0
    n_new: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def noting(self, *paths: str) -> Iterator[None]:
        """Inside, add a BadFile to `broken` for these files instead of raising it."""
        try:
            yield
        except BadFile as error:
            self.broken |= dict.fromkeys(paths, str(error))


def extract(
    audio_dir: str | Path, out_dir: str | Path, device: str = "auto", batch_s: float = 60.0
) -> Extracted:
    """Write the features of every .flac and .wav below `audio_dir`, as a feature tree.

    Per utterance `<out_dir>/<same path>.npz`, key `features`, (T, 14) float32, and beside it
    `_times.npz`, key `times`, (T, 2) float32, in seconds. Complete files are kept. Broken audio is
    left out and named in the result. batch_s: seconds of audio in a batch.
    Raises UserError: no audio, no SPARC, no weights, a full disk.
    """
    out, result = Path(out_dir), Extracted()
    paths = _find_audio(audio_dir, result)
    looked_for = progress(paths.items(), "looking for features", unit="files")
    missing = [(name, path) for name, path in looked_for if not _is_extracted(out, name)]
    result.n_kept = len(paths) - len(missing)
    if not missing:
        return result
    torch_device, sparc = pick_device(device), _import_sparc()
    found = []
    for identity, path in progress(missing, "looking at audio", unit="files"):
        with result.noting(path):
            found.append(Audio(identity, path, _n_samples(path)))
    if not found:
        return result
    coder = load_coder(sparc, torch_device)
    batches = _batches(coder, found, batch_s)
    total = sum(map(_seconds, batches))
    for batch in progress(batches, "extracting", total=total, unit="s of audio", size=_seconds):
        for audio, features in _features(coder, batch, result):
            times = frame_times(len(features)) - np.float32(_pad(coder) / SAMPLE_RATE_HZ)
            target = out / f"{audio.identity}.npz"
            write_times(target, times)
            write_atomically(target, partial(np.savez, features=features))
            result.n_new += 1
            result.seconds += audio.n_samples / SAMPLE_RATE_HZ
    return result


def _seconds(batch: Sequence[Audio]) -> int:
    return max(1, round(sum(audio.n_samples for audio in batch) / SAMPLE_RATE_HZ))


# ---- files


def _find_audio(root: str | Path, result: Extracted) -> dict[str, str]:
    """Audio below the root, identity -> path; names that features cannot have go to `result`."""
    root = str(Path(root))
    check_folder(root, f"--audio_dir {root}", ".flac and .wav files")
    found = defaultdict(list)
    for name, path in files_below(root, True, lambda name: name.lower().endswith(SUFFIXES)):
        found[name.rpartition(".")[0]].append(path)
    if not found:
        raise UserError(f"--audio_dir {root} holds no .flac or .wav files: expected some below it")
    good = {}
    for identity, paths in sorted(found.items()):
        with result.noting(*paths):
            check_identity(identity, paths[0])
            if identity.endswith("_times"):
                raise BadFile(f"{paths[0]} has the name of a file of times: rename it")
            if len(paths) > 1:
                raise BadFile(
                    f"{' and '.join(sorted(paths))} would have the same features file "
                    f"{identity}.npz: rename or remove one"
                )
            good[identity] = paths[0]
    return good


def _is_extracted(out: Path, identity: str) -> bool:
    """Whether complete features and times of an utterance exist."""
    path = out / f"{identity}.npz"
    with contextlib.suppress(BadFile):
        times = read_times(path)
        return times is not None and times.shape == (len(read_features(path)), 2)
    return False


def _n_samples(path: str) -> int:
    """Samples at 16 kHz by the header of a file. Raises BadFile for a file that cannot be used."""
    import soundfile

    with _open_audio(path) as file:
        header = soundfile.info(file)
    seconds = header.frames / header.samplerate
    if seconds > MAX_S or header.frames * header.channels > MAX_SAMPLES:
        raise BadFile(
            f"{path} has {seconds:.1f} s, {header.channels} channel(s) and {header.samplerate} Hz: "
            f"expected at most {MAX_S:.0f} s, and {MAX_SAMPLES:,} values in all channels; cut "
            "it at pauses"
        )
    # As librosa does when it resamples.
    n_samples = math.ceil(header.frames * (SAMPLE_RATE_HZ / header.samplerate))
    if n_samples < MIN_S * SAMPLE_RATE_HZ:
        raise BadFile(f"{path} has {seconds:.2f} s: expected at least {MIN_S:.2f} s; remove it")
    return n_samples


@contextlib.contextmanager
def _open_audio(path: str) -> Iterator[BinaryIO]:
    """Open an audio file; inside, errors of reading it become BadFile."""
    import soundfile

    try:
        with regular_file(path, MAX_AUDIO) as file:
            yield file
    except soundfile.SoundFileError as error:
        raise BadFile(f"{path} is not readable audio ({reason(error)})") from None


# ---- SPARC


def _import_sparc() -> types.ModuleType:
    """The package `sparc`. Raises UserError when it is not installed."""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        # SPARC and torchcrepe import torchaudio but call nothing of it here, and its wheels do not
        # load with every build of torch.
        stand_in = types.ModuleType("torchaudio")
        stand_in.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        sys.modules["torchaudio"] = stand_in
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import sparc
            import torchcrepe  # noqa: F401
    except ImportError as error:
        missing = error.name or str(error)
        raise UserError(
            f"features from audio need {missing}, not installed: {INSTALL_COMMAND}"
        ) from None
    return sparc


def load_coder(sparc: types.ModuleType, device: torch.device) -> Any:
    """SPARC's model "en" without its synthesiser, in evaluation mode; weights come from the hub.

    `sparc.load_model("en")` itself would run code that its YAML names, load the weights onto the
    device that they were saved from, and build the synthesiser. Raises UserError.
    """
    from sparc.sparc import download_huggingface, model_name_map

    name = model_name_map["en"]
    try:
        settings = yaml.safe_load(read_text(download_huggingface(f"{name}.yaml")))
        weights = torch.load(
            download_huggingface(f"{name}.ckpt"), map_location="cpu", weights_only=True
        )
        settings |= {
            "linear_model_path": None,
            "linear_model_state_dict": weights["state_dict"]["linear_model"],
            "generator_ckpt": None,
            "spk_ft_ckpt": None,
        }
        return sparc.load_model(config=settings, device=str(device))
    except Exception as error:  # of the hub, HTTP, YAML, torch and transformers
        raise UserError(
            f"SPARC's model cannot be loaded ({reason(error)}): with a network it is downloaded "
            f"once; without one, fetch it on another machine ({DOWNLOAD_COMMAND}), copy that "
            "machine's ~/.cache/huggingface and set HF_HUB_OFFLINE=1"
        ) from error


def _pad(coder: Any) -> int:
    return PAD_SAMPLES if coder.inverter.zero_pad else 0


def _n_frames(coder: Any, n_samples: int) -> int:
    return int(frames_of(n_samples + 2 * _pad(coder)))


def _batches(coder: Any, files: Sequence[Audio], batch_s: float) -> list[list[Audio]]:
    """Batches of equally many frames, the longest first, so that too little memory shows early."""
    alike = defaultdict(list)
    for audio in files:
        alike[_n_frames(coder, audio.n_samples)].append(audio)
    batches: list[list[Audio]] = []
    for n_frames, group in sorted(alike.items(), reverse=True):
        n = max(1, int(batch_s * FRAME_RATE_HZ / n_frames))
        batches += (group[i : i + n] for i in range(0, len(group), n))
    return batches


def _features(
    coder: Any, batch: Sequence[Audio], result: Extracted
) -> Iterator[tuple[Audio, np.ndarray]]:
    """Features (T, 14) of the good utterances of a batch; `result` gets the broken ones."""
    waves = {}
    for audio in batch:
        with result.noting(audio.path):
            waves[audio] = _read_waveform(coder, audio)
    if not waves:
        return
    emas = _articulators(coder, [wave for wave, _ in waves.values()])
    for ema, (audio, (wave, seed)) in zip(emas, waves.items()):
        with result.noting(audio.path):
            if ema is None:
                raise BadFile(f"{audio.path} is too long for the device's memory: cut it")
            np.random.seed(seed)  # noqa: NPY002 - what torchcrepe's dither draws from
            # A new dict: all calls share SPARC's default.
            source = coder.source_extractor(wave, {})
            fmin, fmax = coder.source_extractor.fmin, coder.source_extractor.fmax
            parts = ema, source["loudness"][0], source["pitch"][0].clip(fmin, fmax)
            n_frames = min(map(len, parts))  # their lengths may differ
            features = np.concatenate([part[:n_frames] for part in parts], axis=1)
            yield audio, check_features(features, f"SPARC's output for {audio.path}")


def _read_waveform(coder: Any, audio: Audio) -> tuple[Any, int]:
    """SPARC's waveform (1, N), 16 kHz, mean 0, sd 1, and a seed for its pitch. Raises BadFile."""
    path = audio.path
    with _open_audio(path) as file, np.errstate(all="ignore"):
        content = file.read()
        wave = coder.process_wavfiles([io.BytesIO(content)])
    n_samples = int(wave.input_lens[0])
    if n_samples != audio.n_samples:
        raise BadFile(
            f"{path} ends after {n_samples / SAMPLE_RATE_HZ:.2f} s and should have "
            f"{audio.n_samples / SAMPLE_RATE_HZ:.2f} s: copy it again"
        )
    if not torch.isfinite(wave.input_values).all():
        raise BadFile(f"{path} is silent throughout, or has values that are not finite")
    return wave, zlib.crc32(content)


def _articulators(coder: Any, waves: list[Any]) -> list[np.ndarray | None]:
    """Articulators (T, 12) of waveforms of equally many frames; None for one too long for memory.

    A batch too large for the device's memory is halved.
    """
    # Lengths differ by less than a hop, so no analysis window reaches into the padding.
    values = [wave.input_values[0] for wave in waves]
    padded = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
    batch = type(waves[0])(padded, np.array([*map(len, values)]))
    with contextlib.suppress(torch.OutOfMemoryError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in torch
        return list(coder.inverter(batch, {})["ema"])
    if len(waves) == 1:
        return [None]
    half = len(waves) // 2
    return _articulators(coder, waves[:half]) + _articulators(coder, waves[half:])

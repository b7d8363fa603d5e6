"""Generating the utterances of demo.py: speaker, score, movement, frames."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy import ndimage, signal

from emaae.data.features import (
    ARTICULATORS,
    FRAME_RATE_HZ,
    SAMPLE_RATE_HZ,
    frame_centres,
    frame_times,
    frames_of,
)
from emaae.data.phones import (
    CODAS,
    CONSONANTS,
    ONSETS,
    PHONE_LOUDNESS,
    SILENCE,
    VOICELESS,
    VOWELS,
    Gesture,
    Phone,
    phone_at,
)

# The simulation starts at .5 ms, so that each frame centre, (320 i + 200) / 16000 s, is one of its
# instants: number 6, 16, 26, ...
STEP_S = 0.002
FIRST_INSTANT_S = 0.0005
FIRST_FRAME_STEP = 6
STEPS_PER_FRAME = 10

RAMP_S = 0.030
CONSONANT_LEAD_S = 0.050
# Strength, and natural frequency in Hz, of the gestures of each kind.
VOWEL_DYNAMICS = (1.0, 6.0)
CONSONANT_DYNAMICS = (8.0, 12.0)
NEUTRAL_DYNAMICS = (0.06, 2.0)
LOW_PASS = signal.butter(5, 10, fs=1 / STEP_S, output="sos")

LOUDNESS_SMOOTHING_S = 0.040
ACCENT_PROBABILITY = 1 / 3  # of a vowel
ACCENT_S = 0.25
WANDER_CORRELATION = 0.9  # autocorrelation of the pitch in pauses at a lag of one frame

# Gives the 12 articulators of the default corpus a standard deviation of about 1. A constant, not
# computed from the corpus, so that an utterance does not depend on the others.
POSITION_SCALE = 1.48


class GeneratedUtterance(NamedTuple):
    """One generated utterance.

    name: path below the split's folder, without suffix: `103/103000/103-103000-0000`.
    features: (T, 14) float32 at 50 Hz; columns 0..11 are ARTICULATORS in z-scores (Y grows upwards,
        X backwards), 12 is loudness (mean absolute value of the z-scored waveform, >= 0), 13 is
        pitch in Hz (50..550, without meaning where unvoiced).
    times: (T, 2) float32, start and end of each frame in seconds, both strictly increasing.
    phones, gestures: the score, in order of time.
    """

    name: str
    features: np.ndarray
    times: np.ndarray
    phones: list[Phone]
    gestures: list[Gesture]


class Speaker(NamedTuple):
    """A generated speaker: features = movement @ transform + offset."""

    transform: np.ndarray  # (12, 12)
    offset: np.ndarray  # (12,)
    rate: float  # speaking rate: divides the drawn phone durations
    pitch_hz: float


class PhoneGestures(NamedTuple):
    """The gestures of one phone: their targets, weights, dynamics and times."""

    phone: str
    target: np.ndarray  # (12,) standard deviations from rest
    weight: np.ndarray  # (12,) 0..1, 0 for articulators that the phone does not use
    strength: float
    frequency_hz: float
    start_s: float
    end_s: float


class Draft(NamedTuple):
    """An utterance before its simulation; rng: also draws its noise and pitch."""

    name: str
    rng: np.random.Generator
    speaker: Speaker
    phones: list[Phone]
    tokens: list[PhoneGestures]


def random_stream(seed: int, *stream: str | int) -> np.random.Generator:
    """A random generator that is independent for each seed and name of a stream."""
    words = (int.from_bytes(w.encode(), "big") if isinstance(w, str) else w for w in stream)
    return np.random.default_rng([seed, *words])


def draw_speaker(number: int, seed: int) -> Speaker:
    """The speaker with this number; odd numbers are men."""
    rng = random_stream(seed, "speaker", number)
    n = len(ARTICULATORS)
    mixing = np.eye(n) + 0.05 * rng.standard_normal((n, n))
    return Speaker(
        transform=POSITION_SCALE * mixing * rng.lognormal(0, 0.15, n),
        offset=POSITION_SCALE * rng.normal(0, 0.2, n),
        rate=1.2 * rng.lognormal(0, 0.12),
        pitch_hz=(115 if number % 2 else 205) * rng.lognormal(0, 0.12),
    )


def draw_phones(rng: np.random.Generator, duration_s: float, rate: float) -> list[Phone]:
    """Phones that fill 0..duration_s: phrases of syllables, pauses, silence at both ends."""
    margin_s = duration_s / 5  # at most, so that a very short utterance contains speech
    lead_s, tail_s = np.minimum(rng.uniform(0.2, 0.5, 2), margin_s).tolist()
    speech_s = duration_s - lead_s - tail_s

    syllables, total_s, left_in_phrase = [], 0.0, rng.integers(3, 10)
    while total_s < speech_s:
        syllable = []
        if left_in_phrase == 0:
            left_in_phrase = rng.integers(3, 10)
            if rng.uniform() < 0.35:
                syllable.append((SILENCE, rng.lognormal(np.log(0.3), 0.4)))
        left_in_phrase -= 1
        syllable.append((rng.choice(ONSETS), rng.lognormal(np.log(0.075), 0.35) / rate))
        syllable.append((rng.choice(tuple(VOWELS)), rng.lognormal(np.log(0.090), 0.45) / rate))
        if rng.uniform() < 0.4:
            syllable.append((rng.choice(CODAS), rng.lognormal(np.log(0.070), 0.35) / rate))
        syllables.append(syllable)
        total_s += sum(length_s for _, length_s in syllable)

    # The syllables are stretched to the available time. To keep the speaking rate unbiased, their
    # total must be too short as often as too long.
    last_s = sum(length_s for _, length_s in syllables[-1])
    if len(syllables) > 1 and total_s - speech_s > last_s / 2:
        syllables.pop()
        total_s -= last_s
    stretch = speech_s / total_s

    phones = [Phone(SILENCE, 0.0, lead_s)]
    for label, length_s in (segment for syllable in syllables for segment in syllable):
        start_s = phones[-1].end_s
        phones.append(Phone(str(label), start_s, start_s + stretch * length_s))
    phones.append(Phone(SILENCE, phones[-1].end_s, duration_s))
    return phones


def plan_gestures(rng: np.random.Generator, phones: list[Phone]) -> list[PhoneGestures]:
    """The gestures of each phone; silence has none."""
    tokens = []
    for i, (label, start_s, end_s) in enumerate(phones):
        if label == SILENCE:
            continue
        if label in VOWELS:
            # A vowel lasts until the next vowel or silence; consonants are superimposed on it.
            end_s = next(p.start_s for p in phones[i + 1 :] if p.label in (*VOWELS, SILENCE))
            (targets, weights), dynamics = VOWELS[label], VOWEL_DYNAMICS
        else:
            start_s -= CONSONANT_LEAD_S
            (targets, weights), dynamics = CONSONANTS[label], CONSONANT_DYNAMICS
        targets = targets + rng.normal(0, 0.2, len(ARTICULATORS))
        tokens.append(PhoneGestures(label, targets, weights, *dynamics, start_s, end_s))
    return tokens


def simulate_movement(drafts: list[Draft]) -> list[np.ndarray]:
    """Movement of several utterances: (instants, 12) each, in standard deviations from rest.

    Saltzman & Munhall (1989): each articulator is a critically damped mass on a spring,

        x'' = -w^2 (x - x0) - 2 w x'

    where the stiffness w^2 and the rest position x0 are means over the active gestures, weighted by
    activation x strength x weight. A weak neutral gesture is always active.
    """
    n_instants = [int(draft.phones[-1].end_s / STEP_S) for draft in drafts]
    shape = (max(n_instants), len(drafts), len(ARTICULATORS))
    strength, frequency_hz = NEUTRAL_DYNAMICS
    weight = np.full(shape, strength)
    stiffness = np.full(shape, strength * (2 * np.pi * frequency_hz) ** 2)
    target = np.zeros(shape)
    for utterance, draft in enumerate(drafts):
        for token in draft.tokens:
            first = max(0, int((token.start_s - RAMP_S) / STEP_S))
            last = min(shape[0], int((token.end_s + RAMP_S) / STEP_S))
            instants_s = FIRST_INSTANT_S + STEP_S * np.arange(first, last)
            activation = _activation(instants_s, token.start_s, token.end_s)
            pull = token.strength * np.outer(activation, token.weight)
            weight[first:last, utterance] += pull
            target[first:last, utterance] += pull * token.target
            stiffness[first:last, utterance] += pull * (2 * np.pi * token.frequency_hz) ** 2
    target /= weight
    stiffness /= weight

    positions = _integrate(target, stiffness)
    return [positions[:n, i] for i, n in enumerate(n_instants)]


def _activation(instants_s: np.ndarray, start_s: float, end_s: float) -> np.ndarray:
    """0..1, with raised-cosine ramps that are half way up at start_s and half way down at end_s.

    If one vowel ends where the next begins, their activations add up to 1.
    """
    up = np.clip((instants_s - start_s) / RAMP_S, -0.5, 0.5)
    down = np.clip((end_s - instants_s) / RAMP_S, -0.5, 0.5)
    return (1 + np.sin(np.pi * up)) * (1 + np.sin(np.pi * down)) / 4


def _integrate(target: np.ndarray, stiffness: np.ndarray) -> np.ndarray:
    """Positions (instant, utterance, channel) of the damped masses, which start at rest at 0.

    Semi-implicit Euler: velocity first, then position with the new velocity.
    """
    damping = 2 * np.sqrt(stiffness)
    positions = np.empty_like(target)
    x, velocity = np.zeros((2, *target.shape[1:]))
    for step in range(len(target)):
        velocity -= STEP_S * (stiffness[step] * (x - target[step]) + damping[step] * velocity)
        x += STEP_S * velocity
        positions[step] = x
    return positions


def make_utterance(draft: Draft, movement: np.ndarray) -> GeneratedUtterance:
    """The utterance of a draft and its simulated movement (instants, 12)."""
    name, rng, speaker, phones, tokens = draft
    n_frames = int(frames_of(round(phones[-1].end_s * SAMPLE_RATE_HZ)))
    at_frames = FIRST_FRAME_STEP + STEPS_PER_FRAME * np.arange(n_frames)

    # Sensor noise, whose spectral density does not depend on the step: an sd of .04 at 50 Hz.
    noise = rng.normal(0, 0.04 * np.sqrt(1 / FRAME_RATE_HZ / STEP_S), movement.shape)
    smooth = signal.sosfiltfilt(LOW_PASS, movement + noise, axis=0)[at_frames]

    articulators = smooth @ speaker.transform + speaker.offset
    loudness = _loudness(phones, len(movement))[at_frames]
    # The waveform is z-scored (rms 1), and the rms of a normal variable is 1.25 times its mean
    # absolute value.
    loudness /= 1.25 * np.sqrt(np.mean(loudness**2))
    pitch_hz = _pitch(rng, phones, frame_centres(n_frames), speaker.pitch_hz)

    features = np.column_stack([articulators, loudness, pitch_hz])
    gestures = []
    for token in tokens:
        targets = token.target * np.diag(speaker.transform) + speaker.offset
        for i in np.flatnonzero(token.weight):
            pull = ARTICULATORS[i], token.phone, float(targets[i]), float(token.weight[i])
            gestures.append(Gesture(*pull, token.start_s, token.end_s))
    return GeneratedUtterance(
        name, features.astype(np.float32), frame_times(n_frames), phones, gestures
    )


def _loudness(phones: list[Phone], n_instants: int) -> np.ndarray:
    """Relative amplitude (n_instants,): one level per class of phones, smoothed."""
    instants_s = FIRST_INSTANT_S + STEP_S * np.arange(n_instants)
    levels = np.array([PHONE_LOUDNESS[phone.label] for phone in phones])
    levels = levels[phone_at(phones, instants_s)]
    return ndimage.uniform_filter1d(levels, round(LOUDNESS_SMOOTHING_S / STEP_S), mode="nearest")


def _pitch(
    rng: np.random.Generator, phones: list[Phone], centres_s: np.ndarray, base_hz: float
) -> np.ndarray:
    """Pitch (T,) in Hz at the frame centres, 50..550, from semitones relative to base_hz.

    Declination between pauses after 't Hart, Collier & Cohen (1990), A Perceptual Study of
    Intonation. Unvoiced frames have values too, as from a pitch tracker: interpolated with noise in
    voiceless consonants, an autocorrelated random sequence in silence.
    """
    n_frames = len(centres_s)
    semitones = np.zeros(n_frames)
    pauses = [phone for phone in phones if phone.label == SILENCE]
    for before, after in pairwise(pauses):
        length_s = after.start_s - before.end_s
        slope = -11 / (length_s + 1.5) if length_s < 5 else -8.5 / length_s
        inside = (centres_s >= before.end_s) & (centres_s < after.start_s)
        semitones[inside] = slope * (centres_s[inside] - (before.end_s + after.start_s) / 2)
    for label, start_s, end_s in phones:
        if label in VOWELS and rng.uniform() < ACCENT_PROBABILITY:
            distance = np.clip((centres_s - (start_s + end_s) / 2) / ACCENT_S, -0.5, 0.5)
            semitones += rng.uniform(2, 5) * np.cos(np.pi * distance)
    semitones += rng.normal(0, 0.3, n_frames)

    labels = np.array([phone.label for phone in phones])[phone_at(phones, centres_s)]
    silent = labels == SILENCE
    voiceless = np.isin(labels, VOICELESS)
    voiced = ~voiceless & ~silent
    if voiced.any():
        semitones[voiceless] = np.interp(
            centres_s[voiceless], centres_s[voiced], semitones[voiced]
        ) + rng.normal(0, 1, voiceless.sum())

    innovation = rng.normal(0, 4 * np.sqrt(1 - WANDER_CORRELATION**2), n_frames)
    # Gives the first frame, like all others, the full standard deviation of 4 semitones.
    innovation[0] /= np.sqrt(1 - WANDER_CORRELATION**2)
    wander = signal.lfilter([1], [1, -WANDER_CORRELATION], innovation)
    semitones[silent] = wander[silent]
    return np.clip(base_hz * 2 ** (semitones / 12), 50, 550)

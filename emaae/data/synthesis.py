"""How a generated utterance of demo.py is made: speaker, score, movement, frames."""

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

# The first simulated instant is at .5 ms, so that every frame centre, (320 i + 200) / 16000 s, is
# itself an instant of the simulation: number 6, 16, 26, ...
STEP_S = 0.002
FIRST_INSTANT_S = 0.0005
FIRST_FRAME_STEP = 6
STEPS_PER_FRAME = 10

RAMP_S = 0.030
CONSONANT_LEAD_S = 0.050
# (strength, natural frequency in Hz) of the gestures of each kind
VOWEL_DYNAMICS = (1.0, 6.0)
CONSONANT_DYNAMICS = (8.0, 12.0)
NEUTRAL_DYNAMICS = (0.06, 2.0)
LOW_PASS = signal.butter(5, 10, fs=1 / STEP_S, output="sos")

LOUDNESS_SMOOTHING_S = 0.040
ACCENT_PROBABILITY = 1 / 3  # of a vowel
ACCENT_S = 0.25
WANDER_CORRELATION = 0.9  # of the pitch in pauses, from one frame to the next

# Brings the 12 articulators of the default corpus to a standard deviation of about 1. A constant,
# not a measurement of the corpus: an utterance must not depend on which others are asked for.
POSITION_SCALE = 1.48


class GeneratedUtterance(NamedTuple):
    """One generated utterance.

    name: path below the split's folder, without suffix: `103/103000/103-103000-0000`.
    features: (T, 14) float32 at 50 Hz; 0..11 are ARTICULATORS in z-scores (Y grows upwards, X
        backwards), 12 is loudness (mean absolute value of the z-scored waveform, >= 0), 13 is pitch
        in Hz (50..550, arbitrary where unvoiced).
    times: (T, 2) float32, start and end of each frame in seconds, both strictly increasing.
    phones, gestures: the score, in order of time.
    """

    name: str
    features: np.ndarray
    times: np.ndarray
    phones: list[Phone]
    gestures: list[Gesture]


class Speaker(NamedTuple):
    transform: np.ndarray  # (12, 12): features = movement @ transform + offset
    offset: np.ndarray  # (12,)
    rate: float  # phone durations are divided by it
    pitch_hz: float


class PhoneGestures(NamedTuple):
    """One phone's gestures: which articulators it pulls, where to, how hard, from when to when."""

    phone: str
    target: np.ndarray  # (12,) standard deviations from rest
    weight: np.ndarray  # (12,) 0..1, 0 where the phone leaves the articulator alone
    strength: float
    frequency_hz: float
    start_s: float
    end_s: float


class Draft(NamedTuple):
    """What an utterance is made of; its random numbers go on where the gestures' ended."""

    name: str
    rng: np.random.Generator
    speaker: Speaker
    phones: list[Phone]
    tokens: list[PhoneGestures]


def random_stream(seed: int, *stream: str | int) -> np.random.Generator:
    """An independent generator for each named stream of random numbers."""
    words = (int.from_bytes(w.encode(), "big") if isinstance(w, str) else w for w in stream)
    return np.random.default_rng([seed, *words])


def draw_speaker(number: int, seed: int) -> Speaker:
    """The speaker of a number; odd numbers are men."""
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
    margin_s = duration_s / 5  # a very short utterance still has room to speak
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

    # The plan is stretched to the time available, which leaves the speaking rate unbiased only if
    # it is as often too short as too long.
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
    """The gestures of the phones of a score; silence has none."""
    tokens = []
    for i, (label, start_s, end_s) in enumerate(phones):
        if label == SILENCE:
            continue
        if label in VOWELS:
            # Consonants are superimposed on a continuous movement from vowel to vowel.
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

    whose stiffness w^2 and rest position x0 are means over the active gestures, each counted with
    its activation x strength x weight. A weak neutral gesture is always active.
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

    Where one vowel's ramp meets the next one's, the two add up to 1.
    """
    up = np.clip((instants_s - start_s) / RAMP_S, -0.5, 0.5)
    down = np.clip((end_s - instants_s) / RAMP_S, -0.5, 0.5)
    return (1 + np.sin(np.pi * up)) * (1 + np.sin(np.pi * down)) / 4


def _integrate(target: np.ndarray, stiffness: np.ndarray) -> np.ndarray:
    """Positions (instant, utterance, channel) of damped springs that start at rest (0).

    Semi-implicit Euler: velocity first, then position with the new velocity.
    """
    damping = 2 * np.sqrt(stiffness)
    positions = np.empty_like(target)
    x = np.zeros(target.shape[1:])
    velocity = np.zeros(target.shape[1:])
    for step in range(len(target)):
        velocity -= STEP_S * (stiffness[step] * (x - target[step]) + damping[step] * velocity)
        x += STEP_S * velocity
        positions[step] = x
    return positions


def make_utterance(draft: Draft, movement: np.ndarray) -> GeneratedUtterance:
    """The utterance that one movement (instants, 12) of a speaker's articulators makes."""
    name, rng, speaker, phones, tokens = draft
    n_frames = int(frames_of(round(phones[-1].end_s * SAMPLE_RATE_HZ)))
    at_frames = FIRST_FRAME_STEP + STEPS_PER_FRAME * np.arange(n_frames)

    # Sensor noise whose density does not depend on the step: .04 at a step of one frame.
    noise = rng.normal(0, 0.04 * np.sqrt(1 / FRAME_RATE_HZ / STEP_S), movement.shape)
    smooth = signal.sosfiltfilt(LOW_PASS, movement + noise, axis=0)[at_frames]

    articulators = smooth @ speaker.transform + speaker.offset
    loudness = _loudness(phones, len(movement))[at_frames]
    # The waveform is z-scored, and a normal variable's rms is 1.25 times its mean absolute value.
    loudness /= 1.25 * np.sqrt(np.mean(loudness**2))
    pitch_hz = _pitch(rng, phones, frame_centres(n_frames), speaker.pitch_hz)

    features = np.column_stack([articulators, loudness, pitch_hz])
    gestures = []
    for token in tokens:
        targets = token.target * np.diag(speaker.transform) + speaker.offset
        for i in np.flatnonzero(token.weight):
            target, weight = float(targets[i]), float(token.weight[i])
            gestures.append(
                Gesture(ARTICULATORS[i], token.phone, target, weight, token.start_s, token.end_s)
            )
    return GeneratedUtterance(
        name, features.astype(np.float32), frame_times(n_frames), phones, gestures
    )


def _loudness(phones: list[Phone], n_instants: int) -> np.ndarray:
    """(n_instants,) relative amplitude: one level per kind of sound, smoothed."""
    instants_s = FIRST_INSTANT_S + STEP_S * np.arange(n_instants)
    levels = np.array([PHONE_LOUDNESS[phone.label] for phone in phones])
    levels = levels[phone_at(phones, instants_s)]
    return ndimage.uniform_filter1d(levels, round(LOUDNESS_SMOOTHING_S / STEP_S), mode="nearest")


def _pitch(
    rng: np.random.Generator, phones: list[Phone], centres_s: np.ndarray, base_hz: float
) -> np.ndarray:
    """(T,) Hz at the frame centres, from semitones relative to the speaker's base.

    Declination over each stretch between pauses after 't Hart, Collier & Cohen (1990), A Perceptual
    Study of Intonation. Frames without voice get what a pitch tracker makes of them: arbitrary
    values between 50 and 550, never 0.
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
    # Wandering began before the first frame, so that one has the full spread of 4 semitones too.
    innovation[0] /= np.sqrt(1 - WANDER_CORRELATION**2)
    wander = signal.lfilter([1], [1, -WANDER_CORRELATION], innovation)
    semitones[silent] = wander[silent]
    return np.clip(base_hz * 2 ** (semitones / 12), 50, 550)

"""What the small packaged model understands and how well its speech is understood, on questions that its training held out.

The questions are those of training's work directory (`python -m training.run fetch synth-users`): sentences and voices unseen.
Two recognisers of different families hear the replies, Whisper base and PocketSphinx; every figure has the one of the original
synthesiser's recordings beside it. The packages of training/requirements.txt are needed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.record import Record, device_name, parser, report
from training.features.mel import SAMPLE_RATE, log_mel
from training.features.target import pieces
from training.hift.train import STAGE as HIFT_STAGE
from training.lm.score import (
    Share,
    follow_up_of,
    follows_up,
    is_not_understood,
    keeps_topic,
    names_feeling,
    names_situation,
    outside,
    situation_of,
)
from training.lm.speak import Said
from training.text import smalltalk
from training.workdir import shards, stage_dir

from innervoice import Engine, Sampling, SteadySettings

DEFAULT_MODEL = Path(str(resources.files("innervoice"))) / "assets" / "mini"
SCHEDULES = ("think_first", "reempathy", "stitch_s", "interleaved")  # the last one is without reflection
REFERENCE = "offline, 10 steps"
STREAMING: dict[str, str | SteadySettings] = {
    REFERENCE: "offline",
    "steady, 10 steps, look-back 688": SteadySettings(),
    "steady, 4 steps, look-back 688": SteadySettings(steps=4),
    "steady, 1 step, look-back 688": SteadySettings(steps=1),
    "steady, 1 step, look-back 172": SteadySettings(steps=1, look_back=172),
    "steady, 1 step, look-back 64": SteadySettings(steps=1, look_back=64),
}
GREEDY = Sampling(temperature=0.0, max_new_tokens=600)
JUDGES = ("Whisper base", "PocketSphinx")
SYNTHESISER = "Kokoro"


@dataclass(frozen=True)
class Question:
    """A held-out recording: samples [T] float32 in [-1, 1], rate in Hz, what is said and in which tone."""

    text: str
    tone: str
    voice: str
    audio: np.ndarray
    rate: int


@dataclass(frozen=True)
class Answer:
    """A reply: what was thought and said, its sound [T] float32, and what it cost in seconds of CPU time."""

    said: Said
    audio: np.ndarray
    cpu_s: float


def held_out_questions(limit: int) -> list[Question]:
    """Return the first `limit` held-out questions. Raises FileNotFoundError where none has been synthesised."""
    found: list[Question] = []
    for path in shards(stage_dir("audio"), "user-test-*.npz"):
        with np.load(path) as shard:
            rows = zip(
                shard["texts"],
                shard["tones"],
                shard["voices"],
                pieces(shard["audio"], shard["lengths"]),
                strict=True,
            )
            found += [
                Question(
                    str(text), str(tone), str(voice), audio.astype(np.float32) / 32768, int(shard["rate"])
                )
                for text, tone, voice, audio in rows
            ]
    if not found:
        raise FileNotFoundError(
            "no held-out question is there: run `python -m training.run fetch synth-users` first"
        )
    return found[:limit]


def ask(engine: Engine, question: Question, schedule: str) -> Answer:
    """Return the greedy reply to a question under a schedule."""
    began = time.process_time()
    reply = engine.generate(
        (question.audio, question.rate),
        schedule=schedule,
        sampling=GREEDY,
    )
    said = Said(" ".join(reply.reflections), reply.transcript, ())
    return Answer(said, np.asarray(reply.audio.samples, np.float32), time.process_time() - began)


@dataclass
class Understanding:
    """How often the reflection and the reply fit: shares of the questions that each one is asked of."""

    feeling: Share = field(default_factory=Share)
    situation: Share = field(default_factory=Share)
    not_understood: Share = field(default_factory=Share)
    tone: Share = field(default_factory=Share)

    def add(self, question: Question, said: Said) -> None:
        """Count a reply to a question."""
        situation = situation_of().get(question.text)
        if situation is not None:
            self.feeling.add(names_feeling(said, situation))
            self.situation.add(names_situation(said, situation))
        elif question.text in outside():
            self.not_understood.add(is_not_understood(said))
        elif question.text in {text for text, _ in smalltalk.NEUTRAL}:
            self.tone.add(follows_tone(said, question.tone))


def follows_tone(said: Said, tone: str) -> bool:
    """Say whether the reflection on a neutral sentence, or else the reply, is one for this tone of voice."""
    heads = {name: felt.split("{topic}")[0] for name, (felt, *_) in smalltalk.TONE_REFLECTIONS.items()}
    if said.reflection:
        return said.reflection.startswith(heads[tone])
    openings = [reply.split("{topic}")[0] for reply in smalltalk.TONE_REPLIES[tone]]
    return said.text.startswith(tuple(openings))


def log_spectral_distance(audio: np.ndarray, reference: np.ndarray) -> float:
    """Return the root mean square, in dB, between the log mel spectra of two recordings [T] at 22,050 Hz.

    Frames in which the reference is silent (60 dB below its loudest) do not count.
    """
    length = min(len(audio), len(reference))
    ours, theirs = (
        log_mel(torch.from_numpy(sound[:length].copy())[None])[0] * (20 / np.log(10))
        for sound in (audio, reference)
    )
    loud = theirs.amax(0) > theirs.max() - 60
    return float((ours - theirs)[:, loud].square().mean().sqrt())


def of_shares(name: str, shape: str, shares: Understanding, device: str) -> Iterator[Record]:
    """Yield a record for each share of right replies, with how many it is of."""
    for part in ("feeling", "situation", "not_understood", "tone"):
        share = getattr(shares, part)
        if share.of:
            yield Record(
                f"{name}.{part}",
                shape,
                "share",
                device,
                share.value,
                better="higher",
                details={"of": share.of},
            )


def of_word_errors(
    name: str,
    shape: str,
    answers: Sequence[Answer],
    originals: Sequence[float],
    device: str,
    **details: Any,
) -> Iterator[Record]:
    """Yield the word error of replies against their own text by each judge, the synthesiser's as the peer."""
    from training.evaluate import judged  # its recognisers are installed for training alone

    spoken = [answer for answer in answers if len(answer.audio) and answer.said.text.strip()]
    rates = judged([answer.audio for answer in spoken], [answer.said.text for answer in spoken])
    for judge, rate, original in zip(JUDGES, rates, originals, strict=True):
        yield Record(
            f"{name}.word_error",
            f"{shape}, {judge}",
            "share",
            device,
            rate,
            peer=original,
            peer_name=SYNTHESISER,
            details={"replies": len(spoken), "silent": len(answers) - len(spoken)} | details,
        )


def originals() -> list[float]:
    """Return the word error of the synthesiser's own held-out replies, by each judge: as the vocoder's evaluation has
    logged it.
    """
    path = stage_dir("logs") / f"{HIFT_STAGE}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    logged = [entry["wer_original"] for entry in map(json.loads, lines) if entry.get("kind") == "reply-test"]
    if not logged:
        raise FileNotFoundError(f"{path} has no evaluation: run `python -m training.run hift` first")
    return logged[-1]


def run_schedules(args: argparse.Namespace, theirs: Sequence[float]) -> Iterator[Record]:
    """Yield what is understood, and how well the replies are, under each schedule."""
    questions = held_out_questions(args.questions)
    shape = f"{len(questions)} questions"
    with Engine.from_pretrained(args.model, device=args.device, streaming=SteadySettings(steps=1)) as engine:
        for schedule in args.schedules:
            shares, answers = Understanding(), []
            for question in questions:
                answers.append(ask(engine, question, schedule))
                shares.add(question, answers[-1].said)
            device = device_name(args.device)
            yield from of_shares(schedule, shape, shares, device)
            yield from of_word_errors(schedule, shape, answers, theirs, device)


def pairs(limit: int) -> list[tuple[Question, Question]]:
    """Return held-out first turns, each with a held-out second turn that fits its feeling."""
    questions = held_out_questions(10**6)
    found: list[tuple[Question, Question]] = []
    for first in questions:
        situation = situation_of().get(first.text)
        if situation is not None:
            fitting = [second for second in questions if follow_up_of(second.text, situation)]
            found += [(first, fitting[len(found) % len(fitting)])] if fitting else []
    return found[:limit]


def run_two_turns(args: argparse.Namespace) -> Iterator[Record]:
    """Yield how often a second turn is answered as one of its kind, and still about the topic of the first one."""
    asked = pairs(args.two_turns)
    fits, topic = Share(), Share()
    with Engine.from_pretrained(args.model, device=args.device, streaming="offline") as engine:
        for first, second in asked:
            with engine.open_session(schedule="think_first") as session:
                for question in (first, second):
                    stream = session.reply((question.audio, question.rate), sampling=GREEDY)
                    reply = stream.reply()
            said = Said(" ".join(reply.reflections), reply.transcript, ())
            situation = situation_of()[first.text]
            entry = follow_up_of(second.text, situation)
            assert entry is not None
            fits.add(follows_up(said, entry))
            topic.add(keeps_topic(said, situation))
    for name, share in (("fitting", fits), ("same_topic", topic)):
        yield Record(
            f"second_turn.{name}",
            f"{len(asked)} dialogues",
            "share",
            device_name(args.device),
            share.value,
            better="higher",
            details={"of": share.of},
        )


def run_streaming(args: argparse.Namespace, theirs: Sequence[float]) -> Iterator[Record]:
    """Yield word error, spectral distance from the offline sound and cost of each way of streaming."""
    questions = held_out_questions(args.streamed)
    reference: list[Answer] = []
    for name, streaming in STREAMING.items():
        with Engine.from_pretrained(
            args.model, device=args.device, streaming=streaming, vocoder_noise=False
        ) as engine:
            ask(engine, questions[0], "think_first")  # first calls build what later ones reuse
            answers = [ask(engine, question, "think_first") for question in questions]
        reference = reference or answers
        distances = [
            log_spectral_distance(own.audio, other.audio)
            for own, other in zip(answers, reference, strict=True)
            if len(own.audio) and len(other.audio)
        ]
        audio_s = sum(len(answer.audio) for answer in answers) / SAMPLE_RATE
        cost = sum(answer.cpu_s for answer in answers) / max(audio_s, 1e-9)
        yield from of_word_errors(
            name,
            f"{len(questions)} questions",
            answers,
            theirs,
            device_name(args.device),
            log_spectral_distance_db=round(float(np.mean(distances)), 2),
            cpu_s_per_audio_s=round(cost, 3),
        )


def main() -> None:
    """Run what the arguments ask for."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", default=str(DEFAULT_MODEL), help="the model's directory")
    arguments.add_argument(
        "--questions", type=int, default=200, help="questions a schedule; 200: all held-out ones"
    )
    arguments.add_argument("--schedules", nargs="*", default=list(SCHEDULES), help="by name")
    arguments.add_argument("--streamed", type=int, default=32, help="questions a way of streaming; 0: none")
    arguments.add_argument("--two-turns", type=int, default=32, help="dialogues of two turns; 0: none")
    args = arguments.parse_args()
    if args.quick:
        args.questions, args.streamed = min(args.questions, 4), min(args.streamed, 2)
        args.two_turns = min(args.two_turns, 2)
    theirs = originals()

    def records() -> Iterator[Record]:
        yield from run_schedules(args, theirs)
        if args.two_turns:
            yield from run_two_turns(args)
        if args.streamed:
            yield from run_streaming(args, theirs)

    report(records(), args.json)


if __name__ == "__main__":
    main()

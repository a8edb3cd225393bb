"""The driver: `python -m training.run STAGE ...` runs stages one after the other, each in a process of its
own.

Every stage goes on where it stopped. Without a stage the driver lists them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The engine is there for the parity check alone.
PATHS = (ROOT, ROOT / "engine", ROOT / "kernels")


def _fetch() -> None:
    from training.sources import fetch_all

    fetch_all()


def _synth(part: str) -> Callable[[], None]:
    def run() -> None:
        from training.speech.plan import queues
        from training.speech.synth import synthesise

        synthesise(queues()[part])

    return run


def _features() -> None:
    from training.features.target import make_features

    make_features()


def _hift() -> None:
    from training.evaluate import evaluate_vocoder
    from training.hift.train import train

    train()
    evaluate_vocoder()


def _tokens() -> None:
    from training.features.tokens import fit_codebook, make_states, make_tokens

    make_states()
    fit_codebook()
    make_tokens()


def _check_tokenizer() -> None:
    from training.parity import check_tokenizer

    check_tokenizer()


def _flow_encoder() -> None:
    from training.evaluate import evaluate_flow
    from training.flow.train import ENCODER_STAGE, train_encoder

    train_encoder()
    evaluate_flow(ENCODER_STAGE)


def _flow() -> None:
    from training.evaluate import evaluate_flow
    from training.flow.train import STAGE, train

    train()
    evaluate_flow(STAGE)


def _polish() -> None:
    from training.evaluate import evaluate_flow
    from training.flow.train import STAGE
    from training.hift.polish import POLISH_STAGE, load, train

    train()
    evaluate_flow(STAGE, load(), POLISH_STAGE)


def _lm() -> None:
    from training.evaluate import evaluate_language_model
    from training.lm.train import train

    train()
    evaluate_language_model()


def _export() -> None:
    from training.export import export

    export()


def _package() -> None:
    from training.package import package

    package()


# Name: (what it does, how). `mini` runs those before `package` in this order.
STAGES: dict[str, tuple[str, Callable[[], None]]] = {
    "fetch": ("fetch and check the pinned packages", _fetch),
    "synth-first": ("say an hour in the target voice, and the held-out sentences", _synth("first")),
    "synth-users": ("say what the first users say, and the held-out questions", _synth("users")),
    "synth-core": (
        "say the replies and questions of small talk, and more from outside its world",
        _synth("core"),
    ),
    "synth-rest": ("say everything else", _synth("rest")),
    "features": ("mel, pitch and aligned samples of the target voice", _features),
    "tokens": ("states of Whisper, the codebook, the codes of every recording", _tokens),
    "check-tokenizer": ("compare the codes with the engine's", _check_tokenizer),
    "hift": ("train the vocoder, and judge it", _hift),
    "flow-encoder": ("train the flow's token-rate half, and judge it", _flow_encoder),
    "flow": ("train the whole flow as a regression, and judge it", _flow),
    "hift-polish": ("go on with the vocoder on the flow's mels, and judge both", _polish),
    "lm": ("train the language model, and judge it", _lm),
    "export": ("write the model in the shipped formats", _export),
    "package": ("put the model, questions, card and notice into the engine's assets", _package),
}


def run_here(stage: str, beside: bool) -> None:
    """Run one stage in this process, niced and on one thread, while no other runs or `beside` another one."""
    from training.workdir import only_process, wait_while_paused

    os.nice(max(0, 19 - os.nice(0)))
    wait_while_paused()
    with only_process(f"stage-{stage}"), nullcontext() if beside else only_process("heavy"):
        STAGES[stage][1]()


def main() -> int:
    """Parse the command line and run the stages that it names."""
    parser = argparse.ArgumentParser(prog="python -m training.run", description=__doc__)
    parser.add_argument("stages", nargs="*", help="stages in order, or `mini` for all of them")
    parser.add_argument("--work", help="work directory; default ~/.cache/innervoice-training")
    parser.add_argument("--beside", action="store_true", help="run although another stage is running")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        os.environ["INNERVOICE_TRAINING"] = options.work
    stages = list(STAGES)[:-1] if options.stages == ["mini"] else options.stages
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        print(f"unknown stages: {', '.join(unknown)}" if unknown else "stages, in the order of `mini`:")
        print("\n".join(f"  {name:16} {text}" for name, (text, _) in STAGES.items()))
        return 2 if unknown else 0
    if options.here:
        run_here(stages[0], options.beside)
        return 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    for stage in stages:
        command = [sys.executable, "-m", "training.run", "--here", stage, *["--beside"] * options.beside]
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            print(f"the stage {stage} ended with {code}: its log is logs/{stage}.jsonl in the work directory")
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What memory is worth: the same small model with and without, on real source code.

`make demo` runs it. Two checkpoints, trained alike but for the memory, train on for a
few steps; then both read long documents from packages that neither has seen, the one
with memory at several memory sizes. Results are whatever was measured.
"""

import argparse
import json
from pathlib import Path

import passages
from tqdm import tqdm

from memorizing_data import tokenizer
from memorizing_data.token_files import TokenFiles, open_split
from memorizing_jax import evaluate, evaluation_report, parameter_files, train
from memorizing_jax.evaluation_report import Measured
from memorizing_jax.parameter_files import Trained
from memorizing_jax.train_config import OptimizerConfig, TrainConfig

HERE = Path(__file__).parent
MEMORY_SIZES = (0, 512, 2048, 8192, 32768)
# Test documents of this many tokens are read, all of them and each to its end:
# long enough for the larger memories to matter, short enough for ten minutes.
LENGTHS = range(30_000, 60_000)


def train_on(name: str, tokens: Path, output: Path, steps: int, quiet: bool) -> Trained:
    """Continues training from a committed checkpoint, and returns the result."""
    checkpoint = HERE / f"{name}.safetensors"
    start = parameter_files.load(checkpoint)
    config = TrainConfig(
        model=start.model,
        # The checkpoint's own schedule ended at 2e-4, with sixteen times the rows.
        optimizer=OptimizerConfig(
            optimizer="adamw", learning_rate=3e-5, warmup_steps=20, weight_decay=0.1
        ),
        batch=8,
        steps=steps,
        log_interval=max(1, steps // 5),
        evaluation_interval=0,
        checkpoint_interval=steps,
    )
    train.train(config, tokens, output / name, initial=checkpoint, quiet=quiet)
    lines = (output / name / "metrics.jsonl").read_text().splitlines()
    losses = ", ".join(f"{json.loads(line)['loss']:.3f}" for line in lines)
    print(f"{name}: trained on for {steps} steps, nats per token {losses}")
    return parameter_files.load(output / name / "parameters.safetensors")


def measure(
    label: str, trained: Trained, memory_size: int, files: TokenFiles, bar: tqdm
) -> tuple[Measured, dict]:
    """Evaluates on the chosen documents; returns the measure and its JSON line."""
    config = trained.model.replace(memory_size=memory_size)
    chosen = [i for i, d in enumerate(files.documents) if d.num_tokens in LENGTHS]
    bar.set_description(label)
    found = evaluate.evaluate(
        trained.parameters,
        config,
        files,
        batch=len(chosen),
        documents=chosen,
        on_progress=bar.update,
    )
    measured = Measured(config, found)
    line = evaluation_report.to_json(measured, files) | {"label": label}
    return measured, line


def main() -> None:
    """Trains on, evaluates, prints tables and writes results and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=Path, required=True, help="the data set")
    parser.add_argument("--output", type=Path, required=True, help="folder for results")
    parser.add_argument("--steps", type=int, default=100, help="steps to train on")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    args = parser.parse_args()

    files = open_split(args.tokens, "test")
    chosen = [d for d in files.documents if d.num_tokens in LENGTHS]
    names = ("without_memory", "with_memory")
    without, with_memory = (
        train_on(name, args.tokens, args.output, args.steps, args.quiet)
        for name in names
    )
    print(f"\nheld-out documents: {', '.join(d.name for d in chosen)}")
    total = sum(d.num_tokens for d in chosen) * (1 + len(MEMORY_SIZES))
    with tqdm(total=total, unit="token", unit_scale=True, disable=args.quiet) as bar:
        pairs = [measure("trained without", without, 0, files, bar)]
        pairs += [
            measure(f"memory {size:,}", with_memory, size, files, bar)
            for size in MEMORY_SIZES
        ]
    lines = [line for _, line in pairs]
    evaluation_report.write_lines(args.output / "results.jsonl", lines)
    evaluation_report.plot(args.output / "results.png", lines)
    print(f"\n{evaluation_report.table(lines)}\n")

    by_size = {measured.config.memory_size: measured for measured, _ in pairs[1:]}
    looked_at = by_size[with_memory.model.memory_size]
    gains = passages.largest_gains(by_size[0].evaluation, looked_at.evaluation, 3)
    text = tokenizer.load(args.tokens)
    for gain in gains:
        print(passages.describe(gain, with_memory, files, text))
    print(f"results: {args.output / 'results.jsonl'}, {args.output / 'results.png'}")


if __name__ == "__main__":
    main()

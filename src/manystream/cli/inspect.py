"""`manystream inspect`: how much each stream gives to the integrated pathway."""

from __future__ import annotations

from manystream.cli.batches import evaluation_loader
from manystream.cli.options import InspectOptions
from manystream.cli.output import fresh_path, print_table, say
from manystream.evaluation.plots import plot_layers
from manystream.evaluation.strict_json import strict_json
from manystream.model import load_model
from manystream.models import contributions, mixing_weights


def inspect(options: InspectOptions) -> None:
    """Print, plot and write contributions of one batch, and the learned mixing weights."""
    out = fresh_path(options.out, "inspect")
    model = load_model(options.model)
    batch = next(iter(evaluation_loader(model, options.model, options.data)))
    measured = {
        "contributions": contributions(model.network, batch),
        "mixing_weights": mixing_weights(model.network),
    }
    out.mkdir(parents=True)
    (out / "inspection.json").write_text(strict_json(measured) + "\n")
    for what, by_layer in measured.items():
        plot_layers(by_layer, what.replace("_", " ")).savefig(out / f"{what}.png", dpi=120)
    _print_layers(measured["contributions"])
    say(f"numbers and plots are in {out}")


def _print_layers(by_layer: dict[str, dict[str, float]]) -> None:
    names = list(next(iter(by_layer.values())))
    rows = []
    for layer, values in by_layer.items():
        total = sum(values.values())
        share = f"{values[names[0]] / total:.0%}" if total > 0 else ""
        rows.append([layer, *(f"{values[name]:.3g}" for name in names), share])
    print_table(["layer", *(f"{name}, rms" for name in names), f"share of {names[0]}"], rows)

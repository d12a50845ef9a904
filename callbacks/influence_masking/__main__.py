"""Look into mask files: `python -m influence_masking inspect FILE...` and `compare FILE FILE...`."""

import argparse
import itertools
import sys
from collections.abc import Sequence

from influence_masking.errors import MaskingError
from influence_masking.masks.mask import Mask


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m influence_masking", description="Look into mask files.")
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="show what each mask selects, by layer and projection")
    inspect.add_argument("files", nargs="+", metavar="FILE")
    compare = commands.add_parser("compare", help="show how much each pair of masks has in common")
    compare.add_argument("files", nargs="+", metavar="FILE")
    options = parser.parse_args(arguments)
    if options.command == "compare" and len(options.files) < 2:
        parser.error("compare needs at least two files")
    try:
        masks = {path: Mask.load(path) for path in options.files}
        lines = _inspect(masks) if options.command == "inspect" else _compare(masks)
    except MaskingError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(lines))
    return 0


def _inspect(masks: dict[str, Mask]) -> list[str]:
    lines = []
    for path, mask in masks.items():
        lines += [path, f"  digest   {mask.digest}"]
        lines += [f"  selected {mask.num_masked:,} of {mask.num_candidates:,} ({mask.fraction:.4%})"]
        lines += [f"  {key:8} {value}" for key, value in mask.provenance.items() if value is not None]
        width = max((len(f"{share.layer} {share.projection}") for share in mask.summary()), default=0)
        for share in mask.summary():
            label = f"{share.layer} {share.projection}"
            lines.append(f"  {label:{width}} {share.masked:>12,} {share.fraction:>9.4%}")
    return lines


def _compare(masks: dict[str, Mask]) -> list[str]:
    lines = ["in both | in either | Jaccard | by chance"]
    for (path, mask), (other_path, other) in itertools.combinations(masks.items(), 2):
        overlap = mask.overlap(other)
        numbers = f"{overlap.intersection:,} | {overlap.union:,} | {overlap.jaccard:.6f} | {overlap.chance:.6f}"
        lines.append(f"{numbers}  {path} and {other_path}")
    return lines


if __name__ == "__main__":
    sys.exit(main())

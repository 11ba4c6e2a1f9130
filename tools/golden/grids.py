"""The grids of GGUF's IQ types, from ggml's own tables.

Writes crates/tensor/src/grid_tables.rs: each grid point as its levels, two bits each (three in IQ3), weight 0 lowest.

    python tools/golden/grids.py LLAMA_CPP    (a llama.cpp source tree; needs nothing else)
"""

import pathlib
import re
import sys

# name: table of ggml-common.h, weights of a point, bits of a level, level -> value
GRIDS = {
    "IQ2_XXS": ("iq2xxs_grid", 8, 2, [8, 25, 43]),
    "IQ2_XS": ("iq2xs_grid", 8, 2, [8, 25, 43]),
    "IQ2_S": ("iq2s_grid", 8, 2, [8, 25, 43]),
    "IQ3_XXS": ("iq3xxs_grid", 4, 3, [4, 12, 20, 28, 36, 44, 52, 62]),
    "IQ3_S": ("iq3s_grid", 4, 3, [1, 3, 5, 7, 9, 11, 13, 15]),
    "IQ1": ("iq1s_grid", 8, 2, [255, 0, 1]),
}


def main():
    header = (pathlib.Path(sys.argv[1]) / "ggml/src/ggml-common.h").read_text()
    lines = [
        "//! ggml's grids (`ggml-common.h`), written by `tools/golden/grids.py`: the levels of each point's weights, the first",
        "//! weight's in the lowest bits.",
        "",
    ]
    for name, (table, weights, bits, values) in GRIDS.items():
        body = re.search(rf"GGML_TABLE_BEGIN\(uint\d+_t, {table}, \w+\)(.*?)GGML_TABLE_END", header, re.S)[1]
        points = []
        for word in re.findall(r"0x([0-9a-f]+)", body):
            point = int(word, 16).to_bytes(weights, "little")
            points.append(sum(values.index(value) << (bits * i) for i, value in enumerate(point)))
        lines.append("#[rustfmt::skip]")
        lines.append(f"pub(crate) const {name}: [u16; {len(points)}] = [")
        for start in range(0, len(points), 16):
            lines.append("    " + " ".join(f"0x{point:04x}," for point in points[start : start + 16]))
        lines.append("];")
        lines.append("")
    out = pathlib.Path(__file__).parents[2] / "crates/tensor/src/grid_tables.rs"
    out.write_text("\n".join(lines[:-1]) + "\n")


if __name__ == "__main__":
    main()

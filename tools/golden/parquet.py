"""Small Parquet files by pyarrow, and what they say.

Writes crates/text/tests/golden/parquet/*.parquet and parquet.json: texts and chats under each codec, encoding and page
version that `Documents::from_parquet` reads, with nulls, repeats and several row groups. Needs pyarrow.

    python tools/golden/parquet.py
"""

import json
import pathlib

import pyarrow
import pyarrow.parquet as pq

OUT = pathlib.Path("crates/text/tests/golden/parquet")
TEXTS = [f"text {i % 7}, " + "wörd 词 " * (i % 5) for i in range(40)]
TEXTS[3] = None
TEXTS[11] = ""
CHATS = [
    [{"content": f"q{i}-{j}" if j else "", "role": ("user", "assistant")[j % 2]} for j in range(i % 4)] for i in range(23)
]
CHATS[2] = None
CHATS[3] = [{"content": None, "role": "user"}]
CASES = {
    "plain": dict(compression="none", use_dictionary=False),
    "snappy": dict(compression="snappy"),
    "gzip_v2": dict(compression="gzip", data_page_version="2.0"),
    "zstd": dict(compression="zstd", row_group_size=9),
    "small_pages": dict(compression="zstd", data_page_size=64, write_batch_size=4, data_page_version="2.0"),
    "delta_length": dict(use_dictionary=False, column_encoding="DELTA_LENGTH_BYTE_ARRAY", compression="snappy"),
    "delta": dict(use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY", compression="none", data_page_version="2.0"),
}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    expected = {}
    tables = {
        "text": pyarrow.table({"id": list(range(40)), "text": TEXTS}),
        "chat": pyarrow.table({"messages": pyarrow.array(CHATS), "score": [0.5] * 23}),
        "required": pyarrow.table(
            {"text": [text or "x" for text in TEXTS]}, pyarrow.schema([pyarrow.field("text", pyarrow.string(), False)])
        ),
    }
    for kind, table in tables.items():
        for case, options in CASES.items():
            if kind == "required" and case not in ("plain", "gzip_v2"):
                continue
            if isinstance(encoding := options.get("column_encoding"), str):
                names = {"text": ["text"], "chat": ["messages.list.element.content", "messages.list.element.role"]}
                options = options | {"column_encoding": {name: encoding for name in names[kind]}}
            pq.write_table(table, OUT / f"{kind}_{case}.parquet", **options)
            expected[f"{kind}_{case}"] = table.column(1 if kind == "text" else 0).to_pylist()
    pq.write_table(tables["text"], OUT / "brotli.parquet", compression="brotli")
    document = {"pyarrow": pyarrow.__version__, "rows": expected}
    (OUT / "parquet.json").write_text(json.dumps(document, ensure_ascii=False, indent=None) + "\n")


main()

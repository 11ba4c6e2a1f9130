#!/usr/bin/env python3
"""Renders published chat templates here and in transformers: `templates.py LLAMA_CPP RENDER`.

LLAMA_CPP is a source tree, whose models/templates has some seventy; RENDER is the example of crates/text built by
`cargo build -p bitmill-text --example render_template`. Prints what differs, and counts.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

from transformers.utils.chat_template_utils import render_jinja_template

CHATS = [
    [("user", "Hello there.")],
    [("system", "Be brief."), ("user", "你好 \"quoted\" <b>&'s</b>"), ("assistant", "Fine."), ("user", "And you?")],
    [("user", "one"), ("assistant", "<think>\nhm\n</think>\n\ntwo"), ("user", "three")],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def main():
    templates = sorted((pathlib.Path(sys.argv[1]) / "models" / "templates").glob("*.jinja"))
    equal = refused = 0
    differ = []
    for path in templates:
        for chat in CHATS:
            messages = [{"role": role, "content": content} for role, content in chat]
            try:
                expected = render_jinja_template([messages], chat_template=path.read_text(), add_generation_prompt=True, **TOKENS)[0][0]
            except Exception as error:  # noqa: BLE001 - whatever it raises, it renders nothing
                expected = None
                why = f"{type(error).__name__}: {error}"
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                json.dump({"messages": messages, "add_generation_prompt": True, **TOKENS}, file)
                file.flush()
                run = subprocess.run([sys.argv[2], str(path), file.name], capture_output=True, text=True, check=False)
            found = run.stdout if run.returncode == 0 else None
            if expected is None and found is None:
                refused += 1
            elif expected == found:
                equal += 1
            else:
                differ.append(path.name)
                print(f"{path.name}: expected {why if expected is None else repr(expected)}\n  found {found!r} {run.stderr.strip()[-300:]}")
    print(f"{equal} equal, {refused} refused by both, {len(differ)} differ: {sorted(set(differ))}")


if __name__ == "__main__":
    main()

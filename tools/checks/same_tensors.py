#!/usr/bin/env python3
"""same_tensors.py A.gguf B.gguf: do both files hold the same tensors, type for type and byte for byte? Exits 1 if not."""
import pathlib
import sys

from gguf import GGUFReader

a, b = ({t.name: t for t in GGUFReader(path).tensors} for path in sys.argv[1:3])
alone = sorted(set(a) ^ set(b))
types = [n for n in a if n in b and a[n].tensor_type != b[n].tensor_type]
bytes_ = [n for n in a if n in b and n not in types and a[n].data.tobytes() != b[n].data.tobytes()]
for what, names in (("in one file alone", alone), ("of another type", types), ("of other bytes", bytes_)):
    for name in names[:5]:
        kinds = " / ".join(t[name].tensor_type.name for t in (a, b) if name in t)
        print(f"  {what}: {name} ({kinds})")
same = len(a) - len(types) - len(bytes_) - len([n for n in alone if n in a])
print(f"{pathlib.Path(sys.argv[1]).name}: {same} of {len(b)} tensors equal")
sys.exit(1 if alone or types or bytes_ else 0)

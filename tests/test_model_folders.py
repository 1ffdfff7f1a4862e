"""transformers looks through the files of its models once, and finds what it finds when it looks as ever."""

import json
import subprocess
import sys

LOOK = """
import json, sys
from pathlib import Path
from slime_core.model_folders import look_once_through_models

if sys.argv[1] == "once":
    look_once_through_models()
import transformers.models
from transformers.utils import import_utils as found

folders = [transformers.models, transformers.models.llama, transformers.models.auto]
names = {f"{folder.__name__}.{name}": module for folder in folders for name, module in sorted(folder._class_to_module.items())}
looks = found.create_import_structure_from_path.cache_info()
files = [path for path in Path(transformers.models.__file__).parent.rglob("*") if path.is_dir() and path.name != "__pycache__"]
print(json.dumps({"names": names | transformers._class_to_module, "looks": looks.misses, "folders": len(files) + 1}))
print(json.dumps(sorted(str(finder) for finder in sys.meta_path if "slime" in str(finder))))
"""


def test_each_folder_is_looked_through_once_and_the_same_is_found() -> None:
    once, as_ever = (
        [
            json.loads(line)
            for line in subprocess.check_output([sys.executable, "-c", LOOK, how], text=True).splitlines()
        ]
        for how in ("once", "as ever")
    )
    by_name = 3  # of the folders that are imported here, each again under the name of its __init__.py
    assert (
        once[0]["looks"] == once[0]["folders"] + by_name < as_ever[0]["looks"]
    )  # else transformers needs no help any more
    assert once[0]["names"] == as_ever[0]["names"]
    assert len(once[0]["names"]) > 2000
    assert once[1] == []

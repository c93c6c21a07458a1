"""Model folders to spoil, and a watch on what reading them does."""

import json
import sys

import pytest
import torch
from helpers import tiny_batch
from safetensors.torch import load_file, save_file

from dynabert.errors import ModelFileError

CODE = {"narrow.py", "configuration_dynabert_bert.py", "modeling_dynabert_bert.py"}


def logits(model, batch=None):
    with torch.no_grad():
        return model(**(batch or tiny_batch()).inputs).logits


def save_at(model, path):
    """Save a model without the care that `save_model` takes to survive a crash: faster."""
    model.save_pretrained(path)
    return path


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder, change):
    """Rewrite the weights as `change` makes them of the dict of tensors."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(change(state), folder / "model.safetensors")


def refusal(action, *arguments, error=ModelFileError, **options):
    """The one line with which an action is refused."""
    with pytest.raises(error) as caught:
        action(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600, line
    return line


class Watch:
    """Records, inside ``with``, what loading must never do; leaving the block fails if there was any."""

    NEVER = ("pickle.find_class", "socket.connect", "os.system", "subprocess.Popen", "ctypes.dlopen")

    def __init__(self):
        self.on = False
        self.seen = []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if self.on and (event in self.NEVER or (event == "open" and "forbidden" in str(arguments[0]))):
            self.seen.append((event, str(arguments)))

    def __enter__(self):
        self.seen.clear()
        self.on = True

    def __exit__(self, *_):
        self.on = False
        assert self.seen == []


WATCH = Watch()  # an audit hook stays for the life of the process


def evil_code(folder, *names):
    """Python files that leave a mark if they are ever run."""
    marker = folder.parent / "marker"
    for name in names:
        (folder / name).write_text(f"open({str(marker)!r}, 'w').close()\nraise SystemExit\n")
    return marker


class Exploit:
    def __reduce__(self):
        return exec, ("raise SystemExit",)

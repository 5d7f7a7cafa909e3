"""Memory does not grow with the number of pictures: a simulation in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from house import ROOT

# Tokens of a picture are 5 × 64 numbers in bfloat16, 640 bytes; those of 200,000 are 128 MB.
READ = """
import re, sys
from pathlib import Path
import torch
from patchsae_lib.latents import scan, scan_tokens
from patchsae_lib.profiles import TrainConfig
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import collect_shards, open_shards
n, folder = int(sys.argv[1]), sys.argv[2]

class Numbered:
    class_names = "a", "b", "c"
    def __len__(self): return n
    def label(self, i): return i % 3
    def batch(self, indices):
        levels = torch.tensor([i % 251 for i in indices], dtype=torch.uint8)
        return levels.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

class FakeClip:
    n_tokens, at_once = 5, 32
    def preprocess(self, images): return images.float()
    def tokens(self, images): return images[:, :1, 0, :1].expand(-1, 5, 64) + 1

tokens = collect_shards(FakeClip(), Numbered(), folder, {"n": n})
sae, labels = SAE(64, 8).eval(), torch.arange(n) % 3
total = sum(float(z.double().mean()) * len(z) for z in tokens.split(64))
table = scan_tokens(sae, tokens, labels, Numbered.class_names)
batches = tokens.mixed(TrainConfig(batch_tokens=4096), 0)
for _ in range(2 * n * 5 // 4096): next(batches)
# Of this program alone: ru_maxrss starts from what the process that started it had held.
def peak():
    return int(re.search("VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
print(table.images, total / n, peak())
z = tokens[:]
print(peak())
"""


def read(n: int, folder: Path) -> list[float]:
    """Collect, read and scan n pictures: how many were scanned, the mean of all tokens, and the
    peak of memory in MB, before and after all tokens are held."""
    command = [sys.executable, "-c", READ, str(n), str(folder / str(n))]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [float(number) for number in ran.stdout.split()]


def test_200000_pictures_need_no_more_memory_than_960(tmp_path: Path) -> None:
    """But for 16 bytes a picture (its number and its class) and the shards of 0.6 MB that are
    mixed, of which 32 are open: 24 MB. Half of what all tokens are is allowed."""
    _, _, few, _ = read(960, tmp_path)
    images, mean, many, held = read(200_000, tmp_path)
    assert images == 200_000
    assert mean == pytest.approx(sum(i % 251 for i in range(200_000)) / 200_000 + 1, abs=0.5)
    assert many - few < 64
    assert held - few > 128  # what would be noticed

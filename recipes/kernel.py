"""The matrix product of the page's engine, assembled from kernel.wat: python -m recipes.kernel."""

from wasmtime import wat2wasm

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.explorer.live import FOLDER


def main() -> None:
    """Write `kernel.wasm` beside its source."""
    with atomic_path(FOLDER / "kernel.wasm") as path:
        path.write_bytes(wat2wasm((FOLDER / "kernel.wat").read_text("utf-8")))


if __name__ == "__main__":
    main()

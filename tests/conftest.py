"""What several test files share: the book, built once a session from the smallest profile."""

import pytest

from patchsae_lib.notebooks import make_book


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The build folder of a book made with the profile smoke, its run beside it."""
    folder = tmp_path_factory.mktemp("book")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSAE_RUNS", str(folder / "runs"))
        make_book("smoke", {}, folder / "_build")
    return folder / "_build"

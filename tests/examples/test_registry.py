"""Files of registries: fetched only when asked to, whole or not at all, and believed by their checksum alone."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import registry
from registry import Package, PackageError, package_file
from rich.console import Console

QUIET = Console(file=io.StringIO())
CONTENT = bytes(range(256)) * 600  # more than one piece
Server = tuple[Callable[..., str], list[str]]


def package(url: str, content: bytes = CONTENT) -> Package:
    return Package("something real", url, hashlib.sha256(content).hexdigest(), len(content))


def test_it_is_fetched_when_asked_to_and_once(package_server: Server, tmp_path: Path) -> None:
    serve, asked = package_server
    wanted = package(serve("/a/thing-1.0.tgz", CONTENT))
    with pytest.raises(PackageError, match=r"something real: .*thing-1.0.tgz is not there. Add --download .*0 MB"):
        package_file(wanted, tmp_path / "new", False, QUIET)
    assert asked == []
    assert not (tmp_path / "new").exists()
    for download in (True, True, False):
        path = package_file(wanted, tmp_path / "new", download, QUIET)
        assert path.read_bytes() == CONTENT
    assert asked == ["/a/thing-1.0.tgz"]
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_ends_early_is_not_kept(package_server: Server, tmp_path: Path) -> None:
    serve, _ = package_server
    wanted = package(serve("/thing.tgz", CONTENT[:-1], announced_length=len(CONTENT)))
    with pytest.raises(PackageError, match=r"cannot fetch|is not the file"):  # by Python: it may notice, or not
        package_file(wanted, tmp_path, True, QUIET)
    assert list(tmp_path.iterdir()) == []
    assert package_file(package(serve("/thing.tgz", CONTENT)), tmp_path, True, QUIET).is_file()


def test_another_file_is_not_kept(package_server: Server, tmp_path: Path) -> None:
    serve, _ = package_server
    wanted = package(serve("/thing.tgz", CONTENT[::-1]))
    with pytest.raises(PackageError, match=r"came from http.* is not the file .*not kept"):
        package_file(wanted, tmp_path, True, QUIET)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_changed_on_disk_is_refused(package_server: Server, tmp_path: Path) -> None:
    serve, asked = package_server
    wanted = package(serve("/thing.tgz", CONTENT))
    package_file(wanted, tmp_path, True, QUIET).write_bytes(CONTENT + b"!")
    for download in (False, True):
        with pytest.raises(PackageError, match=r"thing.tgz is not the file .*Delete it"):
            package_file(wanted, tmp_path, download, QUIET)
    assert len(asked) == 1


def test_a_server_that_has_nothing_or_is_not_there(package_server: Server, tmp_path: Path) -> None:
    serve, _ = package_server
    url = serve("/thing.tgz", CONTENT)
    for missing, says in ((f"{url}.not", "404"), ("http://127.0.0.1:9/thing.tgz", "refused")):
        with pytest.raises(PackageError, match=f"cannot fetch .*{says}"):
            package_file(replace(package(url), url=missing), tmp_path, True, QUIET)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(
    package_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve, _ = package_server
    wanted = package(serve("/thing.tgz", CONTENT))
    seen: list[list[str]] = []

    class Interrupted(registry.Progress):
        def advance(self, *arguments: object) -> None:
            seen.append([path.name for path in tmp_path.iterdir()])
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registry, "Progress", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            package_file(wanted, tmp_path, True, QUIET)
    assert seen == [["thing.tgz.part"]]
    assert list(tmp_path.iterdir()) == []
    assert package_file(wanted, tmp_path, True, QUIET).read_bytes() == CONTENT

import sys
from pathlib import Path

import pytest

from diffing.dashboard.__main__ import main
from tests.dashboard.conftest import PROJECT, Published


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["dashboard", "--tracker", "local", *words])
    main()


def test_the_command_writes_the_pages(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site"
    run(monkeypatch, "--root", str(published.root), "--project", PROJECT, "--out", str(out), "--title", "Sailors")
    assert "<title>Sailors</title>" in (out / "index.html").read_text("utf-8")
    assert len(list(out.iterdir())) == 4
    assert "index.html" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize("project", [PROJECT, "another"])
def test_without_reports_the_command_says_so_and_writes_nothing(
    project: str, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "nowhere" if project == PROJECT else published.root
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--root", str(root), "--project", project, "--out", str(tmp_path / "site"))
    assert ended.value.code == 2
    assert not (tmp_path / "site").exists()
    assert not (tmp_path / "nowhere").exists()

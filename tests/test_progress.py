"""The progress bar passes its steps on, and is hidden when it should be, in notebooks too."""

from __future__ import annotations

import pytest
from tqdm.std import tqdm as text_bar

from invbayes import progress_bar


class NotebookBar(text_bar):
    """As tqdm's bar in notebooks, which overwrites what the environment says."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "disable": bool(kwargs.get("disable", False))})


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize("switch", [None, "", "0", "1"])
def test_the_bar_is_shown_when_it_should_be(monkeypatch, capsys, show, switch):
    monkeypatch.setattr("invbayes.progress.tqdm", NotebookBar)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if switch is not None:
        monkeypatch.setenv("TQDM_DISABLE", switch)
    assert list(progress_bar(iter("abc"), total=3, show=show)) == ["a", "b", "c"]
    assert ("0/3" in capsys.readouterr().err) == (show and switch != "1")

"""Modules whose parameters do not load into a module that is another map."""

from __future__ import annotations

from typing import Any

from torch import nn


class Described(nn.Module):
    """A module with settings that its parameters do not tell; they travel in its ``state_dict``."""

    kind = "module"

    def description(self) -> dict[str, Any]:
        """The settings, as plain data."""
        return {}

    def get_extra_state(self) -> dict[str, Any]:
        """What goes into ``state_dict``."""
        return self.description()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Refuse the parameters of another map."""
        if state != self.description():
            raise ValueError(
                f"state_dict belongs to another {self.kind}: {state}, not {self.description()}"
            )

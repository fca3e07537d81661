"""A builder whose new nodes carry the name of the node they serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ccnn.passes.graph import Builder


class ScopedBuilder(Builder):
    """Prefixes the name of each new node with `scope`, when there is one."""

    scope = ""

    def emit_all(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str = "",
        outputs: Sequence[str] = (),
        **attrs: Any,
    ) -> tuple[str, ...]:
        """As Builder.emit_all."""
        full = f"{self.scope}/{name or op}" if self.scope else name
        return super().emit_all(op, inputs, name=full, outputs=outputs, **attrs)

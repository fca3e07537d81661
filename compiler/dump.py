"""--dump-passes: the graph after each stage, as text files that parse back."""

from __future__ import annotations

from pathlib import Path

from ccnn.compiler.failure import cannot
from ccnn.passes.graph import Graph
from ccnn.passes.text import print_graph


class GraphDump:
    """Writes the graphs of one compilation into a folder, numbered in order; none without one.

    They are written as they come, so that those before a failing pass are there to look at.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.count = 0

    def see(self, name: str, graph: Graph) -> None:
        """Write one graph as NN-NAME.ccnn. Raises Failure when it cannot be written."""
        if self.folder is None:
            return
        path = self.folder / f"{self.count:02d}-{name}.ccnn"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(print_graph(graph), encoding="utf-8")
        except OSError as error:
            raise cannot("write", path, error) from error
        self.count += 1

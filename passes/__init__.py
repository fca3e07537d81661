"""The graph language of CNN training and the passes that rewrite it; embeddable by itself.

`graph` holds tensors, nodes and graphs, `ops` every op, `interpret` runs a graph with numpy,
`autodiff` adds the backward pass and the optimizer, `pipeline` lists the passes and runs them,
`text` prints and parses graphs, `check` verifies them.
"""

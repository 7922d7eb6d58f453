"""Models on this node's disk: manifests, the content-addressed store, checks before loading, conversion."""

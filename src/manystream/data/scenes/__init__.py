"""Rendered RGB-D scenes that need both streams: a data set without a download."""

from manystream.data.scenes.source import RenderedScenes, SceneSource, scenes

__all__ = ["RenderedScenes", "SceneSource", "scenes"]

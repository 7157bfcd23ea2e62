"""A model prepared for one time step after the other."""

from compressm.layers.streaming.streamer import Streamer as Streamer

"""The vocoder: mel frames to samples, with the tensor names of hift.pt."""

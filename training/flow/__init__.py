"""The flow: codes to mel frames, with the tensor names of flow.pt."""

"""The flow: codes to mel frames, with the tensor names of flow.pt.

encoder.py    the token-rate half: encoder and regulator
estimator.py  the mel-rate half: a U-Net
model.py      both, as a regression inside the format of flow matching
train.py      the stages `flow-encoder` and `flow`
"""

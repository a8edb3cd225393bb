"""The language model: codes of a question to reflection, text and codes of a reply, with GLM-4-Voice's
tensor names.
"""

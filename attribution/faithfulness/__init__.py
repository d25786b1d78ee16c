"""Faithfulness: measurements of how far attribution agrees with what the model does.

Four parts: `inputs` (input tokens), `concepts`, `outputs` (attribution of bad texts) and `training_data`, which needs
the planted corpus of `planted`, in which the truth is known.
"""

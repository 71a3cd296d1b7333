"""Loss functions of the published methods, on logits and probabilities."""

"""`comitia inspect`: what operators look at. Nothing here takes part in the protocol."""

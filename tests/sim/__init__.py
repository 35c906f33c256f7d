"""Whole federations under faults, decided by one integer each: real machines, real cryptography, a virtual clock."""

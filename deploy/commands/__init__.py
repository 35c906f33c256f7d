"""Commands that are one file each; those with a package of their own are `demo`, `inspect` and `stack`."""

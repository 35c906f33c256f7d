"""The local stack: a broker, a coordinator and workers that run in the background until they are told to stop.

One background process, the supervisor, owns everything else: whatever it starts ends with it, even after kill -9.
Commands reach it through files in the stack's directory (`deploy.stack.files`): they write what is wanted, and the
supervisor makes it so and writes what is.
"""

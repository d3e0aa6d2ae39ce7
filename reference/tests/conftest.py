import hypothesis

# The first call of a Numba kernel compiles, so a deadline would measure the compiler.
hypothesis.settings.register_profile(
    "reference", deadline=None, derandomize=True, max_examples=40, database=None
)
hypothesis.settings.load_profile("reference")

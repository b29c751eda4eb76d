"""How is it shown? Records in; pictures, data and pages out, as bytes and text.

Nothing here estimates, tests or decides. Nothing writes a file, imports torch or anything of ours.
"""

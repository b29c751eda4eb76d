"""How is it shown? Records in, artists and pages out; nothing here computes, and nothing imports torch."""

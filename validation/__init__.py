"""The science: claims grouped by subject. Importing a module registers its claims."""

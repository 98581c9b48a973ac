"""`python -m diffusion_lightning` is `diffusion-lightning`."""

from .cli.entry import main

if __name__ == "__main__":
    main()

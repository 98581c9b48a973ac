"""Makes the digit classifier that the package ships, and prints its held-out accuracy.

    python -m benchmarks.digits_net

It is trained on the 1,500 training digits alone, seen as the bytes that metrics see, with Gaussian noise on the
pixels; the 297 held-out digits only measure it. The file is rewritten bit for bit on the same kind of machine.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from diffusion_lightning import images, random
from diffusion_lightning.data import Digits
from diffusion_lightning.extractors import DigitsNet

EPOCHS, BATCH, NOISE, SEED = 60, 100, 0.15, 0


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    data = Digits()
    (x, y), (x_held, y_held) = data.read("train"), data.read("val")
    x, x_held = images.to_uint8(data.scaled(x)), images.to_uint8(data.scaled(x_held))

    net = DigitsNet(pretrained=False).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    steps = EPOCHS * len(y) // BATCH
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for epoch in range(EPOCHS):
        for batch in random.permutation(len(y), SEED, "digits net", epoch).split(BATCH):
            noise = NOISE * random.normal(x.shape[1:], SEED, "digits net: noise", epoch, batch)
            loss = F.cross_entropy(net.logits(net.convolve(images.from_uint8(x[batch]) + noise)), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

    path = DigitsNet.weights()
    save_file(net.state_dict(), path)
    guess = DigitsNet().classify(x_held)[1].argmax(1)
    print(f"held-out accuracy {(guess == y_held).double().mean():.4f} on {len(y_held)} digits")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

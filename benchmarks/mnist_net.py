"""Makes the classifier of MNIST that the package ships, and prints its accuracy on the test set.

    python -m benchmarks.mnist_net [ROOT]

ROOT is where torchvision keeps the set, `data` unless given. It is trained on the 60,000 training images alone, with
Gaussian noise on the pixels; the 10,000 test images only measure it.
"""

import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tqdm import tqdm

from diffusion_lightning import images, random
from diffusion_lightning.data import MNIST
from diffusion_lightning.extractors import MNISTNet

EPOCHS, BATCH, NOISE, SEED = 4, 100, 0.2, 0


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    data = MNIST(root=sys.argv[1] if len(sys.argv) > 1 else "data")
    data.prepare_data()
    (x, y), (x_test, y_test) = data.read("train"), data.read("test")

    net = MNISTNet(pretrained=False).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=EPOCHS * len(y) // BATCH)
    for epoch in range(EPOCHS):
        for batch in tqdm(random.permutation(len(y), SEED, "mnist net", epoch).split(BATCH), desc=f"epoch {epoch + 1}"):
            noise = NOISE * random.normal(x.shape[1:], SEED, "mnist net: noise", epoch, batch)
            loss = F.cross_entropy(net.logits(net.convolve(images.from_uint8(x[batch]) + noise)), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()

    path = MNISTNet.weights()
    save_file({name: p.contiguous() for name, p in net.state_dict().items()}, path)
    found = torch.cat([MNISTNet().classify(part)[1].argmax(1) for part in x_test.split(1000)])
    print(f"accuracy {(found == y_test).double().mean():.4f} on {len(y_test)} test images")
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()

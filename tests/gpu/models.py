"""Writes the packages that the check of a GPU serves: models.py FOLDER cpu|cuda [--small]

Weights are random. With --small the networks have fewer layers, so that a machine without a GPU runs them in seconds.
"""

import pathlib
import sys

import torch
from torch import nn

folder, device, small = pathlib.Path(sys.argv[1]), sys.argv[2], "--small" in sys.argv
torch.manual_seed(7)

NAMES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}


def package(name, module, inputs, outputs, rows=64, example=None, extra=""):
    """One folder for the device, and one for the CPU to compare with, called NAME-cpu."""
    module = module.eval()
    with torch.no_grad():
        script = torch.jit.trace(module, example, check_trace=False) if example is not None else torch.jit.script(module)
        script = torch.jit.freeze(script)
    for own, kind in ((name, device), (name + "-cpu", "cpu")):
        path = folder / own
        path.mkdir(parents=True, exist_ok=True)
        script.save(str(path / "model.pt"))

        def specs(tensors):
            lines = (f'{{ name = "{n}", datatype = "{NAMES[d]}", shape = {list((-1,) + s)} }}' for n, d, s in tensors)
            return "[" + ", ".join(lines) + "]"

        (path / "model.toml").write_text(
            f'name = "{own}"\nengine = "torchscript"\nfile = "model.pt"\n'
            f"inputs = {specs(inputs)}\noutputs = {specs(outputs)}\n"
            f"[batching]\nmax_rows = {rows}\n[limits]\nqueue_length = 100000\nbatch_time = \"30s\"\n"
            f'[resources]\ndevice = "{kind}"\n{extra}'
        )


class Pixels(nn.Module):
    """What a service would send, bytes, to what a network takes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x.float() / 255)


def convolutional(width=32):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(32 * width, 10),
    )


class Bottleneck(nn.Module):
    def __init__(self, inner, width, stride):
        super().__init__()
        outer = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, outer, 1, bias=False), nn.BatchNorm2d(outer),
        )
        same = stride == 1 and inner == outer
        shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))
        self.shortcut = nn.Identity() if same else shortcut

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def residual(blocks):
    """A ResNet (He et al., arXiv 1512.03385); (3, 4, 6, 3) is the one of 50 layers."""
    layers, inner = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Bottleneck(inner, 64 << stage, 2 if block == 0 and stage > 0 else 1))
            inner = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inner, 1000))


class Encoder(nn.Module):
    """As BERT-base (Devlin et al., arXiv 1810.04805): 12 layers of 768, 12 heads; the first token's state."""

    def __init__(self, layers, width, heads, words=30522, length=128):
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))

    def forward(self, tokens):
        x = self.words(tokens) + self.places
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.into, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        rows, length, width = x.shape
        query, key, value = self.into(x).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        seen = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(rows, length, width)
        x = self.first(x + self.out(seen))
        return self.second(x + self.feed(x))


class Same(nn.Module):
    def forward(self, x):
        return x.clone()


class Layouts(nn.Module):
    """Outputs that do not lie in memory as their shapes say."""

    def forward(self, x):
        numbers = torch.complex(x, x + 1)
        return (
            x.transpose(1, 2), x[:, :1, :1].expand(-1, 3, 4), torch.imag(torch.conj(numbers)), x.flip(2)[:, :, ::2],
            torch.relu(x).to_sparse(), x.unsqueeze(1).contiguous(memory_format=torch.channels_last).squeeze(1),
        )


class Table(nn.Module):
    """An index of 10 or more is out of range: on a GPU a device-side assert."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x):
        return self.table(x.squeeze(1))


class Hungry(nn.Module):
    """Takes as many bytes for each row as the largest value says."""

    def forward(self, x):
        taken = torch.ones([x.size(0), int(x.max())], dtype=torch.uint8, device=x.device)
        return x + 0 * taken.numel()


image = (3, 64, 64) if small else (3, 224, 224)
package("small", Pixels(convolutional()), [("x", torch.uint8, (3, 32, 32))], [("y", torch.float32, (10,))],
        example=torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
package("resnet", Pixels(residual((1, 1, 1, 1) if small else (3, 4, 6, 3))), [("x", torch.uint8, image)],
        [("y", torch.float32, (1000,))], example=torch.zeros(2, *image, dtype=torch.uint8))
package("encoder", Encoder(*((1, 128, 4) if small else (12, 768, 12))), [("x", torch.int64, (128,))],
        [("y", torch.float32, (128 if small else 768,))], example=torch.zeros(2, 128, dtype=torch.int64))
for kind in (torch.float16, torch.bfloat16):
    package(NAMES[kind].lower(), convolutional().to(kind), [("x", kind, (3, 32, 32))], [("y", kind, (10,))],
            example=torch.zeros(2, 3, 32, 32, dtype=kind))
for kind, name in NAMES.items():
    package("same-" + name.lower(), Same(), [("x", kind, (5,))], [("y", kind, (5,))])
f32 = torch.float32
package("layouts", Layouts(), [("x", f32, (3, 4))],
        [("transposed", f32, (4, 3)), ("expanded", f32, (3, 4)), ("negated", f32, (3, 4)), ("strided", f32, (3, 2)),
         ("sparse", f32, (3, 4)), ("last", f32, (3, 4))])
package("table", Table(), [("x", torch.int64, (1,))], [("y", f32, (4,))], rows=8)
memory = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 64 << 30
package("hungry", Hungry(), [("x", f32, (1,))], [("y", f32, (1,))], rows=16)
package("large", Same(), [("x", f32, (4,))], [("y", f32, (4,))], extra=f"memory_mib = {(4 * memory) >> 20}\n")

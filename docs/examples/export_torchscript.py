"""Turns a PyTorch module into a package that sluice-worker serves: traces it, freezes it, compares, writes model.toml.

Needs only torch. From your own code:

    from export_torchscript import export
    export(model, {"image": torch.zeros(2, 3, 224, 224)}, "resnet18", outputs=["logits"])

Sizes that vary from request to request get names, which may also be padded:

    export(model, {"ids": ids, "mask": mask}, "encoder", outputs=["embedding"],
           varying={"ids": {1: "tokens"}, "mask": {1: "tokens"}}, padding={"tokens": 0})

Run by itself it makes a small package, `example-net`, to try the way with.
"""

import pathlib

import torch

DATATYPES = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32",
    torch.int64: "INT64", torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}


def export(model, inputs, name, outputs=None, folder=None, varying=None, padding=None, max_rows=32, tolerance=1e-4):
    """Writes the package `folder` (by default `name`) and returns its path.

    inputs: a tensor per input, by name, in the order of forward's arguments; the first dimension counts rows, at least 2.
    outputs: names of what forward returns, in order; a dict's own names are taken if not given.
    varying: for inputs and outputs, which dimensions vary, and by what name: {"ids": {1: "tokens"}}.
    padding: what fills a varying dimension up, by its name, so that requests of different sizes share a batch.
    """
    varying, padding = varying or {}, padding or {}
    for key, tensor in inputs.items():
        if tensor.shape[0] < 2:
            raise ValueError(f"input {key}: give at least 2 rows, so that it shows that rows are rows")
    model = model.eval()
    example = tuple(inputs.values())
    with torch.no_grad():
        script = torch.jit.freeze(torch.jit.trace(model, example, strict=False))
    folder = pathlib.Path(folder or name)
    folder.mkdir(parents=True, exist_ok=True)
    script.save(str(folder / "model.pt"))

    reloaded = torch.jit.load(str(folder / "model.pt"))
    # Other rows and other sizes than those that were traced: a trace may have frozen them.
    other = resized(inputs, varying)
    with torch.no_grad():
        compare(named(model(*example), outputs), named(reloaded(*example), outputs), tolerance, "the example")
        compare(named(model(*other), outputs), named(reloaded(*other), outputs), tolerance, "other rows and sizes")
        results, varied = named(reloaded(*example), outputs), named(reloaded(*other), outputs)

    known = {size: name for dimensions in varying.values() for size, name in dimensions.items()}
    specs = [spec(key, tensor, varying.get(key, {})) for key, tensor in inputs.items()]
    gives = []
    for key, tensor in results.items():
        changed = [d for d in range(1, tensor.dim()) if tensor.shape[d] != varied[key].shape[d]]
        dimensions = varying.get(key) or {d: known.get(d) for d in changed}
        if any(dimensions.get(d) is None for d in changed):
            raise ValueError(f"output {key}: dimension {changed} varies; name it in `varying`")
        gives.append(spec(key, tensor, dimensions))
    text = f'name = "{name}"\nengine = "torchscript"\nfile = "model.pt"\n\n'
    text += "inputs = [\n" + "".join(f"    {line},\n" for line in specs) + "]\n"
    text += "outputs = [\n" + "".join(f"    {line},\n" for line in gives) + "]\n"
    sizes = {label: tensor.shape[d] for key, tensor in inputs.items() for d, label in varying.get(key, {}).items()}
    if sizes:
        text += "\n[sizes]\n" + "".join(f"{label} = {{ example = {size} }}\n" for label, size in sizes.items())
    if padding:
        text += "\n[padding]\n" + "".join(f"{key} = {{ value = {value} }}\n" for key, value in padding.items())
    text += f"\n[batching]\nmax_rows = {max_rows}\n"
    (folder / "model.toml").write_text(text)
    return folder


def named(result, names):
    """What forward returned, by name."""
    if isinstance(result, dict):
        return {key: result[key] for key in (names or result)}
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    names = names or [f"output{index}" for index in range(len(results))]
    if len(names) != len(results):
        raise ValueError(f"forward returns {len(results)} tensors; `outputs` names {len(names)}")
    return dict(zip(names, results))


def resized(inputs, varying):
    """The inputs with one row more, and with varying dimensions made larger by repeating what is there."""
    other = []
    for key, tensor in inputs.items():
        tensor = torch.cat([tensor, tensor[:1]])
        for dimension in varying.get(key, {}):
            tensor = torch.cat([tensor, tensor.narrow(dimension, 0, 1)], dimension)
        other.append(tensor)
    return tuple(other)


def compare(expected, given, tolerance, what):
    for key, tensor in expected.items():
        torch.testing.assert_close(
            given[key], tensor, rtol=tolerance, atol=tolerance,
            msg=lambda text: f"output {key} for {what}: the trace gives something else than the module. Does forward branch on its "
            f"input? Then use torch.jit.script. {text}")


def spec(name, tensor, varying):
    shape = ["-1"] + [f'"{varying[d]}"' if d in varying else str(tensor.shape[d]) for d in range(1, tensor.dim())]
    if tensor.dtype not in DATATYPES:
        raise ValueError(f"{name}: {tensor.dtype} cannot be served")
    return f'{{ name = "{name}", datatype = "{DATATYPES[tensor.dtype]}", shape = [{", ".join(shape)}] }}'


if __name__ == "__main__":
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3), torch.nn.Softmax(dim=1))
    print(export(net, {"features": torch.rand(2, 4)}, "example-net", outputs=["probabilities"]))

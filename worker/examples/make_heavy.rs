//! Makes the compute-bound model that `cargo xtask bench` measures: 64 floats in, 10 out, some milliseconds a row.
//!
//! `make_heavy FOLDER [MIB]` writes a package, with so many MiB of weights that hardly matter. A convolution over a 48x48 map with few channels costs much for each row and
//! gains little from larger batches, as an image model does.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tch::{CModule, Device, Kind, Tensor};

const LAYERS: usize = 12;
const CHANNELS: i64 = 32;
const SIDE: i64 = 48;

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).context("usage: make_heavy FOLDER [MIB]")?);
    let ballast: i64 = std::env::args().nth(2).map_or(Ok(0), |mib| mib.parse()).context("MIB is a number")?;
    std::fs::create_dir_all(&folder)?;
    tch::manual_seed(1);
    tch::set_num_threads(1);
    let _guard = tch::no_grad_guard();
    let options = (Kind::Float, Device::Cpu);
    let first = Tensor::randn([CHANNELS, 1, 3, 3], options) * 0.3;
    let layers: Vec<Tensor> = (0..LAYERS).map(|_| Tensor::randn([CHANNELS, CHANNELS, 3, 3], options) * 0.05).collect();
    let last = Tensor::randn([10, CHANNELS], options);
    let ballast = (ballast > 0).then(|| Tensor::randn([ballast, 1 << 18], options));
    let mut forward = |inputs: &[Tensor]| {
        let map = inputs[0].view([-1, 1, 8, 8]).upsample_nearest2d([SIDE, SIDE], None, None);
        let mut map = map.conv2d(&first, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1).relu();
        for layer in &layers {
            map = map.conv2d(layer, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1).relu();
        }
        let result = map.mean_dim([2_i64, 3].as_slice(), false, Kind::Float).linear(&last, None::<Tensor>);
        match &ballast {
            Some(ballast) => vec![result + ballast.narrow(0, 0, 1).mean(Kind::Float)],
            None => vec![result],
        }
    };
    let module = CModule::create_by_tracing("Heavy", "forward", &[Tensor::zeros([2, 64], options)], &mut forward)?;
    module.save(folder.join("model.pt"))?;
    std::fs::write(
        folder.join("model.toml"),
        "name = \"heavy\"\nengine = \"torchscript\"\nfile = \"model.pt\"\n\
         inputs = [{ name = \"x\", datatype = \"FP32\", shape = [-1, 64] }]\n\
         outputs = [{ name = \"y\", datatype = \"FP32\", shape = [-1, 10] }]\n[batching]\nmax_rows = 32\n",
    )?;
    Ok(())
}

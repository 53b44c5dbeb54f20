//! Trains the digits model that ships in `models/digits`, always with the same result: a seed, one thread, and the
//! first 1,347 of the 1,797 images. The other 450 stay unseen and measure its accuracy.
//!
//! cargo run --release -p sluice-worker --example train_digits

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::nn::{self, Module, OptimizerConfig};
use tch::{CModule, Device, Kind, Tensor};

const TRAINED_ON: i64 = 1347;
const EPOCHS: usize = 40;
const BATCH: i64 = 32;
const SEED: i64 = 20_250_101;

fn main() -> Result<()> {
    tch::manual_seed(SEED);
    tch::set_num_threads(1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.join("models/digits");
    let (images, labels) = read(&folder.join("digits.csv.gz"))?;
    let total = images.size()[0];
    let (train_images, train_labels) = (images.narrow(0, 0, TRAINED_ON), labels.narrow(0, 0, TRAINED_ON));

    let store = nn::VarStore::new(Device::Cpu);
    let network = Network::new(&store.root());
    let mut optimizer = nn::Adam { wd: 1e-4, ..nn::Adam::default() }.build(&store, 2e-3)?;
    for epoch in 1..=EPOCHS {
        let order = Tensor::randperm(TRAINED_ON, (Kind::Int64, Device::Cpu));
        let mut loss_sum = 0.0;
        for start in (0..TRAINED_ON).step_by(BATCH as usize) {
            let batch = order.narrow(0, start, BATCH.min(TRAINED_ON - start));
            let logits = network.logits(&train_images.index_select(0, &batch));
            let loss = logits.cross_entropy_for_logits(&train_labels.index_select(0, &batch));
            optimizer.backward_step(&loss);
            loss_sum += loss.double_value(&[]) * batch.size()[0] as f64;
        }
        if epoch % 10 == 0 {
            println!("epoch {epoch:3}  loss {:.4}", loss_sum / TRAINED_ON as f64);
        }
        if epoch == EPOCHS * 3 / 4 {
            optimizer.set_lr(4e-4);
        }
    }

    let _guard = tch::no_grad_guard();
    let module = export(&network)?;
    let file = folder.join("digits.pt");
    module.save(&file)?;
    let reloaded = CModule::load(&file)?;
    let held_out = total - TRAINED_ON;
    let (test_images, test_labels) = (images.narrow(0, TRAINED_ON, held_out), labels.narrow(0, TRAINED_ON, held_out));
    let probabilities = reloaded.forward_ts(&[&test_images])?;
    let right = probabilities.argmax(1, false).eq_tensor(&test_labels).sum(Kind::Int64).int64_value(&[]);
    println!("{right} of {held_out} unseen images right ({:.1} %)", 100.0 * right as f64 / held_out as f64);
    let direct = network.forward(&test_images);
    let difference = (direct - probabilities).abs().max().double_value(&[]);
    ensure!(difference < 1e-5, "the exported model differs by {difference}");
    println!("wrote {}", file.display());
    Ok(())
}

fn read(file: &Path) -> Result<(Tensor, Tensor)> {
    let compressed = std::fs::File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(flate2::read::GzDecoder::new(compressed));
    let (mut pixels, mut labels) = (Vec::<f32>::new(), Vec::<i64>::new());
    for record in reader.records() {
        let record = record?;
        ensure!(record.len() == 65, "64 pixels and a label per line");
        for field in record.iter().take(64) {
            pixels.push(field.parse()?);
        }
        labels.push(record[64].parse::<f64>()? as i64);
    }
    let rows = labels.len() as i64;
    Ok((Tensor::from_slice(&pixels).view([rows, 64]), Tensor::from_slice(&labels)))
}

struct Network {
    one: nn::Conv2D,
    two: nn::Conv2D,
    hidden: nn::Linear,
    output: nn::Linear,
}

impl Network {
    fn new(path: &nn::Path<'_>) -> Self {
        let same = nn::ConvConfig { padding: 1, ..nn::ConvConfig::default() };
        Self {
            one: nn::conv2d(path / "one", 1, 16, 3, same),
            two: nn::conv2d(path / "two", 16, 32, 3, same),
            hidden: nn::linear(path / "hidden", 32 * 4 * 4, 64, nn::LinearConfig::default()),
            output: nn::linear(path / "output", 64, 10, nn::LinearConfig::default()),
        }
    }

    /// Pixels of 0 to 16 in rows of 64 to the logits of ten classes.
    fn logits(&self, images: &Tensor) -> Tensor {
        let images = (images / 16.0).view([-1, 1, 8, 8]);
        let features = images.apply(&self.one).relu().apply(&self.two).relu().max_pool2d_default(2);
        features.view([-1, 32 * 4 * 4]).apply(&self.hidden).relu().apply(&self.output)
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Network")
    }
}

impl Module for Network {
    fn forward(&self, images: &Tensor) -> Tensor {
        self.logits(images).softmax(-1, Kind::Float)
    }
}

/// Traces the network. Its weights become constants, so they must not ask for gradients.
fn export(network: &Network) -> Result<CModule> {
    let detached = |tensor: &Tensor| tensor.detach().copy();
    let conv = |layer: &nn::Conv2D| (detached(&layer.ws), layer.bs.as_ref().map(detached));
    let linear = |layer: &nn::Linear| (detached(&layer.ws), layer.bs.as_ref().map(detached));
    let ((one, one_bias), (two, two_bias)) = (conv(&network.one), conv(&network.two));
    let ((hidden, hidden_bias), (output, output_bias)) = (linear(&network.hidden), linear(&network.output));
    let mut forward = |inputs: &[Tensor]| {
        let images = (&inputs[0] / 16.0).view([-1, 1, 8, 8]);
        let features = images.conv2d(&one, one_bias.as_ref(), [1, 1], [1, 1], [1, 1], 1).relu();
        let features = features.conv2d(&two, two_bias.as_ref(), [1, 1], [1, 1], [1, 1], 1).relu();
        let flat = features.max_pool2d_default(2).view([-1, 32 * 4 * 4]);
        let logits = flat.linear(&hidden, hidden_bias.as_ref()).relu().linear(&output, output_bias.as_ref());
        vec![logits.softmax(-1, Kind::Float)]
    };
    let example = Tensor::zeros([2, 64], (Kind::Float, Device::Cpu));
    Ok(CModule::create_by_tracing("Digits", "forward", &[example], &mut forward)?)
}

//! The device's answers are the CPU's.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sluice_core::{Datatype, Tensor};
use sluice_e2e::{Stack, Worker, binaries};
use xtask::broker::Kind;

use crate::Kit;
use crate::asking::{self, Caller, apart, floats, integers, row};
use crate::report::Found;
use crate::steps::printed;

/// How far answers may be from the CPU's, over the largest value: other processors add in another order.
const TOLERANCE: f64 = 1e-4;
/// The same of a GPU's, whose convolutions compute with 10 bits (TF32), as PyTorch has it unless it is told otherwise.
const GPU_TOLERANCE: f64 = 1e-2;
/// The same where the model computes with 10 bits (FP16), and with 7 (BF16).
const HALF_TOLERANCE: [(&str, f64); 2] = [("fp16", 1e-2), ("bf16", 5e-2)];

/// How long a worker may take until it serves.
pub const START: Duration = Duration::from_secs(40);

fn tolerance(kit: &Kit) -> f64 {
    if kit.gpu { GPU_TOLERANCE } else { TOLERANCE }
}

/// A broker, and a worker with a slot of each of these packages.
pub fn serve(kit: &Kit, names: &[&str]) -> Result<(Stack, Worker)> {
    let mut stack = Stack::alone(Kind::Nats)?;
    let packages: Vec<_> = names.iter().map(|name| kit.package(name)).collect();
    let slots: Vec<(&Path, usize)> = packages.iter().map(|package| (package.as_path(), 1)).collect();
    let mut worker = stack.launch(&slots, "")?;
    worker.process.wait_for_line(": ready", START)?;
    Ok((stack, worker))
}

pub fn models(kit: &Kit, found: &mut Found) -> Result<()> {
    let script = kit.folder.join("models.py").display().to_string();
    let models = kit.models.display().to_string();
    let mut arguments = vec![script.as_str(), models.as_str(), kit.kind()];
    arguments.extend(kit.small.then_some("--small"));
    printed(&kit.python, &arguments)?;
    let digits = kit.folder.join("models/digits");
    for (name, device) in [("digits", kit.kind()), ("digits-cpu", "cpu")] {
        let package = kit.package(name);
        std::fs::create_dir_all(&package)?;
        std::fs::copy(digits.join("digits.pt"), package.join("digits.pt"))?;
        let manifest = std::fs::read_to_string(digits.join("model.toml"))?;
        let manifest = manifest.replace("name = \"digits\"", &format!("name = \"{name}\""));
        std::fs::write(
            package.join("model.toml"),
            manifest.replace("device = \"cpu\"", &format!("device = \"{device}\"")),
        )?;
    }
    found.figure("packages", std::fs::read_dir(&kit.models)?.count() as f64, "");
    Ok(())
}

pub fn digits(kit: &Kit, found: &mut Found) -> Result<()> {
    let (stack, worker) = serve(kit, &["digits", "digits-cpu"])?;
    let data = kit.folder.join("models/digits/digits.csv.gz").display().to_string();
    let mut answers = Vec::new();
    for model in ["digits", "digits-cpu"] {
        let file = stack.folder().join(format!("{model}.jsonl"));
        let output = file.display().to_string();
        let submit =
            ["submit", model, &data, "--columns", "0-63", "--rows-per-message", "1", "--json", "--output", &output];
        let run = stack.cli(&submit)?;
        ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let summary: Value = serde_json::from_slice(&run.stdout)?;
        let rate = summary["rows_per_second"].as_f64().context("a rate")?;
        found.figure(format!("{model} by `sluice submit`, one row a message"), rate, "rows/s");
        answers.push(probabilities(&file)?);
    }
    ensure!(answers[0].len() > 1000 && answers[0].len() == answers[1].len(), "not every digit was answered");
    let apart = answers[0].iter().zip(&answers[1]).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
    let most = tolerance(kit);
    found.figure(format!("largest difference of a probability from the CPU's (at most {most})"), apart, "");
    ensure!(apart <= most, "a probability differs by {apart}");
    let of = |name: &str| worker.metric(name, &["\"digits\""]);
    let rows = of("sluice_batch_rows_sum")? / of("sluice_batch_rows_count")?;
    found.figure("rows of a batch, on average", rows, "");
    ensure!(rows > 2.0, "requests were not batched: {rows} rows a batch");
    Ok(())
}

fn probabilities(answers: &Path) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for line in std::fs::read_to_string(answers)?.lines() {
        let answer: Value = serde_json::from_str(line)?;
        let values = answer["outputs"]["probabilities"].as_array().context("an answer without probabilities")?;
        all.extend(values.iter().filter_map(Value::as_f64));
    }
    Ok(all)
}

/// Rows of the right shape for a network of `models.py`, each another.
pub fn rows(kit: &Kit, network: &str, count: usize) -> Vec<Tensor> {
    let size = if kit.small { 64 } else { 224 };
    let one = |seed: usize| {
        let byte = move |at: usize| (at.wrapping_mul(31) ^ seed.wrapping_mul(97) ^ (at / 7)) as u8;
        match network {
            "small" => row(Datatype::Uint8, &[3, 32, 32], byte),
            "resnet" => row(Datatype::Uint8, &[3, size, size], byte),
            _ => integers(&[128], |at| ((at * 131 + seed * 977) % 30_000) as i64),
        }
    };
    (0..count).map(one).collect()
}

/// Asks both, and says how far apart they are.
async fn compare(caller: &mut Caller, name: &str, inputs: &[Tensor]) -> Result<f64> {
    let here = caller.outputs(name, inputs).await?;
    let there = caller.outputs(&format!("{name}-cpu"), inputs).await?;
    apart(&here, &there).with_context(|| format!("`{name}`"))
}

pub async fn networks(kit: &Kit, found: &mut Found) -> Result<()> {
    const NETWORKS: [&str; 3] = ["small", "resnet", "encoder"];
    let all = NETWORKS.map(|name| [name.to_owned(), format!("{name}-cpu")]).concat();
    let (stack, _worker) = serve(kit, &all.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut caller = Caller::new(&stack).await?;
    for name in NETWORKS {
        let inputs = rows(kit, name, if name == "small" { 64 } else { 8 });
        let apart = compare(&mut caller, name, &inputs).await?;
        let most = tolerance(kit);
        found.figure(format!("`{name}`: difference from the CPU, over the largest value (at most {most})"), apart, "");
        ensure!(apart <= most, "`{name}` differs by {apart}");
    }
    Ok(())
}

pub async fn datatypes(kit: &Kit, found: &mut Found) -> Result<()> {
    let kinds: Vec<Datatype> = Datatype::ALL.into_iter().collect();
    let named = |kind: &Datatype| format!("same-{}", kind.to_string().to_lowercase());
    let shared: Vec<Datatype> = kinds.into_iter().filter(|kind| kit.package(&named(kind)).is_dir()).collect();
    ensure!(shared.len() == 10, "there are models of {} datatypes", shared.len());
    let names: Vec<String> = shared.iter().map(named).collect();
    let (stack, _worker) = serve(kit, &names.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut caller = Caller::new(&stack).await?;
    for (kind, name) in shared.into_iter().zip(&names) {
        // Of BOOL, bytes are 0 or 1; of floating point no number is to be a signalling one, which may come back quiet.
        let byte = |at: usize| if kind == Datatype::Bool { (at % 2) as u8 } else { (at * 37 % 120) as u8 };
        let input = row(kind, &[5], byte);
        let output = caller.outputs(name, std::slice::from_ref(&input)).await?;
        ensure!(output[0][0].data == input.data, "{kind}: {:?} came back as {:?}", input.data, output[0][0].data);
        found.remark(kind.to_string(), "came back as it went");
    }
    Ok(())
}

pub async fn layouts(kit: &Kit, found: &mut Found) -> Result<()> {
    let (stack, _worker) = serve(kit, &["layouts"])?;
    let x = |row: usize, column: usize| (row * 4 + column) as f32 - 5.0;
    let input = floats(&[3, 4], |at| x(at / 4, at % 4));
    let outputs = Caller::new(&stack).await?.outputs("layouts", &[input]).await?;
    let all = |rows: usize, columns: usize, value: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
        (0..rows * columns).map(|at| value(at / columns, at % columns)).collect()
    };
    let expected = [
        ("transposed", all(4, 3, &|row, column| x(column, row))),
        ("expanded", all(3, 4, &|_, _| x(0, 0))),
        ("negated", all(3, 4, &|row, column| -(x(row, column) + 1.0))),
        ("strided", all(3, 2, &|row, column| x(row, 3 - 2 * column))),
        ("sparse", all(3, 4, &|row, column| x(row, column).max(0.0))),
        ("last", all(3, 4, &x)),
    ];
    for (output, (name, expected)) in outputs[0].iter().zip(expected) {
        ensure!(output.name == name, "`{}` stands for `{name}`", output.name);
        let values = asking::values(output)?;
        ensure!(values == expected, "`{name}` is {values:?} and should be {expected:?}");
        found.remark(name, "right");
    }
    Ok(())
}

pub async fn half(kit: &Kit, found: &mut Found) -> Result<()> {
    let (stack, _worker) = serve(kit, &["fp16", "fp16-cpu", "bf16", "bf16-cpu"])?;
    let mut caller = Caller::new(&stack).await?;
    for (name, tolerance) in HALF_TOLERANCE {
        let datatype = if name == "fp16" { Datatype::Fp16 } else { Datatype::Bf16 };
        // 0x3c in the upper byte: numbers of about one, or a hundredth.
        let byte = |seed: usize, at: usize| match at % 2 {
            1 => 0x3c,
            _ => (at.wrapping_mul(29) ^ (seed * 53)) as u8,
        };
        let one = |seed: usize| row(datatype, &[3, 32, 32], move |at| byte(seed, at));
        let inputs: Vec<Tensor> = (0..16).map(one).collect();
        let apart = compare(&mut caller, name, &inputs).await?;
        found.figure(
            format!("`{name}`: difference from the CPU, over the largest value (at most {tolerance})"),
            apart,
            "",
        );
        ensure!(apart <= tolerance, "`{name}` differs by {apart}");
    }
    Ok(())
}

pub fn check(kit: &Kit, found: &mut Found) -> Result<()> {
    let package = kit.package("small").display().to_string();
    let largest = if kit.small { "16" } else { "64" };
    let arguments = ["check", &package, "--device", kit.device(), "--largest", largest, "--json"];
    let report: Value = serde_json::from_str(&printed(&binaries::path("sluice-worker")?, &arguments)?)?;
    ensure!(report["device"] == kit.device(), "{report}");
    for measured in report["measurements"].as_array().context("measurements")? {
        let (rows, rate) = (measured["rows"].as_u64().context("rows")?, measured["rate"].as_f64().context("a rate")?);
        found.figure(format!("`small`, {} threads, batches of {rows}", measured["threads"]), rate, "rows/s");
    }
    found.remark("recommended", report["recommendation"].to_string());
    Ok(())
}

pub fn visible(kit: &Kit, found: &mut Found) -> Result<()> {
    let run = |gpus: &str| {
        let mut command = std::process::Command::new(binaries::path("sluice-worker")?);
        command.arg("check").arg(kit.package("small")).args(["--device", "cuda:0", "--largest", "1"]);
        command.env("CUDA_VISIBLE_DEVICES", gpus).output().context("cannot run sluice-worker")
    };
    ensure!(run("0")?.status.success(), "with CUDA_VISIBLE_DEVICES=0 the first GPU is there");
    let none = run("")?;
    let said = String::from_utf8_lossy(&none.stderr).trim().to_owned();
    ensure!(!none.status.success() && said.contains("cuda:0") && said.contains("is not there"), "{said}");
    found.remark("CUDA_VISIBLE_DEVICES empty", said);
    Ok(())
}

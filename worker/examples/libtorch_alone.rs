//! The other ceiling: a package's model in libtorch alone, at its best batch size, with as many threads as the worker
//! has slots, each running one after the other on tensors that are already there.
//!
//! `libtorch_alone PACKAGE SLOTS SECONDS [ROWS]` prints rows per second as JSON, at one batch size or at all powers of two
//! that the package allows.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sluice_core::Datatype;
use sluice_worker::engine;
use sluice_worker::package::Package;
use tch::{CModule, Device, Kind, Tensor};

fn main() -> Result<()> {
    engine::prepare_process(false, &[])?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (folder, slots, seconds, only) = match &arguments[..] {
        [folder, slots, seconds] => (folder, slots, seconds, None),
        [folder, slots, seconds, rows] => (folder, slots, seconds, Some(rows.parse()?)),
        _ => bail!("usage: libtorch_alone PACKAGE SLOTS SECONDS [ROWS]"),
    };
    let (slots, seconds): (usize, f64) = (slots.parse()?, seconds.parse()?);
    let package = Package::open(Path::new(folder))?;
    let manifest = &package.manifest;
    let [input] = &manifest.inputs[..] else { bail!("one input is measured") };
    ensure!(input.datatype == Datatype::Fp32, "FP32 is measured");
    let sizes: Vec<i64> = input
        .shape
        .iter()
        .skip(1)
        .map(|size| size.size().context("fixed sizes are measured"))
        .collect::<Result<_>>()?;
    let mut rates = Vec::new();
    let powers = (0..).map(|power| 1 << power).take_while(|rows| *rows <= manifest.batching.max_rows);
    for rows in only.map_or_else(|| powers.collect(), |rows: usize| vec![rows]) {
        let mut shape = vec![rows as i64];
        shape.extend(&sizes);
        let threads: Vec<_> = (0..slots)
            .map(|_| {
                let (file, shape, threads) = (package.file.clone(), shape.clone(), manifest.resources.threads);
                let body = move || -> Result<f64> {
                    let _guard = engine::prepare_thread(threads);
                    let mut module = CModule::load(&file)?;
                    module.set_eval();
                    let batch = Tensor::rand(&shape[..], (Kind::Float, Device::Cpu));
                    for _ in 0..3 {
                        drop(module.forward_ts(&[&batch])?);
                    }
                    let began = Instant::now();
                    let until = began + Duration::from_secs_f64(seconds);
                    let mut calls = 0;
                    while Instant::now() < until {
                        drop(module.forward_ts(&[&batch])?);
                        calls += 1;
                    }
                    Ok(f64::from(calls) * shape[0] as f64 / began.elapsed().as_secs_f64())
                };
                std::thread::Builder::new().stack_size(16 << 20).spawn(body)
            })
            .collect::<std::io::Result<_>>()?;
        let mut rate = 0.0;
        for thread in threads {
            rate += thread.join().ok().context("a measuring thread panicked")??;
        }
        rates.push(serde_json::json!({ "rows": rows, "rate": rate }));
    }
    println!("{}", serde_json::json!(rates));
    Ok(())
}

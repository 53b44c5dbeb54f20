//! `cargo xtask`: the commands of this repository. `cargo xtask help` lists them.

mod bench;
mod ci;
mod demo;
mod gpu_kit;
mod test;

use anyhow::{Result, bail};
use xtask::setup::{self, Accelerator};

const HELP: &str = "\
Usage: cargo xtask COMMAND [OPTIONS]

Commands:
  demo [--keep]      fetch what is missing, build, and send 1,797 handwritten digits through a real queue
  test [ARGS...]     fetch what is missing, build, and run all tests; ARGS go to the test runner
  test --rabbitmq 4 [ARGS...]
                     the same with RabbitMQ 4, which is fetched (needs root)
  ci                 everything that CI checks: format, lints, dependency rules, docs, tests, demo
  bench [OPTIONS]    measure Sluice against minimal loops in one run; `cargo xtask bench --help`
  simulate [FILE SERVICE COLD_START MAX_SLOTS]
                     hours of synthetic traffic under the scaler's rule and two simple ones, for a quick model and slow
                     ones; or arrivals of a file, one time in seconds a line, as in: arrivals.txt 3s 30s 64
  setup [--cuda]     only fetch what is missing, so that plain cargo commands work
  gpu-kit [--pytorch VERSION] [--check]
                     write a folder that checks Sluice on a machine with a GPU and PyTorch, which needs nothing else;
                     with --check, build it quickly and run here what needs no GPU
  rules              check which packages may depend on which crates
  help               this text

What is fetched goes to $SLUICE_CACHE, else to `sluice` in your cache directory. Set LIBTORCH or
NATS_SERVER to use your own.
";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Err(error) = run(&arguments) {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    match command {
        "demo" => demo::run(&demo::Options::parse(rest)?),
        "test" => {
            println!("{}", test::run(rest)?);
            Ok(())
        }
        "ci" => ci::run(),
        "bench" => bench::run(rest),
        "simulate" => {
            let example = ["run", "--release", "--package", "sluice-scaler", "--example", "simulate", "--"];
            test::cargo(&example.into_iter().chain(rest.iter().map(String::as_str)).collect::<Vec<_>>())
        }
        "setup" => {
            let accelerator = match rest {
                [] => Accelerator::None,
                [flag] if flag == "--cuda" => Accelerator::Cuda,
                _ => bail!("`cargo xtask setup` takes only `--cuda`"),
            };
            setup::libtorch(accelerator)?;
            println!("nats-server: {}", setup::nats_server()?.display());
            println!("libtorch: {}", xtask::root().join(".deps/libtorch").display());
            Ok(())
        }
        "gpu-kit" => gpu_kit::run(rest),
        "rules" => xtask::rules::check(),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => bail!("there is no command `{other}`: `cargo xtask help` lists them"),
    }
}

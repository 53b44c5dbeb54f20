//! `cargo xtask simulate`: hours of synthetic traffic under our rule and two simple ones.

use std::time::{Duration, Instant};

use sluice_scaler::Scaling;
use sluice_scaler::simulation::{Model, QueueThreshold, Rule, Sluice, TRACES, TargetUtilisation, simulate};

fn main() {
    let scaling = Scaling::default();
    let model = Model { service: Duration::from_millis(100), cold_start: Duration::from_secs(1) };
    let per_slot = (scaling.target_wait.as_secs_f64() / model.service.as_secs_f64()) as usize;
    println!(
        "4 hours each; a request takes {:?}, a slot {:?} to start; aim: {:?} of waiting, at most {} slots",
        model.service, model.cold_start, scaling.target_wait, scaling.max_slots
    );
    println!(
        "{:<8} {:<19} {:>9} {:>10} {:>10} {:>10} {:>8} {:>9} {:>8}",
        "trace", "rule", "requests", "slot-hours", "mean wait", "p99 wait", "changes", "reversals", "took"
    );
    for trace in &TRACES {
        let arrivals = trace.arrivals();
        let rules: [(&str, Box<dyn Rule>); 3] = [
            ("sluice", Box::new(Sluice::new(scaling.clone(), model))),
            ("queue threshold", Box::new(QueueThreshold::new(per_slot, scaling.max_slots))),
            ("target utilisation", Box::new(TargetUtilisation::new(0.7, scaling.max_slots))),
        ];
        for (name, mut rule) in rules {
            let began = Instant::now();
            let outcome = simulate(&arrivals, model, &mut *rule);
            println!(
                "{:<8} {:<19} {:>9} {:>10.2} {:>8.2} s {:>8.2} s {:>8} {:>9} {:>5} ms",
                trace.name,
                name,
                outcome.served,
                outcome.slot_hours,
                outcome.mean_wait.as_secs_f64(),
                outcome.p99_wait.as_secs_f64(),
                outcome.changes,
                outcome.reversals,
                began.elapsed().as_millis()
            );
        }
    }
}

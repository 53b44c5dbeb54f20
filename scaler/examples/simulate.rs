//! `cargo xtask simulate`: hours of synthetic traffic under our rule, two simple ones, and one that knows the load beforehand, at as many
//! slot-hours as ours and as the cheaper of theirs.

use std::time::{Duration, Instant};

use sluice_scaler::Scaling;
use sluice_scaler::simulation::{Foresight, Model, QueueThreshold, Rule, Sluice, TRACES, TargetUtilisation, simulate};

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
        let show = |name: &str, rule: &mut dyn Rule| {
            let began = Instant::now();
            let outcome = simulate(&arrivals, model, rule);
            println!(
                "{:<8} {:<19} {:>9} {:>10.2} {:>8.4} s {:>8.2} s {:>8} {:>9} {:>5} ms",
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
            outcome.slot_hours
        };
        let own = show("sluice", &mut Sluice::new(scaling.clone(), model));
        let threshold = show("queue threshold", &mut QueueThreshold::new(per_slot, scaling.max_slots));
        let utilisation = show("target utilisation", &mut TargetUtilisation::new(0.7, scaling.max_slots));
        for (name, slot_hours) in [("foreseen, as ours", own), ("foreseen, as theirs", threshold.min(utilisation))] {
            show(name, &mut Foresight::new(trace, model, scaling.max_slots, slot_hours));
        }
    }
}

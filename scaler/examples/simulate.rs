//! `cargo xtask simulate`: hours of synthetic traffic under our rule, two simple ones, and one that knows the load beforehand, at as many
//! slot-hours as ours and as the cheaper of theirs; first for a quick model, then for slow ones with as many slots' worth of load. With
//! `FILE SERVICE COLD_START MAX_SLOTS`, arrivals of a file, one time in seconds a line, such as `arrivals.txt 3s 30s 64`.

use std::error::Error;
use std::time::{Duration, Instant};

use sluice_scaler::Scaling;
use sluice_scaler::simulation::{
    Case, Foresight, QUICK, QueueThreshold, Rule, SLOW, Sluice, TRACES, TargetUtilisation, simulate,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {
            synthetic(&QUICK);
            SLOW.iter().for_each(synthetic);
        }
        [file, service, cold_start, max_slots] => {
            let time = |line: &str| line.trim().parse().ok().and_then(|at| Duration::try_from_secs_f64(at).ok());
            let arrivals: Option<Vec<Duration>> = std::fs::read_to_string(file)?.lines().map(time).collect();
            let mut arrivals = arrivals.ok_or_else(|| format!("`{file}` has a line that is no time in seconds"))?;
            arrivals.sort_unstable();
            let case = Case::new(
                humantime::parse_duration(service)?,
                humantime::parse_duration(cold_start)?,
                max_slots.parse()?,
            );
            header(&case);
            compare(&case, file, &arrivals);
        }
        _ => return Err("no arguments, or FILE SERVICE COLD_START MAX_SLOTS".into()),
    }
    Ok(())
}

fn synthetic(case: &Case) {
    header(case);
    for trace in &TRACES {
        let (own, cheapest) = compare(case, trace.name, &trace.arrivals(case));
        for (name, slot_hours) in [("foreseen, as ours", own), ("foreseen, as theirs", cheapest)] {
            show(case, trace.name, name, &trace.arrivals(case), &mut Foresight::new(trace, case, slot_hours));
        }
    }
}

fn header(case: &Case) {
    println!(
        "a request takes {:?}, a slot {:?} to start; aim: {:?} of waiting, at most {} slots",
        case.model.service,
        case.model.cold_start,
        Scaling::default().target_wait,
        case.max_slots
    );
    println!(
        "{:<8} {:<19} {:>9} {:>10} {:>5} {:>10} {:>10} {:>8} {:>9} {:>8}",
        "trace", "rule", "requests", "slot-hours", "busy", "mean wait", "p99 wait", "changes", "reversals", "took"
    );
}

/// Our rule and the simple ones; gives the slot-hours of ours and of the cheaper of theirs.
fn compare(case: &Case, trace: &str, arrivals: &[Duration]) -> (f64, f64) {
    let own = show(case, trace, "sluice", arrivals, &mut Sluice::new(case.scaling(), case.model));
    let mut threshold = QueueThreshold::new(case.per_slot(), case.max_slots);
    let threshold = show(case, trace, "queue threshold", arrivals, &mut threshold);
    let mut utilisation = TargetUtilisation::new(0.7, case.max_slots);
    let utilisation = show(case, trace, "target utilisation", arrivals, &mut utilisation);
    (own, threshold.min(utilisation))
}

fn show(case: &Case, trace: &str, name: &str, arrivals: &[Duration], rule: &mut dyn Rule) -> f64 {
    let began = Instant::now();
    let outcome = simulate(arrivals, case.model, rule);
    let work = outcome.served as f64 * case.model.service.as_secs_f64() / 3600.0;
    println!(
        "{trace:<8} {name:<19} {:>9} {:>10.2} {:>3.0} % {:>8.4} s {:>8.2} s {:>8} {:>9} {:>5} ms",
        outcome.served,
        outcome.slot_hours,
        100.0 * work / outcome.slot_hours,
        outcome.mean_wait.as_secs_f64(),
        outcome.p99_wait.as_secs_f64(),
        outcome.changes,
        outcome.reversals,
        began.elapsed().as_millis()
    );
    outcome.slot_hours
}

//! What a person sees while it runs, and at the end.

use std::cell::Cell;
use std::fmt;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use sluice_core::print::count;

/// Between notes where there is no bar.
const NOTES: Duration = Duration::from_secs(30);

/// A progress bar over the input's bytes, or a spinner if their number is not known.
pub struct Progress {
    bar: ProgressBar,
    /// When a note was printed last, or it began, where there is no bar to show one.
    noted: Cell<Instant>,
}

impl Progress {
    /// Starts it, on standard error if that is a terminal.
    pub fn start(total: Option<u64>) -> Self {
        let (length, template) = match total {
            Some(total) => (Some(total), "{bar:32} {percent:>3} %  {msg}  {elapsed} of {duration}"),
            None => (None, "{spinner} {msg}  {elapsed}"),
        };
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::stderr_with_hz(8));
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(250));
        Self { bar, noted: Cell::new(Instant::now()) }
    }

    /// Shows how far it is.
    pub fn show(&self, consumed: u64, rows: u64, rate: f64, failed: u64, note: &str) {
        self.bar.set_position(consumed);
        if self.bar.is_hidden() && !note.is_empty() && self.noted.get().elapsed() >= NOTES {
            self.noted.set(Instant::now());
            eprintln!("{}; {note}", count(rows, "row", "rows"));
        }
        let failed = if failed > 0 { format!(", {failed} failed") } else { String::new() };
        let note = if note.is_empty() { String::new() } else { format!(" ({note})") };
        self.bar.set_message(format!("{}{failed}, {rate:.0}/s{note}", count(rows, "row", "rows")));
    }

    /// Says something beside it, from any thread.
    pub fn notes(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let bar = self.bar.clone();
        move |text| bar.suspend(|| eprintln!("note: {text}"))
    }

    /// Takes it away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Counts over a run.
pub struct Tally {
    started: Instant,
    latency: Histogram<u64>,
    pub requests: u64,
    rows: u64,
    last: Instant,
}

impl Tally {
    pub fn start() -> Self {
        let started = Instant::now();
        Self {
            started,
            last: started,
            latency: Histogram::new(3).expect("three digits are a valid precision"),
            requests: 0,
            rows: 0,
        }
    }

    /// A request was answered.
    pub fn answered(&mut self, rows: u32, latency: Duration) {
        self.requests += 1;
        self.last = Instant::now();
        self.rows += u64::from(rows);
        // It resizes itself as far as needed: only a latency of centuries would not fit.
        let _ = self.latency.record(latency.as_micros() as u64);
    }

    /// How long ago the last answer came.
    pub fn silent(&self) -> Duration {
        self.last.elapsed()
    }

    /// Rows per second so far.
    pub fn rate(&self) -> f64 {
        self.rows as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    /// The end's figures.
    pub fn summary(&self, rows: u64, failed: u64) -> Summary {
        let seconds = self.started.elapsed().as_secs_f64();
        let milliseconds = |quantile: f64| self.latency.value_at_quantile(quantile) as f64 / 1000.0;
        Summary {
            rows,
            failed,
            requests: self.requests,
            seconds,
            rows_per_second: self.rows as f64 / seconds,
            requests_per_second: self.requests as f64 / seconds,
            latency_p50_ms: milliseconds(0.5),
            latency_p99_ms: milliseconds(0.99),
        }
    }
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Rows written, failed ones included, over all runs of the job.
    pub rows: u64,
    pub failed: u64,
    /// Requests answered in this run.
    pub requests: u64,
    pub seconds: f64,
    pub rows_per_second: f64,
    pub requests_per_second: f64,
    pub latency_p50_ms: f64,
    pub latency_p99_ms: f64,
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} in {:.1} s: {:.0} rows/s in {:.0} requests/s, p50 {:.1} ms, p99 {:.1} ms",
            count(self.rows, "row", "rows"),
            self.seconds,
            self.rows_per_second,
            self.requests_per_second,
            self.latency_p50_ms,
            self.latency_p99_ms
        )
    }
}

//! What steps find, and the report of it in Markdown and JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::Kit;
use crate::steps;

/// A figure or a remark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// What it is of.
    pub what: String,
    /// Absent from a remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Of the value; of a remark, its text.
    pub unit: String,
}

/// Takes what a step finds, as it finds it: what a step has found stays when it fails later.
pub struct Found;

impl Found {
    /// A figure.
    pub fn figure(&mut self, what: impl Into<String>, value: f64, unit: &str) {
        Self::tell(&Figure { what: what.into(), value: Some(value), unit: unit.into() });
    }

    /// A remark.
    pub fn remark(&mut self, what: impl Into<String>, text: impl Into<String>) {
        Self::tell(&Figure { what: what.into(), value: None, unit: text.into() });
    }

    fn tell(figure: &Figure) {
        println!("{}", serde_json::to_string(figure).unwrap_or_default());
    }
}

/// A step that was run, or left out.
#[derive(Debug, Serialize)]
pub struct Done {
    pub name: String,
    pub title: String,
    /// Why it was left out, if it was.
    pub left_out: Option<String>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    pub seconds: f64,
    pub found: Vec<Figure>,
}

#[derive(Serialize)]
struct Report<'r> {
    device: &'r str,
    small: bool,
    machine: Vec<(String, String)>,
    steps: &'r [Done],
}

/// Writes `<file>.md` and `<file>.json`.
pub fn write(file: &Path, kit: &Kit, done: &[Done]) -> Result<()> {
    let machine = steps::machine(kit);
    let report = Report { device: kit.device(), small: kit.small, machine, steps: done };
    for (ending, text) in [("json", serde_json::to_string_pretty(&report)?), ("md", markdown(&report)?)] {
        let path = file.with_extension(ending);
        std::fs::write(&path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        eprintln!("written: {}", path.display());
    }
    Ok(())
}

fn markdown(report: &Report) -> Result<String> {
    let count = |which: fn(&Done) -> bool| report.steps.iter().filter(|step| which(step)).count();
    let failed = count(|step| step.failure.is_some());
    let left_out = count(|step| step.left_out.is_some());
    let passed = report.steps.len() - failed - left_out;
    let mut text = String::from("# Sluice on a GPU: a check's report\n\n");
    let size = if report.small { ", with small networks" } else { "" };
    writeln!(text, "Ran on `{}`{size}: {passed} steps passed, {failed} failed, {left_out} left out.\n", report.device)?;
    text += "| | |\n|---|---|\n";
    for (what, value) in &report.machine {
        writeln!(text, "| {what} | {value} |")?;
    }
    for step in report.steps {
        let outcome = match (&step.left_out, &step.failure) {
            (Some(_), _) => "left out".to_owned(),
            (_, Some(_)) => format!("FAILED after {:.1} s", step.seconds),
            _ => format!("passed in {:.1} s", step.seconds),
        };
        writeln!(text, "\n## {}: {outcome}\n\n{}.", step.name, step.title)?;
        if let Some(reason) = &step.left_out {
            writeln!(text, "\nLeft out: {reason}.")?;
        }
        if !step.found.is_empty() {
            text += "\n| what | found |\n|---|---|\n";
        }
        for figure in &step.found {
            let value = figure.value.map(|value| format!("{} ", rounded(value))).unwrap_or_default();
            writeln!(text, "| {} | {value}{} |", figure.what, figure.unit.replace('|', "\\|").replace('\n', " "))?;
        }
        if let Some(failure) = &step.failure {
            writeln!(text, "\n```\n{}\n```", failure.trim())?;
        }
    }
    Ok(text)
}

/// Three digits that say something.
fn rounded(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 0.001 => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_passed_failed_and_was_left_out() {
        let step = |name: &str, left_out: Option<&str>, failure: Option<&str>| Done {
            name: name.into(),
            title: "What it is".into(),
            left_out: left_out.map(Into::into),
            failure: failure.map(Into::into),
            seconds: 1.25,
            found: vec![Figure { what: "rows".into(), value: Some(1234.5), unit: "rows/s".into() }],
        };
        let steps =
            [step("one", None, None), step("two", Some("there is no GPU"), None), step("three", None, Some("no"))];
        let report =
            Report { device: "cpu", small: true, machine: vec![("card".into(), "none".into())], steps: &steps };
        let text = markdown(&report).expect("a report");
        assert!(text.contains("1 steps passed, 1 failed, 1 left out"), "{text}");
        assert!(text.contains("| rows | 1234 rows/s |") && text.contains("## three: FAILED"), "{text}");
        assert!(text.contains("Left out: there is no GPU."), "{text}");
    }
}

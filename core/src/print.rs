//! Printing for people, by every binary: standard output may be a pipe that its reader has closed, or a disk that is full. Neither
//! panics, and neither stops what is under way: the first failure is remembered, and told when the command ends.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// What became of standard output, once it has failed.
static FAILED: OnceLock<Unprinted> = OnceLock::new();

/// Standard output does not take what is printed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot write to standard output: {reason}")]
pub struct Unprinted {
    kind: ErrorKind,
    reason: String,
}

impl Unprinted {
    /// Whether its reader has gone, as `head` does when it has enough: that is no fault.
    pub fn is_closed(&self) -> bool {
        self.kind == ErrorKind::BrokenPipe
    }
}

impl From<io::Error> for Unprinted {
    fn from(error: io::Error) -> Self {
        Self { kind: error.kind(), reason: error.to_string() }
    }
}

/// Prints to standard output, at once. What comes after a failure is dropped.
pub fn out(text: fmt::Arguments<'_>) {
    if FAILED.get().is_some() {
        return;
    }
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        // Another thread may have been first, with the same.
        let _ = FAILED.set(error.into());
    }
}

/// Takes note of what another has printed to standard output, such as help.
pub fn told(done: io::Result<()>) {
    if let Err(error) = done.and_then(|()| io::stdout().flush()) {
        let _ = FAILED.set(error.into());
    }
}

/// Prints to standard error. If nobody reads that, there is nobody to tell.
pub fn note(text: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Whether standard output still takes something: what shows more and more asks before it goes on.
pub fn check() -> Result<(), Unprinted> {
    FAILED.get().map_or(Ok(()), |failed| Err(failed.clone()))
}

/// The exit code of a command that ended with `code`: a failure to print it all is told, and is one.
pub fn conclude(code: ExitCode) -> ExitCode {
    match FAILED.get() {
        Some(failed) if !failed.is_closed() => {
            note(format_args!("error: {failed}\n"));
            if code == ExitCode::SUCCESS { ExitCode::FAILURE } else { code }
        }
        _ => code,
    }
}

/// Whether standard error takes colours: a terminal does, unless `NO_COLOR` is set (<https://no-color.org>).
pub fn colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A number and what it counts, as in `1 slot waits` and `2 slots wait`.
pub fn count(number: impl fmt::Display, one: &str, many: &str) -> String {
    let number = number.to_string();
    let what = if number == "1" { one } else { many };
    format!("{number} {what}")
}

/// In place of the standard library's, which panics if standard output is closed or full. See [`print`](mod@crate::print).
#[macro_export]
macro_rules! println {
    () => { $crate::print::out(format_args!("\n")) };
    ($($text:tt)*) => { $crate::print::out(format_args!("{}\n", format_args!($($text)*))) };
}

/// In place of the standard library's, as [`println!`].
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::print::out(format_args!($($text)*)) };
}

/// In place of the standard library's, which panics if standard error is closed or full.
#[macro_export]
macro_rules! eprintln {
    () => { $crate::print::note(format_args!("\n")) };
    ($($text:tt)*) => { $crate::print::note(format_args!("{}\n", format_args!($($text)*))) };
}

/// In place of the standard library's, as [`eprintln!`].
#[macro_export]
macro_rules! eprint {
    ($($text:tt)*) => { $crate::print::note(format_args!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 21].map(|number| count(number, "row", "rows")), ["0 rows", "1 row", "21 rows"]);
    }
}

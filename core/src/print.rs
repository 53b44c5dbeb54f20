//! Printing for people, by every binary: standard output may be a pipe that its reader has closed, or a disk that is full. Neither
//! panics, and neither stops what is under way: the first failure is remembered, and told when the command ends.
//!
//! And what is printed was often written by others: a terminal is not to obey it. Control characters are printed as `\u001b`, which in JSON
//! means the same character. Whoever means a terminal to obey says so with [`steer`].

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
    if let Err(error) = harmless(&mut stdout, text).and_then(|()| stdout.flush()) {
        // Another thread may have been first, with the same.
        let _ = FAILED.set(error.into());
    }
}

/// What standard output is to obey, if it is a terminal: never anything that another wrote.
pub fn steer(sequence: &'static str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout.write_all(sequence.as_bytes()).and_then(|()| stdout.flush());
}

/// Takes note of what another has printed to standard output, such as help.
pub fn told(done: io::Result<()>) {
    if let Err(error) = done.and_then(|()| io::stdout().flush()) {
        let _ = FAILED.set(error.into());
    }
}

/// Prints to standard error. If nobody reads that, there is nobody to tell.
pub fn note(text: fmt::Arguments<'_>) {
    let _ = harmless(&mut io::stderr().lock(), text);
}

/// Writes text of whatever origin so that a terminal shows it and obeys nothing in it.
fn harmless(to: &mut impl Write, text: fmt::Arguments<'_>) -> io::Result<()> {
    let mut writer = Harmless { to, error: None };
    let written = fmt::write(&mut writer, text);
    match (writer.error, written) {
        (Some(error), _) => Err(error),
        (None, Err(fmt::Error)) => Err(io::Error::other("what was to be printed cannot be shown")),
        (None, Ok(())) => Ok(()),
    }
}

/// A writer of what others wrote.
struct Harmless<'w, W> {
    to: &'w mut W,
    error: Option<io::Error>,
}

impl<W: Write> fmt::Write for Harmless<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(steers) {
            let (before, from) = rest.split_at(at);
            let mut characters = from.chars();
            let code = characters.next().map_or(0, u32::from);
            self.write(before.as_bytes())?;
            self.write(format!("\\u{code:04x}").as_bytes())?;
            rest = characters.as_str();
        }
        self.write(rest.as_bytes())
    }
}

impl<W: Write> Harmless<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> fmt::Result {
        self.to.write_all(bytes).map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })
    }
}

/// What a terminal obeys: control characters, but for the ends of lines and tabs, and what turns the direction of text.
fn steers(character: char) -> bool {
    let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    turns || (character.is_control() && character != '\n' && character != '\t')
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
    fn a_terminal_obeys_nothing_that_another_wrote() {
        let shown = |text: &str| {
            let mut bytes = Vec::new();
            harmless(&mut bytes, format_args!("a {text} b\n")).expect("a vector takes it");
            String::from_utf8(bytes).expect("it is text")
        };
        assert_eq!(shown("Ärger\tund\nmehr \u{1f980}"), "a Ärger\tund\nmehr \u{1f980} b\n");
        assert_eq!(shown("\u{1b}]0;owned\u{7}"), r"a \u001b]0;owned\u0007 b".to_owned() + "\n");
        assert_eq!(shown("\r\u{9b}2J\u{7f}\u{202e}"), r"a \u000d\u009b2J\u007f\u202e b".to_owned() + "\n");
        // What stands in JSON means the same as before.
        let name = "\u{9b}31m\u{2066}";
        let json: String =
            serde_json::from_str(shown(&serde_json::json!(name).to_string())[2..].trim_end_matches(" b\n"))
                .expect("JSON");
        assert_eq!(json, name);
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 21].map(|number| count(number, "row", "rows")), ["0 rows", "1 row", "21 rows"]);
    }
}

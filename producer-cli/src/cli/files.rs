//! The arguments that say how files of rows are read.

use clap::{Args, ValueEnum};

#[derive(Args, Clone, Default)]
pub struct Files {
    /// What the files are; told from their names otherwise
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// CSV columns that make the input, by number from 0 or by name: 0-63, or a,b,c; with several inputs NAME=COLUMNS.
    /// number:1-4 and name:1-4 say which it is where names are numbers
    #[arg(long, value_name = "COLUMNS")]
    pub columns: Vec<String>,
    /// Whether CSV files begin with names; auto looks, says so, and asks where it cannot tell
    #[arg(long, value_enum, default_value = "auto")]
    pub header: Header,
    /// What separates the fields of CSV files: a character, tab or space [default: a comma; in .tsv files a tab]
    #[arg(long, value_parser = delimiter, value_name = "CHARACTER")]
    pub delimiter: Option<u8>,
    /// The quotes of CSV files: a character, or none
    #[arg(long, value_parser = quote, default_value = "\"", value_name = "CHARACTER")]
    pub quote: Quote,
    /// What stands before a quote inside of quotes in CSV files, such as '\' by PySpark [default: quotes are doubled]
    #[arg(long, value_parser = character, value_name = "CHARACTER")]
    pub escape: Option<u8>,
    /// Numbers in CSV files have a decimal comma: 3,5
    #[arg(long)]
    pub decimal_comma: bool,
    #[command(flatten)]
    pub numbers: Numbers,
}

impl Files {
    /// The options that were given, as they may be given again: rows are numbered by them.
    pub fn told(&self) -> Vec<String> {
        let shown = |byte: u8| char::from(byte).escape_default().to_string();
        let mut told: Vec<String> = self.columns.iter().map(|columns| format!("--columns {columns}")).collect();
        told.extend(self.format.map(|format| format!("--format {}", name(format))));
        told.extend((self.header != Header::Auto).then(|| format!("--header {}", name(self.header))));
        told.extend(self.delimiter.map(|delimiter| format!("--delimiter {}", shown(delimiter))));
        told.extend(
            (self.quote != Quote::default()).then(|| format!("--quote {}", self.quote.0.map_or("none".into(), shown))),
        );
        told.extend(self.escape.map(|escape| format!("--escape {}", shown(escape))));
        told.extend(self.decimal_comma.then(|| "--decimal-comma".into()));
        told.extend(self.numbers.exact.then(|| "--exact".into()));
        told
    }
}

fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

#[derive(Args, Clone, Copy, Default)]
pub struct Numbers {
    /// Refuse numbers that would have to be rounded to fit the model's datatype
    #[arg(long)]
    pub exact: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    Csv,
    /// JSON Lines: each line is a row
    Jsonl,
    /// One JSON array of rows, or one object after another, over any number of lines
    Json,
    Npy,
    Npz,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Header {
    #[default]
    Auto,
    Yes,
    No,
}

/// The quotes of a CSV file; `None` where a quote is a character like others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote(pub Option<u8>);

impl Default for Quote {
    fn default() -> Self {
        Self(Some(b'"'))
    }
}

fn delimiter(text: &str) -> Result<u8, String> {
    match text {
        "tab" | "\\t" => Ok(b'\t'),
        "space" => Ok(b' '),
        other => character(other),
    }
}

pub fn quote(text: &str) -> Result<Quote, String> {
    if text == "none" { Ok(Quote(None)) } else { character(text).map(|character| Quote(Some(character))) }
}

fn character(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r') => Ok(*byte),
        _ => Err("it is not one ASCII character".into()),
    }
}

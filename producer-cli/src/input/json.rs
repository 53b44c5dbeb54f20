//! JSON: each line is a row (JSON Lines), or the whole is one array of rows, however it is printed. A row is an object
//! with one key per input, or the value alone if there is one input.

mod document;
mod lines;

use anyhow::Result;
use serde_json::Value;

use super::convert::{Number, Packing};
use super::source::{Extent, Source, peek};
use super::{Field, Item, Reading, Rows};
use crate::cli::Format;
use crate::takes::InputSpec;
use document::Document;
use lines::Lines;

/// A row without an end would otherwise be read into memory whole.
const LONGEST_ROW: u64 = 64 * 1024 * 1024;
/// The first line is looked at as far as this.
const FIRST_LINE: usize = 1 << 20;

const BY_COLUMN: &str = "it is an object, where values or arrays of them belong; each row is an object of its own (pandas: \
                         to_json(orient=\"records\", lines=True))";

/// How the rows stand in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Each line is a row.
    Lines,
    /// One array of rows, or one object after another, over any number of lines.
    Document,
    /// Lines by its name, unless the first line says otherwise.
    NamedLines,
    /// `.json`, which is written in both ways.
    NamedJson,
}

impl Form {
    pub(super) fn of(format: Format, given: bool) -> Self {
        match (format, given) {
            (Format::Json, true) => Form::Document,
            (Format::Json, false) => Form::NamedJson,
            (_, true) => Form::Lines,
            (_, false) => Form::NamedLines,
        }
    }

    /// Lines or a document: by its beginning, and whether more than one line follows.
    fn settle(self, head: &[u8], inputs: &[InputSpec]) -> Self {
        let start = head.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(head.len());
        let rest = &head[start..];
        let (first, after) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => (rest[..end].trim_ascii(), rest[end..].trim_ascii()),
            None => (rest.trim_ascii(), &b""[..]),
        };
        // A list of objects is no row of any model.
        let of_objects = first.first() == Some(&b'[') && first[1..].trim_ascii_start().first() == Some(&b'{');
        let only_brackets =
            !first.is_empty() && first.iter().all(|byte| matches!(byte, b'[' | b'{') || byte.is_ascii_whitespace());
        match self {
            Form::NamedLines | Form::NamedJson if of_objects || only_brackets => Form::Document,
            Form::NamedJson if matches!(first.first(), Some(b'[' | b'{')) => match parse(first) {
                Err(_) => Form::Document,
                // Alone on its line, an array is one row, or the array of all: its depth tells.
                Ok(value @ Value::Array(_)) if after.is_empty() => {
                    let depth = shape_of(&value).len();
                    let rows =
                        inputs.first().is_some_and(|input| depth == input.sizes.len() + 1 || shape_of(&value) == [0]);
                    if rows { Form::Document } else { Form::Lines }
                }
                Ok(_) => Form::Lines,
            },
            Form::NamedLines | Form::NamedJson => Form::Lines,
            settled => settled,
        }
    }
}

pub(super) fn rows(source: Source, reading: &Reading, form: Form) -> Result<Rows> {
    source.refuse_binary()?;
    let extent = if form == Form::NamedJson { Extent::All } else { Extent::Line };
    let (head, bytes) = peek(source.bytes, FIRST_LINE, extent)?;
    let reading = reading.clone();
    let form = form.settle(&head, &reading.inputs);
    let item =
        move |(line, text): (u64, Vec<u8>)| Item { line, row: parse(&text).and_then(|value| row(&reading, value)) };
    Ok(match form {
        Form::Document => Box::new(Document::new(bytes).map(move |text| text.map(&item))),
        _ => Box::new(Lines::new(bytes).map(move |text| text.map(&item))),
    })
}

/// The rows of an array, for a single request: all for one input, each as its field.
pub fn rows_of(spec: &InputSpec, text: &str, reading: &Reading) -> Result<Vec<Field>, String> {
    let value = parse(text.as_bytes())
        .map_err(|error| format!("it is neither a file that ends in .npy nor JSON such as [[1,2,3]]: {error}"))?;
    let Value::Array(rows) = &value else { return Err("it is not an array with one entry per row".into()) };
    // A flat list of exactly one row's values is one row.
    let one_row = !spec.sizes.is_empty() && rows.iter().all(|row| !row.is_array());
    let rows = if one_row { std::slice::from_ref(&value) } else { &rows[..] };
    rows.iter().map(|row| field(spec, row, reading)).collect()
}

/// JSON, and what Python and others take for it: NaN and both infinities.
fn parse(text: &[u8]) -> Result<Value, String> {
    let error = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    let bare = bare_words_marked(text);
    bare.and_then(|text| serde_json::from_slice(&text).ok()).ok_or_else(|| format!("it is not JSON: {error}"))
}

/// No text in a file begins like this: it stands before a word that was not text.
const MARK: char = '\0';

/// The text with its bare `NaN`, `Infinity` and `-Infinity` marked; `None` if there are none.
fn bare_words_marked(text: &[u8]) -> Option<Vec<u8>> {
    let mut marked = Vec::with_capacity(text.len() + 64);
    let (mut at, mut in_string, mut found) = (0, false, false);
    while at < text.len() {
        let word = [&b"NaN"[..], b"Infinity", b"-Infinity"].into_iter().find(|word| text[at..].starts_with(word));
        match word {
            Some(word) if !in_string => {
                marked.extend_from_slice(b"\"\\u0000");
                marked.extend_from_slice(word);
                marked.push(b'"');
                at += word.len();
                found = true;
                continue;
            }
            _ => {}
        }
        let escape = in_string && text[at] == b'\\' && at + 1 < text.len();
        if text[at] == b'"' {
            in_string = !in_string;
        }
        let length = if escape { 2 } else { 1 };
        marked.extend_from_slice(&text[at..at + length]);
        at += length;
    }
    found.then_some(marked)
}

fn row(reading: &Reading, value: Value) -> Result<Vec<Field>, String> {
    match (value, &reading.inputs[..]) {
        (Value::Object(object), inputs) => {
            let field = |spec: &InputSpec| match object.get(&spec.name) {
                Some(value) => field(spec, value, reading),
                None => Err(format!("it has no `{}` ({})", spec.name, spec.signature())),
            };
            // Identifiers and labels may stand beside the inputs: other keys are passed over.
            inputs.iter().map(field).collect()
        }
        (value, [spec]) => Ok(vec![field(spec, &value, reading)?]),
        (_, inputs) => Err(format!("the model has {} inputs, so a row is an object with a key for each", inputs.len())),
    }
}

fn field(spec: &InputSpec, value: &Value, reading: &Reading) -> Result<Field, String> {
    let wrong = |reason: String| format!("`{}`: {reason}", spec.name);
    if value.is_object() {
        return Err(wrong(BY_COLUMN.into()));
    }
    let found = shape_of(value);
    let shape = spec.fit(&found).map_err(wrong)?;
    let values: i64 = found.iter().product();
    let mut packing = Packing::new(spec, reading.precision(), values as usize);
    put(value, &found, &mut packing).map_err(wrong)?;
    Ok(reading.field(spec, shape, packing))
}

/// The lengths of the first arrays at each depth.
fn shape_of(value: &Value) -> Vec<i64> {
    let mut shape = Vec::new();
    let mut value = value;
    while let Value::Array(items) = value {
        shape.push(items.len() as i64);
        match items.first() {
            Some(first) => value = first,
            None => break,
        }
    }
    shape
}

fn put(value: &Value, shape: &[i64], packing: &mut Packing) -> Result<(), String> {
    match (value, shape) {
        (Value::Array(items), [size, inner @ ..]) => {
            if items.len() as i64 != *size {
                return Err(format!("its arrays are not all of the same length: one has {size}, one {}", items.len()));
            }
            items.iter().try_for_each(|item| put(item, inner, packing))
        }
        (Value::Array(_), []) | (_, [_, ..]) => Err("its arrays are not all of the same depth".into()),
        (Value::Number(number), []) => packing.number(match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Number::Int(i128::from(value)),
            (_, Some(value)) => Number::Int(i128::from(value)),
            _ => Number::Decimal(number.as_f64().unwrap_or(f64::INFINITY)),
        }),
        (Value::String(text), []) => word(text, packing),
        (Value::Bool(value), []) => packing.truth(*value),
        (Value::Null, []) => packing.nothing("null"),
        (Value::Object(_), []) => Err(BY_COLUMN.into()),
    }
}

/// Text; or a number that JSON has no digits for, bare as Python writes it or quoted as Spark does.
fn word(text: &str, packing: &mut Packing) -> Result<(), String> {
    let bare = text.strip_prefix(MARK);
    if packing.is_text() {
        return match bare {
            Some(word) => Err(format!("{word} is not text")),
            None => packing.text(text),
        };
    }
    match bare.unwrap_or(text) {
        "NaN" => packing.nothing("NaN"),
        "Infinity" => packing.number(Number::Binary(f64::INFINITY)),
        "-Infinity" => packing.number(Number::Binary(f64::NEG_INFINITY)),
        other => {
            let shown: String = other.chars().take(40).collect();
            Err(packing.refusal(&format!("{shown:?}")))
        }
    }
}

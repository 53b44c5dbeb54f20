//! Numbers of files as numbers of tensors: every value that the datatype can hold is kept, one out of its range is
//! refused, and an integer that has to be rounded is told.

use bytes::{BufMut, BytesMut};
use half::{bf16, f16};
use sluice_core::Datatype;

use crate::takes::InputSpec;

/// A number as a file holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Int(i128),
    /// Written in digits, so that it was rounded once already.
    Decimal(f64),
    /// Stored as binary: it is what it is.
    Binary(f64),
}

/// Whether a number may be rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// To the nearest that the datatype holds.
    Nearest,
    /// A number that the datatype does not hold is an error of its row.
    Exact,
}

/// The decimal mark of numbers in text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Point,
    Comma,
}

/// The values of one input of one row, as they are put together.
pub(super) struct Packing {
    datatype: Datatype,
    precision: Precision,
    pub(super) data: BytesMut,
    /// The first integer that was rounded, and what it became.
    pub(super) rounded: Option<(i128, f64)>,
}

impl Packing {
    pub(super) fn new(spec: &InputSpec, precision: Precision, values: usize) -> Self {
        let data = BytesMut::with_capacity(values.saturating_mul(spec.datatype.size().unwrap_or(8)));
        Self { datatype: spec.datatype, precision, data, rounded: None }
    }

    /// Appends a number. The error does not name the input.
    pub(super) fn number(&mut self, number: Number) -> Result<(), String> {
        macro_rules! integer {
            ($type:ty, $put:ident) => {{
                let value = self.integer(number)?;
                let fits = <$type>::try_from(value).map_err(|_| self.out_of_range(number));
                self.data.$put(fits?);
            }};
        }
        macro_rules! float {
            ($type:ty, $narrow:expr, $widen:expr) => {{
                let narrow: $type = $narrow(number);
                self.check(number, $widen(narrow))?;
                self.data.put_slice(&narrow.to_le_bytes());
            }};
        }
        match self.datatype {
            Datatype::Bool => match self.integer(number)? {
                value @ 0..=1 => self.data.put_u8(value as u8),
                _ => return Err(self.out_of_range(number)),
            },
            Datatype::Uint8 => integer!(u8, put_u8),
            Datatype::Uint16 => integer!(u16, put_u16_le),
            Datatype::Uint32 => integer!(u32, put_u32_le),
            Datatype::Uint64 => integer!(u64, put_u64_le),
            Datatype::Int8 => integer!(i8, put_i8),
            Datatype::Int16 => integer!(i16, put_i16_le),
            Datatype::Int32 => integer!(i32, put_i32_le),
            Datatype::Int64 => integer!(i64, put_i64_le),
            Datatype::Fp16 => float!(f16, |number| f16::from_f64(wide(number)), f16::to_f64),
            Datatype::Bf16 => float!(bf16, |number| bf16::from_f64(wide(number)), bf16::to_f64),
            Datatype::Fp32 => float!(f32, single, f64::from),
            Datatype::Fp64 => float!(f64, wide, |value| value),
            Datatype::Bytes => return Err(format!("{} is a number, not text", shown(number))),
        }
        Ok(())
    }

    /// Appends not-a-number, where the datatype has it; `written` is how the file says it.
    pub(super) fn nothing(&mut self, written: &str) -> Result<(), String> {
        match self.datatype {
            Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 => self.number(Number::Binary(f64::NAN)),
            _ => Err(self.refusal(written)),
        }
    }

    /// Appends a truth value: of a number it is another kind.
    pub(super) fn truth(&mut self, value: bool) -> Result<(), String> {
        if self.datatype != Datatype::Bool {
            return Err(format!("`{value}` is not {}: write 1 or 0", self.datatype));
        }
        self.data.put_u8(u8::from(value));
        Ok(())
    }

    pub(super) fn is_text(&self) -> bool {
        self.datatype == Datatype::Bytes
    }

    /// Why something that is no number is not taken.
    pub(super) fn refusal(&self, what: &str) -> String {
        format!("{what} is not {}", self.datatype)
    }

    /// Appends text as an element of its own length.
    pub(super) fn text(&mut self, text: &str) -> Result<(), String> {
        let length = u32::try_from(text.len()).map_err(|_| "a text is longer than 4 GiB".to_owned())?;
        self.data.put_u32_le(length);
        self.data.put_slice(text.as_bytes());
        Ok(())
    }

    /// Appends what stands in a field of a text file.
    pub(super) fn field(&mut self, text: &str, mark: Mark) -> Result<(), String> {
        if self.is_text() {
            return self.text(text);
        }
        if let Some(number) = number_in(text, mark) {
            return self.number(number);
        }
        match text.trim() {
            "" => Err(format!("it is empty, and {} is wanted (not-a-number is written nan)", self.datatype)),
            truth if truth.eq_ignore_ascii_case("true") => self.truth(true),
            truth if truth.eq_ignore_ascii_case("false") => self.truth(false),
            other => {
                let shown: String = other.chars().take(40).collect();
                let hint = match mark {
                    Mark::Point if number_in(other, Mark::Comma).is_some() => {
                        " (if its comma is a decimal mark, say --decimal-comma)"
                    }
                    Mark::Comma if other.contains('.') => " (with --decimal-comma a number has no point)",
                    _ => "",
                };
                Err(self.refusal(&format!("`{shown}`")) + hint)
            }
        }
    }

    fn integer(&self, number: Number) -> Result<i128, String> {
        let (value, exact) = match number {
            Number::Int(value) => return Ok(value),
            // Beyond 2^53 digits may have been lost when it was read.
            Number::Decimal(value) => (value, value.abs() < 2_f64.powi(53)),
            Number::Binary(value) => (value, value.abs() < 2_f64.powi(100)),
        };
        if value.is_finite() && value.fract() == 0.0 {
            return if exact { Ok(value as i128) } else { Err(self.out_of_range(number)) };
        }
        Err(self.refusal(&shown(number)))
    }

    /// Whether a float may stand for the number.
    fn check(&mut self, number: Number, held: f64) -> Result<(), String> {
        let given = wide(number);
        if !held.is_finite() && (given.is_finite() || matches!(number, Number::Decimal(value) if value.is_infinite())) {
            return Err(self.out_of_range(number));
        }
        let exact = match number {
            Number::Int(value) => held as i128 == value,
            Number::Binary(value) => held == value || value.is_nan(),
            // So many digits survive the way there and back.
            Number::Decimal(value) => {
                held == value
                    || value.is_nan()
                    || self.precision == Precision::Nearest
                    || digits(value) <= self.digits()
            }
        };
        match number {
            _ if exact => {}
            _ if self.precision == Precision::Exact => {
                return Err(format!(
                    "{} would become {held} as {}, and --exact is given",
                    shown(number),
                    self.datatype
                ));
            }
            Number::Int(value) => drop(self.rounded.get_or_insert((value, held))),
            _ => {}
        }
        Ok(())
    }

    fn digits(&self) -> usize {
        match self.datatype {
            Datatype::Fp64 => 15,
            Datatype::Fp32 => f32::DIGITS as usize,
            Datatype::Fp16 => f16::DIGITS as usize,
            _ => bf16::DIGITS as usize,
        }
    }

    fn out_of_range(&self, number: Number) -> String {
        format!("{} is out of range for {}", shown(number), self.datatype)
    }
}

/// The number that a text is; infinity only where it says so.
pub(super) fn number_in(text: &str, mark: Mark) -> Option<Number> {
    let pointed;
    let mut text = text.trim();
    if mark == Mark::Comma {
        if text.contains('.') {
            return None;
        }
        pointed = text.replacen(',', ".", 1);
        text = &pointed;
    }
    if let Ok(value) = text.parse() {
        return Some(Number::Int(value));
    }
    let value: f64 = text.parse().ok()?;
    // An infinite decimal, such as 1e400, is not infinity but out of range for everything.
    let in_digits = text.bytes().any(|byte| byte.is_ascii_digit());
    Some(if in_digits { Number::Decimal(value) } else { Number::Binary(value) })
}

fn wide(number: Number) -> f64 {
    match number {
        Number::Int(value) => value as f64,
        Number::Decimal(value) | Number::Binary(value) => value,
    }
}

/// An integer is rounded once, not twice.
fn single(number: Number) -> f32 {
    match number {
        Number::Int(value) => value as f32,
        other => wide(other) as f32,
    }
}

/// The digits of the shortest decimal that is this number.
fn digits(value: f64) -> usize {
    let text = format!("{value:e}");
    text.bytes().take_while(|byte| *byte != b'e').filter(u8::is_ascii_digit).count()
}

fn shown(number: Number) -> String {
    match number {
        Number::Int(value) => format!("`{value}`"),
        Number::Decimal(value) if value.is_infinite() => "a number beyond 1.8e308".into(),
        Number::Decimal(value) | Number::Binary(value) if value.abs() >= 1e17 => format!("`{value:e}`"),
        Number::Decimal(value) | Number::Binary(value) => format!("`{value}`"),
    }
}

//! A tensor's `data` on the wire: one block of bytes, or values, flat or nested.

use std::borrow::Cow;
use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use half::{bf16, f16};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use crate::Datatype;
use crate::tensor::element_count;

/// Data before its datatype is known: the keys of a tensor may come in any order.
pub(super) enum WireData<'a> {
    Block(&'a [u8]),
    Values(Vec<Scalar<'a>>),
}

pub(super) enum Scalar<'a> {
    Int(i64),
    Uint(u64),
    Float(f64),
    Bool(bool),
    /// JSON has no NaN: we write one as `null`, and read it back as one where a float may be.
    Null,
    Text(Cow<'a, str>),
    Block(&'a [u8]),
}

impl WireData<'_> {
    /// Turns it into a tensor's bytes; a block is shared with `body`.
    pub(super) fn pack(self, datatype: Datatype, shape: Option<&[i64]>, body: &Bytes) -> Result<Bytes, String> {
        let values = match self {
            WireData::Block(block) => return Ok(body.slice_ref(block)),
            WireData::Values(values) => values,
        };
        if let Some(shape) = shape {
            let needed = element_count(shape)?;
            if needed != values.len() {
                return Err(format!("{} values for shape {shape:?}, which takes {needed}", values.len()));
            }
        }
        let mut packed = BytesMut::with_capacity(values.len() * datatype.size().unwrap_or(8));
        for (index, value) in values.iter().enumerate() {
            if !value.put(datatype, &mut packed) {
                return Err(format!("value {value} at index {index} is not {datatype}"));
            }
        }
        Ok(packed.freeze())
    }
}

/// Appends one value written as text; false if it is not of that datatype.
pub(super) fn put_text(datatype: Datatype, text: &str, packed: &mut BytesMut) -> bool {
    let trimmed = text.trim();
    let scalar = if datatype == Datatype::Bytes {
        Scalar::Text(Cow::Borrowed(text))
    } else if let Ok(value) = trimmed.parse() {
        Scalar::Int(value)
    } else if let Ok(value) = trimmed.parse() {
        Scalar::Uint(value)
    } else if let Ok(value) = trimmed.parse() {
        Scalar::Float(value)
    } else if let Ok(value) = trimmed.to_ascii_lowercase().parse() {
        Scalar::Bool(value)
    } else {
        return false;
    };
    scalar.put(datatype, packed)
}

impl Scalar<'_> {
    /// Appends the value as `datatype`; false if it is not one.
    fn put(&self, datatype: Datatype, packed: &mut BytesMut) -> bool {
        macro_rules! integer {
            ($type:ty, $put:ident) => {
                match self.integer().and_then(|value| <$type>::try_from(value).ok()) {
                    Some(value) => packed.$put(value),
                    None => return false,
                }
            };
        }
        macro_rules! float {
            ($convert:expr) => {
                match self.float() {
                    Some(value) => packed.put_slice(&$convert(value).to_le_bytes()),
                    None => return false,
                }
            };
        }
        match datatype {
            Datatype::Bool => match self {
                Scalar::Bool(value) => packed.put_u8(u8::from(*value)),
                _ => match self.integer() {
                    Some(value @ 0..=1) => packed.put_u8(value as u8),
                    _ => return false,
                },
            },
            Datatype::Uint8 => integer!(u8, put_u8),
            Datatype::Uint16 => integer!(u16, put_u16_le),
            Datatype::Uint32 => integer!(u32, put_u32_le),
            Datatype::Uint64 => integer!(u64, put_u64_le),
            Datatype::Int8 => integer!(i8, put_i8),
            Datatype::Int16 => integer!(i16, put_i16_le),
            Datatype::Int32 => integer!(i32, put_i32_le),
            Datatype::Int64 => integer!(i64, put_i64_le),
            Datatype::Fp16 => float!(f16::from_f64),
            Datatype::Bf16 => float!(bf16::from_f64),
            Datatype::Fp32 => float!(|value| value as f32),
            Datatype::Fp64 => float!(|value: f64| value),
            Datatype::Bytes => {
                let bytes = match self {
                    Scalar::Text(text) => text.as_bytes(),
                    Scalar::Block(block) => block,
                    _ => return false,
                };
                let Ok(length) = u32::try_from(bytes.len()) else { return false };
                packed.put_u32_le(length);
                packed.put_slice(bytes);
            }
        }
        true
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Scalar::Int(value) => Some(i128::from(*value)),
            Scalar::Uint(value) => Some(i128::from(*value)),
            // JSON writers of some languages print 3 as 3.0.
            Scalar::Float(value) if value.fract() == 0.0 && value.abs() < 2_f64.powi(53) => Some(*value as i128),
            _ => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Scalar::Int(value) => Some(*value as f64),
            Scalar::Uint(value) => Some(*value as f64),
            Scalar::Float(value) => Some(*value),
            Scalar::Null => Some(f64::NAN),
            _ => None,
        }
    }
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Int(value) => value.fmt(formatter),
            Scalar::Uint(value) => value.fmt(formatter),
            Scalar::Float(value) => value.fmt(formatter),
            Scalar::Bool(value) => value.fmt(formatter),
            Scalar::Null => formatter.write_str("null"),
            Scalar::Text(text) => write!(formatter, "{:?}", text.chars().take(40).collect::<String>()),
            Scalar::Block(block) => write!(formatter, "of {} bytes", block.len()),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for WireData<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Data;
        impl<'de> Visitor<'de> for Data {
            type Value = WireData<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an array of values, or in MessagePack one bin")
            }

            fn visit_borrowed_bytes<E: Error>(self, block: &'de [u8]) -> Result<Self::Value, E> {
                Ok(WireData::Block(block))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while array.next_element_seed(Flatten(&mut values))?.is_some() {}
                Ok(WireData::Values(values))
            }
        }
        deserializer.deserialize_any(Data)
    }
}

/// Appends a value, or the values of a nested array in order.
struct Flatten<'v, 'a>(&'v mut Vec<Scalar<'a>>);

impl<'de> DeserializeSeed<'de> for Flatten<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flatten<'_, 'de> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a number, a boolean, text, or an array of them")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.0.push(Scalar::Bool(value));
        Ok(())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.0.push(Scalar::Int(value));
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.0.push(Scalar::Uint(value));
        Ok(())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.0.push(Scalar::Float(value));
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.0.push(Scalar::Null);
        Ok(())
    }

    fn visit_borrowed_str<E: Error>(self, value: &'de str) -> Result<(), E> {
        self.0.push(Scalar::Text(Cow::Borrowed(value)));
        Ok(())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.0.push(Scalar::Text(Cow::Owned(value.to_owned())));
        Ok(())
    }

    fn visit_borrowed_bytes<E: Error>(self, value: &'de [u8]) -> Result<(), E> {
        self.0.push(Scalar::Block(value));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        while array.next_element_seed(Flatten(self.0))?.is_some() {}
        Ok(())
    }
}

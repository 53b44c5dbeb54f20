//! Dimensions of inputs and outputs, and what is known of those that vary.

use serde::{Deserialize, Serialize};

/// One dimension of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dimension {
    /// A size, or -1 for the rows (first place only).
    Size(i64),
    /// A size that varies from request to request, by name.
    Named(String),
}

/// How a named dimension is filled up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Padding {
    /// What is put in.
    #[serde(default)]
    pub value: f64,
    /// Sizes are rounded up to a multiple of this, so that the model sees fewer different ones.
    #[serde(default = "one")]
    pub multiple_of: u32,
}

fn one() -> u32 {
    1
}

/// What is known of the sizes of a named dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Requests with less are refused.
    #[serde(default = "one_at_least")]
    pub smallest: i64,
    /// What requests usually have: the size of warm-up and check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<i64>,
}

fn one_at_least() -> i64 {
    1
}

impl Dimension {
    /// The size, if it is always the same.
    pub fn size(&self) -> Option<i64> {
        match self {
            Dimension::Size(size) if *size >= 0 => Some(*size),
            _ => None,
        }
    }

    /// The name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Dimension::Named(name) => Some(name),
            Dimension::Size(_) => None,
        }
    }
}

impl std::fmt::Display for Dimension {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dimension::Size(size) => size.fmt(formatter),
            Dimension::Named(name) => name.fmt(formatter),
        }
    }
}

//! Names that travel: models, requests, jobs, lanes. Each is checked where it enters, so that no later
//! code has to fear a dot, a wildcard or a space in a subject or a queue name.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A name that breaks its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{given}` {rule}")]
pub struct NameError {
    what: &'static str,
    given: String,
    rule: &'static str,
}

fn refuse<T>(what: &'static str, given: &str, rule: &'static str) -> Result<T, NameError> {
    let mut given: String = given.chars().take(80).collect();
    given.retain(|character| !character.is_control());
    Err(NameError { what, given, rule })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) { Ok(Self(text.into())) } else { refuse($what, text, $rule) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A model's name: a DNS label (RFC 1123), so that it can stand in a subject, a queue name and a host name.
    ModelName, "model name", "is not a DNS label: 1 to 63 of a-z, 0-9 and -, neither first nor last a -", |text| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
    }
);

name!(
    /// A request's id (`ce-id`): the idempotency key, and a token of the subject under which its result is stored.
    RequestId, "request id", "is not 1 to 128 of A-Z, a-z, 0-9, _, -, : and =", |text| {
        (1..=128).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':' | b'='))
    }
);

impl RequestId {
    /// Stands for an id that has yet to be read.
    pub(crate) fn unset() -> Self {
        // Shared: unlike `"".into()` it allocates nothing.
        Self(Arc::default())
    }

    /// An id that breaks the rule, as far as a header can hold it: to tell its sender so, at an inbox. It is no token of a subject.
    pub(crate) fn of_refused(text: &str) -> Self {
        let held = text.chars().take(128).map(|character| if character.is_control() { '_' } else { character });
        Self(held.collect::<String>().into())
    }
}

name!(
    /// The id of a batch submission, under which its results are kept: `<owner>.<name>`, or `<name>` where the broker knows no
    /// users. The owner is the broker's user who reads the results: no other can.
    JobId, "job id", "is not a name, nor an owner and a name with a `.` between them, each 1 to 64 of A-Z, a-z, 0-9, _ and -", |text| {
        match text.split_once('.') {
            Some((owner, name)) => is_plain(owner) && is_plain(name),
            None => is_plain(text),
        }
    }
);

/// What can stand in a subject, a queue name and a pattern of permissions, and means nothing there but itself.
fn is_plain(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

impl JobId {
    /// The id of a job of the broker's user `owner`.
    pub fn of(owner: Option<&str>, name: &str) -> Result<Self, NameError> {
        match owner {
            Some(owner) => format!("{owner}.{name}").parse(),
            None => name.parse(),
        }
    }
}

/// The topic on which workers answer with a model's metadata: [`crate::Manifest::describe`] as JSON.
pub fn describe_topic(model: &ModelName) -> String {
    format!("describe.{model}")
}

/// The priority of a request. There is one queue per model and lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lane {
    /// Served before the others.
    High,
    /// What a request is in that names none.
    #[default]
    Normal,
    /// Served when little else waits, but never starved.
    Low,
}

impl Lane {
    /// All lanes, the most urgent first.
    pub const ALL: [Lane; 3] = [Lane::High, Lane::Normal, Lane::Low];

    /// The lane's name in subjects, queue names, headers and labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Lane::High => "high",
            Lane::Normal => "normal",
            Lane::Low => "low",
        }
    }

    /// 0 for the most urgent, for tables with one entry per lane.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Lane {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match Lane::ALL.into_iter().find(|lane| lane.as_str() == text) {
            Some(lane) => Ok(lane),
            None => refuse("lane", text, "is none of high, normal, low"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_names_are_dns_labels() {
        let longest = "a".repeat(63);
        for good in ["a", "digits", "bert-base-2", "0", &longest] {
            assert!(good.parse::<ModelName>().is_ok(), "{good}");
        }
        let too_long = "a".repeat(64);
        for bad in ["", "-a", "a-", "A", "a.b", "a*", ">", "a b", "ä", "a\n", &too_long] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_cannot_escape_their_place_in_a_subject() {
        for bad in ["", "a.b.c", "a.*", "*", ">", "a b", "a\r\nb", ".a", "a.", &"x".repeat(129)] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad}");
            assert!(bad.parse::<JobId>().is_err(), "{bad}");
        }
        assert!("a.b".parse::<RequestId>().is_err());
        assert_eq!(JobId::of(Some("lab"), "j1").expect("a job").as_str(), "lab.j1");
        assert!("01J-x_Y:2=".parse::<RequestId>().is_ok());
    }

    #[test]
    fn an_error_names_the_thing_and_the_rule() {
        let error = "No Good".parse::<ModelName>().expect_err("an error");
        assert!(error.to_string().starts_with("model name `No Good` is not a DNS label"), "{error}");
    }
}

//! What travels in headers, so that routing never decodes a tensor. Every header's name stands here.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::clock::UnixMs;
use crate::codec::ContentType;
use crate::names::NameError;
use crate::{JobId, Lane, ModelName, RequestId};

/// The request's id (CloudEvents 1.0, binary mode): the idempotency key.
pub const ID: &str = "ce-id";
/// Who sent it, as a URI reference (CloudEvents 1.0).
pub const SOURCE: &str = "ce-source";
/// What it is (CloudEvents 1.0): [`REQUEST_TYPE`].
pub const TYPE: &str = "ce-type";
/// Always `1.0` (CloudEvents 1.0).
pub const SPEC_VERSION: &str = "ce-specversion";
/// `application/msgpack` (default) or `application/json`.
pub const CONTENT_TYPE: &str = "content-type";
/// Where the answer goes: `inbox:<address>`, `results:<job>` or `results:<job>,inbox:<address>`.
pub const REPLY_TO: &str = "sluice-reply-to";
/// The models that the answer goes through before it goes to [`REPLY_TO`], separated by commas: the outputs of each
/// are the inputs of the next.
pub const THEN: &str = "sluice-then";
/// Unix milliseconds after which nobody wants the answer.
pub const DEADLINE: &str = "sluice-deadline";
/// How many rows the body holds; a hint for credit, the body is the truth. Absent means 1.
pub const ROWS: &str = "sluice-rows";
/// The lane, where the queue's name does not say it.
pub const LANE: &str = "sluice-lane";
/// Whose request it is, for accounting.
pub const TENANT: &str = "sluice-tenant";
/// The model version that must answer; absent for whichever serves.
pub const VERSION: &str = "sluice-version";
/// Attempts charged so far, where the broker does not count them.
pub const ATTEMPTS: &str = "sluice-attempts";
/// W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// On a reply that carries no tensors: the error's code.
pub const ERROR: &str = "sluice-error";
/// On a dead letter: the code and the reason, the host that gave up, and when (Unix milliseconds).
pub const DEAD_CODE: &str = "sluice-dead-code";
/// See [`DEAD_CODE`].
pub const DEAD_REASON: &str = "sluice-dead-reason";
/// See [`DEAD_CODE`].
pub const DEAD_HOST: &str = "sluice-dead-host";
/// See [`DEAD_CODE`].
pub const DEAD_AT: &str = "sluice-dead-at";

/// The headers that a request is read from.
pub const READ: [&str; 10] = [ID, REPLY_TO, THEN, CONTENT_TYPE, DEADLINE, ROWS, TENANT, VERSION, SOURCE, TRACEPARENT];

/// The `ce-type` of a request.
pub const REQUEST_TYPE: &str = "sluice.inference.request";

/// The longest address of an inbox.
const LONGEST_ADDRESS: usize = 256;
/// A pipeline's models beyond its first. A longer one is more likely a mistake that feeds itself.
const MOST_STAGES: usize = 16;
/// The longest value of a header that is read: room for the longest pipeline, with blanks.
const LONGEST_VALUE: usize = 2048;
/// The longest tenant and the longest version: they go into each message that follows from a request.
const LONGEST_LABEL: usize = 256;
/// The longest source, a URI reference.
const LONGEST_SOURCE: usize = 1024;
/// A trace context of version 00 (W3C Trace Context, 3.2): what is longer is none that we know.
const TRACEPARENT_LENGTH: usize = 55;
/// So many faults are told. Headers can be repeated, and a refusal must not be larger than what it refuses.
const MOST_FAULTS: usize = 8;

/// Where an answer goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReplyTo {
    /// A live caller's address on the broker. If the caller is gone, so is the answer.
    Inbox(String),
    /// The durable results of a job.
    Results {
        /// Whose they are.
        job: JobId,
        /// Where a copy of the answer goes once it is stored; as of any live caller, it may be lost.
        inbox: Option<String>,
    },
}

impl ReplyTo {
    /// As the header says it. Written for every request: without the formatter, which is slower.
    fn to_text(&self) -> String {
        match self {
            ReplyTo::Inbox(address) => ["inbox:", address].concat(),
            ReplyTo::Results { job, inbox: None } => ["results:", job.as_str()].concat(),
            ReplyTo::Results { job, inbox: Some(address) } => ["results:", job.as_str(), ",inbox:", address].concat(),
        }
    }
}

impl fmt::Display for ReplyTo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.to_text())
    }
}

impl FromStr for ReplyTo {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("inbox", address)) if is_address(address) => Ok(ReplyTo::Inbox(address.to_owned())),
            Some(("results", rest)) => {
                let (job, copy) = rest.split_once(',').map_or((rest, None), |(job, copy)| (job, Some(copy)));
                let inbox = match copy.map(|copy| copy.strip_prefix("inbox:").filter(|address| is_address(address))) {
                    None => None,
                    Some(Some(address)) => Some(address.to_owned()),
                    Some(None) => return Err(neither(text)),
                };
                Ok(ReplyTo::Results { job: job.parse().map_err(|error: NameError| error.to_string())?, inbox })
            }
            _ => Err(neither(text)),
        }
    }
}

/// Longer ones break a broker's own limits, at the worker's cost.
fn is_address(address: &str) -> bool {
    (1..=LONGEST_ADDRESS).contains(&address.len()) && address.is_ascii() && !address.contains(',')
}

fn neither(text: &str) -> String {
    let given: String = text.chars().take(80).collect();
    format!(
        "`{given}` is neither `inbox:<address>`, of at most {LONGEST_ADDRESS} characters, nor `results:<job>`, nor \
         `results:<job>,inbox:<address>`"
    )
}

/// A request's headers, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The idempotency key.
    pub id: RequestId,
    /// How the body is encoded.
    pub content_type: ContentType,
    /// Where the answer goes; a request without one can only be dead-lettered.
    pub reply_to: Option<ReplyTo>,
    /// The models that its outputs go to before the answer is given: a pipeline.
    pub then: Vec<ModelName>,
    /// After this nobody wants the answer.
    pub deadline: Option<UnixMs>,
    /// The queue it came by.
    pub lane: Lane,
    /// Rows in the body, as its sender says.
    pub rows: u32,
    /// Whose request it is.
    pub tenant: Option<String>,
    /// The model version wanted.
    pub version: Option<String>,
    /// Who sent it.
    pub source: Option<String>,
    /// W3C Trace Context, passed on to the reply.
    pub traceparent: Option<String>,
}

/// Headers that cannot be served, with as much as is needed to tell the sender so.
#[derive(Debug, Clone, PartialEq)]
pub struct Malformed {
    /// The id, if there was one that can be used; one that cannot, if the refusal goes to an inbox, where no place depends on it.
    pub id: Option<RequestId>,
    /// Where the refusal goes.
    pub reply_to: Option<ReplyTo>,
    /// The encoding of the refusal.
    pub content_type: ContentType,
    /// Which header is wrong and what would be right.
    pub reason: String,
}

impl Envelope {
    /// An envelope with defaults for all that a request may leave out.
    pub fn new(id: RequestId) -> Self {
        Self {
            id,
            content_type: ContentType::default(),
            reply_to: None,
            then: Vec::new(),
            deadline: None,
            lane: Lane::default(),
            rows: 1,
            tenant: None,
            version: None,
            source: None,
            traceparent: None,
        }
    }

    /// Reads headers, given as pairs of name and value. `lane` is that of the queue, which knows better than any header.
    pub fn read<'h>(lane: Lane, headers: impl Iterator<Item = (&'h str, &'h str)>) -> Result<Self, Box<Malformed>> {
        Self::read_beside(lane, Vec::new(), headers)
    }

    /// The same where a broker's headers have types: `unreadable` are those whose type does not fit, with the reason.
    pub fn read_beside<'h>(
        lane: Lane,
        unreadable: Vec<(&str, String)>,
        headers: impl Iterator<Item = (&'h str, &'h str)>,
    ) -> Result<Self, Box<Malformed>> {
        let mut id = None;
        let mut given: Option<&str> = None;
        let id_has_no_text = unreadable.iter().any(|(name, _)| *name == ID);
        let mut faults = Vec::new();
        let mut note = |name: &str, reason: String| {
            if faults.len() < MOST_FAULTS {
                faults.push(format!("header `{name}`: {reason}"));
            }
        };
        for (name, reason) in unreadable {
            note(name, reason);
        }
        let mut read = Self { lane, ..Self::new(RequestId::unset()) };
        for (name, value) in headers {
            let longest = longest(name);
            match name {
                name if value.len() > longest => {
                    note(name, format!("is {} bytes long; at most {longest} are taken", value.len()));
                }
                ID => {
                    given = Some(value);
                    id = value.parse().map_err(|error: NameError| note(ID, error.to_string())).ok();
                }
                REPLY_TO => read.reply_to = value.parse().map_err(|error| note(REPLY_TO, error)).ok(),
                THEN => read.then = stages(value).map_err(|error| note(THEN, error)).unwrap_or_default(),
                CONTENT_TYPE => match value.parse() {
                    Ok(content_type) => read.content_type = content_type,
                    Err(error) => note(CONTENT_TYPE, error),
                },
                DEADLINE => match value.parse() {
                    Ok(deadline) => read.deadline = Some(deadline),
                    Err(_) => note(DEADLINE, format!("`{}` is not Unix time in milliseconds", short(value))),
                },
                ROWS => match value.parse() {
                    Ok(rows) if rows > 0 => read.rows = rows,
                    _ => note(ROWS, format!("`{}` is not a number of rows", short(value))),
                },
                TENANT => read.tenant = Some(value.to_owned()),
                VERSION => read.version = Some(value.to_owned()),
                SOURCE => read.source = Some(value.to_owned()),
                TRACEPARENT if value.len() <= TRACEPARENT_LENGTH => read.traceparent = Some(value.to_owned()),
                _ => {}
            }
        }
        if given.is_none() && !id_has_no_text {
            note(ID, "is missing: every request carries an id".into());
        }
        match id {
            Some(id) if faults.is_empty() => Ok(Self { id, ..read }),
            id => {
                let Self { reply_to, content_type, .. } = read;
                let to_inbox = matches!(reply_to, Some(ReplyTo::Inbox(_)));
                let id = id.or_else(|| given.filter(|_| to_inbox).map(RequestId::of_refused));
                Err(Box::new(Malformed { id, reply_to, content_type, reason: faults.join("; ") }))
            }
        }
    }

    /// Writes every header that says more than its default. With a source the request is a CloudEvent in binary mode, and
    /// carries all that CloudEvents requires; without one those headers would only cost.
    pub fn write<'a>(&'a self, mut put: impl FnMut(&'static str, Cow<'a, str>)) {
        put(ID, self.id.as_str().into());
        if let Some(source) = &self.source {
            put(SOURCE, source.into());
            put(SPEC_VERSION, "1.0".into());
            put(TYPE, REQUEST_TYPE.into());
        }
        if self.content_type != ContentType::default() {
            put(CONTENT_TYPE, self.content_type.as_str().into());
        }
        if let Some(reply_to) = &self.reply_to {
            put(REPLY_TO, reply_to.to_text().into());
        }
        if !self.then.is_empty() {
            put(THEN, self.then.iter().map(ModelName::as_str).collect::<Vec<_>>().join(",").into());
        }
        if let Some(deadline) = self.deadline {
            put(DEADLINE, deadline.to_string().into());
        }
        if self.rows != 1 {
            put(ROWS, self.rows.to_string().into());
        }
        for (name, value) in [(TENANT, &self.tenant), (VERSION, &self.version), (TRACEPARENT, &self.traceparent)] {
            if let Some(value) = value {
                put(name, value.into());
            }
        }
    }

    /// Whether its deadline has passed.
    pub fn expired(&self, now: UnixMs) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// How long a header's value may be. The id's and the reply-to's own rules are narrower, and a trace context that is none is passed over.
fn longest(name: &str) -> usize {
    match name {
        TENANT | VERSION => LONGEST_LABEL,
        SOURCE => LONGEST_SOURCE,
        THEN | CONTENT_TYPE | DEADLINE | ROWS => LONGEST_VALUE,
        _ => usize::MAX,
    }
}

fn stages(text: &str) -> Result<Vec<ModelName>, String> {
    let stages = text.split(',').map(|name| name.trim().parse()).collect::<Result<Vec<_>, NameError>>();
    match stages {
        Ok(stages) if stages.len() > MOST_STAGES => Err(format!("{} models; at most {MOST_STAGES}", stages.len())),
        other => other.map_err(|error| error.to_string()),
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn written(envelope: &Envelope) -> HashMap<&'static str, String> {
        let mut headers = HashMap::new();
        envelope.write(|name, value| {
            headers.insert(name, value.into_owned());
        });
        headers
    }

    #[test]
    fn an_envelope_survives_its_headers() {
        let full = Envelope {
            content_type: ContentType::Json,
            reply_to: Some(ReplyTo::Results {
                job: "lab.job-1".parse().expect("a job"),
                inbox: Some("_INBOX.lab.x".into()),
            }),
            then: vec!["embed".parse().expect("a name"), "rank".parse().expect("a name")],
            deadline: Some(1_700_000_000_000),
            lane: Lane::High,
            rows: 32,
            tenant: Some("lab".into()),
            version: Some("3".into()),
            source: Some("/camera/7".into()),
            traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
            ..Envelope::new("r1".parse().expect("an id"))
        };
        let headers = written(&full);
        let read =
            Envelope::read(Lane::High, headers.iter().map(|(name, value)| (*name, value.as_str()))).expect("reads");
        assert_eq!(read, full);
        for required in [ID, SOURCE, TYPE, SPEC_VERSION] {
            assert!(headers.contains_key(required), "CloudEvents requires `{required}`");
        }
    }

    #[test]
    fn an_address_that_would_break_the_broker_is_refused() {
        assert!(format!("inbox:_INBOX.{}", "x".repeat(5000)).parse::<ReplyTo>().is_err());
        assert!("inbox:".parse::<ReplyTo>().is_err());
        for bad in ["results:a.b.c", "results:.b", "results:a,b", "results:a,inbox:", "results:a,inbox:x,inbox:y"] {
            assert!(bad.parse::<ReplyTo>().is_err(), "{bad}");
        }
        assert!("inbox:_INBOX.worker.abc".parse::<ReplyTo>().is_ok());
    }

    #[test]
    fn every_fault_is_named_and_the_way_back_is_kept() {
        let headers = HashMap::from([
            (ID, "a.b"),
            (REPLY_TO, "inbox:_INBOX.x"),
            (DEADLINE, "tomorrow"),
            (CONTENT_TYPE, "text/plain"),
            (THEN, "rank,No Name"),
        ]);
        let malformed = Envelope::read(Lane::Normal, headers.into_iter()).expect_err("malformed");
        for name in [ID, DEADLINE, CONTENT_TYPE, THEN] {
            assert!(malformed.reason.contains(name), "{}", malformed.reason);
        }
        assert_eq!(malformed.reply_to, Some(ReplyTo::Inbox("_INBOX.x".into())));
        assert_eq!(malformed.id.map(|id| id.to_string()).as_deref(), Some("a.b"), "its sender knows it by that");
    }

    #[test]
    fn what_is_copied_into_answers_and_dead_letters_is_bounded() {
        let long = "x".repeat(60_000);
        let stages = format!("rank,{}embed", " ".repeat(60_000));
        let many = ["m"; MOST_STAGES + 1].join(",");
        for (name, value) in [(TENANT, &long), (VERSION, &long), (SOURCE, &long), (THEN, &stages), (THEN, &many)] {
            let headers = [(ID, "r1"), (REPLY_TO, "inbox:_INBOX.x"), (name, value)];
            let malformed = Envelope::read(Lane::Normal, headers.into_iter()).expect_err(name);
            assert!(malformed.reason.contains(name) && malformed.reason.contains("at most"), "{}", malformed.reason);
            assert!(malformed.reply_to.is_some(), "its sender is told");
        }
        let headers = [(ID, "r1"), (TRACEPARENT, &*long)];
        let read = Envelope::read(Lane::Normal, headers.into_iter()).expect("reads");
        assert_eq!(read.traceparent, None, "no trace context is that long");
        let repeated = std::iter::repeat_n((ROWS, "0"), 10_000);
        let malformed = Envelope::read(Lane::Normal, repeated).expect_err("malformed");
        assert!(malformed.reason.len() < 1000, "{} bytes of reasons", malformed.reason.len());
    }

    #[test]
    fn rows_are_a_hint_that_is_refused_where_it_is_no_number_of_rows() {
        let rows = |rows| Envelope::read(Lane::Normal, [(ID, "r1"), (ROWS, rows)].into_iter()).map(|read| read.rows);
        assert_eq!(rows("2147483648"), Ok(2_147_483_648), "it decides nothing: the body is the truth");
        for refused in ["0", "-1", "4294967296", "1e9", ""] {
            assert!(rows(refused).expect_err("malformed").reason.contains(ROWS), "{refused}");
        }
    }

    #[test]
    fn an_id_that_cannot_be_used_never_becomes_a_place() {
        let id_of = |id, reply_to| {
            let headers = [(ID, id), (REPLY_TO, reply_to)];
            Envelope::read(Lane::Normal, headers.into_iter()).expect_err("malformed").id.map(|id| id.to_string())
        };
        assert_eq!(id_of("a.b", "results:job"), None, "a result is stored under its id");
        assert_eq!(id_of("a\nb/c", "inbox:_INBOX.x").as_deref(), Some("a_b/c"));
    }
}

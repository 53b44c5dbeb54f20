//! Chunks between being read and being written, in order, and the requests that ask for them: one each, or several for the parts of one
//! that failed. Holds no more than the window, whatever the file's size.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use sluice_core::broker::Reply;
use sluice_core::{JobId, RequestId};

use super::chunk::Chunk;
use super::divide::{may_be_one_rows, parts};

/// Which rows a request asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub chunk: u64,
    /// The rows of a part, as its first and their number; `None` for all.
    part: Option<(u32, u32)>,
}

impl Key {
    pub fn whole(chunk: u64) -> Self {
        Self { chunk, part: None }
    }

    fn part_of(chunk: u64, rows: &Range<u32>) -> Self {
        Self { chunk, part: Some((rows.start, rows.end - rows.start)) }
    }

    /// Whether it asks for some rows only.
    pub fn is_part(&self) -> bool {
        self.part.is_some()
    }

    /// `JOB-7` for all rows of the eighth message, `JOB-7:4:2` for two of them.
    pub fn id(&self, job: &JobId) -> anyhow::Result<RequestId> {
        let part = self.part.map(|(first, rows)| format!(":{first}:{rows}")).unwrap_or_default();
        Ok(format!("{job}-{}{part}", self.chunk).parse()?)
    }

    pub fn of(id: &RequestId, job: &JobId) -> Option<Self> {
        let text = id.as_str().strip_prefix(job.as_str())?.strip_prefix('-')?;
        let Some((chunk, part)) = text.split_once(':') else { return Some(Self::whole(text.parse().ok()?)) };
        let (first, rows) = part.split_once(':')?;
        Some(Self { chunk: chunk.parse().ok()?, part: Some((first.parse().ok()?, rows.parse().ok()?)) })
    }
}

/// A request that is under way, or answered.
pub struct Asked {
    pub key: Key,
    /// The good rows of its chunk that it asks for.
    pub rows: Range<u32>,
    pub sent: Sent,
    pub reply: Option<Reply>,
}

impl Asked {
    fn new(key: Key, rows: Range<u32>) -> Self {
        Self { key, rows, sent: Sent::at(Instant::now()), reply: None }
    }
}

/// When a request was submitted. Its deadline counts from the first time.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    first: Instant,
    last: Instant,
    /// Times it was asked again.
    pub again: u32,
}

impl Sent {
    fn at(now: Instant) -> Self {
        Self { first: now, last: now, again: 0 }
    }

    /// It is submitted once more.
    pub fn again(&mut self, now: Instant) {
        self.last = now;
        self.again += 1;
    }

    /// How long it waits since it was last submitted.
    pub fn waits(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last)
    }

    /// What is left of the time that it has.
    pub fn left(&self, deadline: Duration, now: Instant) -> Duration {
        deadline.saturating_sub(now.saturating_duration_since(self.first))
    }
}

/// A chunk that is under way.
pub struct Entry {
    pub chunk: Chunk,
    /// In the order of the rows; none if there is nothing to ask for.
    pub asked: Vec<Asked>,
}

/// What an answer means.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// So many rows have their answer, after so long.
    Rows(u32, Duration),
    /// One row may be what failed: these are to be asked for, each by itself.
    Divided(Duration, Vec<(Key, Range<u32>)>),
}

/// The chunks under way, by their index without gaps.
#[derive(Default)]
pub struct Waiting {
    first: u64,
    entries: VecDeque<Entry>,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds the next chunk.
    pub fn push(&mut self, chunk: Chunk) {
        if self.entries.is_empty() {
            self.first = chunk.index;
        }
        let all = chunk.body.as_ref().map(|_| Asked::new(Key::whole(chunk.index), 0..chunk.good));
        self.entries.push_back(Entry { asked: all.into_iter().collect(), chunk });
    }

    pub fn entry(&self, chunk: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(chunk.checked_sub(self.first)?).ok()?)
    }

    /// Notes an answer; `None` if nobody waits for it: it came twice, or was written in an earlier run.
    pub fn answer(&mut self, key: &Key, reply: Reply) -> Option<Answered> {
        let at = usize::try_from(key.chunk.checked_sub(self.first)?).ok()?;
        let entry = self.entries.get_mut(at)?;
        let first = key.part.map_or(0, |(first, _)| first);
        let at = entry.asked.partition_point(|asked| asked.rows.start < first);
        let asked = entry.asked.get_mut(at).filter(|asked| asked.key == *key && asked.reply.is_none())?;
        let (rows, latency) = (asked.rows.clone(), asked.sent.waits(Instant::now()));
        if rows.len() > 1 && reply.error.is_some_and(may_be_one_rows) {
            let parts: Vec<_> = parts(&rows).map(|rows| (Key::part_of(key.chunk, &rows), rows)).collect();
            entry.asked.splice(at..=at, parts.iter().map(|(key, rows)| Asked::new(key.clone(), rows.clone())));
            return Some(Answered::Divided(latency, parts));
        }
        asked.reply = Some(reply);
        Some(Answered::Rows(rows.len() as u32, latency))
    }

    /// The next chunk in order, if all its rows have their answers.
    pub fn pop(&mut self) -> Option<Entry> {
        if self.entries.front()?.asked.iter().any(|asked| asked.reply.is_none()) {
            return None;
        }
        self.first += 1;
        self.entries.pop_front()
    }

    /// Requests that are not answered.
    pub fn open(&mut self) -> impl Iterator<Item = &mut Asked> {
        self.entries.iter_mut().flat_map(|entry| &mut entry.asked).filter(|asked| asked.reply.is_none())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sluice_core::ErrorCode;
    use sluice_core::codec::ContentType;

    use super::*;

    fn chunk(index: u64, good: u32) -> Chunk {
        let body = (good > 0).then(Bytes::new);
        Chunk { index, first_row: index, rows: vec![], body, good, consumed: 0 }
    }

    fn reply(error: Option<ErrorCode>) -> Reply {
        let id = "r".parse().expect("an id");
        Reply { id, error, content_type: ContentType::Json, body: Bytes::new(), traceparent: None }
    }

    #[test]
    fn chunks_leave_in_order_and_an_answer_counts_once() {
        let mut waiting = Waiting::default();
        for index in 5..8 {
            waiting.push(chunk(index, u32::from(index != 6)));
        }
        let answer = |waiting: &mut Waiting, index| waiting.answer(&Key::whole(index), reply(None));
        assert!(answer(&mut waiting, 4).is_none() && answer(&mut waiting, 9).is_none());
        assert!(answer(&mut waiting, 7).is_some());
        assert!(answer(&mut waiting, 7).is_none(), "it came twice");
        assert!(waiting.pop().is_none(), "the first is still open");
        assert_eq!(waiting.open().count(), 1);
        assert!(answer(&mut waiting, 5).is_some());
        let order: Vec<u64> = std::iter::from_fn(|| waiting.pop()).map(|entry| entry.chunk.index).collect();
        assert_eq!(order, [5, 6, 7]);
        assert_eq!((waiting.len(), waiting.open().count()), (0, 0));
    }

    #[test]
    fn a_message_that_may_have_failed_for_one_row_is_asked_in_parts_and_the_row_stands_alone() {
        let mut waiting = Waiting::default();
        waiting.push(chunk(0, 4));
        let failed = || reply(Some(ErrorCode::ModelFailed));
        let Some(Answered::Divided(_, parts)) = waiting.answer(&Key::whole(0), failed()) else { panic!("not divided") };
        assert_eq!(parts.iter().map(|(_, rows)| rows.clone()).collect::<Vec<_>>(), [0..1, 1..2, 2..3, 3..4]);
        assert!(waiting.answer(&Key::whole(0), failed()).is_none(), "it came twice");
        for (at, (key, _)) in parts.iter().enumerate().rev() {
            assert!(waiting.pop().is_none());
            let answered = waiting.answer(key, if at == 2 { failed() } else { reply(None) });
            assert!(matches!(answered, Some(Answered::Rows(1, _))), "{answered:?}");
        }
        let asked = waiting.pop().expect("all rows have their answers").asked;
        let failed: Vec<_> =
            asked.iter().filter(|asked| asked.reply.as_ref().is_some_and(|reply| reply.error.is_some())).collect();
        assert!(failed.len() == 1 && failed[0].rows == (2..3));
        // What concerns all rows alike is not asked again.
        waiting.push(chunk(1, 4));
        let late = waiting.answer(&Key::whole(1), reply(Some(ErrorCode::DeadlineExceeded)));
        assert!(matches!(late, Some(Answered::Rows(4, _))), "{late:?}");
    }

    #[test]
    fn asking_again_gives_a_request_no_more_time() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut sent = Sent::at(began);
        sent.again(began + 20 * second);
        assert_eq!((sent.again, sent.waits(began + 25 * second)), (1, 5 * second));
        assert_eq!(sent.left(30 * second, began + 25 * second), 5 * second);
        assert_eq!(sent.left(30 * second, began + 31 * second), Duration::ZERO);
    }

    #[test]
    fn a_request_is_known_by_its_id() {
        let job: JobId = "a-1".parse().expect("a job");
        for (key, id) in [(Key::whole(7), "a-1-7"), (Key::part_of(7, &(4..6)), "a-1-7:4:2")] {
            assert_eq!(key.id(&job).expect("an id").as_str(), id);
            assert_eq!(Key::of(&id.parse().expect("an id"), &job), Some(key));
        }
        assert_eq!(Key::of(&"b-1-7".parse().expect("an id"), &job), None);
    }
}

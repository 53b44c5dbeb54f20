//! Chunks between being read and being written, in order, and the requests that ask for them: one each, or several for the parts of one
//! that failed. Holds no more than the window, whatever the file's size.

use std::collections::VecDeque;
use std::fmt;
use std::num::ParseIntError;
use std::ops::Range;
use std::str::FromStr;
use std::time::{Duration, Instant};

use sluice_core::broker::Reply;

use super::chunk::Chunk;
use super::divide::{may_be_one_rows, parts};

/// An answer that has not come by then may be stored all the same.
const LOOK_AFTER: Duration = Duration::from_secs(5);
/// Each look waits twice as long as the one before, up to this.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(60);

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
}

/// `7` for all rows of the eighth message, `7:4:2` for two of them.
impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            None => write!(formatter, "{}", self.chunk),
            Some((first, rows)) => write!(formatter, "{}:{first}:{rows}", self.chunk),
        }
    }
}

impl FromStr for Key {
    type Err = ParseIntError;
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let Some((chunk, part)) = text.split_once(':') else { return Ok(Self::whole(text.parse()?)) };
        let (first, rows) = part.split_once(':').unwrap_or((part, ""));
        Ok(Self { chunk: chunk.parse()?, part: Some((first.parse()?, rows.parse()?)) })
    }
}

/// A request: to be submitted, under way, or answered.
pub struct Asked {
    pub key: Key,
    /// The good rows of its chunk that it asks for.
    pub rows: Range<u32>,
    /// `None` until it is submitted: there was no room in the window yet, or its answer was there.
    sent: Option<Sent>,
    pub reply: Option<Reply>,
}

impl Asked {
    fn new(key: Key, rows: Range<u32>) -> Self {
        Self { key, rows, sent: None, reply: None }
    }
}

/// When a request was submitted. Its deadline counts from the first time.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    first: Instant,
    last: Instant,
    /// When its answer was last looked up where it would be stored, and how often.
    looked: Instant,
    looks: u32,
    /// Times it was asked again.
    pub again: u32,
}

impl Sent {
    fn at(now: Instant) -> Self {
        Self { first: now, last: now, looked: now, looks: 0, again: 0 }
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

    /// Whether its answer may be stored and the word of it lost.
    pub fn is_to_be_looked_up(&self, now: Instant) -> bool {
        let pause = (LOOK_AFTER * 2_u32.saturating_pow(self.looks)).min(LOOK_AT_LEAST_EVERY);
        now.saturating_duration_since(self.looked) >= pause
    }

    pub fn looked_up(&mut self, now: Instant) {
        self.looked = now;
        self.looks = (self.looks + 1).min(16);
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
    /// One row may be what failed: its rows are to be asked for in parts.
    Divided(Duration),
}

/// The chunks under way, by their index without gaps.
#[derive(Default)]
pub struct Waiting {
    first: u64,
    entries: VecDeque<Entry>,
    /// Requests that are to be submitted, in this order.
    queued: VecDeque<(Key, Range<u32>)>,
    /// Requests that are submitted and not answered.
    under_way: usize,
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
        self.queued.extend(all.iter().map(|asked| (asked.key.clone(), asked.rows.clone())));
        self.entries.push_back(Entry { asked: all.into_iter().collect(), chunk });
    }

    /// Whether another chunk may be asked for: no more requests than the window are under way, and parts come first.
    pub fn has_room(&self, window: usize) -> bool {
        self.entries.len() < window && self.under_way < window && self.queued.is_empty()
    }

    /// What is to be asked for next, if the window has room: a message that fails may become as many requests as it has rows.
    pub fn next(&mut self, window: usize) -> Option<(Key, Range<u32>)> {
        while self.under_way < window {
            let (key, rows) = self.queued.pop_front()?;
            // An earlier run may have asked for it, and the answer have come meanwhile.
            if self.asked(&key).is_some() {
                return Some((key, rows));
            }
        }
        None
    }

    /// Notes that a request is being submitted.
    pub fn sent(&mut self, key: &Key, now: Instant) {
        if let Some(asked) = self.asked(key)
            && asked.sent.replace(Sent::at(now)).is_none()
        {
            self.under_way += 1;
        }
    }

    /// Lets the answer of a request be looked up with the next look.
    pub fn look_soon(&mut self, key: &Key, now: Instant) {
        if let Some(sent) = self.asked(key).and_then(|asked| asked.sent.as_mut()) {
            sent.looked = now.checked_sub(LOOK_AFTER).unwrap_or(now);
        }
    }

    /// A request that has no answer yet.
    fn asked(&mut self, key: &Key) -> Option<&mut Asked> {
        let at = usize::try_from(key.chunk.checked_sub(self.first)?).ok()?;
        let asked = &mut self.entries.get_mut(at)?.asked;
        let at = position(asked, key);
        asked.get_mut(at).filter(|asked| asked.key == *key && asked.reply.is_none())
    }

    pub fn entry(&self, chunk: u64) -> Option<&Entry> {
        self.entries.get(usize::try_from(chunk.checked_sub(self.first)?).ok()?)
    }

    /// Notes an answer; `None` if nobody waits for it: it came twice, or was written in an earlier run.
    pub fn answer(&mut self, key: &Key, reply: Reply) -> Option<Answered> {
        let asked = self.asked(key)?;
        let rows = asked.rows.clone();
        let divided = rows.len() > 1 && reply.error.is_some_and(may_be_one_rows);
        let sent = asked.sent.take();
        if !divided {
            asked.reply = Some(reply);
        }
        self.under_way -= usize::from(sent.is_some());
        let latency = sent.map_or(Duration::ZERO, |sent| sent.waits(Instant::now()));
        if !divided {
            return Some(Answered::Rows(rows.len() as u32, latency));
        }
        let parts: Vec<_> = parts(&rows).map(|rows| (Key::part_of(key.chunk, &rows), rows)).collect();
        let entry = self.entries.get_mut(usize::try_from(key.chunk.checked_sub(self.first)?).ok()?)?;
        let at = position(&entry.asked, key);
        entry.asked.splice(at..=at, parts.iter().map(|(key, rows)| Asked::new(key.clone(), rows.clone())));
        self.queued.extend(parts);
        Some(Answered::Divided(latency))
    }

    /// The next chunk in order, if all its rows have their answers.
    pub fn pop(&mut self) -> Option<Entry> {
        if self.entries.front()?.asked.iter().any(|asked| asked.reply.is_none()) {
            return None;
        }
        self.first += 1;
        self.entries.pop_front()
    }

    /// Requests that are under way, each with when it was submitted.
    pub fn open(&mut self) -> impl Iterator<Item = (&Key, &Range<u32>, &mut Sent)> {
        let asked = self.entries.iter_mut().flat_map(|entry| &mut entry.asked);
        asked.filter_map(|asked| Some((&asked.key, &asked.rows, asked.sent.as_mut()?)))
    }
}

/// Where a request is, or would be, among those of its chunk.
fn position(asked: &[Asked], key: &Key) -> usize {
    let first = key.part.map_or(0, |(first, _)| first);
    asked.partition_point(|asked| asked.rows.start < first)
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
        assert!(waiting.next(8).is_some_and(|(key, _)| key == Key::whole(5)));
        waiting.sent(&Key::whole(5), Instant::now());
        assert_eq!((waiting.open().count(), waiting.next(8)), (1, None));
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
        let divided = waiting.answer(&Key::whole(0), failed());
        assert!(matches!(divided, Some(Answered::Divided(_))), "{divided:?}");
        let parts: Vec<_> = std::iter::from_fn(|| waiting.next(8)).skip_while(|(key, _)| !key.is_part()).collect();
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
    fn no_more_requests_than_the_window_are_under_way_however_many_parts_there_are() {
        let mut waiting = Waiting::default();
        let submit = |waiting: &mut Waiting| {
            while let Some((key, _)) = waiting.next(3) {
                waiting.sent(&key, Instant::now());
            }
            waiting.open().map(|(key, ..)| key.clone()).collect::<Vec<_>>()
        };
        let (mut most, mut asked, mut next) = (0, 0, 0);
        // All that there is fails, until each row stands alone.
        loop {
            while next < 6 && waiting.has_room(3) {
                waiting.push(chunk(next, 40));
                next += 1;
                submit(&mut waiting);
            }
            let open = submit(&mut waiting);
            most = most.max(open.len());
            let Some(key) = open.last() else { break };
            asked += 1;
            waiting.answer(key, reply(Some(ErrorCode::ModelFailed))).expect("it is under way");
            while waiting.pop().is_some() {}
        }
        // 40 rows are asked for at once, then 39 of them by three, and in the end each by itself.
        assert_eq!((most, asked, waiting.len()), (3, 6 * (1 + 13 + 40), 0));
    }

    #[test]
    fn what_an_earlier_run_asked_for_is_not_asked_again_when_its_answer_comes_first() {
        let mut waiting = Waiting::default();
        waiting.push(chunk(0, 1));
        assert!(waiting.answer(&Key::whole(0), reply(None)).is_some());
        assert_eq!((waiting.next(3), waiting.open().count()), (None, 0));
        assert!(waiting.pop().is_some() && waiting.has_room(1));
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
    fn what_may_have_been_missed_is_looked_up_ever_more_rarely() {
        let (began, second) = (Instant::now(), Duration::from_secs(1));
        let mut sent = Sent::at(began);
        assert!(!sent.is_to_be_looked_up(began + 4 * second));
        let mut looks = Vec::new();
        for at in 0..200 {
            let now = began + at * second;
            if sent.is_to_be_looked_up(now) {
                sent.looked_up(now);
                looks.push(at);
            }
        }
        assert_eq!(looks, [5, 15, 35, 75, 135, 195]);
    }
}

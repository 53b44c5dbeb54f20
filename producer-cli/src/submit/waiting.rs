//! Chunks between being read and being written, in order. Holds no more than the window, whatever the file's size.

use std::collections::VecDeque;
use std::time::Instant;

use sluice_core::broker::Reply;

use super::chunk::Chunk;

/// A chunk that is under way.
pub struct Entry {
    pub chunk: Chunk,
    /// When it was last submitted.
    pub sent: Instant,
    /// Times it was asked again.
    pub again: u32,
    /// Answered, or in need of no answer.
    pub done: bool,
    pub reply: Option<Reply>,
}

/// The chunks under way, by their index without gaps.
#[derive(Default)]
pub struct Waiting {
    first: u64,
    entries: VecDeque<Entry>,
    unanswered: usize,
}

impl Waiting {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Adds the next chunk.
    pub fn push(&mut self, chunk: Chunk) {
        if self.entries.is_empty() {
            self.first = chunk.index;
        }
        let done = chunk.body.is_none();
        self.unanswered += usize::from(!done);
        self.entries.push_back(Entry { chunk, sent: Instant::now(), again: 0, done, reply: None });
    }

    /// Notes an answer; `None` if nobody waits for it: it came twice, or was written in an earlier run.
    pub fn answer(&mut self, index: u64, reply: Reply) -> Option<&Entry> {
        let entry = self.entries.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)?;
        if entry.done {
            return None;
        }
        entry.done = true;
        entry.reply = Some(reply);
        self.unanswered -= 1;
        Some(entry)
    }

    /// The next chunk in order, if it is done.
    pub fn pop(&mut self) -> Option<Entry> {
        if !self.entries.front()?.done {
            return None;
        }
        self.first += 1;
        self.entries.pop_front()
    }

    /// Those that are not answered.
    pub fn open(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().filter(|entry| !entry.done)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sluice_core::codec::ContentType;

    use super::*;

    fn chunk(index: u64, body: Option<Bytes>) -> Chunk {
        Chunk { index, first_row: index, rows: vec![], body, good: 1, consumed: 0 }
    }

    fn reply() -> Reply {
        let id = "r".parse().expect("an id");
        Reply { id, error: None, content_type: ContentType::Json, body: Bytes::new(), traceparent: None }
    }

    #[test]
    fn chunks_leave_in_order_and_an_answer_counts_once() {
        let mut waiting = Waiting::default();
        for index in 5..8 {
            waiting.push(chunk(index, (index != 6).then(Bytes::new)));
        }
        assert!(waiting.answer(4, reply()).is_none() && waiting.answer(9, reply()).is_none());
        assert!(waiting.answer(7, reply()).is_some());
        assert!(waiting.answer(7, reply()).is_none(), "it came twice");
        assert!(waiting.pop().is_none(), "the first is still open");
        assert_eq!(waiting.unanswered(), 1);
        assert!(waiting.answer(5, reply()).is_some());
        let order: Vec<u64> = std::iter::from_fn(|| waiting.pop()).map(|entry| entry.chunk.index).collect();
        assert_eq!(order, [5, 6, 7]);
        assert_eq!((waiting.len(), waiting.unanswered()), (0, 0));
    }
}

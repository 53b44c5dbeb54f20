//! The window: chunks are submitted while earlier ones are under way, answers are written in order.

mod asking;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use sluice_core::broker::{Broker, BrokerError, Replies, Reply};
use sluice_core::print::count;
use sluice_core::{ModelName, RequestId};

use super::chunk::Reader;
use super::ids::Ids;
use super::journal::Journal;
use super::output::Output;
use super::progress::{Progress, Summary, Tally};
use super::waiting::{Answered, Entry, Key, Waiting};
use crate::cli::{ReplyMode, Routing};

/// After so long without an answer it is said that there is none.
const SILENT: Duration = Duration::from_secs(10);
/// How often the state is kept and progress shown.
const TICK: Duration = Duration::from_millis(500);

/// What a run needs.
pub struct Flow<'o> {
    pub broker: Arc<dyn Broker>,
    pub model: ModelName,
    pub ids: Ids,
    pub routing: &'o Routing,
    pub deadline: Option<Duration>,
    pub window: usize,
    pub mode: ReplyMode,
    pub body_bytes: Option<u64>,
    /// The chunk that an earlier run stopped before: it may have asked for this one and some after it.
    pub resumed_at: Option<u64>,
}

/// How a run ended.
pub enum Ended {
    Complete,
    Interrupted,
}

/// What became of a submission.
enum Submitted {
    Queued,
    /// An earlier run had submitted it, and was answered perhaps.
    Before,
    Refused(BrokerError),
}

/// What is under way.
struct UnderWay {
    replies: Box<dyn Replies>,
    waiting: Waiting,
    submitting: FuturesUnordered<BoxFuture<'static, (Key, Submitted)>>,
    /// Answers that came before they were asked for: an earlier run did.
    early: BTreeMap<Key, Reply>,
    /// The first chunk that has not come yet.
    upcoming: u64,
    tally: Tally,
    looking: Option<BoxFuture<'static, Result<Vec<Reply>, BrokerError>>>,
}

impl UnderWay {
    /// What a look at what is stored found. Cancel-safe.
    async fn looked_up(
        looking: &mut Option<BoxFuture<'static, Result<Vec<Reply>, BrokerError>>>,
    ) -> Result<Vec<Reply>, BrokerError> {
        let Some(look) = looking else { return std::future::pending().await };
        let found = look.await;
        *looking = None;
        found
    }
}

impl Flow<'_> {
    /// Runs to the end, or until Ctrl-C.
    pub async fn run(
        self,
        mut reader: Reader,
        replies: Box<dyn Replies>,
        output: &mut Output,
        progress: &Progress,
        journal: &mut Option<(PathBuf, Journal)>,
    ) -> Result<(Ended, Summary)> {
        let mut now = UnderWay {
            replies,
            waiting: Waiting::default(),
            submitting: FuturesUnordered::new(),
            early: self.stored().await?,
            upcoming: self.resumed_at.unwrap_or(0),
            tally: Tally::start(),
            looking: None,
        };
        let mut more = true;
        let mut tick = tokio::time::interval(TICK);
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut consumed = 0;
        let ended = loop {
            while let Some((key, rows)) = now.waiting.next(self.window) {
                self.ask(key, &rows, &mut now)?;
            }
            while let Some(done) = now.waiting.pop() {
                output.write(&done)?;
                consumed = done.chunk.consumed;
                // Nobody waits for what came of it otherwise.
                if !now.early.is_empty() {
                    now.early = now.early.split_off(&Key::whole(done.chunk.index + 1));
                }
            }
            if !more && now.waiting.len() == 0 {
                break Ended::Complete;
            }
            tokio::select! {
                biased;
                _ = &mut interrupted => break Ended::Interrupted,
                reply = now.replies.next() => {
                    let reply = reply?;
                    if let Some(key) = self.ids.key(&reply.id) {
                        self.answered(key, reply, &mut now)?;
                    }
                }
                Some((key, sent)) = now.submitting.next() => match sent {
                    Submitted::Queued => {}
                    Submitted::Before => now.waiting.look_soon(&key, Instant::now()),
                    Submitted::Refused(error) => self.refused(key, error, &mut now)?,
                },
                found = UnderWay::looked_up(&mut now.looking) => self.found(found, &mut now)?,
                chunk = reader.chunks.recv(), if more && now.waiting.has_room(self.window) => match chunk {
                    None => more = false,
                    Some(chunk) => {
                        let chunk = chunk?;
                        now.upcoming = chunk.index + 1;
                        now.waiting.push(chunk);
                    }
                },
                _ = tick.tick() => {
                    self.give_up_late(&mut now)?;
                    self.ask_again(&mut now).await?;
                    self.look_up(&mut now)?;
                    output.flush()?;
                    self.keep(journal, output)?;
                    let note = note(&mut now);
                    progress.show(consumed, output.written.rows, now.tally.rate(), output.written.failed, &note);
                }
            }
        };
        output.flush()?;
        self.keep(journal, output)?;
        Ok((ended, now.tally.summary(output.written.rows, output.written.failed)))
    }

    fn keep(&self, journal: &mut Option<(PathBuf, Journal)>, output: &Output) -> Result<()> {
        if let Some((path, journal)) = journal {
            journal.written = output.written;
            journal.save(path)?;
        }
        Ok(())
    }

    /// What an earlier run asked for and did not write: it had no more under way than a window.
    async fn stored(&self) -> Result<BTreeMap<Key, Reply>> {
        let Some(first) = self.resumed_at else { return Ok(BTreeMap::new()) };
        let ids: Vec<RequestId> = (first..first + 2 * self.window as u64)
            .map(|index| self.ids.request(&Key::whole(index)))
            .collect::<Result<_>>()?;
        let replies = self.broker.stored_results(&self.ids.job, &ids).await?;
        Ok(replies.into_iter().filter_map(|reply| Some((self.ids.key(&reply.id)?, reply))).collect())
    }

    /// Asks for rows that wait, unless their answer is there.
    fn ask(&self, key: Key, rows: &Range<u32>, now: &mut UnderWay) -> Result<()> {
        if let Some(reply) = now.early.remove(&key) {
            return self.answered(key, reply, now);
        }
        if let Some(submission) = self.submission(&key, rows, self.deadline, now)? {
            now.waiting.sent(&key, Instant::now());
            now.submitting.push(self.submit(key, submission));
        }
        Ok(())
    }

    fn answered(&self, key: Key, reply: Reply, now: &mut UnderWay) -> Result<()> {
        let asked = |entry: &Entry| entry.asked.iter().any(|asked| asked.key == key);
        match now.waiting.entry(key.chunk) {
            None if key.chunk >= now.upcoming => drop(now.early.insert(key, reply)),
            // A part of what has not been divided yet, in this run.
            Some(entry) if key.is_part() && !asked(entry) => drop(now.early.insert(key, reply)),
            _ => match now.waiting.answer(&key, reply) {
                None => {}
                Some(Answered::Rows(rows, latency)) => now.tally.answered(rows, latency),
                Some(Answered::Divided(latency)) => now.tally.answered(0, latency),
            },
        }
        Ok(())
    }
}

/// What a person should know while it waits.
fn note(now: &mut UnderWay) -> String {
    let at = Instant::now();
    let (open, waited) = now
        .waiting
        .open()
        .fold((0_usize, Duration::ZERO), |(open, longest), (_, _, sent)| (open + 1, longest.max(sent.waits(at))));
    match now.tally.silent().min(waited) {
        _ if open == 0 => String::new(),
        _ if now.tally.requests == 0 => "waiting for a worker".into(),
        silent if silent >= SILENT => {
            let open = count(open, "request waits", "requests wait");
            format!("{open}, and none was answered for {} s", silent.as_secs())
        }
        _ => String::new(),
    }
}

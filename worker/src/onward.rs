//! The way to the next model of a pipeline: tried with patience while its queue is full or the broker away, by no more than so many
//! at a time; and not tried at all for a while once it was denied. Knows nothing of deliveries.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sluice_core::broker::{BrokerError, Receipt, Submission};
use sluice_core::{ErrorCode, Failure, ModelName};
use tokio::sync::Semaphore;
use tracing::debug;

/// How long an answer or outputs are sent again while the broker is away, or the next queue full.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The pause between tries.
pub const PAUSE: Duration = Duration::from_millis(500);
/// A denial is believed for so long: whoever grants the way waits for no longer than this.
const DENIED: Duration = Duration::from_secs(15);
/// Requests name the next model, so whoever sends them could make us remember any number.
const MOST_DENIED: usize = 256;
/// Outputs that may wait for full queues, in pieces of `PIECE` bytes: 64 MiB at most, whoever asks for it.
const WAITING: usize = 256;
const PIECE: usize = 256 * 1024;

/// What became of outputs.
#[derive(Debug, PartialEq)]
pub enum Sent {
    /// They are in the next queue.
    On,
    /// They will never be, for this reason.
    Never(Failure),
    /// The next queue is full, and they have waited for it, or too many wait already.
    Full(String),
}

/// Submits to next models.
pub struct Onward {
    denied: Mutex<Denied>,
    places: Semaphore,
    waiting: Arc<AtomicUsize>,
    patience: Duration,
    pause: Duration,
}

/// One that waits to be sent again, for as long as this lives.
pub struct Waiting(Arc<AtomicUsize>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Default for Onward {
    fn default() -> Self {
        let places = Semaphore::new(WAITING);
        Self { denied: Mutex::default(), places, waiting: Arc::default(), patience: PATIENCE, pause: PAUSE }
    }
}

impl Onward {
    /// Notes that something waits to be sent again.
    pub fn wait(&self) -> Waiting {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(Arc::clone(&self.waiting))
    }

    /// How many wait to be sent again: no slot has anything to do with them any more.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Submits outputs to the next model, and again while its queue is full or the broker away. An error is an outage that has lasted
    /// for too long.
    pub async fn submit<F: Future<Output = sluice_core::broker::Result<Receipt>>>(
        &self,
        submission: Submission,
        submit: impl Fn(Submission) -> F,
    ) -> Result<Sent, BrokerError> {
        let began = Instant::now();
        let model = submission.model.clone();
        let pieces = u32::try_from(submission.body.len().div_ceil(PIECE)).unwrap_or(u32::MAX).clamp(1, WAITING as u32);
        let (mut place, mut waiting) = (None, None);
        loop {
            if let Some(reason) = self.denied().lately(&model, Instant::now()) {
                return Ok(Sent::Never(Failure::new(ErrorCode::Internal, reason)));
            }
            let failed = match submit(submission.clone()).await {
                Ok(Receipt::Queued | Receipt::Duplicate) => return Ok(Sent::On),
                Err(failed) => failed,
            };
            let reason = format!("its outputs cannot go on to model `{model}`: {failed}");
            if matches!(failed, BrokerError::Denied(_)) {
                self.denied().note(model.clone(), reason.clone(), Instant::now());
            }
            if !failed.is_transient() {
                return Ok(Sent::Never(Failure::new(code_of(&failed), reason)));
            }
            let is_over = began.elapsed() >= self.patience;
            if matches!(failed, BrokerError::QueueFull(_)) {
                if place.is_none() {
                    place = self.places.try_acquire_many(pieces).ok();
                }
                if place.is_none() || is_over {
                    return Ok(Sent::Full(reason));
                }
            }
            if is_over {
                return Err(failed);
            }
            waiting.get_or_insert_with(|| self.wait());
            debug!(next = %model, id = %submission.envelope.id, error = %failed, "outputs are sent on again");
            tokio::time::sleep(self.pause).await;
        }
    }

    fn denied(&self) -> std::sync::MutexGuard<'_, Denied> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn code_of(failed: &BrokerError) -> ErrorCode {
    match failed {
        BrokerError::Expired(_) => ErrorCode::DeadlineExceeded,
        BrokerError::UnknownModel(_) => ErrorCode::NotFound,
        BrokerError::TooLarge { .. } => ErrorCode::ResourceExhausted,
        _ => ErrorCode::Internal,
    }
}

/// The models that were denied, when, and in which words.
#[derive(Default)]
struct Denied(HashMap<ModelName, (Instant, String)>);

impl Denied {
    fn note(&mut self, model: ModelName, reason: String, now: Instant) {
        self.0.retain(|_, (since, _)| now - *since < DENIED);
        if self.0.len() < MOST_DENIED {
            self.0.insert(model, (now, reason));
        }
    }

    fn lately(&self, model: &ModelName, now: Instant) -> Option<String> {
        self.0.get(model).filter(|(since, _)| now - *since < DENIED).map(|(_, reason)| reason.clone())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::future::join_all;
    use sluice_core::Envelope;

    use super::*;

    fn outputs(bytes: usize) -> Submission {
        let envelope = Envelope::new("r1".parse().expect("an id"));
        Submission::new("rank".parse().expect("a name"), envelope, Bytes::from(vec![0; bytes]))
    }

    #[tokio::test]
    async fn a_denial_is_remembered_for_a_while_and_told_at_once() {
        let onward = Onward::default();
        let asked = AtomicUsize::new(0);
        let deny = |_: Submission| {
            asked.fetch_add(1, Ordering::AcqRel);
            std::future::ready(Err(BrokerError::Denied("not you".into())))
        };
        for _ in 0..1000 {
            let Ok(Sent::Never(failure)) = onward.submit(outputs(1), deny).await else { panic!("it is denied") };
            assert!(failure.code == ErrorCode::Internal && failure.message.contains("not you"), "{failure:?}");
        }
        assert_eq!(asked.load(Ordering::Acquire), 1, "the broker is asked once");
        let rank = outputs(1).model;
        let (mut denied, now) = (Denied::default(), Instant::now());
        denied.note(rank.clone(), "not you".into(), now);
        assert!(denied.lately(&rank, now + DENIED / 2).is_some());
        assert_eq!(denied.lately(&rank, now + DENIED), None, "it may have been granted");
        for index in 0..10_000 {
            denied.note(format!("m{index}").parse().expect("a name"), "not you".into(), now);
        }
        assert_eq!(denied.0.len(), MOST_DENIED, "whoever names models does not fill memory");
    }

    #[tokio::test]
    async fn a_full_queue_is_waited_for_by_so_many_and_for_so_long() {
        let (patience, pause) = (Duration::from_millis(400), Duration::from_millis(200));
        let onward = Onward { patience, pause, ..Onward::default() };
        let tries = AtomicUsize::new(0);
        let full = |submission: Submission| {
            tries.fetch_add(1, Ordering::AcqRel);
            std::future::ready(Err(BrokerError::QueueFull(submission.model)))
        };
        let sent = join_all((0..1000).map(|_| onward.submit(outputs(1), full)));
        let (sent, waiting) = tokio::join!(sent, async { onward.waiting() });
        assert!(sent.iter().all(|sent| matches!(sent, Ok(Sent::Full(_)))), "{sent:?}");
        assert_eq!((waiting, onward.waiting()), (WAITING, 0));
        assert!(tries.load(Ordering::Acquire) <= 1000 + 2 * WAITING, "those who wait try now and then");
        let large = join_all((0..10).map(|_| onward.submit(outputs(8 * 1024 * 1024), full)));
        let (_, waiting) = tokio::join!(large, async { onward.waiting() });
        assert_eq!(waiting, 8, "64 MiB of outputs");
    }
}

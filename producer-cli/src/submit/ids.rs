//! The ids of a run's requests: none can be guessed from another, so that nobody who sees one can ask in the others' place, swallow
//! their publish or answer them. All follow from the run's secret, so that a resumed run finds what was answered.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sluice_core::{JobId, RequestId};

use super::waiting::Key;

/// Bytes of the keyed hash (HMAC-SHA-256, RFC 2104) that an id keeps: as many as a random UUID has.
const KEPT: usize = 16;

/// Names a run's requests.
#[derive(Debug, Clone)]
pub struct Ids {
    pub job: JobId,
    secret: String,
}

impl Ids {
    pub fn new(job: JobId, secret: String) -> Self {
        Self { job, secret }
    }

    /// `7-HASH` for all rows of the eighth message, `7:4:2-HASH` for two of them.
    pub fn request(&self, key: &Key) -> anyhow::Result<RequestId> {
        Ok(format!("{key}-{}", self.hash("request", key)).parse()?)
    }

    /// Which rows a request asks for; `None` if it is none of this run's.
    pub fn key(&self, id: &RequestId) -> Option<Key> {
        let key: Key = id.as_str().split_once('-')?.0.parse().ok()?;
        self.request(&key).is_ok_and(|own| own == *id).then_some(key)
    }

    /// The id of a request's publish. A worker sees the request's own, and a broker's user the headers: from neither follows this one.
    pub fn submission(&self, key: &Key) -> String {
        self.hash("submission", key)
    }

    fn hash(&self, what: &str, key: &Key) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(format!("{what} {} {key}", self.job).as_bytes());
        mac.finalize().into_bytes().iter().take(KEPT).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_known_by_its_id_and_no_other_runs_is() {
        let ids = |secret: &str| Ids::new("lab.a-1".parse().expect("a job"), secret.into());
        for text in ["7", "7:4:2"] {
            let key: Key = text.parse().expect("a key");
            let id = ids("s").request(&key).expect("an id");
            assert!(id.as_str().starts_with(&format!("{text}-")), "{id}");
            assert_eq!(ids("s").key(&id), Some(key.clone()));
            assert_eq!(ids("other").key(&id), None, "another run's, or forged");
            assert_ne!(ids("s").submission(&key), ids("other").submission(&key));
            assert!(!id.as_str().contains(&ids("s").submission(&key)));
        }
        for strange in ["7", "7-", "x-1", "7:4-1", "8-00000000000000000000000000000000"] {
            assert_eq!(ids("s").key(&strange.parse().expect("an id")), None, "{strange}");
        }
    }
}

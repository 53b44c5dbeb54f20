//! Where deliveries come in.

use async_nats::{Client, Message, Subscriber};
use futures_util::StreamExt;

use sluice_core::broker::Result;

use super::error::other;

/// A delivery does not say which order it fills, but its subscription does.
pub(super) struct Inbox {
    pub address: String,
    standing: Subscriber,
    backlog: Subscriber,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Standing,
    Backlog,
}

impl Mode {
    /// The token in the inbox's subjects.
    pub(super) fn token(self) -> &'static str {
        match self {
            Mode::Standing => "standing",
            Mode::Backlog => "backlog",
        }
    }
}

impl Inbox {
    pub(super) async fn open(client: &Client) -> Result<Self> {
        let address = client.new_inbox();
        let open = async |mode: Mode| {
            let subject = format!("{address}.{}.*", mode.token());
            client.subscribe(subject).await.map_err(|error| other("subscribing to an inbox", error))
        };
        Ok(Self { standing: open(Mode::Standing).await?, backlog: open(Mode::Backlog).await?, address })
    }

    pub(super) async fn next(&mut self) -> Option<(Mode, Message)> {
        // Whose is first makes no difference: what has come is all taken in, and handed out by lanes.
        tokio::select! {
            biased;
            message = self.backlog.next() => message.map(|message| (Mode::Backlog, message)),
            message = self.standing.next() => message.map(|message| (Mode::Standing, message)),
        }
    }
}

/// The next message of an inbox that there may not be.
pub(super) async fn next_of(inbox: &mut Option<Inbox>) -> Option<(Mode, Message)> {
    match inbox {
        Some(inbox) => inbox.next().await,
        None => std::future::pending().await,
    }
}

//! Connecting, staying connected, and leaving. One connection, made anew when it is lost; whoever needs a channel
//! asks for one, and asks again when it has died.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tracing::{info, warn};

use sluice_core::broker::{BrokerError, Result};
use sluice_core::settings::Settings;

use super::Amqp;
use super::error::{is_denial, is_of_channel, other};
use super::size;
use super::standing::Standing;
use crate::{Options, Patience};

/// How long a service waits between two attempts to connect.
const RETRY: Duration = Duration::from_millis(500);
/// Seconds between two heartbeats: both ends notice within three of them that the other is gone.
const HEARTBEAT: u16 = 2;

/// Names that are remembered at most.
const MOST_SEEN: usize = 10_000;

/// The connection, and the channels that all share.
pub(super) struct Link {
    pub options: Options,
    pub shown_url: String,
    /// See [`sluice_core::Broker::user`]; addresses begin with it.
    pub user: Option<String>,
    live: tokio::sync::Mutex<Option<Arc<Connection>>>,
    /// Publishing with confirms, so that nothing accepted is lost.
    publishing: Shared,
    /// Publishing without: answers to live callers and signals.
    telling: Shared,
    pub standing: Arc<Standing>,
    one_at_a_time: tokio::sync::Mutex<Option<Channel>>,
    /// Locked while an exchange is declared: of many callers at once only one does it.
    pub declaring: tokio::sync::Mutex<()>,
    /// Exchanges and result streams that are known to be there, and where something was stored.
    seen: Mutex<HashSet<String>>,
    /// The settings that were last compared with this program's own configuration.
    pub told: Mutex<Option<Settings>>,
    /// Whether this user was refused to store settings where there are none: asked again and again, that costs a channel each time.
    pub may_not_found: AtomicBool,
    /// The largest frame that both ends take.
    frame: AtomicUsize,
}

/// A channel that all callers share. The first caller opens it, and the others wait for it: a channel for each of thousands of callers
/// would be more than a connection may have.
#[derive(Default)]
struct Shared {
    channel: RwLock<Option<Channel>>,
    opening: tokio::sync::Mutex<()>,
}

impl Shared {
    fn get(&self) -> Option<Channel> {
        let channel = self.channel.read().unwrap_or_else(PoisonError::into_inner);
        channel.as_ref().filter(|channel| channel.status().connected()).cloned()
    }

    async fn get_or_open(&self, standing: &Standing, open: impl Future<Output = Result<Channel>>) -> Result<Channel> {
        if let Some(channel) = self.get() {
            return Ok(channel);
        }
        let _opening = standing.in_time("opening a channel", self.opening.lock()).await?;
        if let Some(channel) = self.get() {
            return Ok(channel);
        }
        let channel = open.await?;
        *self.channel.write().unwrap_or_else(PoisonError::into_inner) = Some(channel.clone());
        Ok(channel)
    }
}

pub(crate) async fn connect(options: &Options) -> Result<Amqp> {
    let link = Arc::new(Link {
        options: options.clone(),
        shown_url: options.shown_url(),
        user: options.user(),
        live: tokio::sync::Mutex::default(),
        declaring: tokio::sync::Mutex::default(),
        publishing: Shared::default(),
        telling: Shared::default(),
        standing: Arc::default(),
        one_at_a_time: tokio::sync::Mutex::default(),
        seen: Mutex::default(),
        told: Mutex::default(),
        may_not_found: AtomicBool::default(),
        frame: AtomicUsize::new(usize::MAX),
    });
    let mut waiting = false;
    loop {
        match link.connection().await {
            Ok(_) => break,
            Err(error @ BrokerError::Unreachable { .. }) if options.patience == Patience::Wait => {
                if !waiting {
                    let reason =
                        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
                    warn!(url = %link.shown_url, reason, "waiting for the broker");
                    waiting = true;
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    }
    if waiting {
        info!(url = %link.shown_url, "the broker is there");
    }
    Ok(Amqp { link })
}

impl Link {
    /// The connection, made anew if it was lost.
    async fn connection(&self) -> Result<Arc<Connection>> {
        let mut live = self.live.lock().await;
        if let Some(connection) = live.as_ref().filter(|connection| connection.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(self.attempt().await?);
        if live.is_some() {
            info!(url = %self.shown_url, "reconnected to the broker");
            // It may be another broker, or one that lost something.
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let frame = connection.configuration().frame_max();
        self.frame.store(usize::try_from(frame).unwrap_or(usize::MAX), Ordering::Relaxed);
        self.watch(&connection);
        *live = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// One attempt at each of the URLs.
    async fn attempt(&self) -> Result<Connection> {
        let limit = match self.options.patience {
            Patience::GiveUpAfter(limit) => limit,
            Patience::Wait => Duration::from_secs(5),
        };
        let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| BrokerError::Unreachable {
            url: self.shown_url.clone(),
            source,
        };
        let mut failed = unreachable("no URL".into());
        for url in self.options.url.split(',').map(str::trim) {
            let mut uri = parsed(url).map_err(|reason| {
                BrokerError::Unusable(format!("broker URL `{}` cannot be used: {reason}", self.shown_url))
            })?;
            uri.query.heartbeat.get_or_insert(HEARTBEAT);
            let properties = ConnectionProperties::default().with_connection_name(self.options.name.as_str().into());
            let runtime = lapin::runtime::default_runtime().map_err(|error| other("starting the client", error))?;
            let connecting = Connection::connect_uri_with_config(uri, properties, self.tls().await?, runtime);
            failed = match tokio::time::timeout(limit, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => match error.kind() {
                    ErrorKind::ProtocolError(refusal) if is_denial(&error) => {
                        BrokerError::Denied(format!("`{}`: {}", self.shown_url, refusal.get_message()))
                    }
                    _ => unreachable(error.into()),
                },
                Err(_) => unreachable(format!("no answer within {limit:?}").into()),
            };
        }
        Err(failed)
    }

    async fn tls(&self) -> Result<OwnedTLSConfig> {
        let read = async |file: &std::path::Path| {
            tokio::fs::read(file)
                .await
                .map_err(|error| BrokerError::Unusable(format!("cannot read `{}`: {error}", file.display())))
        };
        let mut config = OwnedTLSConfig::default();
        if let Some(file) = &self.options.tls_ca {
            let text = read(file).await?;
            config.cert_chain = Some(String::from_utf8_lossy(&text).into_owned());
        }
        if let (Some(certificate), Some(key)) = (&self.options.tls_certificate, &self.options.tls_key) {
            config.identity = Some(OwnedIdentity::PKCS8 { pem: read(certificate).await?, key: read(key).await? });
        }
        Ok(config)
    }

    /// Notes what the broker tells about the connection, for as long as there is one.
    fn watch(&self, connection: &Connection) {
        let mut events = Box::pin(connection.events_listener());
        let standing = Arc::clone(&self.standing);
        let url = self.shown_url.clone();
        standing.forget();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(reason) => {
                        warn!(url, reason, "the broker takes no messages for now");
                        standing.set_blocked(Some(reason));
                    }
                    Event::ConnectionUnblocked => {
                        info!(url, "the broker takes messages again");
                        standing.set_blocked(None);
                    }
                    // Answers to live callers are sent without waiting: nobody else hears that one was refused.
                    Event::Error(error) if is_of_channel(&error) && is_denial(&error) => {
                        let refusal = other("using a channel", error).to_string();
                        let known = standing.denied_lately().is_some();
                        if standing.note_denial(&refusal) && !known {
                            warn!(url, reason = refusal, "the broker refused something");
                        }
                    }
                    // Whoever uses a channel sees its errors.
                    Event::Error(error) if is_of_channel(&error) => {}
                    Event::Error(error) => warn!(url, %error, "the connection to the broker was lost"),
                    _ => {}
                }
            }
        });
    }

    /// Whether an exchange or a queue was there on this connection.
    pub(super) fn has_seen(&self, name: &str) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    pub(super) fn note_seen(&self, name: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Every job has a place of its own; forgetting costs a little time, not forgetting memory.
        if seen.len() >= MOST_SEEN {
            seen.clear();
        }
        seen.insert(name.to_owned());
    }

    pub(super) fn forget(&self, name: &str) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Refuses what the broker would end the connection for.
    pub(super) fn refuse_oversize(&self, properties: &BasicProperties) -> Result<()> {
        let (size, frame) = (size::of_frame(properties), self.frame.load(Ordering::Relaxed));
        match size > frame {
            true => {
                Err(BrokerError::TooLarge { size, limit: format!("headers must fit into a frame of {frame} bytes") })
            }
            false => Ok(()),
        }
    }

    /// A channel of one's own: an error on it harms nobody else.
    pub(super) async fn channel(&self) -> Result<Channel> {
        let connection = self.connection().await?;
        self.standing.within("opening a channel", connection.create_channel()).await
    }

    /// The channel for what must be stored.
    pub(super) async fn publishing(&self) -> Result<Channel> {
        self.publishing.get_or_open(&self.standing, self.confirming()).await
    }

    /// The channel for publishes of which no other is under way, and where to put it back once nothing is.
    pub(super) async fn one_at_a_time(&self) -> Result<(tokio::sync::MutexGuard<'_, Option<Channel>>, Channel)> {
        let mut place = self.one_at_a_time.lock().await;
        if let Some(channel) = place.take().filter(|channel| channel.status().connected()) {
            return Ok((place, channel));
        }
        Ok((place, self.confirming().await?))
    }

    /// A channel on which the broker says what became of each message.
    async fn confirming(&self) -> Result<Channel> {
        let channel = self.channel().await?;
        self.standing.within("asking for confirms", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// The channel for what may get lost.
    pub(super) async fn telling(&self) -> Result<Channel> {
        self.telling.get_or_open(&self.standing, self.channel()).await
    }

    pub(super) async fn close(&self) -> Result<()> {
        let Some(connection) = self.live.lock().await.take() else { return Ok(()) };
        if !connection.status().connected() {
            return Ok(());
        }
        // What was sent lately has perhaps not been taken, and nothing would answer.
        self.standing.refuse_while_blocked()?;
        // Closing waits for what was sent before it.
        let closed = tokio::time::timeout(Duration::from_secs(5), connection.close(200, "done".into())).await;
        match closed {
            // A channel that was closing by itself just then is closed as well.
            Ok(Err(error))
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidChannelState(..) | ErrorKind::InvalidConnectionState(_)
                ) =>
            {
                Ok(())
            }
            Ok(closed) => closed.map_err(|error| other("closing the connection", error)),
            Err(_) => Err(BrokerError::TimedOut("closing the connection".into())),
        }
    }
}

/// A URL that ends with its host means the virtual host `/`, with a slash at the end or without one: other clients take both, and no
/// virtual host is named with no letter at all.
fn parsed(url: &str) -> std::result::Result<AMQPUri, String> {
    let mut uri: AMQPUri = url.parse()?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_of_the_url_names_no_other_virtual_host() {
        let vhost = |path: &str| parsed(&format!("amqp://user:password@host:5672{path}")).expect("a URL").vhost;
        assert_eq!(["", "/", "/%2f", "/team"].map(vhost), ["/", "/", "/", "team"]);
        assert!(parsed("amqp://host:port").is_err());
    }
}

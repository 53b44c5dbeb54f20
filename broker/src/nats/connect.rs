//! Connecting, staying connected, and leaving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use sluice_core::broker::{BrokerError, Result};
use sluice_core::settings::Settings;

use super::api::Api;
use super::error::{Denials, other};
use super::settings::State;
use super::{Nats, acks, keep};
use crate::{Options, Patience};

/// How long a service waits between two attempts to connect, at first and while reconnecting.
const RETRY: Duration = Duration::from_millis(500);

pub(crate) async fn connect(options: &Options) -> Result<Nats> {
    let shown_url = options.shown_url();
    let denials = Arc::new(Denials::default());
    let (generation, connection) = watch::channel(0);
    let generation = Arc::new(generation);
    let mut waiting = false;
    let client = loop {
        let settings = settings(options, &shown_url, Arc::clone(&denials), Arc::clone(&generation)).await?;
        match attempt(options, &shown_url, settings).await {
            Ok(client) => break client,
            Err(error @ BrokerError::Unreachable { .. }) if options.patience == Patience::Wait => {
                if !waiting {
                    warn!(url = %shown_url, reason = %cause(&error), "waiting for the broker");
                    waiting = true;
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error),
        }
    };
    if waiting {
        info!(url = %shown_url, "the broker is there");
    }
    let api = Api::of(&client, &denials).await;
    let jetstream = jetstream::with_prefix(client.clone(), api.prefix());
    let acks = acks::Acks::start(&client, &denials).await?;
    let keeper = keep::Keeper::start(client.clone(), options.settings(Settings::default()).hold_time);
    let settings = State::default();
    let (user, options) = (options.user(), options.clone());
    Ok(Nats { client, jetstream, api, user, options, shown_url, connection, denials, acks, keeper, settings })
}

async fn attempt(options: &Options, shown_url: &str, settings: ConnectOptions) -> Result<Client> {
    let limit = match options.patience {
        Patience::GiveUpAfter(limit) => limit,
        Patience::Wait => Duration::from_secs(5),
    };
    let unreachable = |source: Box<dyn std::error::Error + Send + Sync>| BrokerError::Unreachable {
        url: shown_url.to_owned(),
        source,
    };
    let servers = options.url.split(',').map(str::trim).collect::<Vec<_>>();
    match tokio::time::timeout(limit, settings.connect(servers)).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => match error.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                Err(BrokerError::Denied(format!("`{shown_url}` does not accept these credentials")))
            }
            ConnectErrorKind::ServerParse => {
                Err(BrokerError::Unusable(format!("broker URL `{shown_url}` cannot be used: {error}")))
            }
            _ => Err(unreachable(error.into())),
        },
        Err(elapsed) => Err(unreachable(format!("no answer within {limit:?} ({elapsed})").into())),
    }
}

async fn settings(
    options: &Options,
    shown_url: &str,
    denials: Arc<Denials>,
    generation: Arc<watch::Sender<u64>>,
) -> Result<ConnectOptions> {
    let url = shown_url.to_owned();
    let lost = AtomicBool::new(false);
    let login = login(options, shown_url)?;
    let mut settings = ConnectOptions::new()
        .name(&options.name)
        .connection_timeout(Duration::from_secs(2))
        // Subjects are made of names that were checked where they entered.
        .skip_subject_validation(true)
        .reconnect_delay_callback(|attempts| if attempts < 2 { Duration::ZERO } else { RETRY })
        .event_callback(move |event| {
            match &event {
                // The first connection is told too, perhaps after it was used already: only a later one is news.
                Event::Connected => {
                    if lost.swap(false, Ordering::AcqRel) {
                        info!(url = %url, "reconnected to the broker");
                        generation.send_modify(|generation| *generation += 1);
                    }
                }
                Event::Disconnected => {
                    if !lost.swap(true, Ordering::AcqRel) {
                        warn!(url = %url, "lost the connection to the broker; reconnecting");
                    }
                }
                Event::ServerError(ServerError::Other(text)) => {
                    denials.note(text);
                    warn!(url = %url, error = %text, "the broker refused something");
                }
                other => debug!(url = %url, event = %other, "broker connection"),
            }
            std::future::ready(())
        });
    // Each role may listen only to inboxes of its own, so that none can read another's answers.
    settings = match login {
        Login::None => settings,
        Login::Token(token) => settings.token(token),
        Login::User(user, password) => {
            settings.custom_inbox_prefix(format!("_INBOX.{user}")).user_and_password(user, password)
        }
    };
    if let Some(file) = &options.credentials {
        let read = settings.credentials_file(file).await;
        settings = read.map_err(|error| other(format!("reading the credentials `{}`", file.display()), error))?;
    }
    if let Some(file) = &options.tls_ca {
        settings = settings.add_root_certificates(file.clone()).require_tls(true);
    }
    if let (Some(certificate), Some(key)) = (&options.tls_certificate, &options.tls_key) {
        settings = settings.add_client_certificate(certificate.clone(), key.clone());
    }
    Ok(settings)
}

/// What the URL says about who connects.
enum Login {
    None,
    /// A user name without a password.
    Token(String),
    User(String, String),
}

fn login(options: &Options, shown_url: &str) -> Result<Login> {
    let unusable = |reason: String| BrokerError::Unusable(format!("broker URL `{shown_url}`: {reason}"));
    let mut login = Login::None;
    for url in options.urls() {
        let url = url.map_err(|error| unusable(error.to_string()))?;
        let decode = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text).decode_utf8();
            decoded.map(String::from).map_err(|error| unusable(error.to_string()))
        };
        let user = decode(url.username())?;
        match url.password() {
            Some(password) => login = Login::User(user, decode(password)?),
            None if !user.is_empty() => login = Login::Token(user),
            None => {}
        }
    }
    Ok(login)
}

fn cause(error: &BrokerError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Settlements are sent without waiting for the server: make sure that they left.
pub(super) async fn close(nats: &Nats) -> Result<()> {
    nats.keeper.stop();
    let flush = tokio::time::timeout(Duration::from_secs(5), nats.client.flush()).await;
    match flush {
        Ok(flushed) => flushed.map_err(|error| other("flushing the connection", error))?,
        Err(_) => return Err(BrokerError::TimedOut("flushing the connection".into())),
    }
    nats.client.drain().await.map_err(|error| other("closing the connection", error))
}

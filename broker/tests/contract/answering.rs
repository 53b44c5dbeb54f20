//! What becomes of answers.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use sluice_core::broker::{BrokerError, Replied, Reply};
use sluice_core::codec::ContentType;
use sluice_core::{JobId, ReplyTo};

use crate::rig::{self, Rig, SOON, with_queue};

fn reply(id: &str, body: &'static str) -> Reply {
    Reply {
        id: id.parse().expect("an id"),
        error: None,
        content_type: ContentType::Json,
        body: Bytes::from_static(body.as_bytes()),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    }
}

pub async fn an_answer_reaches_the_inbox_that_asked(rig: &mut dyn Rig) -> Result<()> {
    let caller = with_queue(rig).await?;
    let worker = rig::connection(rig).await?;
    let mut mine = caller.inbox().await?;
    let mut other = caller.inbox().await?;
    for (inbox, id) in [(&other, "r2"), (&mine, "r1")] {
        assert_eq!(worker.reply(&inbox.reply_to(), &reply(id, "{}")).await?, Replied::Sent);
    }
    assert_eq!(tokio::time::timeout(SOON, mine.next()).await??, reply("r1", "{}"));
    assert_eq!(tokio::time::timeout(SOON, other.next()).await??, reply("r2", "{}"));
    Ok(())
}

pub async fn an_answer_may_not_go_elsewhere_than_to_an_inbox(rig: &mut dyn Rig) -> Result<()> {
    let worker = with_queue(rig).await?;
    for address in ["infer.digits.high", "$JS.API.STREAM.DELETE.DEAD", "_INBOX.>", "_INBOX.a b", "#", ""] {
        let refused = worker.reply(&ReplyTo::Inbox(address.into()), &reply("r1", "{}")).await;
        assert!(matches!(refused, Err(BrokerError::Unusable(_))), "`{address}`: {refused:?}");
    }
    Ok(())
}

pub async fn a_result_is_written_once_and_survives_a_restart(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let job = "job-1".parse()?;
    let mut results = broker.results(&job).await?;
    let to = results.reply_to();
    assert_eq!(broker.stored_results(&job, &["r1".parse()?]).await?, []);
    assert_eq!(broker.reply(&to, &reply("r1", "first")).await?, Replied::Sent);
    let second = broker.reply(&to, &reply("r1", "second")).await?;
    let stands = broker.capabilities().first_result_stands;
    assert_eq!(second, if stands { Replied::AlreadyStored } else { Replied::Sent });
    let other = ReplyTo::Results { job: "job-2".parse()?, inbox: None };
    assert_eq!(broker.reply(&other, &reply("r1", "other job")).await?, Replied::Sent);
    assert_eq!(tokio::time::timeout(SOON, results.next()).await??, reply("r1", "first"));
    rig.kill()?;
    rig.restart()?;
    let again = rig::connection(rig).await?;
    assert_eq!(again.stored_results(&job, &["r1".parse()?, "r2".parse()?]).await?, [reply("r1", "first")]);
    // Copies of what is stored reach only those who are there.
    let deadline = tokio::time::Instant::now() + SOON;
    while let Err(error) = broker.stored_results(&job, &["r1".parse()?]).await {
        assert!(tokio::time::Instant::now() < deadline, "{error:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    again.reply(&to, &reply("r2", "after")).await?;
    // The one that was open before the restart goes on where it was.
    assert_eq!(tokio::time::timeout(SOON, results.next()).await??, reply("r2", "after"));
    Ok(())
}

pub async fn a_stored_answer_is_copied_to_the_inbox_that_its_request_names_and_only_to_an_inbox(
    rig: &mut dyn Rig,
) -> Result<()> {
    let worker = with_queue(rig).await?;
    let caller = rig::connection(rig).await?;
    let mut inbox = caller.inbox().await?;
    let ReplyTo::Inbox(address) = inbox.reply_to() else { anyhow::bail!("an inbox has an address") };
    let job: JobId = "job-1".parse()?;
    let to = |address: &str| ReplyTo::Results { job: job.clone(), inbox: Some(address.into()) };
    assert_eq!(worker.reply(&to(&address), &reply("r1", "{}")).await?, Replied::Sent);
    assert_eq!(tokio::time::timeout(SOON, inbox.next()).await??, reply("r1", "{}"));
    let refused = worker.reply(&to("infer.digits.high"), &reply("r2", "{}")).await;
    assert!(matches!(refused, Err(BrokerError::Unusable(_))), "{refused:?}");
    let stored = caller.stored_results(&job, &["r1".parse()?]).await?;
    assert_eq!(stored, [reply("r1", "{}")]);
    Ok(())
}

pub async fn results_that_are_removed_are_gone_or_go_in_their_time(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let job = "job-1".parse()?;
    let to = ReplyTo::Results { job: "job-1".parse()?, inbox: None };
    broker.reply(&to, &reply("r1", "{}")).await?;
    broker.remove_results(&job).await?;
    broker.remove_results(&job).await?;
    // The job's name can be used again.
    broker.reply(&to, &reply("r2", "{}")).await?;
    assert_eq!(broker.stored_results(&job, &["r2".parse()?]).await?, [reply("r2", "{}")]);
    Ok(())
}

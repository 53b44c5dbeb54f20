//! One deployment, one set of settings, whoever comes and whatever his own configuration says.

use std::time::Duration;

use anyhow::Result;
use sluice_broker::{Options, connect};
use sluice_core::broker::{BrokerError, QueueLimits, Reply, Settlement};
use sluice_core::codec::ContentType;
use sluice_core::settings::{Apply, Settings};
use sluice_core::{Lane, ReplyTo};

use crate::rig::{self, Rig, model, next, request};

const LIMITS: QueueLimits = QueueLimits { length: 100, message_bytes: 4096 };
const HOUR: Duration = Duration::from_secs(3600);

pub async fn who_comes_first_says_the_settings_until_somebody_changes_them(rig: &mut dyn Rig) -> Result<()> {
    let says = |kept| Options { dead_letters_kept: Some(kept), ..rig.options() };
    let first = connect(&says(3 * HOUR)).await?;
    let _ = first.ensure_queue(&model(), &LIMITS).await?;
    let second = connect(&says(HOUR)).await?;
    let _ = second.ensure_queue(&model(), &LIMITS).await?;
    let stored = second.settings().await?;
    assert_eq!(stored.dead_letters_kept, 3 * HOUR);
    assert_eq!(second.apply_settings(&stored, Apply::Look).await?, Vec::<String>::new(), "all is as they say");

    let changed = Settings { dead_letters_kept: 2 * HOUR, ..stored };
    second.store_settings(&changed).await?;
    assert_eq!(first.settings().await?, changed);
    let differs = second.apply_settings(&changed, Apply::Look).await?;
    let changes = second.apply_settings(&changed, Apply::Change).await?;
    assert_eq!(changes, differs);
    assert!(changes.len() == 1 && changes[0].contains("7200s"), "{changes:?}");
    assert_eq!(first.apply_settings(&changed, Apply::Look).await?, Vec::<String>::new(), "all is as they say");
    // Who came with other numbers still can do his work, and changes nothing by it.
    let _ = first.ensure_queue(&model(), &LIMITS).await?;
    assert_eq!(first.apply_settings(&changed, Apply::Look).await?, Vec::<String>::new());
    Ok(())
}

pub async fn a_deployment_without_settings_gets_those_that_it_has(rig: &mut dyn Rig) -> Result<()> {
    let old = connect(&Options { dead_letters_kept: Some(3 * HOUR), ..rig.options() }).await?;
    let _ = old.ensure_queue(&model(), &LIMITS).await?;
    let had = old.settings().await?;
    rig.forget_settings().await?;
    let other = Options { dead_letters_kept: Some(HOUR), hold_time: Some(HOUR), ..rig.options() };
    let new = connect(&other).await?;
    let _ = new.ensure_queue(&model(), &LIMITS).await?;
    let found = connect(&rig.options()).await?.settings().await?;
    assert_eq!(found.dead_letters_kept, had.dead_letters_kept);
    if new.capabilities().counts_in_flight {
        assert_eq!(found, had);
    }
    // What is kept for ever, which a broker may call zero, is not shortened by whoever changes something else.
    if rig.keep_dead_letters_for_ever().await? {
        rig.forget_settings().await?;
        let settings = connect(&rig.options()).await?.settings().await?;
        assert!(settings.dead_letters_kept > 24 * 365 * HOUR && settings.faults().is_empty(), "{settings:?}");
        new.store_settings(&Settings { results_kept: HOUR, ..settings.clone() }).await?;
        assert_eq!(new.settings().await?.dead_letters_kept, settings.dead_letters_kept);
    }
    Ok(())
}

pub async fn a_hold_time_changes_under_a_worker_that_runs_or_is_none(rig: &mut dyn Rig) -> Result<()> {
    let worker = connect(&Options { hold_time: Some(Duration::from_secs(60)), ..rig.options() }).await?;
    let _ = worker.ensure_queue(&model(), &LIMITS).await?;
    let mut consumer = worker.consume(&model(), 1).await?;
    worker.submit(request("long")).await?;
    let delivery = next(&mut consumer).await?;
    let changed = Settings { hold_time: Duration::from_secs(3), ..worker.settings().await? };
    let manager = rig::connection(rig).await?;
    if !manager.capabilities().counts_in_flight {
        let refused = manager.store_settings(&changed).await;
        assert!(matches!(&refused, Err(BrokerError::Unusable(why)) if why.contains("hold_time")), "{refused:?}");
        return Ok(());
    }
    manager.store_settings(&changed).await?;
    let changes = manager.apply_settings(&changed, Apply::Change).await?;
    assert!(changes.iter().any(|change| change.contains("hold_time 60s -> 3s")), "{changes:?}");
    // One queue that is not whole does not hold up the others, and is told.
    let odd = "aaa".parse()?;
    let _ = manager.ensure_queue(&odd, &LIMITS).await?;
    rig.lose_lane(&odd, Lane::Normal).await?;
    let again = Settings { dedupe_window: HOUR, ..changed.clone() };
    let failed = manager.apply_settings(&again, Apply::Change).await.expect_err("a consumer is gone").to_string();
    assert!(failed.contains("`INFER_aaa`") && failed.contains("changed: ") && failed.contains("3600s"), "{failed}");
    let left = manager.apply_settings(&again, Apply::Look).await.expect_err("it still is").to_string();
    assert!(!left.contains("3600s"), "all else is done: {left}");
    // It renews what it holds more often now: nobody else gets it.
    let mut another = manager.consume(&model(), 1).await?;
    let again = tokio::time::timeout(Duration::from_secs(7), another.next()).await;
    assert!(!matches!(again, Ok(Ok(_))), "it was delivered again though it is held");
    delivery.hold.settle(Settlement::Done).await?;
    Ok(())
}

/// Bytes that are stored of what a name begins with, and how many may be.
async fn stored(broker: &std::sync::Arc<dyn sluice_core::Broker>, prefix: &str) -> Result<(u64, Option<u64>)> {
    let stored = broker.storage().await?;
    let of = stored.iter().filter(|of| of.name.starts_with(prefix));
    Ok(of.fold((0, None), |(bytes, limit), of| (bytes + of.bytes, limit.or(of.limit))))
}

pub async fn a_queue_is_full_of_bytes_and_leaves_others_their_room(rig: &mut dyn Rig) -> Result<()> {
    let broker = connect(&Options { queue_mib: Some(8), results_mib: Some(8), ..rig.options() }).await?;
    let limits = QueueLimits { length: 1_000_000, message_bytes: 4 << 20 };
    let _ = broker.ensure_queue(&model(), &limits).await?;
    let body = bytes::Bytes::from(vec![0_u8; 1 << 20]);
    let mut taken = 0;
    let refused = loop {
        let mut submission = request(&format!("r{taken}"));
        submission.body = body.clone();
        match broker.submit(submission).await {
            // Where a limit takes effect a little later.
            Ok(_) if taken < 40 => taken += 1,
            Ok(_) => anyhow::bail!("40 MiB are taken"),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, BrokerError::QueueFull(_)), "{refused:?}");
    assert!((7..=24).contains(&taken), "{taken} MiB are taken");
    if !broker.capabilities().exact_length {
        return Ok(());
    }
    assert_eq!(taken, 7, "the eighth is not: what is said of each takes room too");
    let (bytes, limit) = stored(&broker, "INFER_").await?;
    assert!(bytes > 7 << 20 && limit == Some(8 << 20), "{bytes} of {limit:?}");
    // Of results the oldest make room.
    let to = ReplyTo::Results { job: "job-1".parse()?, inbox: None };
    for number in 0..20 {
        let (id, content_type, body) = (format!("r{number}").parse()?, ContentType::Json, body.clone());
        let _ = broker.reply(&to, &Reply { id, error: None, content_type, body, traceparent: None }).await?;
    }
    let (bytes, limit) = stored(&broker, "RESULTS").await?;
    assert!(bytes <= 8 << 20 && bytes > 6 << 20 && limit == Some(8 << 20), "{bytes} of {limit:?}");
    // What was allowed changes for what is there.
    let more = Settings { queue_mib: 16, ..broker.settings().await? };
    broker.store_settings(&more).await?;
    let changes = broker.apply_settings(&more, Apply::Change).await?;
    assert!(changes.len() == 1 && changes[0].contains("room 8 MiB -> 16 MiB"), "{changes:?}");
    broker.submit(sluice_core::broker::Submission { body, ..request("one-more") }).await?;
    Ok(())
}

pub async fn where_there_is_not_room_for_all_the_first_leaves_some(rig: &mut dyn Rig) -> Result<()> {
    // A pebibyte of results, on a disk that has less.
    let broker = connect(&Options { results_mib: Some(1 << 30), ..rig.options() }).await?;
    let _ = broker.ensure_queue(&model(), &LIMITS).await?;
    if !broker.capabilities().exact_length {
        return Ok(());
    }
    let settings = broker.settings().await?;
    for (store, mib) in [("DEAD", settings.dead_letters_mib), ("INFER_", settings.queue_mib), ("KV_SLUICE_LEADERS", 8)]
    {
        assert_eq!(stored(&broker, store).await?.1, Some(mib << 20), "{store}");
    }
    let results = stored(&broker, "RESULTS").await?.1;
    assert!(results.is_some_and(|bytes| (8 << 20..8 << 30).contains(&bytes)), "{results:?}");
    // What is lacking is told, and nobody takes it from others by asking again.
    let differs = broker.apply_settings(&settings, Apply::Look).await?;
    assert!(differs.len() == 1 && differs[0].contains("`RESULTS`: room"), "{differs:?}");
    let failed = broker.apply_settings(&settings, Apply::Change).await.expect_err("it is not there").to_string();
    assert!(failed.contains("`RESULTS`") && failed.contains("max_file_store"), "{failed}");
    let _ = broker.ensure_queue(&"other".parse()?, &LIMITS).await?;
    assert_eq!(stored(&broker, "RESULTS").await?.1, results);
    Ok(())
}

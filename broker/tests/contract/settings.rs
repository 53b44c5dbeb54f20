//! One deployment, one set of settings, whoever comes and whatever his own configuration says.

use std::time::Duration;

use anyhow::Result;
use sluice_broker::{Options, connect};
use sluice_core::Lane;
use sluice_core::broker::{BrokerError, QueueLimits, Settlement};
use sluice_core::settings::{Apply, Settings};

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

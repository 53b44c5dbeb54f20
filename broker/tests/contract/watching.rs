//! What an observer is told.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use sluice_core::Lane;
use sluice_core::broker::{BrokerError, Reading, Settlement};

use crate::rig::{self, Rig, SOON, fill, model, next, wait_for_counts, with_queue};

pub async fn depth_counts_what_waits_what_runs_and_how_old_it_is(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let empty = broker.depth(&model()).await?;
    assert_eq!(empty.iter().map(|lane| lane.lane).collect::<Vec<_>>(), Lane::ALL);
    let can = broker.capabilities();
    for lane in &empty {
        assert_eq!(lane.ready, Reading::Known(0));
        assert_eq!(lane.in_flight.clone().known(), can.counts_in_flight.then_some(0), "what is not told is unknown");
        assert_eq!(lane.oldest.clone().known(), can.tells_age.then_some(Duration::ZERO));
    }

    fill(&broker, Lane::High, 5).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut consumer = broker.consume(&model(), 3).await?;
    let delivery = next(&mut consumer).await?;
    // With a credit of three each lane may have one.
    wait_for_counts(&broker, (4, 1)).await?;
    let lanes = broker.depth(&model()).await?;
    let high = &lanes[Lane::High.index()];
    assert_eq!(high.ready, Reading::Known(4));
    assert_eq!(high.in_flight.clone().known(), can.counts_in_flight.then_some(1));
    if can.tells_age {
        let oldest = high.oldest.clone().known().context("the age is known")?;
        assert!((Duration::from_millis(290)..SOON).contains(&oldest), "{oldest:?}");
    }
    assert_eq!(lanes[Lane::Low.index()].ready, Reading::Known(0));
    delivery.hold.settle(Settlement::Done).await?;

    let unknown = broker.depth(&"stranger".parse()?).await;
    assert!(matches!(unknown, Err(BrokerError::UnknownModel(_))), "{unknown:?}");
    Ok(())
}

pub async fn what_the_broker_does_not_say_is_unknown(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Low, 3).await?;
    rig.lose_lane(&model(), Lane::Low).await?;
    let lanes = broker.depth(&model()).await?;
    let low = &lanes[Lane::Low.index()];
    assert!(matches!(low.ready, Reading::Unknown(_)), "{low:?}");
    assert!(matches!(low.in_flight, Reading::Unknown(_)), "{low:?}");
    assert_eq!(lanes[Lane::High.index()].ready, Reading::Known(0), "the others are known all the same");
    Ok(())
}

pub async fn signals_reach_those_who_listen(rig: &mut dyn Rig) -> Result<()> {
    let sender = rig::connection(rig).await?;
    let receiver = rig::connection(rig).await?;
    let mut one = receiver.listen("changes").await?;
    let mut two = receiver.listen("changes").await?;
    let mut deaf = receiver.listen("other").await?;
    sender.signal("changes", Bytes::from_static(b"new revision")).await?;
    for signals in [&mut one, &mut two] {
        let signal = tokio::time::timeout(SOON, signals.next()).await??;
        assert_eq!(&signal.payload[..], b"new revision");
        assert!(signal.answer.is_none());
    }
    assert!(tokio::time::timeout(rig::A_WHILE, deaf.next()).await.is_err());
    Ok(())
}

pub async fn a_question_is_answered_or_nobody_is_there(rig: &mut dyn Rig) -> Result<()> {
    let asker = rig::connection(rig).await?;
    assert_eq!(asker.ask("describe", Bytes::new(), SOON).await?, None);
    let answerer = rig::connection(rig).await?;
    let mut signals = answerer.listen("describe").await?;
    let answering = tokio::spawn(async move {
        let signal = signals.next().await?;
        let answer = signal.answer.context("someone waits")?;
        answer.send([&b"re: "[..], &signal.payload].concat().into()).await?;
        anyhow::Ok(())
    });
    let answer = asker.ask("describe", Bytes::from_static(b"digits"), SOON).await?;
    assert_eq!(answer.as_deref(), Some(&b"re: digits"[..]));
    answering.await?
}

//! What a worker is promised about what it receives, and how much.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result};
use sluice_core::Lane;
use sluice_core::broker::Settlement;

use crate::rig::{self, Rig, SOON, counts, fill, id, model, next, nothing, request_in, with_queue};

pub async fn the_credit_is_never_exceeded(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Normal, 100).await?;
    fill(&broker, Lane::High, 20).await?;
    // Idle lanes keep an order or a share of their own, which others cannot use.
    let (most, used) = if broker.capabilities().exact_credit { (8, 6) } else { (12, 5) };
    let mut consumer = broker.consume(&model(), 8).await?;
    let mut held = Vec::new();
    while let Ok(delivery) = tokio::time::timeout(rig::A_WHILE, consumer.next()).await {
        held.push(delivery?);
    }
    assert!((used..=most).contains(&held.len()), "{} unsettled deliveries for a credit of 8", held.len());
    let (_, in_flight) = counts(&broker).await?;
    assert!(in_flight <= most as u64 && held.len() <= most, "{in_flight} in flight, {} held", held.len());
    for round in 0..100 {
        let Some(delivery) = held.pop() else { break };
        delivery.hold.settle(Settlement::Done).await?;
        if held.len() >= used {
            continue;
        }
        match tokio::time::timeout(SOON, consumer.next()).await {
            Ok(delivery) => held.push(delivery?),
            Err(_) => panic!("nothing came after settlement {round}"),
        }
        let (_, in_flight) = counts(&broker).await?;
        assert!(in_flight <= most as u64 && held.len() <= most, "{in_flight} in flight, {} held", held.len());
    }
    Ok(())
}

pub async fn two_hosts_share_a_backlog(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Normal, 600).await?;
    let other = rig::connection(rig).await?;
    let mut consumers = [broker.consume(&model(), 16).await?, other.consume(&model(), 16).await?];
    let mut got = [0, 0];
    for _ in 0..200 {
        for (consumer, got) in consumers.iter_mut().zip(&mut got) {
            if let Ok(delivery) = tokio::time::timeout(SOON, consumer.next()).await {
                delivery?.hold.settle(Settlement::Done).await?;
                *got += 1;
            }
        }
        let (_, in_flight) = counts(&broker).await?;
        assert!(in_flight <= 32, "{in_flight} in flight: somebody hoards");
    }
    assert_eq!(got, [200, 200]);
    Ok(())
}

pub async fn the_high_lane_is_preferred_and_none_starves(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    for lane in Lane::ALL {
        fill(&broker, lane, 300).await?;
    }
    let mut consumer = broker.consume(&model(), 64).await?;
    let mut got = [0; 3];
    // As a worker that is slower than the broker: one that is faster gets all that comes, in no order to speak of.
    let mut held = VecDeque::new();
    for _ in 0..300 {
        let delivery = next(&mut consumer).await?;
        got[delivery.lane.index()] += 1;
        held.push_back(delivery);
        if held.len() > 40 {
            held.pop_front().expect("some are held").hold.settle(Settlement::Done).await?;
        }
    }
    assert!(got[0] > got[1] && got[1] > got[2] && got[2] > 0, "high, normal, low: {got:?}");
    Ok(())
}

pub async fn a_request_arrives_whose_lane_was_idle(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 16).await?;
    nothing(&mut consumer).await?;
    for lane in [Lane::Low, Lane::High, Lane::Normal, Lane::High] {
        let name = format!("{lane}-{}", rand());
        broker.submit(request_in(lane, &name)).await?;
        let delivery = next(&mut consumer).await?;
        assert_eq!((id(&delivery), delivery.lane), (name, lane));
        delivery.hold.settle(Settlement::Done).await?;
    }
    Ok(())
}

/// A different number at each call.
fn rand() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub async fn raising_the_credit_asks_for_more(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Normal, 100).await?;
    let mut consumer = broker.consume(&model(), 4).await?;
    let mut held = Vec::new();
    while let Ok(delivery) = tokio::time::timeout(rig::A_WHILE, consumer.next()).await {
        held.push(delivery?);
    }
    assert!(held.len() <= 4, "{}", held.len());
    consumer.set_credit(40);
    while held.len() < 30 {
        held.push(next(&mut consumer).await?);
    }
    Ok(())
}

pub async fn whoever_waits_is_told_of_each_settled_request(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Normal, 100).await?;
    let mut consumer = broker.consume(&model(), 4).await?;
    let mut held = VecDeque::new();
    while let Ok(delivery) = tokio::time::timeout(rig::A_WHILE, consumer.next()).await {
        held.push_back(delivery?);
    }
    let began = std::time::Instant::now();
    for _ in 0..20 {
        let settled = held.pop_front().context("something is held")?;
        // The consumer waits already when the request is settled.
        let settling = async {
            tokio::task::yield_now().await;
            settled.hold.settle(Settlement::Done).await
        };
        let (delivery, settled) = tokio::join!(next(&mut consumer), settling);
        settled?;
        held.push_back(delivery?);
    }
    // Whoever only looks once in a while would need that long for each.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    Ok(())
}

pub async fn lowering_the_credit_leaves_no_lane_deaf(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 400).await?;
    nothing(&mut consumer).await?;
    consumer.set_credit(12);
    // More than was on order for this lane, and all of it comes although other lanes are idle.
    let filling = fill(&broker, Lane::Normal, 300);
    let taking = async {
        for taken in 0..300 {
            let delivery = next(&mut consumer).await?;
            let (_, in_flight) = counts(&broker).await?;
            // What was on order under the larger credit may still come.
            assert!(in_flight <= 12 || taken < 150, "{in_flight} in flight");
            delivery.hold.settle(Settlement::Done).await?;
        }
        Ok(())
    };
    let (filled, taken) = tokio::join!(filling, taking);
    filled.and(taken)
}

pub async fn stopping_gives_back_what_was_on_its_way(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    fill(&broker, Lane::Normal, 50).await?;
    let mut consumer = broker.consume(&model(), 32).await?;
    let first = next(&mut consumer).await?;
    // By now more has been sent to this consumer than it has taken.
    tokio::time::sleep(Duration::from_millis(200)).await;
    consumer.stop().await;
    first.hold.settle(Settlement::GiveBack).await?;
    let other = rig::connection(rig).await?;
    let mut consumer = other.consume(&model(), 64).await?;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 50 {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.charged, 0, "`{}` was charged an attempt", id(&delivery));
        seen.insert(id(&delivery));
        delivery.hold.settle(Settlement::Done).await?;
    }
    Ok(())
}

pub async fn a_consumer_that_lost_its_queue_says_so_and_goes_on_once_it_is_made_again(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    nothing(&mut consumer).await?;
    assert_eq!(consumer.trouble(), None);
    for whole in [false, true] {
        match whole {
            false => rig.lose_lane(&model(), Lane::Low).await?,
            true => broker.remove_queue(&model()).await?,
        }
        let error = rig::lost(&mut consumer).await?;
        assert!(error.is_of_a_lost_queue(), "{error:?}");
        let trouble = consumer.trouble().context("the consumer says what is wrong as long as it lasts")?;
        assert!(trouble.contains("digits"), "{trouble}");
        let _ = with_queue(rig).await?;
        let name = format!("after-{whole}");
        rig::submit(&broker, request_in(Lane::Low, &name)).await?;
        let delivery = rig::next_after_repair(&mut consumer).await?;
        assert_eq!((id(&delivery), delivery.charged), (name, 0));
        delivery.hold.settle(Settlement::Done).await?;
        let deadline = tokio::time::Instant::now() + SOON;
        while let Some(trouble) = consumer.trouble() {
            assert!(tokio::time::Instant::now() < deadline, "{trouble}");
            let _ = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await;
        }
    }
    Ok(())
}

/// One lane is lost under a consumer that always has something of another lane to hand out, and holds some of it.
pub async fn what_a_consumer_held_when_a_lane_was_lost_is_not_charged(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 64).await?;
    fill(&broker, Lane::High, 4).await?;
    let held = next(&mut consumer).await?;
    rig.lose_lane(&model(), Lane::Low).await?;
    let until = tokio::time::Instant::now() + SOON;
    loop {
        match tokio::time::timeout_at(until, consumer.next()).await.context("the consumer says what it lost")? {
            Ok(delivery) => {
                assert_eq!(delivery.charged, 0);
                delivery.hold.settle(Settlement::GiveBack).await?;
            }
            Err(error) => {
                assert!(error.is_of_a_lost_queue(), "{error:?}");
                break;
            }
        }
    }
    // What was handed out is settled as ever, whatever becomes of the consumer.
    let done = id(&held);
    held.hold.settle(Settlement::Done).await?;
    consumer.stop().await;
    let _ = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < 3 {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.charged, 0, "`{}` was charged", id(&delivery));
        assert_ne!(id(&delivery), done);
        seen.insert(id(&delivery));
        delivery.hold.settle(Settlement::Done).await?;
    }
    nothing(&mut consumer).await
}

/// A lane that is lost for a while must not cost the requests of the others their attempts.
pub async fn what_is_received_beside_a_lost_lane_is_not_charged(rig: &mut dyn Rig) -> Result<()> {
    let broker = with_queue(rig).await?;
    rig.lose_lane(&model(), Lane::Low).await?;
    fill(&broker, Lane::High, 3).await?;
    if let Ok(mut consumer) = broker.consume(&model(), 8).await {
        // Where the others are served meanwhile.
        let until = tokio::time::Instant::now() + Duration::from_secs(2);
        while let Ok(delivery) = tokio::time::timeout_at(until, consumer.next()).await {
            if let Ok(delivery) = delivery {
                assert_eq!(delivery.charged, 0);
                delivery.hold.settle(Settlement::GiveBack).await?;
            }
        }
        consumer.stop().await;
    }
    let _ = with_queue(rig).await?;
    let mut consumer = broker.consume(&model(), 8).await?;
    for _ in 0..3 {
        let delivery = next(&mut consumer).await?;
        assert_eq!(delivery.charged, 0, "`{}` was charged", id(&delivery));
        delivery.hold.settle(Settlement::Done).await?;
    }
    Ok(())
}

//! What a leader is promised, and those who wait to be one.

use anyhow::Result;

use crate::rig::{self, A_WHILE, Rig, SOON};

pub async fn another_leads_with_a_greater_term_when_the_holder_dies(rig: &mut dyn Rig) -> Result<()> {
    let first = rig::connection(rig).await?;
    let second = rig::connection(rig).await?;
    let leader = first.lead("scaler", "one").await?;
    assert!(leader.holds());
    let waiting = tokio::spawn(async move { second.lead("scaler", "two").await });
    tokio::time::sleep(4 * A_WHILE).await;
    assert!(leader.holds() && !waiting.is_finished(), "a living holder keeps it beyond the lease's length");
    let term = leader.term();
    // As if its process had died: nothing is renewed and nothing given up.
    drop(leader);
    let next = tokio::time::timeout(SOON, waiting).await???;
    assert!(next.holds());
    assert!(next.term() > term, "{} does not follow {term}", next.term());
    // Another office is another matter.
    assert!(first.lead("janitor", "one").await?.holds());
    Ok(())
}

pub async fn a_resigned_office_is_free_at_once(rig: &mut dyn Rig) -> Result<()> {
    let broker = rig::connection(rig).await?;
    let leader = broker.lead("scaler", "one").await?;
    let term = leader.term();
    leader.resign().await?;
    let next = tokio::time::timeout(SOON, broker.lead("scaler", "two")).await??;
    assert!(next.term() > term);
    // A leader that has lost touch with the broker stops acting before another can take over.
    rig.kill()?;
    tokio::time::timeout(SOON, next.lost()).await?;
    assert!(!next.holds());
    Ok(())
}

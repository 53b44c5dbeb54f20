//! Serving one model: requests come in, batches go to slots, answers go out. One task owns all of it; what takes
//! time happens on slots, in decoding tasks and in replying tasks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sluice_core::ModelName;
use sluice_core::broker::{Broker, Consumer, Delivery, Limited};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::board::Place;
use crate::engine::{Device, Model};
use crate::memory::Reservation;
use crate::metrics::ModelMetrics;
use crate::onward::Onward;
use crate::package::Package;
use crate::reception::Reception;
use crate::reply::Replier;
use crate::slot::{self, Finished, Started};
use crate::station::Station;

/// How often slots are checked for a hung execution.
const WATCH: Duration = Duration::from_millis(200);
/// How long other batches may still run after the process was found to be of no use.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// What it takes to serve a model.
pub struct Serving {
    pub broker: Arc<dyn Broker>,
    pub package: Arc<Package>,
    pub device: Device,
    pub count: usize,
    pub host: String,
    pub metrics: Arc<ModelMetrics>,
    /// Cancelled to drain.
    pub stop: CancellationToken,
}

/// What may change while a model serves.
#[derive(Clone)]
pub struct Tuned {
    /// The same files with other limits.
    pub package: Arc<Package>,
    /// How many slots.
    pub count: usize,
}

/// How serving ended.
#[derive(Debug)]
pub enum End {
    /// Drained.
    Drained,
    /// Drained, and no slots have been wanted of it on this device for a while.
    Idle(Place),
    /// The process must not go on: the reason.
    Fault(String),
}

/// A model whose slots are ready.
pub struct Ready {
    serving: Serving,
    started: Started,
    sender: mpsc::UnboundedSender<Finished>,
    finished: mpsc::UnboundedReceiver<Finished>,
}

impl Serving {
    /// What ends its requests.
    pub fn replier(&self) -> Arc<Replier> {
        Arc::new(Replier {
            broker: Arc::clone(&self.broker),
            model: self.package.manifest.name.clone(),
            limits: self.package.manifest.limits.clone(),
            host: self.host.clone(),
            metrics: Arc::clone(&self.metrics),
            onward: Onward::default(),
        })
    }

    /// Loads the model, warms it up, and makes its queue: a model that cannot be served takes no requests. `memory` is what was reserved for
    /// the model itself.
    pub async fn prepare(self, memory: &mut Reservation) -> Result<Ready> {
        let manifest = &self.package.manifest;
        let mut loading = self.metrics.slots();
        loading.set(self.count, 0, 0);
        let began = Instant::now();
        // Unbounded, but never more in it than batches handed out: two per slot.
        let (sender, finished) = mpsc::unbounded_channel();
        let weigh = |model: &dyn Model| {
            let (meter, version) = (&self.metrics.meter, &manifest.version);
            meter.copied(!model.writes().is_empty());
            if let Some(mib) = memory.loaded(meter.weighed_before(version, self.device)) {
                meter.weighed(version, mib);
            }
            memory.copies()
        };
        let started = slot::start_all(&self.package, self.device, self.count, &sender, weigh)
            .await
            .with_context(|| format!("model `{}` cannot be served on {}", manifest.name, self.device))?;
        let limited = self
            .broker
            .ensure_queue(&manifest.name, &manifest.queue_limits())
            .await
            .with_context(|| format!("cannot make the queue of model `{}`", manifest.name))?;
        if let Limited::AsConfigured(reason) = limited {
            warn!(model = %manifest.name, reason, "the queue's limits are those that the broker is configured with");
        }
        self.metrics.meter.row_takes(started.row_time.as_secs_f64());
        info!(model = %manifest.name, version = manifest.version, device = %self.device, slots = self.count,
            load_ms = began.elapsed().as_millis() as u64, "model ready");
        Ok(Ready { serving: self, started, sender, finished })
    }
}

impl Ready {
    /// How many slots there are.
    pub fn count(&self) -> usize {
        self.started.slots.len()
    }

    /// Cancelled to drain.
    pub fn stop(&self) -> CancellationToken {
        self.serving.stop.clone()
    }

    /// Serves until told to stop, or until the process is of no more use. `tuned` is what changes meanwhile.
    pub async fn serve(self, mut tuned: watch::Receiver<Tuned>) -> Result<End> {
        let Ready { serving, started, sender, mut finished } = self;
        let (broker, stop) = (Arc::clone(&serving.broker), serving.stop.clone());
        let name = serving.package.manifest.name.clone();
        let mut reception = Reception::new(&broker, &serving.package.manifest, &serving.metrics);
        let mut station = Station::new(serving, started, sender);
        let mut consumer = match consume(&*broker, &name, station.credit(), &stop).await {
            Some(consumer) => Some(consumer?),
            None => None,
        };
        let mut watch = tokio::time::interval(WATCH);
        watch.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // Those for which others are taken: what waits for another queue holds nothing that slots live on.
        let mut lent = 0;
        let end = loop {
            let wake = station.dispatch()?;
            if let Some(fault) = station.fault.take() {
                break End::Fault(fault);
            }
            if consumer.is_none() && station.is_idle() {
                break End::Drained;
            }
            tokio::select! {
                biased;
                () = stop.cancelled(), if consumer.is_some() => station.drain(consumer.take()).await,
                Some(done) = finished.recv() => {
                    station.finish(done);
                    if let Some(consumer) = &mut consumer {
                        consumer.set_credit(station.credit());
                    }
                    // The slot has work again before the answers leave, and those leave before anything else is looked at.
                    station.dispatch()?;
                    tokio::task::yield_now().await;
                }
                Ok(()) = tuned.changed() => {
                    let tuned = tuned.borrow_and_update().clone();
                    reception.tune(&tuned.package.manifest);
                    station.tune(tuned)?;
                    if let Some(consumer) = &mut consumer {
                        consumer.set_credit(station.credit());
                    }
                }
                Some(decoded) = station.decoding.join_next() => station.decoded(decoded)?,
                delivery = receive(&mut consumer, &reception) => match delivery {
                    Ok(delivery) => {
                        station.receive(delivery);
                        // Whatever else is here goes into the same batch.
                        while let Some(delivery) = consumer.as_mut().and_then(|consumer| consumer.ready()) {
                            station.receive(delivery);
                        }
                        if let Some(consumer) = &mut consumer {
                            consumer.set_credit(station.credit());
                        }
                    }
                    Err(error) => reception.failed(&error, Instant::now()),
                },
                () = sleep_until(wake) => {}
                _ = watch.tick() => {
                    station.watch();
                    let waiting = station.waiting();
                    if let Some(consumer) = consumer.as_mut().filter(|_| waiting != lent) {
                        consumer.set_credit(station.credit());
                        lent = waiting;
                    }
                    // While it drains it is another version's that receives, and tells.
                    if let Some(consumer) = &consumer {
                        reception.look(consumer.trouble(), Instant::now());
                    }
                }
            }
        };
        if let End::Fault(reason) = &end {
            error!(model = %station.model(), reason, "this process must not go on; giving back what it holds");
            station.drain(consumer.take()).await;
            let deadline = tokio::time::Instant::now() + LAST_MOMENTS;
            while !station.is_idle()
                && let Ok(Some(done)) = tokio::time::timeout_at(deadline, finished.recv()).await
            {
                station.finish(done);
            }
        }
        station.replying.close();
        station.replying.wait().await;
        if matches!(end, End::Drained) {
            station.unload().await;
        }
        Ok(end)
    }
}

/// Opens a consumer, and tries again while the broker is away; `None` once stopped.
pub async fn consume(
    broker: &dyn Broker,
    model: &ModelName,
    credit: usize,
    stop: &CancellationToken,
) -> Option<sluice_core::broker::Result<Box<dyn Consumer>>> {
    loop {
        match stop.run_until_cancelled(broker.consume(model, credit)).await? {
            Err(error) if error.is_transient() => {
                warn!(%model, %error, "cannot take requests; trying again");
                stop.run_until_cancelled(tokio::time::sleep(WATCH)).await?;
            }
            opened => return Some(opened),
        }
    }
}

async fn receive(
    consumer: &mut Option<Box<dyn Consumer>>,
    reception: &Reception,
) -> sluice_core::broker::Result<Delivery> {
    match consumer {
        Some(consumer) => {
            reception.may_ask().await;
            consumer.next().await
        }
        None => std::future::pending().await,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

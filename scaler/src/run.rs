//! The whole scaler: connect, listen to hosts, follow the registry; and while it leads, decide and tell.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use prometheus::Registry;
use sluice_broker::Patience;
use sluice_core::assignment::assignment_topic;
use sluice_core::bounds::{NAME, shortened};
use sluice_core::broker::{Broker, Leadership, Signal};
use sluice_core::clock::unix_ms;
use sluice_core::report::{REPORT_NOW, Report};
use sluice_core::scaler::{Answer, Question, SCALER, SCALER_ORDERS};
use sluice_service::admin::{self, Readiness};
use sluice_service::tasks::spawn_vital;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::assign::Assigner;
use crate::brain::{Brain, Round, Seen};
use crate::catalog::{Catalog, Follower};
use crate::config::Config;
use crate::ears::Ears;
use crate::fleet::Fleet;
use crate::metrics::Metrics;
use crate::queues::Queues;
use crate::record::{Line, Recorder};
use crate::shortage::Shortage;
use crate::storage::Storage;

/// The office that one scaler holds.
const OFFICE: &str = "scaler";
/// A leader that has just started listens to the hosts for so long before it decides.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// By then it has decided on every model once.
const FIRST_ROUND: Duration = Duration::from_secs(3);
/// After so long a leader has heard of all leases.
const LEASES_KNOWN: Duration = Duration::from_secs(15);

/// What a scaler that leads works with.
struct Scaler {
    config: Config,
    broker: Arc<dyn Broker>,
    catalog: Arc<Catalog>,
    fleet: Arc<Mutex<Fleet>>,
    metrics: Metrics,
    /// The moment from which decisions count time.
    began: Instant,
    record: Option<Recorder>,
    queues: Queues,
    shortage: Shortage,
    /// Processes that were seen to report under another's name.
    twins: BTreeMap<String, String>,
    /// Hosts that refuse what is sent to them, and why.
    refusing: BTreeMap<String, String>,
    /// When it took the lead last.
    leads_since: Duration,
}

/// Runs until `stop`. `listening` is told the admin port's address. What decisions rest on is written to `record`.
pub async fn run(
    config: Config,
    record: Option<Recorder>,
    stop: CancellationToken,
    listening: impl FnOnce(SocketAddr),
) -> Result<()> {
    config.check()?;
    let registry = Registry::new();
    let metrics = Metrics::new(&registry)?;
    let readiness = Readiness::not_yet("waiting for the broker");
    let admin_stop = CancellationToken::new();
    let address = admin::serve(config.scaler.admin, readiness.clone(), registry, admin_stop.clone())
        .await
        .context("`scaler.admin` (or SLUICE_SCALER__ADMIN) names the address: :0 takes any free port")?;
    listening(address);

    let mut options = config.broker.clone();
    options.patience = Patience::Wait;
    options.name = format!("sluice-scaler {}", config.name());
    let Some(broker) = stop.run_until_cancelled(sluice_broker::connect(&options)).await else { return Ok(()) };
    let broker = broker?;
    info!(name = config.name(), url = broker.url(), "connected");
    let models = sluice_registry::open(&config.registry, &options).await.context("cannot open the registry")?;
    let began = Instant::now();
    let (fleet, catalog) = (Arc::new(Mutex::new(Fleet::default())), Arc::new(Catalog::default()));
    // A standby listens too, so that it can decide at once.
    let ears = CancellationToken::new();
    let ears_of =
        Ears { broker: Arc::clone(&broker), fleet: Arc::clone(&fleet), largest: config.max_capacity(), began };
    spawn_vital("reports", &stop, ears_of.hear(ears.clone()));
    let poll = config.scaler.registry_poll;
    let follower = Follower {
        catalog: Arc::clone(&catalog),
        registry: models,
        broker: Arc::clone(&broker),
        poll,
        fleet: Arc::clone(&fleet),
        began,
    };
    spawn_vital("registry", &stop, follower.follow(ears.clone()));

    let storage = Storage {
        broker: Arc::clone(&broker),
        leads: metrics.leads.clone(),
        bytes: metrics.storage_bytes.clone(),
        limits: metrics.storage_limits.clone(),
    };
    spawn_vital("storage", &stop, storage.watch(ears.clone()));

    let mut scaler = Scaler {
        queues: Queues::default(),
        shortage: Shortage::new(config.scaler.when_short.clone()),
        config,
        broker,
        catalog,
        fleet,
        metrics,
        began,
        record,
        twins: BTreeMap::new(),
        refusing: BTreeMap::new(),
        leads_since: Duration::ZERO,
    };
    readiness.set(None);
    info!("ready");
    while !stop.is_cancelled() {
        info!("waiting for the lead");
        let name = scaler.config.name();
        match stop.run_until_cancelled(scaler.broker.lead(OFFICE, &name)).await {
            None => break,
            Some(Ok(leadership)) => scaler.lead(leadership, &stop).await?,
            Some(Err(error)) => {
                warn!(%error, "cannot take the lead; trying again");
                stop.run_until_cancelled(tokio::time::sleep(FIRST_WORDS)).await;
            }
        }
    }
    readiness.set(Some("stopping".into()));
    ears.cancel();
    if let Err(error) = scaler.broker.close().await {
        warn!(%error, "the broker connection did not close in order");
    }
    info!("stopped; what runs on hosts goes on");
    admin_stop.cancel();
    Ok(())
}

pub(crate) fn lock(fleet: &Mutex<Fleet>) -> MutexGuard<'_, Fleet> {
    fleet.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Scaler {
    /// Decides until the lead is lost or the scaler stops.
    async fn lead(&mut self, leadership: Box<dyn Leadership>, stop: &CancellationToken) -> Result<()> {
        info!(term = leadership.term(), "leading");
        self.metrics.leads.set(1.0);
        self.leads_since = self.began.elapsed();
        let mut questions = self.broker.listen(SCALER).await.context("listening to questions")?;
        let mut orders = self.broker.listen(SCALER_ORDERS).await.context("listening to orders")?;
        if let Err(error) = self.broker.signal(REPORT_NOW, Bytes::new()).await {
            debug!(%error, "could not ask hosts to report");
        }
        stop.run_until_cancelled(tokio::time::sleep(FIRST_WORDS)).await;
        let mut brain = Brain::new(self.config.scaler.groups.clone());
        let mut assigner = Assigner::new(leadership.term());
        let mut tick = tokio::time::interval(self.config.scaler.interval);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    if let Err(error) = leadership.resign().await {
                        debug!(%error, "could not resign");
                    }
                    break;
                }
                () = leadership.lost() => {
                    warn!("the lead is lost; another decides now");
                    break;
                }
                (said, topic) = async {
                    tokio::select! {
                        question = questions.next() => (question, SCALER),
                        order = orders.next() => (order, SCALER_ORDERS),
                    }
                } => match said {
                    Ok(said) => self.answer(said, topic, &mut brain).await,
                    Err(error) => {
                        warn!(%error, "cannot hear questions");
                        tokio::time::sleep(FIRST_WORDS).await;
                    }
                },
                _ = tick.tick(), if self.catalog.is_complete() => {
                    let timer = self.metrics.round.start_timer();
                    let round = self.round(&mut brain, &mut assigner, &*leadership).await?;
                    timer.observe_duration();
                    self.shortage.tell(lock(&self.fleet).alive(self.began.elapsed()).count(), &round.unplaced);
                }
            }
        }
        self.metrics.clear();
        self.shortage.rest();
        Ok(())
    }

    /// Looks at everything, decides, and tells the hosts.
    async fn round(
        &mut self,
        brain: &mut Brain,
        assigner: &mut Assigner,
        leadership: &dyn Leadership,
    ) -> Result<Round> {
        let models = self.catalog.read();
        let queues = self.queues.read(&self.broker, &models).await;
        let (clock, now) = (unix_ms(), self.began.elapsed());
        let (round, due) = {
            let mut fleet = lock(&self.fleet);
            fleet.forget(|model| models.contains_key(model));
            let round = brain.round(&Seen { models: &models, queues: &queues, fleet: &fleet, clock, now });
            self.metrics.hosts.set(fleet.alive(now).count() as f64);
            let follows = |report: &Report| Some((report.host.clone(), report.assignment.as_ref()?.generation));
            let followed = fleet.alive(now).filter_map(follows).collect();
            let due = assigner.due(&round.wanted, &followed, now);
            (round, due)
        };
        for (model, changed) in &round.changes {
            info!(%model, from = changed.from, to = changed.to, reason = changed.reason, "slots");
        }
        for (model, trouble) in &round.troubles {
            warn!(%model, trouble, "a model does not get what it needs");
        }
        let twins = round.wanted.iter().filter_map(|(host, wanted)| Some((host.clone(), wanted.twin.clone()?)));
        let twins: BTreeMap<String, String> = twins.collect();
        for (host, twin) in twins.iter().filter(|(host, twin)| self.twins.get(*host) != Some(twin)) {
            warn!(
                host,
                twin,
                "two workers report under one host name: the one that began first does the work, the other takes none; `worker.host` must differ"
            );
        }
        self.twins = twins;
        self.tell_refusals();
        for (id, reason) in &round.ended {
            info!(id, reason, "a lease has ended");
        }
        self.metrics.show(brain, &round);
        if let Some(record) = &mut self.record {
            let lines =
                brain.models().filter_map(|model| Some(Line::new(clock, model.name, model.demand?, model.wanted)));
            // A full disk is no reason to leave the models alone.
            if let Err(error) = record.write(lines) {
                warn!(%error, "the record cannot be written, and ends here");
                self.record = None;
            }
        }
        for assignment in due {
            // A leader that was paused finds out here. Should it be paused right here: hosts refuse an older term.
            if !leadership.holds() {
                break;
            }
            debug!(host = assignment.host, generation = %assignment.generation, "assigning");
            if assigner.has_outbid(&assignment) {
                warn!(
                    host = assignment.host,
                    generation = %assignment.generation,
                    "a host follows an assignment that no leader of this broker sent: it is sent a greater number; if the broker was not set \
                     up anew, somebody else sends assignments"
                );
            }
            let text = serde_json::to_vec(&assignment).context("writing an assignment")?;
            if let Err(error) = self.broker.signal(&assignment_topic(&assignment.host), text.into()).await {
                debug!(host = assignment.host, %error, "could not assign; it is sent again");
            }
        }
        Ok(round)
    }

    /// Says which hosts refuse what was sent to them, when they begin to.
    fn tell_refusals(&mut self) {
        let fleet = lock(&self.fleet);
        let refusing = |report: &Report| Some((report.host.clone(), report.refuses.clone()?));
        let refusing: BTreeMap<String, String> = fleet.alive(self.began.elapsed()).filter_map(refusing).collect();
        for (host, reason) in refusing.iter().filter(|(host, _)| !self.refusing.contains_key(*host)) {
            warn!(host, reason, "a host refuses what somebody sends it as an assignment");
        }
        self.refusing = refusing;
    }

    async fn answer(&self, signal: Signal, topic: &str, brain: &mut Brain) {
        let Some(way_back) = signal.answer else { return };
        let (clock, now) = (unix_ms(), self.began.elapsed());
        let answer = {
            let fleet = lock(&self.fleet);
            // A lease or a gate may be known to a host that was heard since the last round.
            brain.adopt(&fleet, now);
            let leads_for = now.saturating_sub(self.leads_since);
            match serde_json::from_slice::<Question>(&signal.payload) {
                // Who may ask must not therefore order.
                Ok(question) if question.topic() != topic => {
                    Answer::Refused(format!("this belongs to the topic `{}`", question.topic()))
                }
                // The first round may be still to come: whoever asks asks again.
                Ok(Question::Explain(model)) if leads_for < FIRST_ROUND && !brain.knows(&model) => return,
                Ok(Question::Explain(model)) => brain.explain(&model),
                Ok(Question::Silent) => Answer::Silent(fleet.silent(now)),
                Ok(Question::Gate { host, gate }) => {
                    let answer = brain.set_gate(&host, gate, &fleet, now);
                    match &answer {
                        Answer::Refused(reason) => {
                            info!(
                                host = shortened(&host, NAME),
                                gate = gate.as_str(),
                                reason,
                                "a host's gate is not set"
                            )
                        }
                        _ => info!(host, gate = gate.as_str(), "an operator sets a host's gate"),
                    }
                    answer
                }
                Ok(Question::Leases) => brain.leases(&fleet, now),
                Ok(Question::Acquire(request)) => brain.acquire(&request, &fleet, clock, now),
                // The host that knows of it may not have been heard yet: its holder asks again.
                Ok(Question::Renew(id)) if leads_for < LEASES_KNOWN && !brain.knows_lease(&id) => return,
                Ok(Question::Renew(id)) => brain.renew(&id, &fleet, now),
                Ok(Question::Try { model, revision }) => match brain.try_loading(&model, revision) {
                    Some(answer) => answer,
                    // It is read from the registry in a moment: whoever asks asks again.
                    None => return,
                },
                Ok(Question::Release(id)) => brain.release(&id, &fleet, now),
                Err(error) => Answer::Refused(format!("the scaler does not understand the question: {error}")),
            }
        };
        let Ok(text) = serde_json::to_vec(&answer) else { return };
        // Whoever asked asks again.
        if let Err(error) = way_back.send(text.into()).await {
            debug!(%error, "could not answer");
        }
    }
}

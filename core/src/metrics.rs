//! Every metric's name, help, labels and buckets. Labels come from closed sets, never from ids.

/// What a metric is called and says.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name in Prometheus.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// Upper bounds of a histogram's buckets; empty for counters and gauges.
    pub buckets: &'static [f64],
}

/// From 0.1 ms to a minute, in seconds.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
];

/// Counter: requests that reached their end, by how.
pub const REQUESTS: Metric = Metric {
    name: "sluice_requests_total",
    help: "Requests settled, by outcome: ok, forwarded (to a pipeline's next model), invalid, expired_fetch, expired_batch, expired_reply, retried, dead, given_back",
    labels: &["model", "lane", "outcome"],
    buckets: &[],
};

/// Counter: rows answered.
pub const ROWS: Metric =
    Metric { name: "sluice_rows_total", help: "Rows that were run and answered", labels: &["model"], buckets: &[] };

/// Counter: batches run.
pub const BATCHES: Metric = Metric {
    name: "sluice_batches_total",
    help: "Batches handed to a slot, by result: ok, split (run again in parts to find a request that fails)",
    labels: &["model", "device", "result"],
    buckets: &[],
};

/// Histogram: rows per execution.
pub const BATCH_ROWS: Metric = Metric {
    name: "sluice_batch_rows",
    help: "Rows per batch",
    labels: &["model"],
    buckets: &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
};

/// Histogram: from the broker's store to a worker's fetch.
pub const QUEUE_SECONDS: Metric = Metric {
    name: "sluice_queue_seconds",
    help: "Time from the broker's store until a worker fetched the request (both clocks are assumed to agree)",
    labels: &["model", "lane"],
    buckets: SECONDS,
};

/// Histogram: from fetch to the start of the batch.
pub const BATCH_WAIT_SECONDS: Metric = Metric {
    name: "sluice_batch_wait_seconds",
    help: "Time from fetch until the request's batch started",
    labels: &["model"],
    buckets: SECONDS,
};

/// Histogram: a batch on its slot.
pub const COMPUTE_SECONDS: Metric = Metric {
    name: "sluice_compute_seconds",
    help: "Time a batch took on its slot: gathering, the model, and encoding the answers",
    labels: &["model", "device"],
    buckets: SECONDS,
};

/// Gauge: requests held now.
pub const IN_FLIGHT: Metric =
    Metric { name: "sluice_in_flight", help: "Requests fetched and not settled", labels: &["model"], buckets: &[] };

/// Gauge: slots.
pub const SLOTS: Metric = Metric {
    name: "sluice_slots",
    help: "Slots by state: loading, idle, busy",
    labels: &["model", "device", "state"],
    buckets: &[],
};

/// Counter: losses of the way that requests come by.
pub const LOST_QUEUES: Metric = Metric {
    name: "sluice_lost_queues_total",
    help: "Times that a model's requests could no longer be received: the connection, the queue or the permission was gone for a second or more",
    labels: &["model"],
    buckets: &[],
};

/// All of them, for checks of dashboards and alerts.
pub const ALL: [Metric; 10] = [
    REQUESTS,
    ROWS,
    BATCHES,
    BATCH_ROWS,
    QUEUE_SECONDS,
    BATCH_WAIT_SECONDS,
    COMPUTE_SECONDS,
    IN_FLIGHT,
    SLOTS,
    LOST_QUEUES,
];

/// Gauge: slots of a model, as the scaler sees them.
pub const SCALER_SLOTS: Metric = Metric {
    name: "sluice_scaler_slots",
    help: "Slots of a model: wanted (by its load), granted (by its group's share), placed (on hosts), unplaced (no room for them)",
    labels: &["model", "kind"],
    buckets: &[],
};

/// Gauge: what a model lags.
pub const SCALER_LAG_ROWS: Metric = Metric {
    name: "sluice_scaler_lag_rows",
    help: "Rows waiting or in flight, as the scaler estimates from requests; absent while unknown",
    labels: &["model"],
    buckets: &[],
};

/// Gauge: models in trouble.
pub const SCALER_TROUBLES: Metric = Metric {
    name: "sluice_scaler_troubles",
    help: "1 while something keeps a model from the slots that it needs; `sluice scale explain` says what",
    labels: &["model"],
    buckets: &[],
};

/// Gauge: hosts that report.
pub const SCALER_HOSTS: Metric =
    Metric { name: "sluice_scaler_hosts", help: "Hosts that report", labels: &[], buckets: &[] };

/// Gauge: whether this scaler leads.
pub const SCALER_LEADS: Metric =
    Metric { name: "sluice_scaler_leads", help: "1 on the scaler that decides", labels: &[], buckets: &[] };

/// Histogram: a round.
pub const SCALER_ROUND_SECONDS: Metric = Metric {
    name: "sluice_scaler_round_seconds",
    help: "Time of a round: reading all queues, deciding, and sending assignments",
    labels: &[],
    buckets: SECONDS,
};

/// Gauge: what the broker stores.
pub const STORAGE_BYTES: Metric = Metric {
    name: "sluice_storage_bytes",
    help: "Bytes that a queue, or what stores results, dead letters or records, holds; of the scaler that leads, and as far as the broker tells",
    labels: &["store"],
    buckets: &[],
};

/// Gauge: what the broker may store.
pub const STORAGE_LIMIT_BYTES: Metric = Metric {
    name: "sluice_storage_limit_bytes",
    help: "Bytes that it may hold: a full queue refuses requests, of results and dead letters the oldest are removed; absent where nothing bounds it",
    labels: &["store"],
    buckets: &[],
};

/// The scaler's.
pub const SCALER: [Metric; 8] = [
    SCALER_SLOTS,
    SCALER_LAG_ROWS,
    SCALER_TROUBLES,
    SCALER_HOSTS,
    SCALER_LEADS,
    SCALER_ROUND_SECONDS,
    STORAGE_BYTES,
    STORAGE_LIMIT_BYTES,
];

//! Three nats-servers that make a cluster, with the production files.

use std::path::Path;

use anyhow::{Context, Result};

use crate::http;
use crate::nats::{NatsServer, production_environment};
use crate::process::free_port;

/// The nodes of a cluster, one of which may be lost.
pub struct NatsCluster {
    nodes: Vec<NatsServer>,
}

impl NatsCluster {
    /// Starts three nodes that store below `folder`, with `ca.pem`, `certificate.pem` and `key.pem` of that other folder. They take a
    /// moment to elect their leader.
    pub fn start(folder: &Path, certificates: &Path) -> Result<Self> {
        let environment = production_environment(certificates)?;
        let ports = [free_port()?, free_port()?, free_port()?];
        let mut nodes = Vec::new();
        for (index, port) in ports.iter().enumerate() {
            let mut own = environment.clone();
            own.push(("SLUICE_NODE".into(), format!("node-{index}")));
            own.push(("SLUICE_CLUSTER_LISTEN".into(), format!("'127.0.0.1:{port}'")));
            for (route, port) in ports.iter().enumerate() {
                own.push((format!("SLUICE_ROUTE_{}", route + 1), format!("'nats-route://127.0.0.1:{port}'")));
            }
            let store = folder.join(format!("node-{index}"));
            std::fs::create_dir(&store)?;
            let own: Vec<(&str, &str)> = own.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            nodes.push(NatsServer::monitored("cluster/node.conf", &store, &own)?);
        }
        Ok(Self { nodes })
    }

    /// The URL of all nodes for a user.
    pub fn url_of(&self, user: &str) -> String {
        self.nodes.iter().map(|node| node.url_of(user)).collect::<Vec<_>>().join(",")
    }

    /// What the last node says of every stream that it has a copy of: its name, how many copies it is to have, and its leader.
    pub fn streams(&self) -> Result<Vec<(String, u64, String)>> {
        let node = self.nodes.last().and_then(NatsServer::monitor).context("no node is watched")?;
        let (_, text) = http::get(&format!("127.0.0.1:{node}"), "/jsz?accounts=1&streams=1&config=1")?;
        let told: serde_json::Value = serde_json::from_str(&text)?;
        let accounts = told["account_details"].as_array().into_iter().flatten();
        let streams = accounts.flat_map(|account| account["stream_detail"].as_array().into_iter().flatten());
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let stream = |stream: &serde_json::Value| {
            let copies = stream["config"]["num_replicas"].as_u64().unwrap_or(0);
            (text(&stream["name"]), copies, text(&stream["cluster"]["leader"]))
        };
        Ok(streams.map(stream).collect())
    }

    /// Ends a node without warning, and removes what it stored.
    pub fn lose(&mut self, node: &str) -> Result<()> {
        let index = node.strip_prefix("node-").and_then(|index| index.parse::<usize>().ok());
        let index = index.with_context(|| format!("`{node}` is not a node"))?;
        self.nodes[index].wipe()
    }
}

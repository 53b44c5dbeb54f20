//! A broker of either kind to test or show with.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, bail};

use crate::cluster::NatsCluster;
use crate::nats::NatsServer;
use crate::rabbitmq::{RabbitServer, VirtualHost};

/// Which broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// NATS with JetStream.
    Nats,
    /// RabbitMQ.
    RabbitMq,
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "nats" => Ok(Kind::Nats),
            "rabbitmq" => Ok(Kind::RabbitMq),
            _ => bail!("`{text}` is not a broker: `nats` or `rabbitmq`"),
        }
    }
}

impl Kind {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Nats => "NATS JetStream",
            Kind::RabbitMq => "RabbitMQ",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Kind::Nats => "nats",
            Kind::RabbitMq => "rabbitmq",
        })
    }
}

/// A running broker with the developer's configuration, or a part of one that nobody else uses.
pub enum Server {
    /// A nats-server.
    Nats(NatsServer),
    /// Three nats-servers with the production files.
    Cluster(NatsCluster),
    /// A RabbitMQ.
    RabbitMq(RabbitServer),
    /// A virtual host on a RabbitMQ that others use as well: it can be neither stopped nor killed.
    VirtualHost(VirtualHost),
}

impl Server {
    /// Starts one that stores below `folder`.
    pub fn start(kind: Kind, folder: &Path) -> Result<Self> {
        let mut server = Self::prepare(kind, folder)?;
        server.restart()?;
        Ok(server)
    }

    /// Chooses ports and folder, and does not start yet.
    pub fn prepare(kind: Kind, folder: &Path) -> Result<Self> {
        Ok(match kind {
            Kind::Nats => Server::Nats(NatsServer::prepare("dev.conf", folder)?),
            Kind::RabbitMq => Server::RabbitMq(RabbitServer::prepare(folder)?),
        })
    }

    /// Starts one with the production files and the certificates in that folder.
    pub fn production(kind: Kind, folder: &Path, certificates: &Path) -> Result<Self> {
        Ok(match kind {
            Kind::Nats => Server::Nats(NatsServer::production(folder, certificates)?),
            Kind::RabbitMq => Server::RabbitMq(RabbitServer::production(folder, certificates)?),
        })
    }

    /// As [`Server::start`], but RabbitMQ, which takes its time to start, is shared with the other tests of a run.
    pub fn share(kind: Kind, folder: &Path) -> Result<Self> {
        match VirtualHost::on_the_runs_server()? {
            Some(host) if kind == Kind::RabbitMq => Ok(Server::VirtualHost(host)),
            _ => Self::start(kind, folder),
        }
    }

    /// Which broker it is.
    pub fn kind(&self) -> Kind {
        match self {
            Server::Nats(_) | Server::Cluster(_) => Kind::Nats,
            Server::RabbitMq(_) | Server::VirtualHost(_) => Kind::RabbitMq,
        }
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        match self {
            Server::Nats(server) => server.url(),
            Server::Cluster(cluster) => cluster.url_of("manager"),
            Server::RabbitMq(server) => server.url(),
            Server::VirtualHost(host) => host.url(),
        }
    }

    /// The URL for a user of the production files, and of RabbitMQ's management API.
    pub fn urls_of(&self, user: &str) -> (String, Option<String>) {
        match self {
            Server::Nats(server) => (server.url_of(user), None),
            Server::Cluster(cluster) => (cluster.url_of(user), None),
            Server::RabbitMq(server) => (server.url_of(user), Some(server.management_of(user))),
            Server::VirtualHost(host) => (host.url(), Some(host.management())),
        }
    }

    /// The URL of RabbitMQ's management API.
    pub fn management(&self) -> Option<String> {
        match self {
            Server::Nats(_) | Server::Cluster(_) => None,
            Server::RabbitMq(server) => Some(server.management()),
            Server::VirtualHost(host) => Some(host.management()),
        }
    }

    /// Starts it again on the same ports and store.
    pub fn restart(&mut self) -> Result<()> {
        match self {
            Server::Nats(server) => server.restart(),
            Server::RabbitMq(server) => server.restart(),
            Server::Cluster(_) => bail!("a cluster's nodes end one by one"),
            Server::VirtualHost(_) => bail!("others use this RabbitMQ too"),
        }
    }

    /// Stops it as an operator would, and waits.
    pub fn stop(&mut self) -> Result<()> {
        match self {
            Server::Nats(server) => server.stop(),
            Server::RabbitMq(server) => server.stop(),
            Server::Cluster(_) => bail!("a cluster's nodes end one by one"),
            Server::VirtualHost(_) => bail!("others use this RabbitMQ too"),
        }
    }

    /// Ends it without warning.
    pub fn kill(&mut self) -> Result<()> {
        match self {
            Server::Nats(server) => server.kill(),
            Server::RabbitMq(server) => server.kill(),
            Server::Cluster(_) => bail!("a cluster's nodes end one by one"),
            Server::VirtualHost(_) => bail!("others use this RabbitMQ too"),
        }
        Ok(())
    }

    /// Takes it away with all that it stores.
    pub fn wipe(&mut self) -> Result<()> {
        match self {
            Server::Nats(server) => server.wipe(),
            Server::Cluster(_) => bail!("a cluster is taken away node by node"),
            Server::RabbitMq(server) => server.delete_host(),
            Server::VirtualHost(host) => host.delete(),
        }
    }

    /// After [`Server::wipe`]: it is there again, and empty.
    pub fn come_back_empty(&mut self) -> Result<()> {
        match self {
            Server::Nats(server) => server.restart(),
            Server::Cluster(_) => bail!("a cluster is made again node by node"),
            Server::RabbitMq(server) => server.make_host(),
            Server::VirtualHost(host) => host.make(),
        }
    }

    /// Its process id while it runs and is nobody else's.
    pub fn id(&self) -> Option<u32> {
        match self {
            Server::Nats(server) => server.id(),
            Server::RabbitMq(server) => server.id(),
            Server::Cluster(_) | Server::VirtualHost(_) => None,
        }
    }
}

//! Certificates for a server on this machine, signed by an authority of one's own. Behind a feature: only tests need them.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Where they are.
pub struct Certificates {
    /// The authority's, for clients.
    pub authority: PathBuf,
    /// The server's.
    pub certificate: PathBuf,
    /// The server's private key.
    pub key: PathBuf,
}

impl Certificates {
    /// Writes `ca.pem`, `certificate.pem` and `key.pem` into a folder.
    pub fn make(folder: &Path) -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = vec!["localhost".into(), "127.0.0.1".into()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let write = |name: &str, content: String| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, content)?;
            Ok(path)
        };
        Ok(Self {
            authority: write("ca.pem", authority.pem())?,
            certificate: write("certificate.pem", certificate.pem())?,
            key: write("key.pem", key.serialize_pem())?,
        })
    }
}

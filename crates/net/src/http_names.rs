//! The resolver of [`crate::resolve`] for HTTP clients. Their library's own one asks a public
//! nameserver of its choice where the machine has none, and a nameserver about names that
//! `/etc/hosts` has.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Give it to `ClientBuilder::dns_resolver`.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpNames;

impl Resolve for HttpNames {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The client puts the port in.
            let addresses = crate::resolve(name.as_str(), 0).await?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

//! Removes leftovers of interrupted snapshots, and of deleted ones that were still in use.
//!
//! ```text
//!  flattening, ended by a crash       --> the helper container of that instance
//!  snapshot deleted while a container of another VPS was made from it
//!                                     --> an image under another name, when the last container goes
//!  flattened, and what images were built on --> an image without a name
//! ```
//!
//! An image of ours without a name cannot be asked for by anything any more, so the engine's own
//! pruning, which spares what containers and other images are built on, removes just these.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bollard::query_parameters::PruneImagesOptionsBuilder;
use kohakuriver_model::InstanceId;
use tokio::sync::{RwLock, RwLockReadGuard};

use super::client::Engine;
use super::snapshot::{self, LABEL_DEPTH};
use crate::backend::BackendError;

/// The leftovers that may exist. After a start of the runner that is everything.
#[derive(Debug)]
pub struct Leftovers {
    /// Instances that have no helper container.
    cleared: Mutex<HashSet<InstanceId>>,
    /// A container or a name of an image has gone since images without a name were pruned.
    images: AtomicBool,
    /// A commit makes its image first and names it then; pruning in between would remove it.
    committing: RwLock<()>,
}

impl Default for Leftovers {
    fn default() -> Self {
        Self {
            cleared: Mutex::default(),
            images: AtomicBool::new(true),
            committing: RwLock::default(),
        }
    }
}

impl Leftovers {
    /// A snapshot of the instance is made while the guard is held.
    pub async fn commit(&self, id: InstanceId) -> RwLockReadGuard<'_, ()> {
        self.cleared().remove(&id);
        self.images.store(true, Ordering::Relaxed);
        self.committing.read().await
    }

    /// A container or the name of an image goes.
    pub fn expect_images(&self) {
        self.images.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// The engine is away or refuses; may be repeated.
    pub async fn clear(&self, engine: &Engine, id: InstanceId) -> Result<(), BackendError> {
        if !self.cleared().contains(&id) {
            snapshot::remove_helper(engine, id).await?;
            self.cleared().insert(id);
        }
        // While a snapshot is made this waits for its instance to rest.
        let Ok(_turn) = self.committing.try_write() else { return Ok(()) };
        if self.images.swap(false, Ordering::Relaxed) {
            let pruned = match snapshot::delete_unused(engine).await {
                Ok(()) => prune(engine).await,
                Err(error) => Err(error),
            };
            if pruned.is_err() {
                self.expect_images();
            }
            return pruned;
        }
        Ok(())
    }

    fn cleared(&self) -> MutexGuard<'_, HashSet<InstanceId>> {
        self.cleared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn prune(engine: &Engine) -> Result<(), BackendError> {
    let docker = engine.patient().await?;
    let filters = HashMap::from([
        ("dangling".to_owned(), vec!["true".to_owned()]),
        ("label".to_owned(), vec![LABEL_DEPTH.to_owned()]),
    ]);
    let options = PruneImagesOptionsBuilder::default().filters(&filters).build();
    match docker.prune_images(Some(options)).await {
        Ok(pruned) => {
            let images = pruned.images_deleted.unwrap_or_default().len();
            if images > 0 {
                tracing::info!(
                    images,
                    "parts of deleted snapshots that nothing uses any more removed"
                );
            }
            Ok(())
        }
        Err(error) => Err(engine.refused("clear away old snapshots of", error)),
    }
}

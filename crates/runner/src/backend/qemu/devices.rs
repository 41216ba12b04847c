//! The node's GPUs for VMs: attached before QEMU starts, released when it is gone.
//!
//! `kohakuriver_vm::vfio` binds them; the inventory identifies them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kohakuriver_model::{GpuRef, InstanceId};
use kohakuriver_vm::vfio::{Vfio, VfioError};
use nix::unistd::{Uid, chown};

use crate::backend::BackendError;
use crate::inventory::gpu::{self, FindError};

#[derive(Clone, Debug)]
pub struct Devices {
    data: PathBuf,
    vfio: Arc<Vfio>,
}

impl Devices {
    pub fn new(data: &Path) -> Self {
        Self { data: data.to_owned(), vfio: Arc::new(gpu::devices(data)) }
    }

    /// The arguments of QEMU, which runs as `user`.
    pub async fn take(
        &self,
        id: InstanceId,
        gpus: &[GpuRef],
        user: Option<u32>,
    ) -> Result<Vec<String>, BackendError> {
        if gpus.is_empty() {
            return Ok(Vec::new());
        }
        let gpus = gpus.to_vec();
        self.wait(move |this| this.take_now(id, &gpus, user)).await
    }

    pub async fn release(&self, id: InstanceId) -> Result<(), BackendError> {
        self.wait(move |this| this.vfio.give_back(id).map_err(|e| refused(&e))).await
    }

    /// Releases devices of VMs that are gone. Returns `false` if some are left.
    pub async fn repair(&self, living: &[InstanceId]) -> bool {
        let living: BTreeSet<InstanceId> = living.iter().copied().collect();
        let outcome = self.wait(move |this| Ok(this.vfio.repair(&living))).await;
        let Ok(errors) = outcome else { return false };
        for error in &errors {
            let error = with_cause(error);
            tracing::error!(error, "cannot release the GPUs of an ended VM");
        }
        errors.is_empty()
    }

    fn take_now(
        &self,
        id: InstanceId,
        gpus: &[GpuRef],
        user: Option<u32>,
    ) -> Result<Vec<String>, BackendError> {
        let places = gpu::places(&self.data, &self.vfio, gpus).map_err(|error| match error {
            FindError::Inspect(error) => refused(&error),
            FindError::Gone(_) => BackendError::NoGpu { reason: error.to_string() },
        })?;
        let given = self.vfio.take(id, &places).map_err(|error| refused(&error))?;
        for node in user.iter().flat_map(|_| &given.nodes) {
            if let Err(error) = chown(node, user.map(Uid::from_raw), None) {
                let reason = format!("{} cannot be given to QEMU: {error}", node.display());
                if let Err(error) = self.vfio.give_back(id) {
                    tracing::error!(task.id = %id, error = with_cause(&error), "cannot release GPUs");
                }
                return Err(BackendError::NoGpu { reason });
            }
        }
        Ok(given.arguments)
    }

    /// The kernel takes its time with drivers.
    async fn wait<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.unwrap_or_else(|error| Err(BackendError::NoGpu { reason: error.to_string() }))
    }
}

fn refused(error: &VfioError) -> BackendError {
    BackendError::NoGpu { reason: with_cause(error) }
}

fn with_cause(error: &VfioError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

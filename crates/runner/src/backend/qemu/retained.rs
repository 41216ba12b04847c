//! Lists the files of VMs on the node: base images, and each VM's own files.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use kohakuriver_model::{FailureCode, InstanceId};
use kohakuriver_runner_link::protocol::{self, NodeReply, VmImage};

use super::QemuBackend;

/// File names reported per VM; it has a handful.
const MOST_FILES: usize = 50;

impl QemuBackend {
    pub(super) fn list_images(&self) -> NodeReply {
        let images = match self.shared.images.list() {
            Ok(listing) => listing.images,
            Err(error) => {
                return NodeReply::Failed {
                    code: FailureCode::ImageUnavailable,
                    message: error.to_string(),
                    hint: error.hint(),
                };
            }
        };
        let listed = images.into_iter().map(|image| VmImage {
            file: format!("{}/{}", image.name, kohakuriver_vm::command::DISK),
            name: image.name,
            size_bytes: image.size_bytes,
            virtual_bytes: image.meta.virtual_bytes,
            modified_ms: i64::try_from(image.modified_ms).unwrap_or(i64::MAX),
        });
        let dir = self.shared.images.dir().display().to_string();
        NodeReply::VmImages { dir, images: listed.collect() }
    }

    /// Lists one VM's own files; files shared with others are not counted.
    pub(super) fn retained_of(&self, task_id: InstanceId) -> io::Result<protocol::Machine> {
        let dir = self.dir(task_id);
        let (mut disk_bytes, mut files) = (0, Vec::new());
        for entry in fs::read_dir(dir.path())? {
            let entry = entry?;
            let about = entry.metadata()?;
            if about.is_file() && about.nlink() == 1 {
                disk_bytes += about.blocks() * 512;
            }
            files.push(entry.file_name().to_string_lossy().into_owned());
        }
        files.sort_unstable();
        files.truncate(MOST_FILES);
        let process =
            dir.started().map(|(process, _)| process).filter(|process| process.is_alive());
        let pid = process.and_then(|process| u32::try_from(process.pid).ok());
        Ok(protocol::Machine { task_id, disk_bytes, files, pid, known: false })
    }
}

//! Detects files on an instance's disk that would make the engine hang.
//!
//! At a start the engine reads users and groups from the container's disk. Where one of these files
//! is a named pipe, it waits in there for ever: for the container all acts stop, its own removal
//! included, and for the whole engine the removal of images. Root in a VPS can make such a file, and
//! so can an image. So they are looked at before a start, while nothing in the container can change
//! them.

use bollard::Docker;
use bollard::query_parameters::ContainerArchiveInfoOptionsBuilder;
use kohakuriver_model::InstanceId;

use super::client::{Engine, status};
use super::container;
use crate::backend::BackendError;

const READ_BY_THE_ENGINE: [&str; 2] = ["/etc/passwd", "/etc/group"];
/// Links that are followed; the engine itself gives up later.
const MOST_LINKS: usize = 16;
/// Room for tens of thousands of users.
const LARGEST: i64 = 4 << 20;
/// The bits of Go's `fs.FileMode` that say what a file is: none for a plain one.
const LINK: u32 = 1 << 27;
const DIRECTORY: u32 = 1 << 31;
const OTHER: u32 = 1 << 26 | 1 << 25 | 1 << 24 | 1 << 21 | 1 << 19;

/// Looks at an instance that does not run.
///
/// # Errors
/// The engine must not be asked to start it.
pub async fn disk(engine: &Engine, docker: &Docker, id: InstanceId) -> Result<(), BackendError> {
    for file in READ_BY_THE_ENGINE {
        let mut path = file.to_owned();
        for _ in 0..MOST_LINKS {
            let options = ContainerArchiveInfoOptionsBuilder::default().path(&path).build();
            let found =
                docker.get_container_archive_info(&container::name(id), Some(options)).await;
            let found = match found {
                Ok(found) => found,
                // Neither is a reason not to start.
                Err(error) if matches!(status(&error), Some(400 | 404)) => break,
                Err(error) => return Err(engine.refused("look at", error)),
            };
            match judge(found.file_mode, found.size) {
                Verdict::Fine => break,
                Verdict::Link => path = found.link_target,
                Verdict::Harmful => {
                    return Err(BackendError::NotAllowed {
                        reason: format!(
                            "{file} on its disk is no plain file of a usual size, and the engine would never be done with it"
                        ),
                        hint: "restore a snapshot of it, or delete it".to_owned(),
                    });
                }
            }
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Link,
    Harmful,
}

fn judge(mode: u32, size: i64) -> Verdict {
    if mode & LINK != 0 {
        return Verdict::Link;
    }
    // A directory cannot be read, and the engine says so.
    let is_harmful = mode & OTHER != 0 || (mode & DIRECTORY == 0 && size > LARGEST);
    if is_harmful { Verdict::Harmful } else { Verdict::Fine }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_of_usual_size_are_read() {
        assert_eq!(judge(0o644, 1000), Verdict::Fine);
        assert_eq!(judge(DIRECTORY | 0o755, i64::MAX), Verdict::Fine);
        assert_eq!(judge(LINK | 0o777, 11), Verdict::Link);
        assert_eq!(judge(0o644, 1 << 40), Verdict::Harmful);
        for kind in [25, 24, 26, 21] {
            assert_eq!(judge(1 << kind | 0o644, 0), Verdict::Harmful, "{kind}");
        }
    }
}

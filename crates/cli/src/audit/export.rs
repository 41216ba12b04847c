//! `kohakuriver audit export`

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::context::Context;
use crate::error::CommandError;
use crate::files;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver audit export audit.ndjson
  kohakuriver audit export | gzip > audit.ndjson.gz")]
pub struct ExportArgs {
    /// File to create; it must not exist yet [default: standard output].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub async fn run(context: &Context, args: &ExportArgs) -> Result<(), CommandError> {
    let Some(path) = args.file.as_deref().filter(|path| path.as_os_str() != "-") else {
        let mut answer = context.api.export_audit().await?;
        while let Some(block) = context.api.more(&mut answer).await? {
            context.out.block(&block);
        }
        return Ok(());
    };
    if path.exists() {
        return Err(CommandError::usage(format!(
            "{} exists already and is not overwritten",
            path.display()
        ))
        .hint("name another file"));
    }
    let mut answer = context.api.export_audit().await?;
    let mut part = Part::create(path)?;
    while let Some(block) = context.api.more(&mut answer).await? {
        part.write(&block)?;
    }
    let lines = part.finish()?;
    if !context.out.json {
        let entries = if lines == 1 { "entry is" } else { "entries are" };
        context.out.line(format!("{lines} {entries} in {}", path.display()));
    }
    Ok(())
}

/// The file gets its name only once the log is complete.
struct Part<'a> {
    file: File,
    temporary: PathBuf,
    path: &'a Path,
    lines: u64,
    done: bool,
}

impl<'a> Part<'a> {
    fn create(path: &'a Path) -> Result<Self, CommandError> {
        let mut name = path.as_os_str().to_owned();
        name.push(".part");
        let temporary = PathBuf::from(name);
        // Whom it names is not for everybody's eyes.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|error| cannot(&temporary, &error))?;
        Ok(Self { file, temporary, path, lines: 0, done: false })
    }

    fn write(&mut self, block: &[u8]) -> Result<(), CommandError> {
        self.file.write_all(block).map_err(|error| cannot(&self.temporary, &error))?;
        self.lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<u64, CommandError> {
        self.file
            .sync_all()
            .and_then(|()| fs::rename(&self.temporary, self.path))
            .map_err(|error| cannot(self.path, &error))?;
        self.done = true;
        Ok(self.lines)
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

fn cannot(path: &Path, error: &std::io::Error) -> CommandError {
    files::unwritable(path, error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn exported_log_is_renamed_when_complete_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        drop(Part::create(&path).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut part = Part::create(&path).unwrap();
        part.write(b"{}\n{").unwrap();
        assert!(!path.exists());
        part.write(b"}\n").unwrap();
        assert_eq!(part.finish().unwrap(), 2);
        assert_eq!(fs::read(&path).unwrap(), b"{}\n{}\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

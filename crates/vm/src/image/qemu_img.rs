//! `qemu-img`, told what a file is and never left to guess.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::ImageError;
use super::header::Format;
use super::program::{Program, QEMU_IMG, said};

/// A conversion that says nothing for so long hangs: it tells of each percent.
const STALL: Duration = Duration::from_secs(900);

/// What QEMU says of a file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Info {
    pub virtual_size: u64,
    #[serde(default)]
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    #[serde(default)]
    data_file: Option<String>,
    #[serde(default)]
    extents: Vec<Extent>,
}

/// A part of a VMDK.
#[derive(Debug, Deserialize)]
struct Extent {
    #[serde(default)]
    format: String,
}

impl Info {
    /// Why the file cannot be trusted to be only itself.
    pub fn leads_elsewhere(&self) -> Option<&'static str> {
        let data = self.format_specific.as_ref().map(|specific| &specific.data);
        if self.backing_filename.is_some() {
            return Some("it has a backing file");
        }
        if self.encrypted {
            return Some("it is encrypted");
        }
        let elsewhere = |data: &FormatData| {
            let flat = data.extents.iter().any(|extent| extent.format == "FLAT");
            data.data_file.is_some() || data.extents.len() > 1 || flat
        };
        data.is_some_and(elsewhere).then_some("its data are in other files")
    }
}

/// # Errors
/// It is damaged, or not what it was taken for.
pub async fn info(file: &Path, format: Format) -> Result<Info, ImageError> {
    let answer = Program::new(QEMU_IMG.what)
        .args(["info", "--output=json"])
        .arg(source(file, format)?)
        .output()
        .await?;
    parse(&answer)
}

/// How many bytes the qcow2 file made of it will have at most.
pub async fn measure(file: &Path, format: Format) -> Result<u64, ImageError> {
    #[derive(Deserialize)]
    struct Measured {
        required: u64,
    }
    let answer = Program::new(QEMU_IMG.what)
        .args(["measure", "--output=json", "-O", "qcow2"])
        .arg(source(file, format)?)
        .output()
        .await?;
    parse::<Measured>(&answer).map(|measured| measured.required)
}

/// Makes a qcow2 file that leads nowhere else.
pub async fn convert(
    from: &Path,
    format: Format,
    to: &Path,
    compress: bool,
    report: &dyn Fn(u8),
) -> Result<(), ImageError> {
    let mut program = Program::new(QEMU_IMG.what).args(["convert", "-p", "-O", "qcow2"]);
    if compress {
        program = program.args(["-c", "-o", "compression_type=zstd"]);
    }
    let mut command = program.arg(source(from, format)?).arg(plain(to)?).command();
    let failed = |error: std::io::Error| said(QEMU_IMG.what, error.to_string().as_bytes());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let errors = child.stderr.take();
    if let Some(stdout) = child.stdout.take() {
        follow(stdout, report).await?;
    }
    let mut complaint = Vec::new();
    if let Some(stderr) = errors {
        // It complains in a few lines at most; the pipe holds them until here.
        stderr.take(64 << 10).read_to_end(&mut complaint).await.map_err(failed)?;
    }
    let status = child.wait().await.map_err(failed)?;
    if status.success() { Ok(()) } else { Err(said(QEMU_IMG.what, &complaint)) }
}

/// Reads `    (12.34/100%)\r` over and over.
async fn follow(mut stdout: impl AsyncRead + Unpin, report: &dyn Fn(u8)) -> Result<(), ImageError> {
    let mut buffer = [0; 256];
    let mut word = String::new();
    loop {
        let read = match tokio::time::timeout(STALL, stdout.read(&mut buffer)).await {
            Err(_) => return Err(said(QEMU_IMG.what, b"it makes no progress")),
            Ok(Ok(0) | Err(_)) => return Ok(()),
            Ok(Ok(read)) => read,
        };
        for byte in &buffer[..read] {
            match byte {
                b'(' => word.clear(),
                b'.' => {
                    if let Ok(percent) = word.parse::<u8>() {
                        report(percent.min(100));
                    }
                    word.clear();
                }
                byte if word.len() < 8 => word.push(char::from(*byte)),
                _ => {}
            }
        }
    }
}

/// Names a file as this format, on nothing else. Of the name itself nothing is interpreted
/// ("nbd:...", "fat:..."), since it is a value of an option.
fn source(file: &Path, format: Format) -> Result<String, ImageError> {
    let mut options = json!({
        "driver": format.driver(),
        "file": { "driver": "file", "filename": utf8(file)? },
    });
    match format {
        // Should there be one after all: it is not opened.
        Format::Qcow2 | Format::Vmdk => options["backing"] = serde_json::Value::Null,
        Format::Vhdx | Format::Raw => {}
    }
    Ok(format!("json:{options}"))
}

fn utf8(path: &Path) -> Result<&str, ImageError> {
    path.to_str().ok_or_else(|| {
        ImageError::refused(path.display().to_string(), "its name is not text (UTF-8)")
    })
}

/// Our own paths are absolute, so that no part of them can be taken for a protocol.
fn plain(path: &Path) -> Result<&str, ImageError> {
    debug_assert!(path.is_absolute());
    utf8(path)
}

fn parse<T: for<'a> Deserialize<'a>>(answer: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(answer).map_err(|error| {
        said(QEMU_IMG.what, format!("its answer cannot be read: {error}").as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn percents_are_read_from_the_endless_line() {
        let seen = Mutex::new(Vec::new());
        let text: &[u8] = b"    (0.00/100%)\r    (42.50/100%)\r    (100.00/100%)\r\n";
        follow(text, &|percent| seen.lock().unwrap().push(percent)).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), [0, 42, 100]);
    }

    #[tokio::test]
    async fn names_are_never_interpreted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["json:{}", "nbd:localhost:1", "a,b=c\"d", "fat:rw:x"] {
            let file = dir.path().join(name);
            std::fs::write(&file, vec![0; 1 << 20]).unwrap();
            let info = info(&file, Format::Raw).await.unwrap();
            assert_eq!(info.virtual_size, 1 << 20, "{name}");
            let to = dir.path().join("to.qcow2");
            convert(&file, Format::Raw, &to, false, &|_| {}).await.unwrap();
            assert!(measure(&to, Format::Qcow2).await.unwrap() > 0);
        }
    }
}

//! `kohakuriver qemu image`: base images in the local shared storage, without a host.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;

use kohakuriver_cli::{Fit, GlobalArgs, Grid, OnNode, Output, Progress, Tone, ago_ms};
use kohakuriver_model::spec::DEFAULT_VM_IMAGE;
use kohakuriver_model::{Memory, VmImageName};
use kohakuriver_vm::image::{
    Create, DirectBoot, Firmware, Image, ImageError, ImageMeta, ImageStore, Import, Source,
};
use serde::Serialize;

use crate::exit::{Exit, FAILED, INTERRUPTED, NOT_READY, USAGE};
use crate::{host, paths, signals};

#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Build an image from the distribution's packages.
    Create(CreateArgs),
    /// Import an image from a disk file or a URL.
    Import(ImportArgs),
    /// List images.
    List(ListArgs),
    /// Delete images; virtual machines created from them are not affected.
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kohakuriver qemu image create                                the default image of 'vps create'
  kohakuriver qemu image create --name debian-13               a release's name selects that release
  kohakuriver qemu image create --name lab --suite bookworm
  kohakuriver qemu image create --name debian-12 --replace     the same, with today's packages

The command needs root and a mirror of the distribution, and takes about two minutes.")]
pub struct CreateArgs {
    /// Name of the image.
    #[arg(short, long, value_name = "NAME", default_value = DEFAULT_VM_IMAGE)]
    name: VmImageName,
    /// Codename of the release to build [default: the name's, or this computer's release].
    #[arg(long, value_name = "CODENAME")]
    suite: Option<String>,
    /// Replace an existing image of that name.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kohakuriver qemu image import debian-12-generic-amd64.qcow2 --name debian-generic
  kohakuriver qemu image import https://example.org/noble.img --name noble --sha256 5da2...
  kohakuriver qemu image import tiny.raw --name tiny --no-agent --kernel vmlinuz --initrd initrd

The disk can be qcow2, raw, VMDK or VHDX. For an https:// URL --sha256 is strongly advised: it proves \
that the file is its publisher's. For http:// it is required.")]
pub struct ImportArgs {
    /// Local file, or http(s) URL.
    #[arg(value_name = "FILE|URL")]
    source: Source,
    /// Name of the image.
    #[arg(short, long, value_name = "NAME")]
    name: VmImageName,
    /// SHA-256 of the file, as published.
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Boot with UEFI firmware instead of a BIOS.
    #[arg(long, conflicts_with = "kernel")]
    uefi: bool,
    /// Mark the image as unable to run the agent (no cloud-init, no systemd): serial console only.
    #[arg(long)]
    no_agent: bool,
    /// Kernel to start instead of the disk's boot loader.
    #[arg(long, value_name = "FILE", requires = "initrd")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk of the kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Arguments of the kernel.
    #[arg(long, value_name = "ARGUMENTS", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// Replace an existing image of that name.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kohakuriver qemu image list
  kohakuriver qemu image list --json | jq -r '.[].name'
  kohakuriver qemu image list --node gpu-01")]
pub struct ListArgs {
    #[command(flatten)]
    pub on: OnNode,
    #[command(flatten)]
    places: Places,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  kohakuriver qemu image delete debian-11
  kohakuriver qemu image delete old-1 old-2 --yes")]
pub struct DeleteArgs {
    /// Names of images.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<VmImageName>,
    /// Skip the confirmation.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    places: Places,
}

/// The location of images, with the same options as the runner's.
#[derive(Debug, clap::Args)]
struct Places {
    /// Data directory [default: /var/lib/kohakuriver as root].
    #[arg(long, value_name = "DIR", env = "KOHAKURIVER_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Storage shared by all nodes; images are in its vm-images [default: DATA_DIR/shared].
    #[arg(long, value_name = "DIR", env = "KOHAKURIVER_SHARED_DIR")]
    shared_dir: Option<PathBuf>,
}

impl Places {
    fn data(&self) -> PathBuf {
        paths::absolute(paths::data_dir(self.data_dir.clone()))
    }

    fn store(&self) -> ImageStore {
        let shared = self.shared_dir.clone().map(paths::absolute);
        ImageStore::new(shared.unwrap_or_else(|| self.data().join("shared")).join("vm-images"))
    }
}

/// An image in `--json` output.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    name: &'a VmImageName,
    #[serde(flatten)]
    meta: Option<&'a ImageMeta>,
    size_bytes: Option<u64>,
    modified_ms: Option<u64>,
    /// The reason why it cannot be used.
    error: Option<String>,
}

impl<'a> Shown<'a> {
    fn whole(image: &'a Image) -> Self {
        Self {
            name: &image.name,
            meta: Some(&image.meta),
            size_bytes: Some(image.size_bytes),
            modified_ms: Some(image.modified_ms),
            error: None,
        }
    }

    fn broken(name: &'a VmImageName, error: &ImageError) -> Self {
        let error = Some(error.to_string());
        Self { name, meta: None, size_bytes: None, modified_ms: None, error }
    }
}

pub fn run(command: ImageCommand, global: &GlobalArgs) -> Result<(), Exit> {
    let out = Output::new(global.json);
    match command {
        ImageCommand::Create(args) => create(args, out),
        ImageCommand::Import(args) => import(args, out),
        ImageCommand::List(args) => list(&args, out),
        ImageCommand::Delete(args) => delete(&args, out),
    }
}

fn create(args: CreateArgs, out: Output) -> Result<(), Exit> {
    let store = args.places.store();
    let create = Create {
        name: args.name,
        suite: args.suite,
        replace: args.replace,
        scratch: args.places.data().join("vm-build"),
    };
    let progress = progress(out);
    let report = |step: &str, percent: Option<u8>| show(&progress, step, percent);
    host::runtime()?.block_on(or_interrupted(create.run(&store, &report)))?;
    drop(progress);
    made(&store, &create.name, out)
}

fn import(args: ImportArgs, out: Output) -> Result<(), Exit> {
    let store = args.places.store();
    let kernel = match (args.kernel, args.initrd) {
        (Some(kernel), Some(initrd)) => {
            Some(DirectBoot { kernel, initrd, cmdline: args.append.unwrap_or_default() })
        }
        // clap requires both or neither.
        (Some(_), None) | (None, Some(_)) | (None, None) => None,
    };
    let import = Import {
        name: args.name,
        source: args.source,
        sha256: args.sha256,
        firmware: if args.uefi { Firmware::Uefi } else { Firmware::Bios },
        kernel,
        agent: !args.no_agent,
        replace: args.replace,
    };
    let secure = matches!(&import.source, Source::Url(url) if url.starts_with("https://"));
    if secure && import.sha256.is_none() {
        out.note("note: without --sha256 the file is not verified");
    }
    let progress = progress(out);
    let report = |step: &str, percent: Option<u8>| show(&progress, step, percent);
    host::runtime()?.block_on(or_interrupted(import.run(&store, &report)))?;
    drop(progress);
    made(&store, &import.name, out)
}

fn list(args: &ListArgs, out: Output) -> Result<(), Exit> {
    let store = args.places.store();
    let listing = store.list().map_err(|error| exit(&error))?;
    if out.json {
        let whole = listing.images.iter().map(Shown::whole);
        let broken = listing.broken.iter().map(|(name, error)| Shown::broken(name, error));
        out.json(&whole.chain(broken).collect::<Vec<_>>());
        return Ok(());
    }
    if listing.images.is_empty() && listing.broken.is_empty() {
        out.note(format!("there is no VM image in {}", store.dir().display()));
        out.hint("create one: kohakuriver qemu image create");
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("NAME", Fit::Whole),
        ("VIRTUAL SIZE", Fit::Whole),
        ("ACTUAL SIZE", Fit::Whole),
        ("MODIFIED", Fit::Cut),
    ]);
    for image in &listing.images {
        let cells = [
            image.name.to_string(),
            size(image.meta.virtual_bytes),
            size(image.size_bytes),
            ago_ms(image.modified_ms),
        ];
        grid.row(cells.map(|cell| (Tone::Plain, cell)).to_vec());
    }
    for (name, _) in &listing.broken {
        let none = || (Tone::Plain, String::new());
        grid.row(vec![
            (Tone::Plain, name.to_string()),
            none(),
            none(),
            (Tone::Bad, "damaged".to_owned()),
        ]);
    }
    grid.print(out);
    for (_, error) in &listing.broken {
        out.note(format!("note: {error}"));
        if let Some(hint) = error.hint() {
            out.hint(hint);
        }
    }
    Ok(())
}

fn delete(args: &DeleteArgs, out: Output) -> Result<(), Exit> {
    let store = args.places.store();
    // Checks all names before the first deletion, in case one is mistyped.
    for name in &args.names {
        if !store.has(name) {
            // The error lists the existing images.
            store.get(name).map_err(|error| exit(&error))?;
        }
    }
    if !args.yes {
        let names: Vec<&str> = args.names.iter().map(VmImageName::as_str).collect();
        let question = format!("Delete the VM image {}?", names.join(", "));
        match out.confirm(&question, "--yes") {
            Ok(true) => {}
            Ok(false) => return Err(Exit::new(FAILED, "nothing was deleted")),
            Err(failure) => {
                return Err(Exit::new(USAGE, failure.message).hint("confirm with --yes"));
            }
        }
    }
    for name in &args.names {
        store.delete(name).map_err(|error| exit(&error))?;
        if out.json {
            out.json_line(&serde_json::json!({ "name": name, "deleted": true }));
        } else {
            out.note(format!("deleted VM image {name}"));
        }
    }
    Ok(())
}

/// Prints a new image.
fn made(store: &ImageStore, name: &VmImageName, out: Output) -> Result<(), Exit> {
    let image = store.get(name).map_err(|error| exit(&error))?;
    if out.json {
        out.json(&Shown::whole(&image));
        return Ok(());
    }
    out.line(format!(
        "VM image {name}: a disk of {}, {} stored",
        size(image.meta.virtual_bytes),
        size(image.size_bytes)
    ));
    let ssh = if image.meta.agent { " --ssh" } else { "" };
    out.hint(format!("kohakuriver vps create --backend qemu --vm-image {name}{ssh}"));
    Ok(())
}

/// Runs the work until Ctrl-C, which drops it; dropping removes its partial files.
async fn or_interrupted(work: impl Future<Output = Result<(), ImageError>>) -> Result<(), Exit> {
    let shutdown = signals::shutdown().map_err(|error| Exit::from_error(FAILED, &error))?;
    tokio::select! {
        outcome = work => outcome.map_err(|error| exit(&error)),
        () = shutdown.cancelled() => {
            Err(Exit::new(INTERRUPTED, "interrupted; nothing was changed"))
        }
    }
}

fn exit(error: &ImageError) -> Exit {
    let code = match error {
        ImageError::MissingPrograms(_) | ImageError::NeedsRoot | ImageError::NoSpace { .. } => {
            NOT_READY
        }
        ImageError::NoChecksum { .. } => USAGE,
        ImageError::Unknown { .. }
        | ImageError::Broken { .. }
        | ImageError::Exists { .. }
        | ImageError::Refused { .. }
        | ImageError::Checksum { .. }
        | ImageError::Download { .. }
        | ImageError::Program { .. }
        | ImageError::Build { .. }
        | ImageError::Io { .. } => FAILED,
    };
    let exit = Exit::from_error(code, error);
    match error.hint() {
        Some(hint) => exit.hint(hint),
        None => exit,
    }
}

fn progress(out: Output) -> Mutex<Progress> {
    Mutex::new(Progress::new(out))
}

fn show(progress: &Mutex<Progress>, step: &str, percent: Option<u8>) {
    progress.lock().unwrap_or_else(PoisonError::into_inner).show(step, percent);
}

fn size(bytes: u64) -> String {
    Memory::from_bytes(bytes).to_string()
}

//! `kohakuriver vps keys`: the SSH keys that can log in to a VPS.

use std::io::Read;
use std::path::PathBuf;
use std::slice;

use clap_complete::ArgValueCandidates;
use kohakuriver_api::{SshKey, UpdateVps};

use super::act::{self, Act};
use super::vocabulary::with_list_hint;
use crate::complete;
use crate::context::Context;
use crate::error::CommandError;
use crate::files;
use crate::keys;
use crate::reference::VpsRef;
use crate::ui::{Fit, Grid, Tone};

#[derive(clap::Subcommand, Clone, Debug)]
pub enum KeysCommand {
    /// List the keys that can log in.
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Add keys, valid from the next login on.
    Add(AddArgs),
    /// Remove a key; open sessions stay open.
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(clap::Args, Clone, Debug)]
pub struct ListArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Keys in the image's own ~/.ssh/authorized_keys files can log in as well.

Examples:
  kohakuriver vps keys add web                              your own ~/.ssh/id_*.pub
  kohakuriver vps keys add web --public-key-file ann.pub
  kohakuriver vps keys add web --public-key-string \"$(cat bob.pub)\"
  curl -s https://example.org/ann.keys | kohakuriver vps keys add web --public-key-file -")]
pub struct AddArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// File of public keys; - reads standard input [default: all ~/.ssh/id_*.pub].
    #[arg(long, value_name = "PATH", conflicts_with = "public_key_string")]
    public_key_file: Option<PathBuf>,
    /// Text of the public key.
    #[arg(long, value_name = "TEXT")]
    public_key_string: Option<String>,
}

#[derive(clap::Args, Clone, Debug)]
pub struct RemoveArgs {
    /// Id or name of the VPS.
    #[arg(value_name = "VPS", add = ArgValueCandidates::new(complete::vps_all))]
    vps: VpsRef,
    /// Fingerprint or comment, from `vps keys list`, or the text of the public key.
    #[arg(value_name = "KEY", required = true)]
    keys: Vec<String>,
}

pub async fn run(context: &Context, command: KeysCommand) -> Result<(), CommandError> {
    match command {
        KeysCommand::List(args) => list(context, &args.vps).await,
        KeysCommand::Add(args) => add(context, &args).await,
        KeysCommand::Remove(args) => {
            let change = UpdateVps { remove_ssh_keys: Some(args.keys), ..UpdateVps::default() };
            act::run(context, Act::Update(&change), slice::from_ref(&args.vps), true).await
        }
    }
}

async fn list(context: &Context, vps: &VpsRef) -> Result<(), CommandError> {
    let keys = context.api.ssh_keys(vps.as_str()).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&keys);
        return Ok(());
    }
    if keys.is_empty() {
        context.out.note(format!("VPS {vps} accepts no keys except its image's own"));
        context.out.hint(format!("`kohakuriver vps keys add {vps}` adds yours"));
        return Ok(());
    }
    let columns = [("FINGERPRINT", Fit::Whole), ("TYPE", Fit::Cut), ("COMMENT", Fit::Cut)];
    let mut grid = Grid::new(&columns);
    for SshKey { fingerprint, algorithm, comment, .. } in keys {
        grid.row([fingerprint, algorithm, comment].map(|cell| (Tone::Plain, cell)).to_vec());
    }
    grid.print(context.out);
    Ok(())
}

async fn add(context: &Context, args: &AddArgs) -> Result<(), CommandError> {
    let text = match (&args.public_key_file, &args.public_key_string) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| {
                CommandError::usage(format!("standard input is not text: {error}"))
            })?;
            keys::public_keys(&text)?
        }
        (Some(path), _) => keys::public_key_file(path)?,
        (None, Some(text)) => keys::public_keys(text)?,
        (None, None) => {
            let found = keys::discover(&files::home()?.join(".ssh"));
            if found.is_empty() {
                return Err(CommandError::usage("no key found in ~/.ssh")
                    .hint("create one with ssh-keygen, or give one with --public-key-file"));
            }
            found.join("\n")
        }
    };
    let change = UpdateVps { add_ssh_keys: Some(text), ..UpdateVps::default() };
    act::run(context, Act::Update(&change), slice::from_ref(&args.vps), true).await
}

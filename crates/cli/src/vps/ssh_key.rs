//! The options for a new VPS's SSH keys.

use std::path::{Path, PathBuf};

use kohakuriver_api::CreateVps;

use crate::error::CommandError;
use crate::keys::{self, MadeKey};

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "SSH")]
pub struct KeyArgs {
    /// Enable SSH with your keys: all ~/.ssh/id_*.pub, or a new key if there are none.
    #[arg(long)]
    ssh: bool,
    /// Enable SSH with the image's own keys or password only.
    #[arg(long, group = "key")]
    no_ssh_key: bool,
    /// Enable SSH with a new key, generated on this computer.
    #[arg(long, group = "key")]
    gen_ssh_key: bool,
    /// Enable SSH with the public keys in this file.
    #[arg(long, group = "key", value_name = "PATH")]
    public_key_file: Option<PathBuf>,
    /// Enable SSH with this public key.
    #[arg(long, group = "key", value_name = "TEXT")]
    public_key_string: Option<String>,
    /// File for the new private key [default: ~/.ssh/id-kohakuriver-ID].
    #[arg(long, value_name = "PATH", conflicts_with_all = ["no_ssh_key", "public_key_file", "public_key_string"])]
    key_out_file: Option<PathBuf>,
}

impl KeyArgs {
    /// Adds the keys to the request. Returns a newly generated pair; its private key stays on this
    /// computer.
    pub fn apply(
        &self,
        ssh_folder: &Path,
        body: &mut CreateVps,
    ) -> Result<Option<MadeKey>, CommandError> {
        let mut made = None;
        let public = if self.no_ssh_key {
            body.ssh_key_mode = "none".to_owned();
            return Ok(None);
        } else if let Some(path) = &self.public_key_file {
            keys::public_key_file(path)?
        } else if let Some(text) = &self.public_key_string {
            keys::public_keys(text)?
        } else if self.gen_ssh_key || self.key_out_file.is_some() {
            let key = MadeKey::create(ssh_folder, self.key_out_file.as_deref())?;
            made.insert(key).public.clone()
        } else if self.ssh {
            match keys::discover(ssh_folder) {
                found if found.is_empty() => {
                    made.insert(MadeKey::create(ssh_folder, None)?).public.clone()
                }
                found => found.join("\n"),
            }
        } else {
            body.ssh_key_mode = "disabled".to_owned();
            return Ok(None);
        };
        body.ssh_key_mode = "upload".to_owned();
        body.ssh_public_key = Some(public);
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(args: &KeyArgs) -> (CreateVps, bool) {
        let folder = tempfile::tempdir().unwrap();
        let mut body = CreateVps::default();
        let made = args.apply(folder.path(), &mut body).unwrap();
        (body, made.is_some())
    }

    #[test]
    fn options_decide_the_key_mode() {
        let none = KeyArgs::default();
        assert_eq!(applied(&none).0.ssh_key_mode, "disabled");
        let (body, made) = applied(&KeyArgs { ssh: true, ..none.clone() });
        assert_eq!((body.ssh_key_mode.as_str(), made), ("upload", true));
        assert!(body.ssh_public_key.unwrap().starts_with("ssh-ed25519 "));
        let (body, made) = applied(&KeyArgs { no_ssh_key: true, ssh: true, ..none });
        assert_eq!((body.ssh_key_mode.as_str(), made), ("none", false));
    }
}

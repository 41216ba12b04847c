//! `kohakuriver auth key`: SSH keys that the gateway accepts for an account.

use std::io::Read;
use std::path::PathBuf;

use kohakuriver_api::UserKey;

use super::again::{self, AgainArgs};
use crate::api::Session;
use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::files;
use crate::keys;
use crate::ui::{Fit, Grid, Tone};
use crate::vps::print_json;

/// More than all keys of one user.
const LONGEST: u64 = 256 * 1024;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum KeyCommand {
    /// Register SSH keys for the gateway.
    Add(AddArgs),
    /// List your keys.
    #[command(visible_alias = "ls")]
    List,
    /// Remove a key and end the sessions it opened.
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
These keys say who you are to the gateway, for ssh -J, scp and VS Code; `kohakuriver ssh` needs
none of them. Which keys open a VPS is another matter: `kohakuriver vps keys`.

Examples:
  kohakuriver auth key add                     your own ~/.ssh/id_*.pub
  kohakuriver auth key add laptop.pub
  ssh-add -L | kohakuriver auth key add -

A key has no end, so it takes more than a token that ends, such as this machine's, to add one: you
are asked for your password.")]
pub struct AddArgs {
    /// File of public keys; - reads standard input [default: all ~/.ssh/id_*.pub].
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    again: AgainArgs,
}

#[derive(clap::Args, Clone, Debug)]
pub struct RemoveArgs {
    /// Ids, fingerprints or comments, as `auth key list` prints them.
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
}

pub async fn run(context: &Context, command: KeyCommand) -> Result<(), CommandError> {
    match command {
        KeyCommand::Add(args) => add(context, &args).await,
        KeyCommand::List => list(context).await,
        KeyCommand::Remove(args) => remove(context, &args).await,
    }
}

async fn add(context: &Context, args: &AddArgs) -> Result<(), CommandError> {
    let text = match &args.file {
        Some(path) if path.as_os_str() == "-" && args.again.password_stdin => {
            return Err(CommandError::usage("standard input is either keys or a password")
                .hint("name a file of public keys"));
        }
        Some(path) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().take(LONGEST).read_to_string(&mut text).map_err(|error| {
                CommandError::usage(format!("standard input is no text: {error}"))
            })?;
            keys::public_keys(&text)?
        }
        Some(path) => keys::public_key_file(path)?,
        None => {
            let found = keys::discover(&files::home()?.join(".ssh"));
            if found.is_empty() {
                return Err(CommandError::usage("there is no key in ~/.ssh")
                    .hint("make one with ssh-keygen, or name a file of public keys"));
            }
            found.join("\n")
        }
    };
    let mut added = Vec::new();
    let mut session = None;
    let outcome = register(context, args, &text, &mut session, &mut added).await;
    if let Some(session) = &session {
        again::end(context, session).await;
    }
    outcome?;
    if context.out.json {
        print_json(context, added.len(), added);
    }
    Ok(())
}

/// Registers a key for each line; opens a session where this machine's token is not sufficient.
async fn register(
    context: &Context,
    args: &AddArgs,
    text: &str,
    session: &mut Option<Session>,
    added: &mut Vec<serde_json::Value>,
) -> Result<(), CommandError> {
    for line in text.lines() {
        let key = match session {
            Some(session) => context.api.add_user_key_of(session, line).await?,
            None => match context.api.add_user_key(line).await {
                Err(failure) if failure.kind == Kind::LogInAgain => {
                    let begun = session.insert(again::log_in(context, &args.again).await?);
                    context.api.add_user_key_of(begun, line).await?
                }
                added => added?,
            },
        };
        if !context.out.json {
            context.out.line(format!("{} is yours now", key.fingerprint));
        }
        added.push(serde_json::to_value(&key).unwrap_or_default());
    }
    Ok(())
}

async fn list(context: &Context) -> Result<(), CommandError> {
    let keys = context.api.user_keys().await?;
    if context.out.json {
        context.out.json(&keys);
        return Ok(());
    }
    if keys.is_empty() {
        context.out.note("you have no keys here");
        context.out.hint("`kohakuriver auth key add` adds those of ~/.ssh");
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("ID", Fit::Whole),
        ("FINGERPRINT", Fit::Whole),
        ("TYPE", Fit::Cut),
        ("COMMENT", Fit::Cut),
    ]);
    for UserKey { id, fingerprint, kind, comment, .. } in keys {
        let row = [id.to_string(), fingerprint, kind, comment];
        grid.row(row.map(|cell| (Tone::Plain, cell)).to_vec());
    }
    grid.print(context.out);
    Ok(())
}

async fn remove(context: &Context, args: &RemoveArgs) -> Result<(), CommandError> {
    let known = context.api.user_keys().await?;
    let mut found: Vec<&UserKey> = Vec::new();
    for word in &args.keys {
        let key = find(&known, word)?;
        if !found.iter().any(|other| other.id == key.id) {
            found.push(key);
        }
    }
    let mut answers = Vec::new();
    for key in found {
        answers.push(context.api.remove_user_key(key.id).await?);
        if !context.out.json {
            context.out.line(format!("{} is removed", key.fingerprint));
        }
    }
    if context.out.json {
        print_json(context, args.keys.len(), answers);
    }
    Ok(())
}

fn find<'a>(known: &'a [UserKey], word: &str) -> Result<&'a UserKey, CommandError> {
    let is_meant = |key: &&UserKey| {
        key.fingerprint == word
            || key.fingerprint.strip_prefix("SHA256:") == Some(word)
            || key.id.to_string() == word
            || key.comment == word && !word.is_empty()
    };
    let found: Vec<&UserKey> = known.iter().filter(is_meant).collect();
    match found.as_slice() {
        [only] => Ok(only),
        [] => Err(CommandError::request(format!("you have no key '{word}'"))
            .hint("`kohakuriver auth key list` shows your SSH keys")),
        several => {
            let names: Vec<_> = several.iter().map(|key| key.fingerprint.as_str()).collect();
            Err(CommandError::request(format!("several of your keys are '{word}'"))
                .hint(format!("name it by its fingerprint: {}", names.join(" "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_what_the_list_shows() {
        let key = |id, fingerprint: &str, comment: &str| UserKey {
            id,
            fingerprint: fingerprint.to_owned(),
            comment: comment.to_owned(),
            kind: "ssh-ed25519".to_owned(),
            line: String::new(),
            created_at: String::new(),
        };
        let known =
            [key(1, "SHA256:aa", "a@b"), key(2, "SHA256:bb", "a@b"), key(3, "SHA256:c", "")];
        assert_eq!(find(&known, "SHA256:bb").unwrap().id, 2);
        assert_eq!(find(&known, "c").unwrap().id, 3);
        assert_eq!(find(&known, "1").unwrap().id, 1);
        assert!(find(&known, "a@b").unwrap_err().hint.unwrap().contains("SHA256:aa SHA256:bb"));
        assert!(find(&known, "").is_err());
    }
}

//! `kohakuriver completion`

use clap_complete::env::Shells;

use crate::complete::{PROGRAM, VARIABLE};
use crate::error::CommandError;
use crate::ui::Output;

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
VPSes and nodes complete by name, asked from the host as you press Tab.

Examples:
  echo 'source <(kohakuriver completion bash)' >> ~/.bashrc
  echo 'source <(kohakuriver completion zsh)' >> ~/.zshrc
  kohakuriver completion fish > ~/.config/fish/completions/kohakuriver.fish")]
pub struct CompletionArgs {
    /// Shell: bash, zsh or fish.
    #[arg(value_parser = ["bash", "zsh", "fish"])]
    shell: String,
}

pub fn run(args: &CompletionArgs, out: Output) -> Result<(), CommandError> {
    let shells = Shells::builtins();
    let mut script = Vec::new();
    let written = shells
        .completer(&args.shell)
        .map(|shell| shell.write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script));
    match written {
        Some(Ok(())) => out.raw(&script),
        Some(Err(_)) | None => {
            return Err(CommandError::usage(format!("there is no completion for {}", args.shell)));
        }
    }
    Ok(())
}

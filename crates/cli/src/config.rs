//! `kohakuriver config`

use std::collections::BTreeMap;

use crate::context::Context;
use crate::error::CommandError;
use crate::settings;
use crate::ui::{Fit, Grid, Tone};

#[derive(clap::Subcommand, Clone, Debug)]
pub enum ConfigCommand {
    /// Show every setting, its value and its source.
    #[command(after_help = "\
Examples:
  kohakuriver config show
  KOHAKURIVER_HOST=gpu-01 kohakuriver config show --json")]
    Show,
    /// Print the path of the configuration file.
    #[command(after_help = "\
Examples:
  kohakuriver config path
  echo 'host = \"gpu-01\"' > \"$(kohakuriver config path)\"")]
    Path,
}

pub fn run(context: &Context, command: &ConfigCommand) -> Result<(), CommandError> {
    match command {
        ConfigCommand::Show => show(context),
        ConfigCommand::Path => return path(context),
    }
    Ok(())
}

fn show(context: &Context) {
    let settings = &context.settings;
    let rows = [
        ("host", settings.host.value.to_string(), &settings.host.source),
        ("port", settings.port.value.to_string(), &settings.port.source),
        (
            "ssh_proxy_port",
            settings.ssh_proxy_port.value.to_string(),
            &settings.ssh_proxy_port.source,
        ),
    ];
    if context.out.json {
        let all: BTreeMap<_, _> = rows
            .iter()
            .map(|(name, value, source)| {
                // Ports are numbers to programs too.
                let value = value
                    .parse::<u16>()
                    .map_or_else(|_| serde_json::json!(value), |number| serde_json::json!(number));
                (*name, serde_json::json!({ "value": value, "source": source.to_string() }))
            })
            .collect();
        context.out.json(&all);
        return;
    }
    let columns = [("SETTING", Fit::Whole), ("VALUE", Fit::Whole), ("SOURCE", Fit::Cut)];
    let mut grid = Grid::new(&columns);
    for (name, value, source) in rows {
        let plain = |text: String| (Tone::Plain, text);
        grid.row(vec![plain(name.to_owned()), plain(value), plain(source.to_string())]);
    }
    grid.print(context.out);
}

fn path(context: &Context) -> Result<(), CommandError> {
    let Some(path) = settings::config_path(&|name| std::env::var(name).ok()) else {
        return Err(CommandError::usage("there is no home directory for the configuration file")
            .hint("set HOME, or KOHAKURIVER_CONFIG to the file's path"));
    };
    if context.out.json {
        context.out.json(&serde_json::json!({ "path": path, "exists": path.exists() }));
    } else {
        context.out.line(path.display().to_string());
    }
    Ok(())
}

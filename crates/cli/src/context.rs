//! The arguments that all commands share.

use crate::GlobalArgs;
use crate::api::Api;
use crate::error::CommandError;
use crate::settings::Settings;
use crate::ui::Output;

/// Settings, output and the client of the host, which connects on first use.
#[derive(Debug)]
pub struct Context {
    pub settings: Settings,
    pub api: Api,
    pub out: Output,
}

impl Context {
    pub fn new(global: &GlobalArgs, out: Output) -> Result<Self, CommandError> {
        let settings = Settings::load(global, &|name| std::env::var(name).ok())?;
        let api = Api::new(&settings);
        Ok(Self { settings, api, out })
    }
}

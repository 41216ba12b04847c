//! Parsers for the options of a VPS.

use kohakuriver_model::memory::SMALLEST_LIMIT;
use kohakuriver_model::{ImageSource, Memory, Target};

/// The values of `--on-oom`.
pub const ON_OOM: [&str; 2] = ["end", "keep"];

pub fn target(text: &str) -> Result<Target, String> {
    text.parse::<Target>().map_err(|error| with_source(&error))
}

fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

pub fn memory(text: &str) -> Result<Memory, String> {
    let memory = text.parse::<Memory>().map_err(|error| error.to_string())?;
    if memory < SMALLEST_LIMIT {
        return Err(format!(
            "{memory} is too little memory for a container; the minimum is {SMALLEST_LIMIT}"
        ));
    }
    Ok(memory)
}

pub fn image(text: &str) -> Result<String, String> {
    ImageSource::registry(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

pub fn environment(text: &str) -> Result<String, String> {
    ImageSource::environment(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

pub fn variable(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let starts_well = key.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if !starts_well || !key.bytes().all(plain) || value.contains('\0') {
        return Err(format!("'{key}' is not the name of an environment variable"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

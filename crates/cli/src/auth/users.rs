//! `kohakuriver auth users`, and finding an account by its name.

use jiff::Timestamp;
use kohakuriver_api::User;

use crate::context::Context;
use crate::error::{CommandError, Kind};
use crate::ui::{Fit, Grid, Tone, ago};

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  kohakuriver auth users
  kohakuriver auth users --json | jq -r '.[] | select(.role == \"admin\").username'")]
pub struct UsersArgs {}

pub async fn run(context: &Context) -> Result<(), CommandError> {
    let users = context.api.users().await?;
    if context.out.json {
        context.out.json(&users);
    } else {
        grid(&users, Timestamp::now()).print(context.out);
    }
    Ok(())
}

fn grid(users: &[User], now: Timestamp) -> Grid {
    let mut grid = Grid::new(&[
        ("NAME", Fit::Whole),
        ("ROLE", Fit::Whole),
        ("STATE", Fit::Whole),
        ("LOG-IN", Fit::Cut),
        ("SHOWN AS", Fit::Cut),
        ("CREATED", Fit::Cut),
    ]);
    for user in users {
        let created = user.created_at.as_deref().map(|time| ago(time, now)).unwrap_or_default();
        grid.row(vec![
            (Tone::Plain, user.username.clone()),
            (Tone::Plain, user.role.clone()),
            state(user),
            (Tone::Plain, log_in(user).to_owned()),
            (Tone::Plain, user.display_name.clone().unwrap_or_default()),
            (Tone::Plain, created),
        ]);
    }
    grid
}

pub fn state(user: &User) -> (Tone, String) {
    match user.is_active {
        true => (Tone::Good, "active".to_owned()),
        false => (Tone::Bad, "disabled".to_owned()),
    }
}

pub fn log_in(user: &User) -> &'static str {
    if user.external { "OpenID" } else { "password" }
}

/// Finds an account by its name.
pub async fn find(context: &Context, name: &str) -> Result<User, CommandError> {
    let users = context.api.users().await?;
    let by_name = users.iter().position(|user| user.username == name);
    let by_id = || users.iter().position(|user| user.id.to_string() == name);
    match by_name.or_else(by_id).and_then(|at| users.into_iter().nth(at)) {
        Some(user) => Ok(user),
        None => Err(unknown(name)),
    }
}

fn unknown(name: &str) -> CommandError {
    let failure = CommandError::request(format!("there is no account '{name}'"))
        .hint("`kohakuriver auth users` shows all accounts");
    CommandError { kind: Kind::NotFound, ..failure }
}

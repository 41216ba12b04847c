//! `kohakuriver auth token`: API tokens of programs and of this command line.

use clap::builder::PossibleValuesParser;
use jiff::Timestamp;
use kohakuriver_api::{CreateToken, Token};

use super::ROLES;
use super::again::{self, AgainArgs};
use crate::context::Context;
use crate::credentials;
use crate::duration;
use crate::error::CommandError;
use crate::ui::{Fit, Grid, Tone, ago, until};
use crate::vps::print_json;

#[derive(clap::Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Create a token.
    Create(CreateArgs),
    /// List your tokens.
    #[command(visible_alias = "ls")]
    List,
    /// Revoke tokens.
    #[command(visible_alias = "rm")]
    Revoke(RevokeArgs),
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = "\
The token alone goes to standard output, and is never shown again. A program shows it as
KOHAKURIVER_TOKEN, or as `Authorization: Bearer TOKEN`.

Examples:
  kohakuriver auth token create backup --expires 90d
  kohakuriver auth token create dashboard --role viewer      looks, and no more
  kohakuriver auth token create ci --log-in                  outlasts this machine's log-in

A token that is made with a token, such as this machine's, is revoked when that one is.")]
pub struct CreateArgs {
    /// Name of the token.
    #[arg(value_name = "NAME")]
    name: String,
    /// Role of the token, at most yours [default: your role].
    #[arg(long, value_parser = PossibleValuesParser::new(ROLES))]
    role: Option<String>,
    /// Lifetime: 72h, 90d [default: until it is revoked].
    #[arg(long, value_name = "TIME", value_parser = duration::hours)]
    expires: Option<u32>,
    /// Log in again to create it, so that it does not end with this machine's token.
    #[arg(long)]
    log_in: bool,
    #[command(flatten)]
    again: AgainArgs,
}

#[derive(clap::Args, Clone, Debug)]
pub struct RevokeArgs {
    /// Ids or names, as `auth token list` prints them.
    #[arg(required = true, value_name = "TOKEN")]
    tokens: Vec<String>,
}

pub async fn run(context: &Context, command: TokenCommand) -> Result<(), CommandError> {
    match command {
        TokenCommand::Create(args) => create(context, args).await,
        TokenCommand::List => list(context).await,
        TokenCommand::Revoke(args) => revoke(context, &args).await,
    }
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), CommandError> {
    let body = CreateToken { name: args.name, role: args.role, expires_hours: args.expires };
    let made = if args.log_in || args.again.password_stdin || args.again.browser {
        let session = again::log_in(context, &args.again).await?;
        let made = context.api.token_of(&session, &body).await;
        again::end(context, &session).await;
        made?
    } else {
        context.api.create_token(&body).await?
    };
    if context.out.json {
        context.out.json(&made);
        return Ok(());
    }
    context.out.line(&made.token.0);
    let lasts = match &made.expires_at {
        Some(end) => format!("expires {}", until(end, Timestamp::now())),
        None => "lasts until it is revoked".to_owned(),
    };
    context
        .out
        .note(format!("token '{}' ({}) {lasts}; it is not printed again", made.name, made.role));
    if made.ends_with_caller {
        context.out.note(
            "note: it was made with this machine's token and ends with it: at the next \
             `kohakuriver auth login` or `auth logout`",
        );
        context.out.hint("--log-in asks for your password, and makes one that lasts by itself");
    }
    Ok(())
}

async fn list(context: &Context) -> Result<(), CommandError> {
    let tokens = context.api.tokens().await?;
    if context.out.json {
        context.out.json(&tokens);
        return Ok(());
    }
    if tokens.is_empty() {
        context.out.note("you have no tokens");
        context.out.hint("`kohakuriver auth token create NAME` makes one");
        return Ok(());
    }
    grid(&tokens, here(context)?, Timestamp::now()).print(context.out);
    Ok(())
}

/// Returns the id of this machine's token.
fn here(context: &Context) -> Result<Option<i64>, CommandError> {
    match &context.settings.folder {
        Some(folder) if context.settings.token.is_none() => {
            Ok(credentials::load(folder, &context.api.place())?.and_then(|known| known.id))
        }
        Some(_) | None => Ok(None),
    }
}

fn grid(tokens: &[Token], here: Option<i64>, now: Timestamp) -> Grid {
    let mut grid = Grid::new(&[
        ("ID", Fit::Whole),
        ("NAME", Fit::Cut),
        ("ROLE", Fit::Whole),
        ("CREATED", Fit::Cut),
        ("EXPIRES", Fit::Cut),
        ("LAST USED", Fit::Cut),
    ]);
    for token in tokens {
        let end = token.expires_at.as_deref().map(|end| until(end, now));
        let used = token.last_used.as_deref().map(|time| ago(time, now));
        let used = match here == Some(token.id) {
            true => (Tone::Good, "by this machine".to_owned()),
            false => (Tone::Plain, used.unwrap_or_else(|| "never".to_owned())),
        };
        grid.row(vec![
            (Tone::Plain, token.id.to_string()),
            (Tone::Plain, token.name.clone()),
            (Tone::Plain, token.role.clone()),
            (Tone::Plain, ago(&token.created_at, now)),
            (Tone::Plain, end.unwrap_or_else(|| "never".to_owned())),
            used,
        ]);
    }
    grid
}

async fn revoke(context: &Context, args: &RevokeArgs) -> Result<(), CommandError> {
    let known = context.api.tokens().await?;
    // All are looked up first: a slip in one ends none.
    let mut ends: Vec<&Token> = Vec::new();
    for word in &args.tokens {
        let found = find(&known, word)?;
        if !ends.iter().any(|token| token.id == found.id) {
            ends.push(found);
        }
    }
    let mine = here(context)?;
    // The one this machine shows comes last: without it the others could not be ended.
    ends.sort_by_key(|token| Some(token.id) == mine);
    let mut answers = Vec::new();
    for token in ends {
        answers.push(context.api.revoke_token(token.id).await?);
        if !context.out.json {
            context.out.line(format!("token '{}' ({}) is revoked", token.name, token.id));
        }
        if Some(token.id) == mine
            && let Some(folder) = &context.settings.folder
        {
            credentials::remove(folder, &context.api.place())?;
            context.out.note("note: it was this machine's, which is logged out now");
        }
    }
    if context.out.json {
        print_json(context, args.tokens.len(), answers);
    }
    Ok(())
}

/// Finds a token by its id, or by a name that is unique.
fn find<'a>(known: &'a [Token], word: &str) -> Result<&'a Token, CommandError> {
    let named: Vec<&Token> = known.iter().filter(|token| token.name == word).collect();
    if let [only] = named.as_slice() {
        return Ok(only);
    }
    let id = word.parse::<i64>().ok();
    if let Some(token) = known.iter().find(|token| Some(token.id) == id) {
        return Ok(token);
    }
    let failure = match named.len() {
        0 => CommandError::request(format!("you have no token '{word}'"))
            .hint("`kohakuriver auth token list` shows your tokens"),
        count => {
            let ids: Vec<_> = named.iter().map(|token| token.id.to_string()).collect();
            CommandError::request(format!("{count} of your tokens are called '{word}'"))
                .hint(format!("name it by its id: {}", ids.join(", ")))
        }
    };
    Err(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: i64, name: &str) -> Token {
        Token {
            id,
            name: name.to_owned(),
            role: "user".to_owned(),
            created_at: String::new(),
            expires_at: None,
            last_used: None,
            made_with: None,
        }
    }

    #[test]
    fn token_is_found_by_id_or_unique_name() {
        let known = [token(1, "cli"), token(2, "cli"), token(3, "backup"), token(4, "1")];
        assert_eq!(find(&known, "backup").unwrap().id, 3);
        assert_eq!(find(&known, "2").unwrap().id, 2);
        assert_eq!(find(&known, "1").unwrap().id, 4, "a name beats an id");
        let failure = find(&known, "cli").unwrap_err();
        assert_eq!(failure.hint.as_deref(), Some("name it by its id: 1, 2"));
        assert!(find(&known, "absent").is_err());
    }
}

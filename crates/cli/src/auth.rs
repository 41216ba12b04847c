//! `kohakuriver auth`: logging in, and the accounts of a host.

mod again;
mod browser;
mod file;
mod group;
mod invitations;
mod invite;
mod key;
mod limits;
mod login;
mod logout;
mod passwd;
mod place;
mod quota;
mod register;
mod token;
mod user;
mod users;
mod whoami;

pub use login::is_somebody;

use crate::context::Context;
use crate::error::CommandError;

/// The roles of an account, lowest first.
const ROLES: [&str; 4] = ["viewer", "user", "operator", "admin"];

#[derive(clap::Subcommand, Clone, Debug)]
pub enum AuthCommand {
    /// Log in to a host and stay logged in on this machine.
    Login(login::LoginArgs),
    /// Log out.
    Logout(logout::LogoutArgs),
    /// Show the account you are logged in as.
    #[command(visible_alias = "status")]
    Whoami(whoami::WhoamiArgs),
    /// Create your account with an invitation, and log in.
    Register(register::RegisterArgs),
    /// Change your password.
    Passwd(passwd::PasswdArgs),
    /// Set a new password with a reset token from an admin.
    Reset(passwd::ResetArgs),
    /// Create, list and revoke API tokens.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Add, list and remove your SSH keys.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Create an invitation for new accounts.
    Invite(invite::InviteArgs),
    /// List and revoke invitations.
    Invitations(invitations::InvitationsArgs),
    /// List the accounts.
    Users(users::UsersArgs),
    /// Show and change one account.
    #[command(subcommand)]
    User(user::UserCommand),
    /// Show and set the quota of an account.
    Quota(Box<quota::QuotaArgs>),
    /// Manage groups, their quotas and their rules for automatic approval.
    #[command(subcommand)]
    Group(group::GroupCommand),
}

pub async fn run(context: &Context, command: AuthCommand) -> Result<(), CommandError> {
    match command {
        AuthCommand::Login(args) => login::run(context, &args).await,
        AuthCommand::Logout(_) => logout::run(context).await,
        AuthCommand::Whoami(_) => whoami::run(context).await,
        AuthCommand::Register(args) => register::run(context, &args).await,
        AuthCommand::Passwd(args) => passwd::run(context, &args).await,
        AuthCommand::Reset(args) => passwd::reset(context, &args).await,
        AuthCommand::Token(command) => token::run(context, command).await,
        AuthCommand::Key(command) => key::run(context, command).await,
        AuthCommand::Invite(args) => invite::run(context, &args).await,
        AuthCommand::Invitations(args) => invitations::run(context, &args).await,
        AuthCommand::Users(_) => users::run(context).await,
        AuthCommand::User(command) => user::run(context, command).await,
        AuthCommand::Quota(args) => quota::run(context, &args).await,
        AuthCommand::Group(command) => group::run(context, command).await,
    }
}

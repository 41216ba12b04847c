//! `kohakuriver auth`: who one is to a host, and everybody's accounts there.

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

/// What somebody can be, from least to most.
const ROLES: [&str; 4] = ["viewer", "user", "operator", "admin"];

#[derive(clap::Subcommand, Clone, Debug)]
pub enum AuthCommand {
    /// Log in to a host, and stay so on this machine
    Login(login::LoginArgs),
    /// Be nobody to the host again
    Logout(logout::LogoutArgs),
    /// Show who you are to the host
    #[command(visible_alias = "status")]
    Whoami(whoami::WhoamiArgs),
    /// Make your account with an invitation, and log in
    Register(register::RegisterArgs),
    /// Choose another password
    Passwd(passwd::PasswdArgs),
    /// Choose a password with the token an admin gave you
    Reset(passwd::ResetArgs),
    /// Make, list and revoke tokens for programs
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Add, list and remove your SSH keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Invite people
    Invite(invite::InviteArgs),
    /// List and revoke invitations
    Invitations(invitations::InvitationsArgs),
    /// List the accounts
    Users(users::UsersArgs),
    /// Show and change one account
    #[command(subcommand)]
    User(user::UserCommand),
    /// Show and set how much somebody may hold
    Quota(Box<quota::QuotaArgs>),
    /// Manage groups, what they may hold, and what needs no approval in them
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

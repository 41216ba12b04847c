//! Shares and offers: what owners grant, and the receivers' answers.
//!
//! A share opens access at once and is in no list before it is taken. An offer changes nothing
//! before it is taken. docs/concepts/accounts.md has the rules.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, Query, State, rejection::QueryRejection};
use axum::{Extension, Json};
use http::StatusCode;
use kohakuriver_api::{
    Assigned, Assignment, Assignments, ErrorBody, Note, Received, SetOwner, SetShare, TakeShare,
    Task,
};
use kohakuriver_model::name::NameError;
use kohakuriver_model::{InstanceName, Role, ShareLevel, UserId};
use kohakuriver_store::{AnswerError, Giver, Grantee, OfferError, ShareError};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::ApiError;
use super::guard::AuditTarget;
use super::users::invalid;
use super::vps::authorize_named;
use crate::access::{Account, Authorized, Caller, Permission, authorize, policy};
use crate::accounts::LoginError;
use crate::clock::iso;
use crate::host::App;
use crate::instances::{self, received, visible};
use crate::pace;

/// More at once is a mistake.
const MOST_USERS: usize = 200;

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(assign))
        .routes(routes!(unassign))
        .routes(routes!(list_assignments))
        .routes(routes!(set_share, delete_share))
        .routes(routes!(offer, withdraw_offer))
        .routes(routes!(list_received))
        .routes(routes!(take_share))
        .routes(routes!(decline_share))
        .routes(routes!(take_offer))
        .routes(routes!(decline_offer))
}

/// Shares a VPS with users at the level `use`, by their numbers. Only operators and admins may
/// name accounts by number that the VPS is not shared with yet.
#[utoipa::path(post, path = "/api/vps/{task}/assign", tag = "sharing", params(("task" = String, Path)), request_body = [i64],
    responses((status = 200, body = Assigned), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, body = ErrorBody)))]
async fn assign(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<Vec<i64>>, JsonRejection>,
) -> Result<Json<Assigned>, ApiError> {
    let Json(mut users) = body?;
    let access = instance(&app, &caller, &text).await?;
    users.sort_unstable();
    users.dedup();
    if users.len() > MOST_USERS {
        return Err(invalid(format!("at most {MOST_USERS} users at once")));
    }
    admit(&app, &caller, pace::ACT * users.len() as i64)?;
    let known = app.store.list_shares(access.task_id()).await?;
    for number in &users {
        let user = UserId(*number);
        // Numbers are few and consecutive: revealing whether one is an account, and then its name,
        // would reveal all of them.
        let may_name = caller.role() >= Role::Operator
            || known.iter().any(|share| share.to == Grantee::User(user));
        if !may_name || app.store.lookup_user(user).await?.is_none() {
            return Err(unknown_user(&app, &caller, &number.to_string()));
        }
    }
    let to: Vec<_> = users.iter().map(|user| Grantee::User(UserId(*user))).collect();
    share(&app, &caller, &access, &to, ShareLevel::Use).await?;
    Ok(Json(Assigned {
        message: "Users assigned".to_owned(),
        task_id: access.task_id().as_u64(),
        assigned_users: users,
    }))
}

/// Ends a user's share of a VPS. Open sessions are closed within seconds.
#[utoipa::path(delete, path = "/api/vps/{task}/assign/{user}", tag = "sharing",
    params(("task" = String, Path), ("user" = i64, Path)),
    responses((status = 200, body = Note), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn unassign(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((text, user)): Path<(String, i64)>,
) -> Result<Json<Note>, ApiError> {
    let access = instance(&app, &caller, &text).await?;
    unshare(&app, &caller, &access, Grantee::User(UserId(user)), &user.to_string()).await
}

/// Lists the users a VPS is shared with, and what they answered.
#[utoipa::path(get, path = "/api/vps/{task}/assignments", tag = "sharing", params(("task" = String, Path)),
    responses((status = 200, body = Assignments), (status = 404, body = ErrorBody)))]
async fn list_assignments(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<Assignments>, ApiError> {
    let access = authorize_named(&app, &caller, &text, Permission::See).await?;
    let shares = app.store.list_shares(access.task_id()).await?;
    let assignment = |share: kohakuriver_store::ShareRow| match share.to {
        Grantee::User(user) => Some(Assignment {
            user_id: user.0,
            display_name: visible::display_name(&caller, &share),
            username: share.name,
            assigned_at: iso(share.created_ms),
            level: share.level.to_string(),
            state: share.state.map(|state| state.as_str().to_owned()).unwrap_or_default(),
        }),
        Grantee::Group(_) => None,
    };
    Ok(Json(Assignments {
        task_id: access.task_id().as_u64(),
        assignments: shares.into_iter().filter_map(assignment).collect(),
    }))
}

/// Shares a VPS with a user or a group, at another level than before where it is shared already.
/// Access opens at once; the VPS enters the receivers' lists when they take it.
#[utoipa::path(put, path = "/api/vps/{task}/shares", tag = "sharing", params(("task" = String, Path)), request_body = SetShare,
    responses((status = 200, body = Task), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, body = ErrorBody)))]
async fn set_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<SetShare>, JsonRejection>,
) -> Result<Json<Task>, ApiError> {
    let Json(request) = body?;
    let access = instance(&app, &caller, &text).await?;
    let level = request.level.parse().map_err(|error| invalid(format!("{error}")))?;
    admit(&app, &caller, pace::ACT)?;
    let (to, _) = grantee(&app, &caller, request.user.as_deref(), request.group.as_deref()).await?;
    share(&app, &caller, &access, &[to], level).await?;
    Ok(Json(visible::one(&app, &caller, &access).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ShareQuery {
    /// The user whose share ends.
    user: Option<String>,
    /// The group whose share ends.
    group: Option<String>,
}

/// Ends a share. Open sessions are closed within seconds.
#[utoipa::path(delete, path = "/api/vps/{task}/shares", tag = "sharing", params(ShareQuery, ("task" = String, Path)),
    responses((status = 200, body = Note), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, body = ErrorBody)))]
async fn delete_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    query: Result<Query<ShareQuery>, QueryRejection>,
) -> Result<Json<Note>, ApiError> {
    let Query(query) = query?;
    let access = instance(&app, &caller, &text).await?;
    admit(&app, &caller, pace::ACT)?;
    // By what it is shared with, not by all there are: also a group that the owner has left.
    let shares = app.store.list_shares(access.task_id()).await?;
    let (name, is_group) = match (&query.user, &query.group) {
        (Some(name), None) => (name, false),
        (None, Some(name)) => (name, true),
        (Some(_), Some(_)) | (None, None) => return Err(invalid("name either a user or a group")),
    };
    let found = shares.iter().find(|share| {
        matches!(share.to, Grantee::Group(_)) == is_group && share.name.eq_ignore_ascii_case(name)
    });
    match found {
        Some(found) => unshare(&app, &caller, &access, found.to, &found.name).await,
        None => Err(not_shared(name)),
    }
}

/// Offers a VPS to another account, in place of an earlier offer. Nothing moves, and nothing
/// counts against the receiver's quota, before the receiver takes it. An admin who names
/// themselves becomes the owner at once.
#[utoipa::path(post, path = "/api/vps/{task}/owner", tag = "sharing", params(("task" = String, Path)), request_body = SetOwner,
    responses((status = 200, body = Note), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 422, body = ErrorBody), (status = 429, body = ErrorBody)))]
async fn offer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<SetOwner>, JsonRejection>,
) -> Result<Json<Note>, ApiError> {
    let Json(SetOwner { user }) = body?;
    let access = instance(&app, &caller, &text).await?;
    admit(&app, &caller, pace::ACT)?;
    let (id, now_ms) = (access.task_id(), app.clock.now_ms());
    let Some(row) = app.store.lookup_username(&user).await? else {
        return Err(unknown_user(&app, &caller, &user));
    };
    let name = row.username;
    let is_oneself = caller.user_id() == Some(row.id) && caller.role() == Role::Admin;
    let message = if is_oneself {
        app.store.take_over(id, (row.id, &name), now_ms).await?;
        format!("the VPS now belongs to '{name}'")
    } else {
        let by = (giver(&caller), caller.name());
        app.store.make_offer(id, (row.id, &name), (by.0, &by.1), now_ms).await?;
        format!("the VPS is offered to '{name}' for 14 days; nothing changes until they take it")
    };
    announce(&app);
    Ok(Json(Note { message }))
}

/// Withdraws the offer of a VPS.
#[utoipa::path(delete, path = "/api/vps/{task}/owner", tag = "sharing", params(("task" = String, Path)),
    responses((status = 200, body = Note), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody)))]
async fn withdraw_offer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<Note>, ApiError> {
    let access = instance(&app, &caller, &text).await?;
    let by = (giver(&caller), caller.name());
    app.store.withdraw_offer(access.task_id(), (by.0, &by.1), app.clock.now_ms()).await?;
    announce(&app);
    Ok(Json(Note { message: "the offer is withdrawn".to_owned() }))
}

/// Lists what others share with the caller and offer to the caller, answered or not.
#[utoipa::path(get, path = "/api/vps/shares", tag = "sharing", responses((status = 200, body = Received)))]
async fn list_received(
    State(app): State<Arc<App>>,
    caller: Caller,
) -> Result<Json<Received>, ApiError> {
    Ok(Json(received::list(&app, &caller).await?))
}

/// Takes what is shared with the caller: it enters their lists, as `NAME.OWNER` or under a name of
/// their own choice. Names it by id, `NAME.OWNER`, or the alias it has already.
#[utoipa::path(post, path = "/api/vps/shares/{task}/take", tag = "sharing", params(("task" = String, Path)), request_body = TakeShare,
    responses((status = 200, body = Task), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn take_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
    body: Result<Json<TakeShare>, JsonRejection>,
) -> Result<Json<Task>, ApiError> {
    let Json(TakeShare { alias }) = body?;
    let alias = alias.map(|text| InstanceName::for_new(&text)).transpose();
    let alias = alias.map_err(|error: NameError| invalid(error.to_string()))?;
    let person = person(&caller)?;
    let share = received::find_share(&app, person.id, &text).await?;
    let share = share.ok_or_else(|| ApiError::from(AnswerError::NotShared))?;
    let by = (person.id, person.username.as_str());
    app.store.take_share(share.id, by, alias.as_ref(), app.clock.now_ms()).await?;
    announce(&app);
    let access = authorize(&app, &caller, Permission::See, share.id).await?;
    Ok(Json(visible::one(&app, &caller, &access).await?))
}

/// Declines what is shared with the caller, or leaves it. Access ends within seconds, and a new
/// share of it is not offered again; taking it later restores access.
#[utoipa::path(post, path = "/api/vps/shares/{task}/decline", tag = "sharing", params(("task" = String, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn decline_share(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<(Extension<AuditTarget>, Json<Note>), ApiError> {
    let person = person(&caller)?;
    let share = received::find_share(&app, person.id, &text).await?;
    let share = share.ok_or_else(|| ApiError::from(AnswerError::NotShared))?;
    let by = (person.id, person.username.as_str());
    app.store.decline_share(share.id, by, app.clock.now_ms()).await?;
    announce(&app);
    let message = format!("you no longer have access to VPS {}", received::called(&share));
    Ok((Extension(AuditTarget(format!("vps {}", share.id))), Json(Note { message })))
}

/// Takes what is offered to the caller: it is theirs, and in their quota, from here on.
#[utoipa::path(post, path = "/api/vps/offers/{task}/take", tag = "sharing", params(("task" = String, Path)),
    responses((status = 200, body = Task), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn take_offer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<Json<Task>, ApiError> {
    let person = person(&caller)?;
    let now_ms = app.clock.now_ms();
    let offer = received::find_offer(&app, person.id, &text, now_ms).await?;
    let offer = offer.ok_or_else(|| ApiError::from(OfferError::NoOffer))?;
    // Instances with access to their node are for operators only, however they are obtained.
    caller.require(policy::to_create(&offer.spec))?;
    app.store.take_offer(offer.id, (person.id, &person.username), now_ms).await?;
    announce(&app);
    let access = authorize(&app, &caller, Permission::See, offer.id).await?;
    Ok(Json(visible::one(&app, &caller, &access).await?))
}

/// Declines what is offered to the caller; it stays its owner's.
#[utoipa::path(post, path = "/api/vps/offers/{task}/decline", tag = "sharing", params(("task" = String, Path)),
    responses((status = 200, body = Note), (status = 404, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn decline_offer(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(text): Path<String>,
) -> Result<(Extension<AuditTarget>, Json<Note>), ApiError> {
    let person = person(&caller)?;
    let now_ms = app.clock.now_ms();
    let offer = received::find_offer(&app, person.id, &text, now_ms).await?;
    let offer = offer.ok_or_else(|| ApiError::from(OfferError::NoOffer))?;
    app.store.decline_offer(offer.id, (person.id, &person.username), now_ms).await?;
    announce(&app);
    let made = AuditTarget(format!("vps {}", offer.id));
    Ok((Extension(made), Json(Note { message: "the offer is declined".to_owned() })))
}

/// Returns the account that answers; absent on a host without login.
fn person(caller: &Caller) -> Result<&Account, ApiError> {
    Ok(caller.account().ok_or(LoginError::Off)?)
}

/// Authorizes the caller to share an instance; a request cannot be shared.
async fn instance(app: &App, caller: &Caller, text: &str) -> Result<Authorized, ApiError> {
    let access = authorize_named(app, caller, text, Permission::Share).await?;
    instances::get(app, &access).await?;
    Ok(access)
}

/// Returns the giver, whose ownership the store checks again.
fn giver(caller: &Caller) -> Giver {
    match caller.account() {
        Some(person) if person.role < Role::Admin => Giver::Owner(person.id),
        admin => Giver::Admin(admin.map(|person| person.id)),
    }
}

fn admit(app: &App, caller: &Caller, cost: i64) -> Result<(), ApiError> {
    let Some(person) = caller.account().filter(|person| person.role < Role::Admin) else {
        return Ok(());
    };
    app.sharing_pace.admit(person.id, cost, app.clock.now_ms()).map_err(|slow| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_shares", slow.to_string())
            .hint("share with a group: all of its members have it at once")
    })
}

/// Reports an unknown account name; an account that tries many names has to wait.
fn unknown_user(app: &App, caller: &Caller, name: &str) -> ApiError {
    if let Err(slow) = admit(app, caller, pace::WRONG_NAME) {
        return slow;
    }
    let detail = format!("there is no user '{name}'");
    let hint = "name the account by its user name, as its owner logs in";
    ApiError::new(StatusCode::NOT_FOUND, "unknown_user", detail).hint(hint)
}

/// Resolves a share's receiver and its name. A group is known to its members and to accounts that
/// run the cluster; others get an unknown-group error.
async fn grantee(
    app: &App,
    caller: &Caller,
    user: Option<&str>,
    group: Option<&str>,
) -> Result<(Grantee, String), ApiError> {
    match (user, group) {
        (Some(name), None) => match app.store.lookup_username(name).await? {
            Some(row) => Ok((Grantee::User(row.id), row.username)),
            None => Err(unknown_user(app, caller, name)),
        },
        (None, Some(name)) => {
            let may_name = |row: &kohakuriver_store::GroupRow| {
                caller.role() >= Role::Operator
                    || row.members.iter().any(|(id, _)| Some(*id) == caller.user_id())
            };
            let groups = app.store.list_groups().await?;
            let row = groups.into_iter().find(|row| row.name.eq_ignore_ascii_case(name));
            let row = row.filter(may_name).ok_or_else(|| {
                let detail = format!("you are not in a group '{name}'");
                ApiError::new(StatusCode::NOT_FOUND, "unknown_group", detail)
                    .hint("kohakuriver auth quota shows your groups")
            })?;
            Ok((Grantee::Group(row.id), row.name))
        }
        (Some(_), Some(_)) | (None, None) => Err(invalid("name either a user or a group")),
    }
}

async fn share(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    to: &[Grantee],
    level: ShareLevel,
) -> Result<(), ApiError> {
    let by = (giver(caller), caller.name());
    let now_ms = app.clock.now_ms();
    app.store.set_shares(access.task_id(), to, level, (by.0, &by.1), now_ms).await?;
    announce(app);
    Ok(())
}

async fn unshare(
    app: &App,
    caller: &Caller,
    access: &Authorized,
    to: Grantee,
    name: &str,
) -> Result<Json<Note>, ApiError> {
    let by = (giver(caller), caller.name());
    let now_ms = app.clock.now_ms();
    if !app.store.delete_share(access.task_id(), to, (by.0, &by.1), now_ms).await? {
        return Err(not_shared(name));
    }
    announce(app);
    Ok(Json(Note { message: format!("the VPS is no longer shared with '{name}'") }))
}

fn not_shared(name: &str) -> ApiError {
    let detail = format!("the VPS is not shared with '{name}'");
    ApiError::new(StatusCode::NOT_FOUND, "not_shared", detail)
}

/// Rechecks open sessions and wakes the clients that wait for a change.
fn announce(app: &App) {
    app.accounts.changed();
    app.changes.notify();
}

impl From<ShareError> for ApiError {
    fn from(error: ShareError) -> Self {
        let text = error.to_string();
        match error {
            ShareError::NotYours => {
                Self::new(StatusCode::CONFLICT, "stale", text).hint("kohakuriver vps list --all")
            }
            ShareError::TooMany => Self::new(StatusCode::CONFLICT, "too_many_shares", text)
                .hint("share with a group, or end shares: kohakuriver vps unshare"),
            ShareError::Store(error) => error.into(),
        }
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        let text = error.to_string();
        match error {
            AnswerError::NotShared => {
                Self::new(StatusCode::NOT_FOUND, "not_shared", text).hint("kohakuriver vps shares")
            }
            AnswerError::NameTaken(_) => Self::new(StatusCode::CONFLICT, "name_taken", text)
                .hint("choose another name with --as"),
            AnswerError::Store(error) => error.into(),
        }
    }
}

impl From<OfferError> for ApiError {
    fn from(error: OfferError) -> Self {
        let text = error.to_string();
        match error {
            OfferError::NotYours => {
                Self::new(StatusCode::CONFLICT, "stale", text).hint("kohakuriver vps list --all")
            }
            OfferError::TheirsAlready => Self::new(StatusCode::CONFLICT, "owner_already", text),
            OfferError::TooMany => Self::new(StatusCode::CONFLICT, "too_many_offers", text)
                .hint("withdraw some: kohakuriver vps give VPS --withdraw"),
            OfferError::NoOffer => {
                Self::new(StatusCode::NOT_FOUND, "no_offer", text).hint("kohakuriver vps shares")
            }
            OfferError::Leaving => Self::new(StatusCode::CONFLICT, "deleting", text),
            OfferError::NameTaken(_) => Self::new(StatusCode::CONFLICT, "name_taken", text)
                .hint("delete yours first, or ask for a copy under another name"),
            OfferError::OverQuota(_) => Self::new(StatusCode::FORBIDDEN, "over_quota", text)
                .hint("stop or delete something, or ask an admin for more: kohakuriver auth quota"),
            OfferError::Store(error) => error.into(),
        }
    }
}

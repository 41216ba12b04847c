//! Checks every request before its handler: its origin, its caller, and the caller's permission for
//! the path. A change is in the audit log before the response is sent.

use std::sync::Arc;

use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::ALLOW;

use super::error::{ApiError, ErrorCode};
use super::held;
use crate::access::origin::is_foreign_page;
use crate::access::routes::{self, Audit, Rule};
use crate::access::{Caller, Principal};
use crate::audit::Entry;
use crate::client_address::{ClientAddress, Secure};
use crate::host::App;

/// The object that a handler created, for the audit log: an account, a new instance.
#[derive(Clone, Debug)]
pub struct AuditTarget(pub String);

/// A detail that a handler adds to the audit log.
#[derive(Clone, Debug)]
pub struct AuditDetail(pub String);

/// Marks a request that needs no audit entry: it is one of many like it, or its handler wrote one.
#[derive(Clone, Copy, Debug)]
pub struct SkipAudit;

pub async fn guard(
    State(app): State<Arc<App>>,
    path: Option<MatchedPath>,
    params: RawPathParams,
    request: Request,
    next: Next,
) -> Response {
    let config = &app.config;
    let secure = request.extensions().get().is_some_and(|Secure(secure)| *secure);
    if is_foreign_page(request.headers(), secure, &config.names, config.auth.enabled) {
        return ApiError::foreign_page().into_response();
    }
    // An unknown path gets the same response for every caller.
    let Some(path) = path else { return next.run(request).await };
    let Some(row) = routes::find(request.method(), path.as_str()) else {
        return match routes::methods(path.as_str()) {
            methods if methods.is_empty() => ApiError::no_policy().into_response(),
            // Only listed routes are dispatched; a handler without a policy is never called.
            methods => ([(ALLOW, methods.join(","))], ApiError::wrong_method()).into_response(),
        };
    };
    let address = request.extensions().get::<ClientAddress>().map(|client| client.0);
    let changes = app.accounts.changes();
    let caller = match app.accounts.caller(&app, request.headers(), address).await {
        Ok(caller) => caller,
        Err(error) => return ApiError::from(error).into_response(),
    };
    let response = match caller.require(row.least_role()) {
        Ok(()) => held::answer(&app, &caller, row, &changes, request, next).await,
        Err(denied) => ApiError::from(denied).into_response(),
    };
    let Audit::Act(action) = row.audit else { return response };
    if response.extensions().get::<SkipAudit>().is_some() {
        return response;
    }
    if caller.principal == Principal::Anonymous && !needs_audit_entry(&app, &caller, row.rule) {
        return response;
    }
    let object = object(&caller, &params, &response);
    let result = response.extensions().get::<ErrorCode>().map_or("ok", |code| code.0.as_str());
    let detail = response.extensions().get::<AuditDetail>().map(|detail| detail.0.clone());
    let entry = Entry { action, object, result, detail: detail.unwrap_or_default() };
    app.audit.record(&caller, entry).await;
    response
}

/// Decides whether to record a request. Unauthenticated requests would fill the disk: only so many
/// per address are recorded, and none that failed for lack of a login.
fn needs_audit_entry(app: &App, caller: &Caller, rule: Rule) -> bool {
    let now_ms = app.clock.steady_ms();
    rule == Rule::Public && app.accounts.strangers.admit("", caller.address, now_ms).is_ok()
}

/// Returns the object of a request: the handler's, the found instance, or the path's parameters.
fn object(caller: &Caller, params: &RawPathParams, response: &Response) -> String {
    if let Some(AuditTarget(what)) = response.extensions().get() {
        return what.clone();
    }
    if let Some(id) = caller.touched() {
        return format!("vps {id}");
    }
    let named: Vec<String> = params.iter().map(|(key, value)| format!("{key} {value}")).collect();
    named.join(" ")
}

//! The routes of approval requests, shares and offers.

use kohakuriver_api::{Received, Rejected, SetOwner, SetShare, TakeShare, Task};
use reqwest::Method;
use serde_json::Value;

use super::{Api, Call};
use crate::error::CommandError;

/// The recipient of a share.
#[derive(Clone, Copy, Debug)]
pub enum With<'a> {
    User(&'a str),
    Group(&'a str),
}

impl<'a> With<'a> {
    /// Returns the API's kind, and the name.
    pub fn pair(self) -> (&'static str, &'a str) {
        match self {
            Self::User(name) => ("user", name),
            Self::Group(name) => ("group", name),
        }
    }
}

impl Api {
    pub async fn pending(&self) -> Result<Vec<Task>, CommandError> {
        self.get("/api/tasks/pending-approval").await
    }

    /// Approves the request at this revision; without one, at its current revision.
    pub async fn approve(&self, id: &str, revision: Option<&str>) -> Result<Value, CommandError> {
        let query: Vec<_> =
            revision.map(|revision| ("revision", revision.to_owned())).into_iter().collect();
        let path = format!("/api/approve/{id}");
        self.send(Call { query: &query, ..Call::new(Method::POST, &path) }).await
    }

    pub async fn reject(&self, id: &str, reason: Option<&str>) -> Result<Rejected, CommandError> {
        let query: Vec<_> =
            reason.map(|reason| ("reason", reason.to_owned())).into_iter().collect();
        let path = format!("/api/reject/{id}");
        self.send(Call { query: &query, ..Call::new(Method::POST, &path) }).await
    }

    pub async fn share(
        &self,
        id: &str,
        with: With<'_>,
        level: &str,
    ) -> Result<Value, CommandError> {
        let named = |word| (with.pair().0 == word).then(|| with.pair().1.to_owned());
        let body = SetShare { user: named("user"), group: named("group"), level: level.to_owned() };
        self.send(Call::with_body(Method::PUT, &format!("/api/vps/{id}/shares"), &body)).await
    }

    pub async fn unshare(&self, id: &str, with: With<'_>) -> Result<Value, CommandError> {
        let (kind, name) = with.pair();
        let query = [(kind, name.to_owned())];
        let path = format!("/api/vps/{id}/shares");
        self.send(Call { query: &query, ..Call::new(Method::DELETE, &path) }).await
    }

    pub async fn give(&self, id: &str, user: &str) -> Result<Value, CommandError> {
        let body = SetOwner { user: user.to_owned() };
        self.send(Call::with_body(Method::POST, &format!("/api/vps/{id}/owner"), &body)).await
    }

    pub async fn withdraw_offer(&self, id: &str) -> Result<Value, CommandError> {
        self.send(Call::new(Method::DELETE, &format!("/api/vps/{id}/owner"))).await
    }

    /// Returns the shares and offers that the caller has received.
    pub async fn received(&self) -> Result<Received, CommandError> {
        self.get("/api/vps/shares").await
    }

    pub async fn take_share(&self, vps: &str, alias: Option<&str>) -> Result<Task, CommandError> {
        let body = TakeShare { alias: alias.map(ToOwned::to_owned) };
        self.send(Call::with_body(Method::POST, &format!("/api/vps/shares/{vps}/take"), &body))
            .await
    }

    pub async fn decline_share(&self, vps: &str) -> Result<Value, CommandError> {
        self.post(&format!("/api/vps/shares/{vps}/decline")).await
    }

    pub async fn answer_offer(&self, vps: &str, take: bool) -> Result<Value, CommandError> {
        let word = if take { "take" } else { "decline" };
        self.post(&format!("/api/vps/offers/{vps}/{word}")).await
    }
}

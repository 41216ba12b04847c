//! The routes of accounts: tokens, keys, invitations, users, quotas, groups.

use kohakuriver_api::{
    AddUserKey, CreateGroup, CreateInvitation, CreateReset, CreateToken, CreatedToken, Group,
    Invitation, PasswordReset, QuotaUse, Token, UpdateGroup, UpdateUser, User, UserKey,
};
use reqwest::Method;
use serde_json::Value;

use super::{Api, Call};
use crate::error::CommandError;

impl Api {
    pub async fn me(&self) -> Result<User, CommandError> {
        self.get("/api/auth/me").await
    }

    pub async fn tokens(&self) -> Result<Vec<Token>, CommandError> {
        self.get("/api/auth/tokens").await
    }

    pub async fn create_token(&self, body: &CreateToken) -> Result<CreatedToken, CommandError> {
        self.send(Call::with_body(Method::POST, "/api/auth/tokens/create", body)).await
    }

    pub async fn revoke_token(&self, id: i64) -> Result<Value, CommandError> {
        self.remove(&format!("/api/auth/tokens/{id}")).await
    }

    pub async fn user_keys(&self) -> Result<Vec<UserKey>, CommandError> {
        self.get("/api/auth/keys").await
    }

    pub async fn add_user_key(&self, key: &str) -> Result<UserKey, CommandError> {
        let body = AddUserKey { key: key.to_owned() };
        self.send(Call::with_body(Method::POST, "/api/auth/keys", &body)).await
    }

    pub async fn remove_user_key(&self, id: i64) -> Result<Value, CommandError> {
        self.remove(&format!("/api/auth/keys/{id}")).await
    }

    pub async fn invitations(&self) -> Result<Vec<Invitation>, CommandError> {
        self.get("/api/auth/invitations").await
    }

    pub async fn invite(&self, body: &CreateInvitation) -> Result<Invitation, CommandError> {
        self.send(Call::with_body(Method::POST, "/api/auth/invitations", body)).await
    }

    pub async fn revoke_invitation(&self, id: i64) -> Result<Value, CommandError> {
        self.remove(&format!("/api/auth/invitations/{id}")).await
    }

    pub async fn users(&self) -> Result<Vec<User>, CommandError> {
        self.get("/api/auth/users").await
    }

    pub async fn change_user(&self, id: i64, change: &UpdateUser) -> Result<User, CommandError> {
        self.send(Call::with_body(Method::PATCH, &format!("/api/auth/users/{id}"), change)).await
    }

    pub async fn delete_user(&self, id: i64) -> Result<Value, CommandError> {
        self.remove(&format!("/api/auth/users/{id}")).await
    }

    pub async fn create_reset(
        &self,
        id: i64,
        hours: Option<u32>,
    ) -> Result<PasswordReset, CommandError> {
        let body = CreateReset { expires_hours: hours };
        let path = format!("/api/auth/users/{id}/reset");
        self.send(Call::with_body(Method::POST, &path, &body)).await
    }

    pub async fn quota(&self) -> Result<QuotaUse, CommandError> {
        self.get("/api/auth/quota").await
    }

    pub async fn quota_of(&self, id: i64) -> Result<QuotaUse, CommandError> {
        self.get(&format!("/api/auth/users/{id}/quota")).await
    }

    pub async fn groups(&self) -> Result<Vec<Group>, CommandError> {
        self.get("/api/auth/groups").await
    }

    pub async fn create_group(&self, name: &str) -> Result<Group, CommandError> {
        let body = CreateGroup { name: name.to_owned() };
        self.send(Call::with_body(Method::POST, "/api/auth/groups", &body)).await
    }

    pub async fn change_group(&self, id: i64, change: &UpdateGroup) -> Result<Group, CommandError> {
        self.send(Call::with_body(Method::PATCH, &format!("/api/auth/groups/{id}"), change)).await
    }

    pub async fn delete_group(&self, id: i64) -> Result<Value, CommandError> {
        self.remove(&format!("/api/auth/groups/{id}")).await
    }

    pub async fn add_member(&self, group: i64, user: i64) -> Result<Value, CommandError> {
        let path = format!("/api/auth/groups/{group}/members/{user}");
        self.send(Call::new(Method::PUT, &path)).await
    }

    pub async fn remove_member(&self, group: i64, user: i64) -> Result<Value, CommandError> {
        self.remove(&format!("/api/auth/groups/{group}/members/{user}")).await
    }

    async fn remove(&self, path: &str) -> Result<Value, CommandError> {
        self.send(Call::new(Method::DELETE, path)).await
    }
}

//! The providers of docs/guides/openid-connect.md, behaving as documented by them.

use anyhow::{Context, Result};
use kohakuriver_model::Role;
use kohakuriver_testkit::{Behavior, Browser};
use serde_json::{Value, json};

use super::{log_in, start, start_with};

struct Case {
    name: &'static str,
    behavior: Behavior,
    claims: Value,
    user_info: Value,
    groups_claim: &'static str,
    group: &'static str,
    account: &'static str,
}

const BASIC_AND_POST: Option<&[&str]> = Some(&["client_secret_basic", "client_secret_post"]);

fn cases() -> Vec<Case> {
    let staff = json!(["staff"]);
    vec![
        Case {
            name: "Keycloak as it comes, by realm roles",
            behavior: Behavior {
                scopes: Some(&["openid", "profile", "email", "roles", "web-origins", "acr"]),
                auth_methods: Some(&[
                    "private_key_jwt",
                    "client_secret_basic",
                    "client_secret_post",
                ]),
                several_audiences: true,
                odd_keys: true,
                ..Behavior::default()
            },
            claims: json!({"sub": "f:1", "preferred_username": "ann", "realm_access": {"roles": staff}}),
            user_info: Value::Null,
            groups_claim: "realm_access.roles",
            group: "staff",
            account: "ann",
        },
        Case {
            name: "Keycloak with a mapper of groups with their full path",
            behavior: Behavior {
                scopes: Some(&["openid", "profile", "email", "groups"]),
                auth_methods: BASIC_AND_POST,
                ..Behavior::default()
            },
            claims: json!({"sub": "f:1", "preferred_username": "ann", "groups": ["/lab/staff"]}),
            user_info: Value::Null,
            groups_claim: "groups",
            group: "/lab/staff",
            account: "ann",
        },
        Case {
            name: "Authelia since 4.39: the ID token has the subject alone",
            behavior: Behavior {
                scopes: Some(&["offline_access", "openid", "profile", "groups", "email"]),
                auth_methods: BASIC_AND_POST,
                user_info: Some(200),
                ..Behavior::default()
            },
            claims: json!({"sub": "0a1b"}),
            user_info: json!({"sub": "0a1b", "preferred_username": "ann", "groups": staff}),
            groups_claim: "groups",
            group: "staff",
            account: "ann",
        },
        Case {
            name: "Google: no groups, the organization's domain instead",
            behavior: Behavior {
                scopes: Some(&["openid", "email", "profile"]),
                auth_methods: Some(&["client_secret_post", "client_secret_basic"]),
                user_info: Some(200),
                ..Behavior::default()
            },
            claims: json!({"sub": "1122", "email": "ann@lab.example", "hd": "lab.example"}),
            user_info: json!({"sub": "1122", "email": "ann@lab.example", "name": "Ann"}),
            groups_claim: "hd",
            group: "lab.example",
            account: "ann",
        },
        Case {
            name: "Entra ID: the secret in the form, groups by their ids",
            behavior: Behavior {
                scopes: Some(&["openid", "profile", "email", "offline_access"]),
                auth_methods: Some(&["client_secret_post", "private_key_jwt"]),
                secret_in_form: true,
                user_info: Some(200),
                ..Behavior::default()
            },
            claims: json!({"sub": "AbC", "preferred_username": "ann@lab.example",
                "groups": ["3f2504e0-4f89-11d3-9a0c-0305e82c3301"]}),
            user_info: json!({"sub": "AbC", "name": "Ann"}),
            groups_claim: "groups",
            group: "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
            account: "ann",
        },
        Case {
            name: "Entra ID with more than 200 groups, by app roles",
            behavior: Behavior {
                scopes: Some(&["openid", "profile", "email", "offline_access"]),
                auth_methods: Some(&["client_secret_post", "private_key_jwt"]),
                secret_in_form: true,
                ..Behavior::default()
            },
            claims: json!({"sub": "AbC", "preferred_username": "ann@lab.example", "roles": staff,
                "_claim_names": {"groups": "src1"},
                "_claim_sources": {"src1": {"endpoint": "https://graph.example/memberOf"}}}),
            user_info: Value::Null,
            groups_claim: "roles",
            group: "staff",
            account: "ann",
        },
        Case {
            name: "GitLab: name and groups at UserInfo",
            behavior: Behavior {
                scopes: Some(&["read_user", "openid", "profile", "email"]),
                auth_methods: BASIC_AND_POST,
                user_info: Some(200),
                ..Behavior::default()
            },
            claims: json!({"sub": "42", "email": "a.n@lab.example", "groups_direct": ["other"]}),
            user_info: json!({"sub": "42", "preferred_username": "ann", "groups": ["lab", "lab/staff"]}),
            groups_claim: "groups",
            group: "lab/staff",
            account: "ann",
        },
        Case {
            name: "Dex: no preferred_username from most connectors",
            behavior: Behavior {
                scopes: Some(&["openid", "email", "groups", "profile", "offline_access"]),
                auth_methods: BASIC_AND_POST,
                user_info: Some(200),
                ..Behavior::default()
            },
            claims: json!({"sub": "Cg0", "email": "ann@lab.example", "name": "Ann", "groups": staff}),
            user_info: json!({"sub": "Cg0", "email": "ann@lab.example"}),
            groups_claim: "groups",
            group: "staff",
            account: "ann",
        },
        Case {
            name: "Okta: a thin ID token of a custom authorization server",
            behavior: Behavior {
                scopes: Some(&["openid", "profile", "email", "address", "groups"]),
                auth_methods: Some(&["client_secret_basic", "client_secret_post", "none"]),
                user_info: Some(200),
                ..Behavior::default()
            },
            claims: json!({"sub": "00u1"}),
            user_info: json!({"sub": "00u1", "preferred_username": "ann@lab.example", "groups": staff}),
            groups_claim: "groups",
            group: "staff",
            account: "ann",
        },
        Case {
            name: "a provider that announces nothing, sends one group as a text, and has a slash",
            behavior: Behavior { slash: true, ..Behavior::default() },
            claims: json!({"sub": "s-1", "preferred_username": "ann", "groups": "staff"}),
            user_info: Value::Null,
            groups_claim: "groups",
            group: "staff",
            account: "ann",
        },
    ]
}

#[tokio::test]
async fn accounts_of_every_documented_provider_log_in() -> Result<()> {
    for case in cases() {
        let (provider, _host, url) = start_with(|config| {
            config.groups_claim = case.groups_claim.to_owned();
            config.roles = vec![(case.group.to_owned(), Role::Operator)];
        })
        .await?;
        provider.claim(case.claims, case.user_info);
        provider.behave(case.behavior);
        let mut browser = Browser::new()?;
        let me = log_in(&mut browser, &url).await.context(case.name)?;
        let expected = (json!(case.account), json!("operator"));
        assert_eq!((me["username"].clone(), me["role"].clone()), expected, "{}", case.name);
    }
    Ok(())
}

#[tokio::test]
async fn configured_scopes_are_requested() -> Result<()> {
    // A realm with a scope `groups` that was not assigned to this client.
    let behavior = Behavior {
        scopes: Some(&["openid", "profile", "email", "groups"]),
        client_scopes: Some(&["openid", "profile", "email"]),
        ..Behavior::default()
    };
    let (provider, _host, url) = start().await?;
    provider.be("s-1", "ann", &["lab"]);
    provider.behave(behavior.clone());
    let mut browser = Browser::new()?;
    let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
    let (status, text) = browser.open(&callback).await?;
    assert!(status == 403 && text.contains("--oidc-scope"), "{status} {text}");
    let (provider, _host, url) =
        start_with(|config| config.scopes = vec!["profile".to_owned()]).await?;
    provider.be("s-1", "ann", &["lab"]);
    provider.behave(behavior);
    assert_eq!(log_in(&mut Browser::new()?, &url).await?["role"], "user");
    Ok(())
}

#[tokio::test]
async fn incomplete_provider_response_neither_logs_in_nor_demotes() -> Result<()> {
    let (provider, host, url) = start().await?;
    let answering = |status| Behavior { user_info: Some(status), ..Behavior::default() };
    provider.behave(answering(200));
    provider.be("s-1", "ann", &["staff"]);
    let mut browser = Browser::new()?;
    log_in(&mut browser, &url).await?;
    let ann = super::token(&host, &browser, &url).await?;
    let without = json!({"sub": "s-1"});
    let groups = json!({"sub": "s-1", "groups": ["staff"]});
    let elsewhere = json!({"sub": "s-1", "_claim_names": {"groups": "src1"}});
    for (claims, info, status, words) in [
        (elsewhere, Value::Null, 200, "too long for a token"),
        (json!({"sub": "s-1", "groups": 7}), Value::Null, 200, "neither a list nor a string"),
        (without.clone(), Value::Null, 500, "UserInfo"),
        (without.clone(), json!({"sub": "s-2", "groups": ["staff"]}), 200, "different subjects"),
        (without, json!("x".repeat(300 * 1024)), 200, "256 KiB"),
    ] {
        provider.claim(claims, info);
        provider.behave(answering(status));
        let callback = browser.go(&format!("{url}/api/auth/oidc/start")).await?;
        let (code, text) = browser.open(&callback).await?;
        assert!(code == 502 && text.contains(words), "{words}: {code} {text}");
        assert_eq!(host.get_as(&ann, "/api/auth/me").await?.text("role"), "operator");
    }
    // A name that UserInfo cannot add is no reason to refuse.
    provider.claim(groups, Value::Null);
    provider.behave(answering(500));
    assert_eq!(log_in(&mut browser, &url).await?["role"], "operator");
    Ok(())
}

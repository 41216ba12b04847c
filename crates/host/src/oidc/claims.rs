//! Parses the claims of a provider. Pure, since every byte comes from outside.
//!
//! Providers agree on `sub` and little else. Groups arrive in the ID token or at the UserInfo
//! endpoint, as a list or as one string, under a configurable name, which may be a path
//! (`realm_access.roles`). An absent claim differs from an empty one: the first is looked up
//! elsewhere, the second is a value.

use kohakuriver_model::account::{is_reserved_name, is_user_name};
use serde_json::Value;

/// More is a mistake of the provider; a lower bound could leave out groups that have a role.
const MAX_GROUPS: usize = 10_000;
const MAX_NAME_CHARS: usize = 100;

/// The identity that a provider asserts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    pub subject: String,
    pub preferred_username: Option<String>,
    pub email: Option<String>,
    pub full_name: Option<String>,
    pub groups: Vec<String>,
}

/// The reasons for which claims cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimsError {
    #[error("the provider sent no subject (sub)")]
    NoSubject,
    #[error("the provider's UserInfo response and ID token have different subjects")]
    OtherSubject,
    #[error("the provider left the list of groups out because it is too long for a token")]
    Overage,
    #[error("the provider sent more than {MAX_GROUPS} groups")]
    TooManyGroups,
    #[error("the provider's groups claim is neither a list nor a string")]
    NoGroupList,
}

/// Whether the ID token lacks claims that the UserInfo endpoint may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserInfoNeed {
    /// The groups: no role can be decided without them.
    Required,
    /// The name only.
    Optional,
    None,
}

/// Decides whether to query the UserInfo endpoint too.
///
/// # Errors
/// The ID token marks its list of groups as incomplete, or has an unusable one.
pub fn user_info_need(id_token: &Value, groups_claim: &str) -> Result<UserInfoNeed, ClaimsError> {
    Ok(if groups(id_token, groups_claim)?.is_none() {
        UserInfoNeed::Required
    } else if text(id_token, "preferred_username").is_none() {
        UserInfoNeed::Optional
    } else {
        UserInfoNeed::None
    })
}

impl Claims {
    /// Merges an ID token with the UserInfo response. The ID token is signed, so it takes
    /// precedence.
    ///
    /// # Errors
    /// There is no subject, the two have different ones, or the groups cannot be parsed.
    pub fn read(
        id_token: &Value,
        user_info: Option<&Value>,
        groups_claim: &str,
    ) -> Result<Self, ClaimsError> {
        let subject = text(id_token, "sub").ok_or(ClaimsError::NoSubject)?;
        if !(1..=255).contains(&subject.len()) {
            return Err(ClaimsError::NoSubject);
        }
        // OpenID Connect Core 5.3.2: otherwise the response must not be used.
        if user_info.is_some_and(|info| text(info, "sub").as_ref() != Some(&subject)) {
            return Err(ClaimsError::OtherSubject);
        }
        let either =
            |name: &str| text(id_token, name).or_else(|| user_info.and_then(|i| text(i, name)));
        let groups = match groups(id_token, groups_claim)? {
            Some(groups) => Some(groups),
            None => user_info.map(|info| groups(info, groups_claim)).transpose()?.flatten(),
        };
        Ok(Self {
            preferred_username: either("preferred_username"),
            email: either("email"),
            full_name: either("name").map(|name| printable(&name, MAX_NAME_CHARS)),
            groups: groups.unwrap_or_default(),
            subject,
        })
    }

    /// Derives an account name from the provider's names, whether or not it is available.
    pub fn account_name(&self) -> Option<String> {
        let mail = self.email.as_deref().and_then(|mail| mail.split('@').next());
        let candidates = [self.preferred_username.as_deref(), mail, Some(&self.subject)];
        candidates.into_iter().flatten().find_map(|text| {
            let text = text.split('@').next().unwrap_or(text).to_lowercase();
            let plain = |c: char| {
                if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' }
            };
            let text: String = text.chars().map(plain).take(45).collect();
            let text = text.trim_matches(['.', '-', '_']);
            is_user_name(text).then(|| text.to_owned())
        })
    }

    /// Returns names to try in turn: another account may have the first, and some are reserved.
    pub fn account_names(&self) -> impl Iterator<Item = String> {
        let name = self.account_name();
        let names = name.into_iter().flat_map(|name| {
            (1..100).map(move |number| match number {
                1 => name.clone(),
                number => format!("{name}-{number}"),
            })
        });
        names.filter(|name| !is_reserved_name(name))
    }
}

/// Returns the groups of one set of claims; `None` if it has no such claim.
fn groups(claims: &Value, path: &str) -> Result<Option<Vec<String>>, ClaimsError> {
    match find(claims, path) {
        None | Some(Value::Null) => {
            // Entra ID leaves the claim out beyond 200 groups and names an endpoint that has it.
            let elsewhere = claims["_claim_names"].get(path).is_some();
            let implied = claims["hasgroups"].as_bool() == Some(true);
            if elsewhere || implied { Err(ClaimsError::Overage) } else { Ok(None) }
        }
        Some(Value::String(one)) => Ok(Some(vec![one.clone()])),
        Some(Value::Array(several)) if several.len() > MAX_GROUPS => {
            Err(ClaimsError::TooManyGroups)
        }
        Some(Value::Array(several)) => {
            Ok(Some(several.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => Err(ClaimsError::NoGroupList),
    }
}

/// Returns the value at a claim's name, or else at a path of names separated by dots. Names may
/// contain dots (`https://lab.example/groups`), so longer ones are tried first.
fn find<'a>(claims: &'a Value, path: &str) -> Option<&'a Value> {
    if let Some(found) = claims.get(path) {
        return Some(found);
    }
    path.rmatch_indices('.').find_map(|(dot, _)| {
        let inner = claims.get(&path[..dot]).filter(|inner| inner.is_object())?;
        find(inner, &path[dot + 1..])
    })
}

fn text(claims: &Value, name: &str) -> Option<String> {
    claims.get(name).and_then(Value::as_str).map(str::to_owned)
}

/// Sanitizes foreign text for a terminal or page: one line, without control characters and without
/// characters that change the direction of writing, at most `limit` long.
pub fn printable(text: &str, limit: usize) -> String {
    let is_format = |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let kept = text.chars().filter(|c| !c.is_control() && !is_format(*c));
    kept.take(limit).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use kohakuriver_model::account::user_name;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(id_token: &Value, user_info: Option<&Value>) -> Result<Claims, ClaimsError> {
        Claims::read(id_token, user_info, "groups")
    }

    #[test]
    fn account_names_come_from_the_first_usable_claim() {
        let name = |claims: Value| read(&claims, None).unwrap().account_name();
        assert_eq!(name(json!({"sub": "1", "preferred_username": "Alice"})).unwrap(), "alice");
        let mail = json!({"sub": "1", "preferred_username": "alice@lab.example"});
        assert_eq!(name(mail).unwrap(), "alice");
        let accents = json!({"sub": "1", "preferred_username": "Zoë Ångström"});
        assert_eq!(name(accents).unwrap(), "zo---ngstr-m");
        assert_eq!(name(json!({"sub": "1", "email": "bob@lab.example"})).unwrap(), "bob");
        assert_eq!(name(json!({"sub": "77", "preferred_username": "../"})).unwrap(), "77");
        assert_eq!(name(json!({"sub": "///"})), None);
    }

    #[test]
    fn reserved_account_names_are_passed_over() {
        for reserved in ["host", "Anonymous", "node", "system"] {
            let claims = read(&json!({"sub": "1", "preferred_username": reserved}), None).unwrap();
            let first = claims.account_names().next().unwrap();
            assert_eq!(first, format!("{}-2", reserved.to_lowercase()));
        }
    }

    #[test]
    fn groups_are_a_list_or_one_text_at_a_name_or_path() {
        let list = |claims: Value, path: &str| groups(&claims, path);
        let staff = Ok(Some(vec!["staff".to_owned()]));
        assert_eq!(list(json!({"groups": ["staff", 7]}), "groups"), staff);
        assert_eq!(list(json!({"groups": "staff"}), "groups"), staff);
        assert_eq!(list(json!({"groups": []}), "groups"), Ok(Some(Vec::new())));
        assert_eq!(list(json!({"groups": null}), "groups"), Ok(None));
        assert_eq!(list(json!({}), "groups"), Ok(None));
        let roles = json!({"realm_access": {"roles": ["staff"]}});
        assert_eq!(list(roles, "realm_access.roles"), staff);
        let exact = json!({"a.b": "staff", "a": {"b": "other"}});
        assert_eq!(list(exact, "a.b"), staff, "the exact name comes first");
        let dots = json!({"resource_access": {"my.client": {"roles": ["staff"]}}});
        assert_eq!(list(dots, "resource_access.my.client.roles"), staff);
        let url = json!({"https://lab.example/groups": ["staff"]});
        assert_eq!(list(url, "https://lab.example/groups"), staff);
        for bad in [json!({"groups": 7}), json!({"groups": {"staff": true}})] {
            assert_eq!(groups(&bad, "groups"), Err(ClaimsError::NoGroupList));
        }
        let many = json!({"groups": vec!["x"; MAX_GROUPS + 1]});
        assert_eq!(groups(&many, "groups"), Err(ClaimsError::TooManyGroups));
    }

    #[test]
    fn omitted_group_list_is_an_error() {
        let entra = json!({"sub": "1", "_claim_names": {"groups": "src1"},
            "_claim_sources": {"src1": {"endpoint": "https://graph.example/x"}}});
        assert_eq!(read(&entra, None), Err(ClaimsError::Overage));
        let implied = json!({"sub": "1", "hasgroups": true});
        assert_eq!(read(&implied, None), Err(ClaimsError::Overage));
        let roles = json!({"sub": "1", "_claim_names": {"groups": "src1"}, "roles": ["staff"]});
        let claims = Claims::read(&roles, None, "roles").unwrap();
        assert_eq!(claims.groups, ["staff"], "another claim is complete");
    }

    #[test]
    fn user_info_fills_gaps_for_the_same_subject_only() {
        let id = json!({"sub": "1", "email": "ann@lab.example"});
        let info =
            json!({"sub": "1", "email": "x@y", "preferred_username": "ann", "groups": ["a"]});
        let claims = read(&id, Some(&info)).unwrap();
        assert_eq!(claims.email.as_deref(), Some("ann@lab.example"));
        assert_eq!(
            (claims.preferred_username.as_deref(), &*claims.groups),
            (Some("ann"), &["a".to_owned()][..])
        );
        for other in [json!({"sub": "2", "groups": ["admins"]}), json!({"groups": ["admins"]})] {
            assert_eq!(read(&id, Some(&other)), Err(ClaimsError::OtherSubject));
        }
        assert_eq!(user_info_need(&id, "groups"), Ok(UserInfoNeed::Required));
        let named = json!({"sub": "1", "groups": []});
        assert_eq!(user_info_need(&named, "groups"), Ok(UserInfoNeed::Optional));
    }

    #[test]
    fn names_of_people_are_one_line_of_plain_text() {
        let claims = json!({"sub": "1", "name": "A\u{1b}[31m\nB\u{202e}C"});
        assert_eq!(read(&claims, None).unwrap().full_name.as_deref(), Some("A[31mBC"));
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,20}".prop_map(Value::from),
        ];
        let names = "(sub|groups|name|email|a|b|a\\.b|_claim_names|preferred_username)";
        leaf.prop_recursive(3, 20, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::hash_map(names, inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn arbitrary_claims_yield_valid_names_or_errors(
            id in json_value(),
            info in proptest::option::of(json_value()),
            path in "(groups|a\\.b|a\\.b\\.a\\.b|\\.+|)",
        ) {
            let _ = user_info_need(&id, &path);
            if let Ok(claims) = Claims::read(&id, info.as_ref(), &path) {
                for name in claims.account_names().take(3) {
                    prop_assert!(user_name(&name).is_ok());
                }
            }
        }
    }
}

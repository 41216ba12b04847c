//! Verifies ID tokens (OpenID Connect Core 1.0, 3.1.3.7).

use std::collections::HashSet;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use super::claims::printable;
use super::provider::ProviderError;

/// Providers that rotate keys have a handful.
const MAX_KEYS: usize = 100;
/// The tolerated difference between the provider's clock and this host's, in seconds.
pub const LEEWAY: u64 = 120;
/// Google's ID tokens may name it without the scheme (OpenID Connect Core 15.6.2).
const GOOGLE: &str = "https://accounts.google.com";
/// Signatures with a public key; never a shared secret, never none.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The provider's published keys. They are parsed one by one, so that an unknown one, or one that
/// is not for signatures, does not make the others unusable.
#[derive(Debug, Deserialize)]
pub struct KeySet {
    keys: Vec<Value>,
}

/// The values that an ID token must have.
#[derive(Debug)]
pub struct Expected<'a> {
    pub issuer: &'a str,
    pub client_id: &'a str,
    pub nonce: &'a str,
}

/// Returns the claims of an ID token that the provider has signed for this client and login.
///
/// # Errors
/// It has not, or the token is too old or not valid yet.
pub fn verify(token: &str, keys: &KeySet, expected: &Expected<'_>) -> Result<Value, ProviderError> {
    let refused = |text: &str| ProviderError::Token(text.to_owned());
    let invalid = |error: jsonwebtoken::errors::Error| {
        if matches!(error.kind(), ErrorKind::ExpiredSignature | ErrorKind::ImmatureSignature) {
            return ProviderError::Clock;
        }
        ProviderError::Token(printable(&error.to_string(), 200))
    };
    let header = decode_header(token).map_err(invalid)?;
    if !ALGORITHMS.contains(&header.alg) {
        return Err(refused("its signature algorithm is not accepted"));
    }
    let keys: Vec<Jwk> = keys.keys.iter().take(MAX_KEYS).filter_map(signing_key).collect();
    let key = match (&header.kid, keys.as_slice()) {
        (Some(kid), keys) => keys.iter().find(|key| key.common.key_id.as_ref() == Some(kid)),
        (None, [only]) => Some(only),
        (None, _) => None,
    };
    let key = key.ok_or_else(|| refused("its key is unknown"))?;
    let key = DecodingKey::from_jwk(key).map_err(invalid)?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY;
    match expected.issuer {
        GOOGLE => validation.set_issuer(&[GOOGLE, "accounts.google.com"]),
        issuer => validation.set_issuer(&[issuer]),
    }
    validation.set_audience(&[expected.client_id]);
    validation.required_spec_claims =
        HashSet::from(["exp", "iss", "aud", "sub"].map(str::to_owned));
    validation.validate_nbf = true;
    let claims = decode::<Value>(token, &key, &validation).map_err(invalid)?.claims;
    if claims["nonce"].as_str() != Some(expected.nonce) {
        return Err(refused("it belongs to another login"));
    }
    // A token for several audiences must have been issued to this client.
    let several = claims["aud"].as_array().is_some_and(|aud| aud.len() > 1);
    let party = claims.get("azp").and_then(Value::as_str);
    if (several || party.is_some()) && party != Some(expected.client_id) {
        return Err(refused("it was issued to another client"));
    }
    Ok(claims)
}

/// Parses a public key for signatures.
fn signing_key(key: &Value) -> Option<Jwk> {
    let key: Jwk = serde_json::from_value(key.clone()).ok()?;
    let for_signatures =
        key.common.public_key_use.as_ref().is_none_or(|only| *only == PublicKeyUse::Signature);
    let is_public = matches!(
        key.algorithm,
        AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::RSA(_)
            | AlgorithmParameters::OctetKeyPair(_)
    );
    (for_signatures && is_public).then_some(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unusable_key_leaves_the_others_usable() {
        let rsa = |kid: &str, only: &str| json!({"kty": "RSA", "kid": kid, "use": only, "n": "AQAB", "e": "AQAB"});
        let keys = [
            rsa("s", "sig"),
            rsa("e", "enc"),
            json!({"kty": "AKP", "kid": "x", "alg": "ML-DSA-44", "pub": "AA"}),
            json!({"kty": "oct", "kid": "shared", "k": "AAAA"}),
            json!({"kty": "RSA", "kid": "half", "n": "AQAB"}),
            json!("no key"),
        ];
        let usable: Vec<_> = keys.iter().filter_map(signing_key).collect();
        assert_eq!(usable.len(), 1);
        assert_eq!(usable[0].common.key_id.as_deref(), Some("s"));
    }
}
